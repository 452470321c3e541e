"""Rotary embeddings and grouped-query attention under a visibility rule."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from infopo_jax.lm import layers
from infopo_jax.lm.config import LMConfig
from infopo_jax.types import Place, pytree_dataclass

# A rule takes the places of queries [N, S] and keys [N, K] and returns [N, S, K] bool.
Visible = Callable[[Place, Place], jax.Array]

DENSE_LIMIT = 512 * 512  # largest [S, K] for which every block's scores may be held, per row and head
BRANCH_LIMIT = 256 * 256  # likewise of branches, most of whose scores are masked: above it, blocks are skipped
QUERY_BLOCK = 128  # most queries per block
LEAST_BLOCK = 16  # fewest, however many rows and keys there are
SCORE_BYTES = 1 << 31  # of the scores of a block, all rows and heads together: more rows and keys take smaller blocks
SPANS = 16  # stretches of queries that are unrolled where each may leave out later keys; blocks run in a loop in each
BRANCH_BLOCK = 64  # queries per block where blocks are skipped; with 128, 8 and 16 turns cost a tenth more
KEY_BLOCK = 64  # keys per block there
MASKED = -1e30  # finite, so that a fully masked row has no NaN in value or gradient


def causal(query: Place, key: Place) -> jax.Array:
    """Returns [N, S, K] bool: a token sees the real tokens at its own or an earlier position."""
    q, k = query.position[:, :, None], key.position[:, None, :]
    return (k >= 0) & (k <= q)


def trunk_place(real_mask: jax.Array) -> Place:
    """Returns the places of plain rows, whose tokens see what came before them.

    Args:
        real_mask: [N, L] bool, True at real tokens; padding may stand on either side.
    """
    index = jnp.broadcast_to(jnp.arange(real_mask.shape[1], dtype=jnp.int32), real_mask.shape)
    position = jnp.where(real_mask, jnp.cumsum(real_mask, axis=1, dtype=jnp.int32) - 1, -1)
    return Place(index=index, position=position, branch=jnp.full_like(index, -1), limit=index + 1)


def rope_tables(position: jax.Array, config: LMConfig, *, local: bool = False) -> tuple[jax.Array, jax.Array]:
    """Returns cosine and sine [N, S, head_dim / 2] float32 of rotary embeddings (RoFormer, arXiv 2104.09864).

    Args:
        position: [N, S] int32.
        config: its theta and scaling.
        local: of layers with a sliding window, which may have a theta of their own, without scaling.
    """
    theta, scaling = config.rope_theta, config.rope_scaling
    if local and config.rope_theta_local is not None:
        theta, scaling = config.rope_theta_local, None
    half = config.head_dim // 2
    freq = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if scaling is not None:
        freq = _scaled_frequencies(freq, scaling)
    angle = jnp.maximum(position, 0)[..., None].astype(jnp.float32) * freq
    return jnp.cos(angle), jnp.sin(angle)


def _scaled_frequencies(freq, scaling):
    """Llama 3: long wavelengths are divided by the factor, short ones kept, those between interpolated; linear: all."""
    if scaling.kind == 'linear':
        return freq / scaling.factor
    ratio = scaling.original_max_position * freq / (2 * math.pi)
    smooth = (ratio - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    smooth = jnp.clip(smooth, 0.0, 1.0)
    return (1 - smooth) * freq / scaling.factor + smooth * freq


def apply_rope(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates x [N, S, heads, head_dim] by its position; halves are paired as in transformers."""
    cos, sin = (t[:, :, None, :].astype(x.dtype) for t in tables)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    query: Place,
    key: Place,
    *,
    visible: Visible = causal,
    window: int | jax.Array | None = None,
    soft_cap: float | None = None,
    aligned: bool = False,
) -> jax.Array:
    """Attends from queries to the keys that a rule shows them.

    Scores are held for one block of queries at a time, in the backward pass too; [S, K] as a whole exists only while it
    is small.

    Args:
        q: [N, S, num_heads, D].
        k: [N, K, num_kv_heads, D]; query head h reads key head h // (num_heads / num_kv_heads).
        v: [N, K, num_kv_heads, D].
        query: places of the queries, [N, S].
        key: places of the keys, [N, K].
        visible: the rule.
        window: keys whose position is this far back, or further, are invisible; None shows all.
        soft_cap: bounds scores to cap * tanh(scores / cap).
        aligned: queries and keys are the same tokens in causal order: a span of queries need not visit later keys.

    Returns:
        [N, S, num_heads, D]; zeros where a query sees no key.
    """
    (n, size, num_heads), num_keys = q.shape[:3], k.shape[1]
    block = min(QUERY_BLOCK, max(LEAST_BLOCK, SCORE_BYTES // (4 * n * num_heads * num_keys)))
    small = size * num_keys <= DENSE_LIMIT
    if size <= block or (small and not aligned):
        return _attend_block(q, k, v, query, key, visible, window, soft_cap)
    # Where scores are large, the backward pass recomputes a block's.
    run = _attend_block if small else jax.checkpoint(_attend_block, static_argnums=(5, 7))
    span = -(-size // (SPANS * block)) * block if aligned else size
    outs = []
    for start in range(0, size, span):
        rows = slice(start, min(start + span, size))
        cols = slice(0, rows.stop if aligned else num_keys)
        some_k, some_v, some_key = k[:, cols], v[:, cols], _cut(key, cols)

        def one(part, k=some_k, v=some_v, key=some_key):
            return run(part[0], k, v, part[1], key, visible, window, soft_cap)

        outs.append(_in_blocks(one, (q[:, rows], _cut(query, rows)), block))
    return jnp.concatenate(outs, axis=1)


def _in_blocks(function, inputs, block):
    """Maps arrays [N, S, ...] in blocks along S, one after the other, to [N, S, ...]."""
    n, size = jax.tree.leaves(inputs)[0].shape[:2]
    if size <= block:
        return function(inputs)

    def split(x):  # -> [blocks, N, block, ...]
        x = jnp.pad(x, [(0, 0), (0, -size % block)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(n, -1, block, *x.shape[2:]), 1, 0)

    out = jnp.moveaxis(jax.lax.map(function, jax.tree.map(split, inputs)), 0, 1)
    return out.reshape(n, -1, *out.shape[3:])[:, :size]


def _cut(place: Place, part: slice) -> Place:
    return jax.tree.map(lambda a: a[:, part], place)


def _mask(query, key, visible, window):
    """Returns [N, S, K] bool, True where a query sees a key."""
    mask = visible(query, key)
    if window is not None:
        mask &= query.position[:, :, None] - key.position[:, None, :] < window
    return mask


def _scores(q, k, mask, soft_cap):
    """Returns masked scores [N, H, S, T] float32 of q [N, H, S, D] and k [N, K, T, D].

    The mask is a bias shared by all heads: adding it fuses better than a select per head.
    """
    bias = jnp.where(mask, 0.0, MASKED)[:, None]
    return layers.soft_cap(_product(q * (q.shape[-1] ** -0.5), k.swapaxes(2, 3)), soft_cap) + bias


def _by_head(x, num_heads):
    """Moves heads to the front: [N, S, K, D] -> [N, K, S, D], on CPU [N, num_heads, S, D].

    There, more products of fewer rows are 1.6 times as fast; elsewhere nothing is repeated, which at real sizes is most
    of the memory.
    """
    if jax.default_backend() == 'cpu':
        x = jnp.repeat(x, num_heads // x.shape[2], axis=2)
    return x.swapaxes(1, 2)


def _product(a, b):
    """Multiplies a [N, H, S, X] with b [N, K, X, Y] in float32; heads that share one of b are rows of one product."""
    n, num_heads, size, x = a.shape
    out = jnp.einsum('nkqx,nkxy->nkqy', a.reshape(n, b.shape[1], -1, x), b, preferred_element_type=jnp.float32)
    return out.reshape(n, num_heads, size, -1)


def _attend_block(q, k, v, query, key, visible, window, soft_cap):
    q, k, v = (_by_head(x, q.shape[2]) for x in (q, k, v))
    mask = _mask(query, key, visible, window)
    scores = _scores(q, k, mask, soft_cap)
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = _product(weights.astype(v.dtype), v) / total
    # Zeros where nothing was visible. Asked of the mask, not of the maximum: a second use of that keeps XLA's CPU
    # backend from fusing the softmax (4 times slower).
    out = jnp.where(jnp.any(mask, axis=-1)[:, None, :, None], out, 0.0).astype(v.dtype)
    return out.swapaxes(1, 2)


@pytree_dataclass
class BlockMap:
    """Which blocks of keys each block of queries has to visit; made once per pass, used by every layer."""

    query: Place  # [N, S'] padded to whole blocks
    key: Place  # [N, K'] padded to whole blocks
    needed: jax.Array  # [query blocks, key blocks] bool, some row has a visible pair there


def block_map(query: Place, key: Place, *, visible: Visible) -> BlockMap | None:
    """Returns the map for ``attend_sparse``, or None where everything fits one dense block."""
    if query.position.shape[1] * key.position.shape[1] <= BRANCH_LIMIT:
        return None

    def pad(place, block):
        extra = -place.position.shape[1] % block
        return Place(**{
            name: jnp.pad(value, ((0, 0), (0, extra)), constant_values=-1 if name == 'position' else 0)
            for name, value in vars(place).items()
        })  # fmt: skip

    query, key = pad(query, BRANCH_BLOCK), pad(key, KEY_BLOCK)
    num_blocks = key.position.shape[1] // KEY_BLOCK

    def row(start):
        some = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, BRANCH_BLOCK, axis=1), query)
        seen = jnp.any(visible(some, key) & (some.position >= 0)[..., None], axis=(0, 1))
        return jnp.any(seen.reshape(num_blocks, KEY_BLOCK), axis=1)

    starts = jnp.arange(0, query.position.shape[1], BRANCH_BLOCK)
    return BlockMap(query=query, key=key, needed=jax.lax.map(row, starts))


def attend_sparse(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    blocks: BlockMap,
    *,
    visible: Visible,
    window: int | jax.Array | None = None,
    soft_cap: float | None = None,
) -> jax.Array:
    """Attends as ``attend`` does, visiting only the blocks of keys that a block of queries needs; forward only.

    Softmax is accumulated over blocks (Milakov and Gimelshein, arXiv 1805.02867). Branch queries read the trunk up to
    their limit and their own branch: most blocks are not needed, and which ones is known only at run time.
    """
    n, size, num_heads, dim = q.shape
    q = jnp.pad(q, ((0, 0), (0, blocks.query.position.shape[1] - size), (0, 0), (0, 0)))
    extra = blocks.key.position.shape[1] - k.shape[1]
    k, v = (jnp.pad(x, ((0, 0), (0, extra), (0, 0), (0, 0))) for x in (k, v))

    def part(tree, start, width):
        return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, width, axis=1), tree)

    def one(index):
        mine, place = part((q, blocks.query), index * BRANCH_BLOCK, BRANCH_BLOCK)
        mine = mine.swapaxes(1, 2)

        def visit(j, carry):
            top, total, out = carry
            key, *kv = part((blocks.key, k, v), j * KEY_BLOCK, KEY_BLOCK)
            some_k, some_v = (x.swapaxes(1, 2) for x in kv)
            scores = _scores(mine, some_k, _mask(place, key, visible, window), soft_cap)
            new_top = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
            weights = jnp.where(scores > MASKED / 2, jnp.exp(scores - new_top), 0.0)
            fade = jnp.exp(top - new_top)
            add = _product(weights.astype(v.dtype), some_v)
            return new_top, total * fade + jnp.sum(weights, axis=-1, keepdims=True), out * fade + add

        def step(j, carry):
            return jax.lax.cond(blocks.needed[index, j], lambda c: visit(j, c), lambda c: c, carry)

        shape = (n, num_heads, BRANCH_BLOCK)
        start = (jnp.full((*shape, 1), MASKED), jnp.zeros((*shape, 1)), jnp.zeros((*shape, dim)))
        top, total, out = jax.lax.fori_loop(0, blocks.needed.shape[1], step, start)
        out = jnp.where(top > MASKED / 2, out / jnp.maximum(total, 1e-30), 0.0)
        return out.astype(v.dtype).swapaxes(1, 2)

    outs = jax.lax.map(one, jnp.arange(blocks.needed.shape[0]))
    return jnp.moveaxis(outs, 0, 1).reshape(n, -1, num_heads, dim)[:, :size]
