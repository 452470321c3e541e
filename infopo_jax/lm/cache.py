"""The key-value cache: a plain pytree that is passed in and handed back.

Keys lie as [N, num_kv_heads, head_dim, S] and values as [N, num_kv_heads, S, head_dim], so that the products of a query
with the keys, and of the weights with the values, both run along memory: stored token by token they would be transposed
at every step. They are kept in the compute dtype, in bfloat16, or in int8 with a scale per head and token; attention
multiplies scores and weights by the scales.

A cache may stand on a ``prefix`` that is only read: another cache whose row p belongs to rows p * G to p * G + G - 1. A
group then shares one prefill of its prompt without a copy, and a loop that decodes writes to a short cache of its own.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from infopo_jax.lm.config import LMConfig
from infopo_jax.types import Place, pytree_dataclass

DTYPES = ('float32', 'bfloat16', 'int8')
LEVELS = 127  # of int8, symmetric
COLUMNS = {'k': 3, 'v': 2, 'k_scale': 2, 'v_scale': 2}  # the axis of S


@pytree_dataclass
class Cache:
    """Keys and values of the tokens fed so far, in S columns per row.

    A column is visible where its position is not -1; rows may have holes.
    """

    k: tuple[jax.Array, ...]  # per layer [N, num_kv_heads, head_dim, S]
    v: tuple[jax.Array, ...]  # per layer [N, num_kv_heads, S, head_dim]
    position: jax.Array  # [N, S] int32, -1 where nothing stands
    k_scale: tuple[jax.Array, ...] = ()  # int8: per layer [N, num_kv_heads, S] float32
    v_scale: tuple[jax.Array, ...] = ()  # int8: per layer [N, num_kv_heads, S] float32
    prefix: Cache | None = None  # read only, [P, ...] with N = P * G; its tokens stand before these

    @property
    def size(self) -> int:
        """S, without the prefix."""
        return self.position.shape[1]

    def layer(self, i: int) -> Layer:
        """Returns what layer i attends to."""
        scales = (self.k_scale[i], self.v_scale[i]) if self.k_scale else (None, None)
        return Layer(self.k[i], self.v[i], *scales)

    def parts(self, i: int) -> list[tuple[Layer, jax.Array]]:
        """Returns layer i of the prefixes, the lowest first, and of this cache, each with its positions."""
        below = [] if self.prefix is None else self.prefix.parts(i)
        return [*below, (self.layer(i), self.position)]


@pytree_dataclass
class Layer:
    """Keys and values of one layer."""

    k: jax.Array  # [N, num_kv_heads, head_dim, S]
    v: jax.Array  # [N, num_kv_heads, S, head_dim]
    k_scale: jax.Array | None  # [N, num_kv_heads, S] float32; None: keys and values are what they are
    v_scale: jax.Array | None

    def append(self, k: jax.Array, v: jax.Array, start: jax.Array) -> Layer:
        """Writes new keys and values [N, C, num_kv_heads, head_dim] from column ``start``; see ``append``."""
        k, v = jnp.moveaxis(k, 1, 3), v.swapaxes(1, 2)
        parts = {'k': k, 'v': v}
        if self.k_scale is not None:
            k, k_scale = quantize(k, axis=2)
            v, v_scale = quantize(v, axis=3)
            parts = {'k': k, 'v': v, 'k_scale': k_scale, 'v_scale': v_scale}
        put = {name: append(getattr(self, name), new, start, axis=COLUMNS[name]) for name, new in parts.items()}
        return dataclasses.replace(self, **put)

    def unpacked(self, dtype: Any) -> tuple[jax.Array, jax.Array]:
        """Returns keys and values [N, S, num_kv_heads, head_dim] in a float dtype."""
        k, v = self.k, self.v
        if self.k_scale is not None:
            k, v = k * self.k_scale[:, :, None], v * self.v_scale[..., None]
        return jnp.moveaxis(k, 3, 1).astype(dtype), v.swapaxes(1, 2).astype(dtype)


def empty(config: LMConfig, num_rows: int, size: int, dtype: str | None = None) -> Cache:
    """Returns a cache of ``size`` columns in which nothing stands.

    Args:
        config: of the model.
        num_rows: N.
        size: S.
        dtype: one of DTYPES; None keeps the compute dtype.

    Raises:
        ValueError: an unknown dtype.
    """
    dtype = dtype or config.dtype
    if dtype not in DTYPES:
        raise ValueError(f'cache dtype must be one of {", ".join(DTYPES)}, got {dtype!r}')
    rows, dim = (num_rows, config.num_kv_heads), config.head_dim

    def zeros(shape, dtype):  # buffers of their own, so that the cache can be donated
        return tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers))

    scaled = dtype == 'int8'
    return Cache(
        k=zeros((*rows, dim, size), dtype),
        v=zeros((*rows, size, dim), dtype),
        position=jnp.full((num_rows, size), -1, jnp.int32),
        k_scale=zeros((*rows, size), jnp.float32) if scaled else (),
        v_scale=zeros((*rows, size), jnp.float32) if scaled else (),
    )


def of_layers(layers: list[Layer], position: jax.Array, prefix: Cache | None) -> Cache:
    """Returns a cache of the layers' keys and values."""
    scaled = layers[0].k_scale is not None
    return Cache(
        k=tuple(x.k for x in layers),
        v=tuple(x.v for x in layers),
        position=position,
        k_scale=tuple(x.k_scale for x in layers) if scaled else (),
        v_scale=tuple(x.v_scale for x in layers) if scaled else (),
        prefix=prefix,
    )


