"""Rotary embeddings and grouped-query attention under a visibility rule."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from infopo_jax.lm.config import LMConfig
from infopo_jax.types import Place

# A rule takes the places of queries [N, S] and keys [N, K] and returns [N, S, K] bool.
Visible = Callable[[Place, Place], jax.Array]

DENSE_LIMIT = 512 * 512  # largest [S, K] block of scores held at once, per row and head
QUERY_BLOCK = 256  # queries per block beyond that
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


def rope_tables(position: jax.Array, config: LMConfig) -> tuple[jax.Array, jax.Array]:
    """Returns cosine and sine [N, S, head_dim / 2] float32 of rotary embeddings (RoFormer, arXiv 2104.09864)."""
    half = config.head_dim // 2
    freq = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if config.rope_scaling is not None:
        freq = _scaled_frequencies(freq, config.rope_scaling)
    angle = jnp.maximum(position, 0)[..., None].astype(jnp.float32) * freq
    return jnp.cos(angle), jnp.sin(angle)


def _scaled_frequencies(freq, scaling):
    """Llama 3: long wavelengths are divided by the factor, short ones kept, those between interpolated."""
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
    window: int | None = None,
    aligned: bool = False,
    block: int | None = None,
) -> jax.Array:
    """Attends from queries to the keys that a rule shows them.

    Scores are held for one block of queries at a time; [S, K] as a whole exists only while it is small.

    Args:
        q: [N, S, num_heads, D].
        k: [N, K, num_kv_heads, D]; query head h reads key head h // (num_heads / num_kv_heads).
        v: [N, K, num_kv_heads, D].
        query: places of the queries, [N, S].
        key: places of the keys, [N, K].
        visible: the rule.
        window: keys whose position is this far back, or further, are invisible; None shows all.
        aligned: queries and keys are the same tokens in causal order, so that a block of queries need not visit later keys.
        block: queries per block when [S, K] is large; None takes QUERY_BLOCK.

    Returns:
        [N, S, num_heads, D]; zeros where a query sees no key.
    """
    size, num_keys = q.shape[1], k.shape[1]
    block = block or QUERY_BLOCK
    if size * num_keys <= DENSE_LIMIT or size <= block:
        return _attend_block(q, k, v, query, key, visible, window)
    outs = []
    run = jax.checkpoint(_attend_block, static_argnums=(5, 6))  # the backward pass recomputes a block's scores
    for start in range(0, size, block):
        rows = slice(start, min(start + block, size))
        cols = slice(0, rows.stop if aligned else num_keys)
        place = jax.tree.map(lambda a, rows=rows: a[:, rows], query)
        keys = jax.tree.map(lambda a, cols=cols: a[:, cols], key)
        outs.append(run(q[:, rows], k[:, cols], v[:, cols], place, keys, visible, window))
    return jnp.concatenate(outs, axis=1)


def _attend_block(q, k, v, query, key, visible, window):
    n, s, num_heads, dim = q.shape
    num_kv_heads = k.shape[2]
    mask = visible(query, key)
    if window is not None:
        mask &= query.position[:, :, None] - key.position[:, None, :] < window
    q = q.reshape(n, s, num_kv_heads, num_heads // num_kv_heads, dim) * (dim**-0.5)
    scores = jnp.einsum('nskgd,ntkd->nkgst', q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores, MASKED)
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1)
    out = jnp.einsum('nkgst,ntkd->nskgd', weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    scale = jnp.where(top[..., 0] > MASKED / 2, 1.0 / total, 0.0)
    out = out * jnp.moveaxis(scale, 3, 1)[..., None]
    return out.reshape(n, s, num_heads, dim).astype(v.dtype)
