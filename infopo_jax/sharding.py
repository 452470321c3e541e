"""One device mesh, and rules on names that say how a run's arrays are laid out on it.

    data     copies of the weights, each with its share of the rows
    fsdp     shares of the rows too; weights, gradients and optimizer state are split, and whole only while in use
    tensor   splits heads, the MLP's hidden width and the vocabulary (Shoeybi et al., arXiv 1909.08053)

Weights are laid out by name, and rows (rollouts, examples, slots) by their first axis; XLA's partitioner derives the
rest and adds the communication. It is told what it cannot guess: that over fsdp a layer's weights come together when
the layer runs (ZeRO 3, arXiv 1910.02054); left alone it splits activations by feature, and devices compute rows that
are not theirs. On a mesh of one device, and on None, nothing here does anything.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from infopo_jax.lm.config import LMConfig

AXES = ('data', 'fsdp', 'tensor')
ROWS = ('data', 'fsdp')  # the axes that rows are divided over

# The last axes of a parameter whose name ends like this; axes before them (layers, experts) are whole. Gradients and an
# optimizer's moments end in the name of their parameter.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r'embed|head', ('tensor', 'fsdp')),  # [V, dim]
    (r'(q|k|v|gate|up)(/kernel)?', ('fsdp', 'tensor')),  # [dim, heads * head_dim] and [dim, mlp_dim]
    (r'(o|down)(/kernel)?', ('tensor', 'fsdp')),  # [heads * head_dim, dim] and [mlp_dim, dim]
    (r'(q|k|v|gate|up)/bias', ('tensor',)),
    (r'(o|down)/bias', ()),
    (r'(q|k|v|gate|up)/adapter/a', ('fsdp', None)),  # low-rank terms: [dim, rank] and [rank, ...]
    (r'(q|k|v|gate|up)/adapter/b', (None, 'tensor')),
    (r'(o|down)/adapter/a', ('tensor', None)),
    (r'(o|down)/adapter/b', (None, 'fsdp')),
    (r'router(/kernel)?', ()),
    (r'adapter/(a|b)', ()),  # small
    (r'scale', ()),
)

AnyMesh = Mesh | AbstractMesh
PyTree = Any


def make_mesh(data: int, fsdp: int, tensor: int, *, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh (data, fsdp, tensor) of a run.

    Args:
        data: devices along the axis; -1 takes what the other axes leave.
        fsdp: likewise.
        tensor: likewise.
        devices: to take them from, in order; None: all of this process's backend.

    Raises:
        ValueError: more devices are asked for than there are, an axis cannot be filled, or other processes own some.
    """
    devices = jax.devices() if devices is None else list(devices)
    if any(d.process_index != devices[0].process_index for d in devices):
        raise ValueError(f'the {len(devices)} devices belong to several processes; a run is one process')
    sizes = axis_sizes(data, fsdp, tensor, num_devices=len(devices))
    used = devices[: math.prod(sizes)]
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=used)


