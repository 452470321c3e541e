"""What ``rollout.slots`` runs on the device: pure functions over a cache's rows, each compiled once per shape.

A dispatch that samples reads the cache as a prefix and writes to a small one of its own, one column per step for all
rows, which is merged when it ends: rows stand at different lengths, and writing where each ends is a scatter per token.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from infopo_jax import sharding
from infopo_jax.lm import cache as cache_lib, decoding, sampling


@functools.partial(jax.jit, static_argnums=(0, 1))
def publish(graphdef, mesh, params):
    """Returns the weights as decoding reads them, whole over fsdp: converted first, they are half as much to send."""
    params = nnx.split(decoding.for_decoding(nnx.merge(graphdef, params)))[1]
    return sharding.publish(params, mesh)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def empty(graphdef, mesh, cache_dtype, columns, num_rows, params):
    """Returns a cache in which nothing stands and logits of no token, made where they stay."""
    config = nnx.merge(graphdef, params).config
    cache = cache_lib.empty(config, num_rows, columns, cache_dtype)
    return sharding.kv_cache(cache, mesh), sharding.rows(jnp.zeros((num_rows, config.vocab_size), jnp.float32), mesh)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What programs are compiled for."""

    graphdef: Any  # of the model as decoding reads it
    mesh: jax.sharding.Mesh | None  # that rows are divided over
    columns: int  # of the cache that a dispatch reads


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(2, 3))
def extend(setting: Setting, params, cache, logits, tokens, count, fed, rows):
    """Feeds tokens [R, C] to some rows [R] (None: to all), which reach, padding included, no further than ``columns``.

    Where ``count`` is 0 there is no row, or nothing to feed.
    """
    mesh, columns = setting.mesh, setting.columns
    if rows is None:
        tokens, count, fed = sharding.rows((tokens, count, fed), mesh)
    model = nnx.merge(setting.graphdef, params)
    offset = jnp.arange(tokens.shape[1])
    position = jnp.where(offset < count[:, None], fed[:, None] + offset, -1)
    some = cache_lib.view(cache, columns)
    some = some if rows is None else jax.tree.map(lambda leaf: leaf[rows], some)
    hidden, some = model.extend(tokens, position, some, fed)
    last = jnp.take_along_axis(hidden, jnp.maximum(count - 1, 0)[:, None, None], axis=1)[:, 0]
    new = model.logits(last)
    if rows is None:
        logits = jnp.where(count[:, None] > 0, new, logits)
        cache = some if columns == cache.size else cache_lib.merge(cache, some, jnp.int32(0))
        return sharding.kv_cache(cache, mesh), sharding.rows(logits, mesh)

    def put(i, both):
        cache, logits = both
        cache = cache_lib.copy_columns(some, cache, row=i, to=rows[i], start=fed[i], size=tokens.shape[1])
        return cache, logits.at[rows[i]].set(new[i])

    cache, logits = jax.lax.fori_loop(0, jnp.sum(count > 0), put, (cache, logits))
    return sharding.kv_cache(cache, mesh), sharding.rows(logits, mesh)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=(5, 6))
def decode(setting: Setting, chunk, stop_ids, draw, params, cache, logits, fed, drawn, budget, key, places):
    """Every token is fed as it is sampled, except one that ends the action: that goes in front of the feedback."""
    mesh, columns = setting.mesh, setting.columns
    model = nnx.merge(setting.graphdef, params)
    fed, budget, keys = sharding.rows((fed, budget, _token_keys(key, places, drawn, chunk)), mesh)
    uniform, n = sampling.uniforms(keys), len(fed)
    ropes = model.rotary(fed[:, None] + jnp.arange(chunk))
    prefix = cache_lib.view(cache, columns)
    # What stands behind a row's end is an earlier tenant's: a column of its own would have overwritten it by now.
    place = jnp.where(jnp.arange(prefix.size) < fed[:, None], prefix.position, -1)
    prefix = dataclasses.replace(prefix, position=place)

    def body(s):
        j, going, own, logits, tokens, logps, count = s
        token, logp = draw(jax.lax.dynamic_index_in_dim(uniform, j, axis=1, keepdims=False), logits)
        tokens = tokens.at[:, j].set(jnp.where(going, token, 0))
        logps = logps.at[:, j].set(jnp.where(going, logp, 0.0))
        count = count + going
        stops = jnp.any(token[:, None] == jnp.array(stop_ids, jnp.int32), axis=1)
        goes_on = going & ~stops & (count < budget)
        position = jnp.where(goes_on, fed + j, -1)[:, None]
        rope = jax.tree.map(lambda t: jax.lax.dynamic_slice_in_dim(t, j, 1, axis=1), ropes)

        def feed(own):
            hidden, own = model.extend(token[:, None], position, dataclasses.replace(own, prefix=prefix), j, rope)
            return dataclasses.replace(own, prefix=None), model.logits(hidden[:, 0])

        own, logits = jax.lax.cond(jnp.any(goes_on), feed, lambda own: (own, logits), own)
        return j + 1, goes_on, own, logits, tokens, logps, count

    own = dataclasses.replace(cache_lib.behind(prefix, model.config, n, chunk), prefix=None)
    start = (
        jnp.int32(0), budget > 0, sharding.kv_cache(own, mesh), logits,
        jnp.zeros((n, chunk), jnp.int32), jnp.zeros((n, chunk), jnp.float32), jnp.zeros((n,), jnp.int32),
    )  # fmt: skip
    _, _, own, logits, *out = jax.lax.while_loop(lambda s: (s[0] < chunk) & jnp.any(s[1]), body, start)
    return sharding.kv_cache(cache_lib.merge(cache, own, fed), mesh), sharding.rows(logits, mesh), tuple(out)


def _token_keys(key, places, drawn, chunk):
    """Returns a key for each of the next tokens, [slots, chunk], from its (group, member) and number."""
    fold = jax.random.fold_in

    def of_row(place, drawn):
        row = fold(fold(key, place[0]), place[1])
        return jax.vmap(lambda number: fold(row, number))(drawn + jnp.arange(chunk))

    return jax.vmap(of_row)(places, drawn)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def seat(mesh, rows, row, slots, count):
    """Copies the prompt's row into the first ``count`` of the slots."""

    def put(i, rows):
        return jax.tree.map(lambda leaf, new: sharding.put_row(leaf, new, slots[i], mesh), rows, row)

    cache, logits = jax.lax.fori_loop(0, count, put, rows)
    return sharding.kv_cache(cache, mesh), sharding.rows(logits, mesh)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def swap(mesh, cache, aside, pairs, count):
    """Exchanges the rows of the first ``count`` pairs, each of which names rows of its own.

    All rows are read before the first is written: pair by pair XLA copies both caches instead.
    """

    def read(cache, rows):
        return jax.tree.map(lambda leaf: sharding.get_rows(leaf, rows, mesh), cache)

    def write(i, cache, rows, new):
        def put(leaf, new):
            return sharding.put_row(leaf, jax.lax.dynamic_slice_in_dim(new, i, 1), rows[i], mesh)

        return jax.tree.map(put, cache, new)

    out, back = read(cache, pairs[:, 0]), read(aside, pairs[:, 1])
    cache, aside = jax.lax.fori_loop(
        0, count, lambda i, both: (write(i, both[0], pairs[:, 0], back), write(i, both[1], pairs[:, 1], out)),
        (cache, aside),
    )  # fmt: skip
    return sharding.kv_cache(cache, mesh), sharding.kv_cache(aside, mesh)