def quantize(x: jax.Array, *, axis: int = -1) -> tuple[jax.Array, jax.Array]:
    """Returns int8 values and float32 scales, one per vector along ``axis``: values * scale is x to half a scale."""
    wide = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=axis, keepdims=True) / LEVELS
    values = jnp.round(wide / jnp.maximum(scale, jnp.finfo(jnp.float32).tiny))
    return values.astype(jnp.int8), jnp.squeeze(scale, axis)


def append(buffer: jax.Array, new: jax.Array, start: jax.Array, *, axis: int = 1) -> jax.Array:
    """Writes C columns into the S columns of a buffer, from column ``start``.

    Args:
        buffer: [N, ..., S, ...].
        new: [N, ..., C, ...].
        start: [] int32 for the same column in every row (one contiguous write), or [N] int32 for a column per row. The
            caller keeps start + C <= S: XLA would clamp the start and overwrite earlier columns.
        axis: where the columns are.
    """
    new = new.astype(buffer.dtype)
    if jnp.ndim(start) == 0:
        return jax.lax.dynamic_update_slice_in_dim(buffer, new, start, axis=axis)
    put = jax.lax.dynamic_update_slice_in_dim
    return jax.vmap(lambda b, x, s: put(b, x, s, axis=axis - 1))(buffer, new, start)


def key_place(position: jax.Array) -> Place:
    """Returns the places of cached keys, to be used with the causal rule."""
    return Place(index=position, position=position, branch=jnp.full_like(position, -1), limit=position + 1)


def resize(cache: Cache, size: int) -> Cache:
    """Returns the cache with ``size`` columns: the first ones of a longer cache, or empty ones behind a shorter one."""
    if size == cache.size:
        return cache

    def fit(x, axis, empty=0):
        if size < cache.size:
            return jax.lax.slice_in_dim(x, 0, size, axis=axis)
        return jnp.pad(x, [(0, size - cache.size if a == axis else 0) for a in range(x.ndim)], constant_values=empty)

    parts = {name: tuple(fit(x, axis) for x in getattr(cache, name)) for name, axis in COLUMNS.items()}
    return Cache(**parts, position=fit(cache.position, 1, -1), prefix=cache.prefix)


def view(cache: Cache, size: int) -> Cache:
    """Returns the first ``size`` columns, enough when no row is longer."""
    return resize(cache, min(size, cache.size))


def fork(cache: Cache, group_size: int) -> Cache:
    """Repeats every row ``group_size`` times; ``behind`` shares the rows instead."""
    return jax.tree.map(lambda a: jnp.repeat(a, group_size, axis=0), cache)


def behind(prefix: Cache, config: LMConfig, num_rows: int, size: int) -> Cache:
    """Returns an empty cache of ``size`` columns whose rows stand on a prefix, ``num_rows`` / P of them on each row."""
    dtype = str(prefix.k[0].dtype)
    return dataclasses.replace(empty(config, num_rows, size, dtype), prefix=prefix)


def merge(cache: Cache, new: Cache, start: jax.Array) -> Cache:
    """Writes the columns of ``new`` (of as many rows) into a cache from column ``start``; see ``append``."""

    def put(name, axis):
        pairs = zip(getattr(cache, name), getattr(new, name), strict=True)
        return tuple(append(a, b, start, axis=axis) for a, b in pairs)

    parts = {name: put(name, axis) for name, axis in COLUMNS.items()}
    return Cache(**parts, position=append(cache.position, new.position, start), prefix=cache.prefix)


def copy_columns(source: Cache, target: Cache, *, row: jax.Array, to: jax.Array, start: jax.Array, size: int) -> Cache:
    """Returns ``target`` with ``size`` columns of one row, from column ``start``, taken from a row of ``source``.

    Args:
        source: without the prefix; its columns are those of ``target``, or the first of them.
        target: is changed in place where it is donated.
        row: [] int32, of ``source``.
        to: [] int32, row of ``target``.
        start: [] int32.
        size: columns to copy.
    """

    def put(a, b, axis):
        def at(index):
            return [{0: index, axis: start}.get(i, 0) for i in range(a.ndim)]

        shape = [{0: 1, axis: size}.get(i, length) for i, length in enumerate(a.shape)]
        return jax.lax.dynamic_update_slice(b, jax.lax.dynamic_slice(a, at(row), shape), at(to))

    parts = {
        name: tuple(put(a, b, axis) for a, b in zip(getattr(source, name), getattr(target, name), strict=True))
        for name, axis in COLUMNS.items()
    }
    return Cache(**parts, position=put(source.position, target.position, 1), prefix=target.prefix)