def axis_sizes(data: int, fsdp: int, tensor: int, *, num_devices: int) -> tuple[int, int, int]:
    """Returns the sizes of the axes with -1 filled in; see ``make_mesh``."""
    asked = dict(zip(AXES, (data, fsdp, tensor), strict=True))
    open_axes = [name for name, size in asked.items() if size == -1]
    if len(open_axes) > 1 or any(size < 1 for size in asked.values() if size != -1):
        raise ValueError(f'{_product(asked)}: sizes are at least 1, and at most one axis is -1 (filled)')
    fixed = {name: size for name, size in asked.items() if size != -1}
    count = math.prod(fixed.values())
    if not open_axes:
        if count > num_devices:
            raise ValueError(f'{_product(asked)} = {count} devices, and there are {num_devices}')
        return tuple(asked.values())
    if num_devices % count:
        raise ValueError(
            f'mesh.{open_axes[0]} = -1 cannot be filled: {_product(fixed)} = {count} does not divide '
            f'the {num_devices} devices'
        )
    return tuple(num_devices // count if size == -1 else size for size in asked.values())


def _product(sizes: Mapping[str, int]) -> str:
    return f'{" * ".join(f"mesh.{name}" for name in sizes)} = {" * ".join(map(str, sizes.values()))}'


def describe(mesh: Mesh) -> str:
    """Returns 'data 2 x fsdp 4 x tensor 1, 8 of 8 devices'."""
    sizes = ' x '.join(f'{name} {size}' for name, size in mesh.shape.items())
    return f'{sizes}, {mesh.size} of {len(jax.devices())} devices'


def check_model(mesh: AnyMesh, config: LMConfig) -> None:
    """Checks that heads and widths can be divided; a vocabulary that cannot is left whole instead.

    Raises:
        ValueError: a line for each size that does not fit, with the numbers.
    """
    wanted = (('tensor', 'num_heads'), ('tensor', 'num_kv_heads'), ('tensor', 'mlp_dim'), ('fsdp', 'dim'))
    problems = [
        f'mesh.{axis} = {mesh.shape[axis]} does not divide model.{field} = {getattr(config, field)}'
        for axis, field in wanted
        if getattr(config, field) % mesh.shape[axis]
    ]
    if problems:
        raise ValueError('\n'.join(problems))


def row_shards(mesh: AnyMesh | None) -> int:
    """Returns in how many parts rows are divided."""
    return 1 if mesh is None else math.prod(mesh.shape[name] for name in ROWS)


def check_rows(mesh: AnyMesh, counts: Mapping[str, int]) -> None:
    """Checks that rows can be divided over data and fsdp.

    Args:
        counts: how many rows there are, by what they are and how many that makes.

    Raises:
        ValueError: a line for each count that does not fit, with the numbers.
    """
    sizes = {name: mesh.shape[name] for name in ROWS}
    shards = row_shards(mesh)
    problems = [
        f'{_product(sizes)} = {shards} does not divide the {count} {what}'
        for what, count in counts.items()
        if count % shards
    ]
    if problems:
        raise ValueError('\n'.join(problems))


def spec_of(mesh: AnyMesh, name: str, shape: Sequence[int], *, whole: Sequence[str] = ()) -> PartitionSpec:
    """Returns how a parameter, or what an optimizer keeps of it, is laid out.

    Args:
        mesh: with the axes of AXES.
        name: path of the leaf with '/' between its parts, 'blocks/q/kernel'; what stands before does not matter.
        shape: of the leaf. An axis that its mesh axis does not divide is left whole, and so is a leaf with fewer axes
            than its rule (a factored moment).
        whole: mesh axes over which nothing is split.

    Raises:
        ValueError: no rule fits the name; silence would put a copy of the weight on every device.
    """
    if not shape:
        return PartitionSpec()
    name = name.removesuffix('/value')  # of Flax's variables
    rule = next((axes for pattern, axes in RULES if re.search(rf'(^|/)({pattern})$', name)), None)
    if rule is None:
        raise ValueError(f'no rule in sharding.RULES says how {name} {list(shape)} is laid out on the mesh; add one')
    if len(shape) < len(rule):
        return PartitionSpec()
    before = len(shape) - len(rule)

    def kept(axis, size):
        return axis if axis is not None and axis not in whole and size % mesh.shape[axis] == 0 else None

    return _canonical(mesh, (None,) * before + tuple(map(kept, rule, shape[before:])))


def _canonical(mesh: AnyMesh, axes: Sequence[Any]) -> PartitionSpec:
    """Returns axes as compiled programs hand them back: another spelling of the same layout would compile anew."""

    def real(axis):
        names = tuple(name for name in ((axis,) if isinstance(axis, str) else axis or ()) if mesh.shape[name] > 1)
        return names if len(names) > 1 else names[0] if names else None

    axes = [real(axis) for axis in axes]
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes)


def shardings(tree: PyTree, mesh: AnyMesh, *, whole: Sequence[str] = ()) -> PyTree:
    """Returns a tree of shardings by name: of parameters, gradients, optimizer state, or the state that holds them.

    Scalars, the run's key among them, are on every device. Leaves may be abstract.
    """

    def of(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        return NamedSharding(mesh, spec_of(mesh, name, leaf.shape, whole=whole))

    return jax.tree_util.tree_map_with_path(of, tree)


def sharding_of(mesh: AnyMesh) -> Callable[[str, Sequence[int]], NamedSharding]:
    """Returns (parameter name 'blocks/q/kernel', shape) -> sharding, for weights that are read straight into place."""
    return lambda name, shape: NamedSharding(mesh, spec_of(mesh, name, shape))


def template(tree: PyTree, mesh: Mesh) -> PyTree:
    """Returns the tree's shapes with the shardings of their names, for a checkpoint to be read straight into them."""
    if mesh.size == 1:
        return tree
    place = shardings(tree, mesh)
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, place)


