"""From a file to a sharded parameter: one layer at a time, written in place into the stacked buffer."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from infopo_jax.lm import tensor_files
from infopo_jax.lm.hf_names import Source
from infopo_jax.lm.tensor_files import Entry


def default_sharding(mesh: Mesh | None, name: str, shape: tuple[int, ...]) -> Sharding:
    """Returns the longest axis that divides split over all devices of a mesh, the layer axis never."""
    if mesh is None:
        return SingleDeviceSharding(jax.devices()[0])
    first = 1 if name.startswith('blocks/') else 0  # layers stay whole: they are scanned
    fits = [axis for axis in range(first, len(shape)) if shape[axis] % mesh.size == 0]
    spec = [None] * len(shape)
    if fits:
        spec[max(fits, key=lambda axis: shape[axis])] = mesh.axis_names
    return NamedSharding(mesh, PartitionSpec(*spec))


def load_parameter(
    source: Source, entries: Mapping[str, Entry], shape: tuple[int, ...], dtype: np.dtype, sharding: Sharding
) -> jax.Array:
    """Returns one parameter on its devices; the host holds one layer's tensor at a time.

    Raises:
        ValueError: the sharding splits the layer axis, or a file cannot be read.
    """
    if not source.stacked:
        value = _to_device(tensor_files.read(entries[source.names[0][0]]), sharding)
        return _cast(sharding, dtype)(value).block_until_ready()
    layer_sharding = _drop_axis(sharding)
    piece_sharding = _swap_axes(layer_sharding, len(shape) - 1) if source.transpose else layer_sharding
    buffer = _zeros(shape, dtype, sharding)()
    for i, names in enumerate(source.names):
        value = _to_device(_read_layer(entries, names, source.experts), piece_sharding)
        # Waiting bounds the host's memory: without it reads would run ahead of the transfers.
        buffer = _write_layer(sharding, source.transpose)(buffer, value, i).block_until_ready()
    return buffer


def _read_layer(entries, names, experts):
    if not experts:
        return tensor_files.read(entries[names[0]])
    first = entries[names[0]]
    out = np.empty((len(names), *first.shape), tensor_files.DTYPES.get(first.dtype, np.float32))
    for e, name in enumerate(names):
        if entries[name].dtype != first.dtype:
            raise ValueError(f'{first.path}: experts of one layer have different dtypes')
        tensor_files.read(entries[name], out[e])
    return out


def _to_device(value, sharding):
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


@functools.lru_cache
def _zeros(shape, dtype, sharding):
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)


@functools.lru_cache
def _cast(sharding, dtype):
    return jax.jit(lambda x: x.astype(dtype), out_shardings=sharding)


@functools.lru_cache
def _write_layer(sharding, transpose):
    def write(buffer, value, i):
        value = value.swapaxes(-1, -2) if transpose else value
        return jax.lax.dynamic_update_index_in_dim(buffer, value.astype(buffer.dtype), i, 0)

    return jax.jit(write, donate_argnums=0, out_shardings=sharding)


def _drop_axis(sharding):
    """Returns the sharding of one layer of a stacked parameter."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    if sharding.spec and sharding.spec[0] is not None:
        raise ValueError(f'the layer axis of a parameter must stay whole, got {tuple(sharding.spec)}')
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))


def _swap_axes(sharding, rank):
    if not isinstance(sharding, NamedSharding):
        return sharding
    spec = [*sharding.spec, *[None] * (rank - len(sharding.spec))]
    spec[-1], spec[-2] = spec[-2], spec[-1]
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))
