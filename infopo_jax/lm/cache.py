"""The key-value cache: a plain pytree that is passed in and handed back."""

import jax
import jax.numpy as jnp

from infopo_jax.lm.config import LMConfig
from infopo_jax.types import Place, pytree_dataclass


@pytree_dataclass
class Cache:
    """Keys and values of the tokens fed so far, in S columns per row.

    A column is visible where its position is not -1; rows may have holes.
    """

    k: tuple[jax.Array, ...]  # per layer [N, S, num_kv_heads, head_dim]
    v: tuple[jax.Array, ...]  # per layer [N, S, num_kv_heads, head_dim]
    position: jax.Array  # [N, S] int32, -1 where nothing stands


def empty(config: LMConfig, num_rows: int, size: int, dtype: str | None = None) -> Cache:
    """Returns a cache of ``size`` columns in which nothing stands."""
    shape = (num_rows, size, config.num_kv_heads, config.head_dim)

    def zeros():  # buffers of their own, so that the cache can be donated
        return tuple(jnp.zeros(shape, dtype or config.dtype) for _ in range(config.num_layers))

    return Cache(k=zeros(), v=zeros(), position=jnp.full((num_rows, size), -1, jnp.int32))


def append(buffer: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
    """Writes new [N, C, ...] into buffer [N, S, ...] from column ``start``.

    Args:
        start: [] int32 for the same column in every row (one contiguous write), or [N] int32 for a column per row. The
            caller keeps start + C <= S: XLA would clamp the start and overwrite earlier columns.
    """
    new = new.astype(buffer.dtype)
    if jnp.ndim(start) == 0:
        return jax.lax.dynamic_update_slice_in_dim(buffer, new, start, axis=1)
    return jax.vmap(lambda b, x, s: jax.lax.dynamic_update_slice_in_dim(b, x, s, axis=0))(buffer, new, start)


def key_place(position: jax.Array) -> Place:
    """Returns the places of cached keys, to be used with the causal rule."""
    return Place(index=position, position=position, branch=jnp.full_like(position, -1), limit=position + 1)


def view(cache: Cache, size: int) -> Cache:
    """Returns the first ``size`` columns, enough when no row is longer."""
    return jax.tree.map(lambda a: a[:, :size], cache)


def fork(cache: Cache, group_size: int) -> Cache:
    """Repeats every row ``group_size`` times, so that a group shares one prefill of its prompt."""
    return jax.tree.map(lambda a: jnp.repeat(a, group_size, axis=0), cache)