def by_name(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Lays a tree out by the names of its leaves, under jit or outside; see ``shardings``."""
    if _single(mesh):
        return tree
    return jax.lax.with_sharding_constraint(tree, shardings(tree, mesh))


def publish(params: PyTree, mesh: Mesh | None) -> PyTree:
    """Lays parameters out for rollouts: split over tensor, whole over fsdp.

    Decoding reads every weight for every token. Brought together once per step, they are not sent with each of them.
    """
    if _single(mesh) or mesh.shape['fsdp'] == 1:
        return params
    return jax.lax.with_sharding_constraint(params, shardings(params, mesh, whole=('fsdp',)))


def merge(graphdef: Any, params: PyTree, mesh: Mesh | None) -> Any:
    """Returns the model of parameters that are laid out by name, for a forward pass over rows.

    Weights outside the blocks come together over fsdp here; those of the blocks as each layer runs and, where layers
    are recomputed, again in the backward pass.
    """
    if _single(mesh) or mesh.shape['fsdp'] == 1:
        return nnx.merge(graphdef, params)
    gather = Gather(mesh)
    outside = {name: part for name, part in params.items() if name != 'blocks'}
    model = nnx.merge(graphdef, nnx.State({**params, **gather(outside)}))
    model.gather = gather
    return model


@dataclasses.dataclass(frozen=True)
class Gather:
    """Brings weights together over fsdp; equal for equal meshes, so that what is compiled with it is found again."""

    mesh: Mesh

    def __call__(self, params: PyTree) -> PyTree:
        """Returns the parameters, still split over tensor."""
        return publish(params, self.mesh)


def rows(tree: PyTree, mesh: Mesh | None, *, axis: int = 0) -> PyTree:
    """Divides an axis of every leaf over data and fsdp, under jit or outside; scalars are left alone.

    Where it cannot be divided (a few rollouts for people to look at) the leaf is left to the partitioner.
    """

    def of(leaf):
        if leaf.ndim <= axis or not _divides(mesh, leaf.shape[axis]):
            return leaf
        return _constrain(leaf, mesh, (None,) * axis + (ROWS,))

    return tree if _single(mesh) else jax.tree.map(of, tree)


def kv_cache(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Divides a KV cache: rows [N, ...] as ``rows`` does, and key heads [N, num_kv_heads, S, ...] over tensor."""

    def of(leaf):
        split_heads = leaf.ndim > 2 and leaf.shape[1] % mesh.shape['tensor'] == 0  # positions are [N, S]
        axes = (ROWS if _divides(mesh, leaf.shape[0]) else None, 'tensor' if split_heads else None)
        return _constrain(leaf, mesh, axes)

    return tree if _single(mesh) else jax.tree.map(of, tree)


def get_rows(leaf: jax.Array, index: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Returns rows ``index`` [K] of [N, ...] as [K, ...]; a gather would bring all rows together first."""
    if _single(mesh):
        return leaf[index]
    one = [jnp.sum(jnp.where(_is_row(leaf, i), leaf, 0), axis=0, dtype=leaf.dtype) for i in index]
    return jnp.stack(one)


def put_row(leaf: jax.Array, row: jax.Array, index: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Returns [N, ...] with [1, ...] as row ``index``; see ``get_rows``."""
    if _single(mesh):
        return jax.lax.dynamic_update_slice_in_dim(leaf, row, index, axis=0)
    return jnp.where(_is_row(leaf, index), row, leaf)


def _is_row(leaf, index):
    return (jnp.arange(leaf.shape[0]) == index).reshape(-1, *(1,) * (leaf.ndim - 1))


def _divides(mesh: Mesh, count: int) -> bool:
    return count % row_shards(mesh) == 0


def _constrain(leaf: Any, mesh: Mesh, axes: Sequence[Any]) -> Any:
    return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, _canonical(mesh, axes)))


def _single(mesh: Mesh | None) -> bool:
    return mesh is None or mesh.size == 1
