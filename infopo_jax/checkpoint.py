"""Checkpoints: the whole state of a run, the newest and the best, through Orbax.

A checkpoint is written under a temporary name and renamed, so a kill at any moment leaves the one before it whole.
Saves are synchronous on purpose: the update donates its state, and on a CPU an array's host copy may be the very memory
that the next step overwrites. A state of a few megabytes takes some 50 ms.
"""

import functools
import json
import math
import os
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

PyTree = Any

FOLDER = 'checkpoints'
ABOUT = 'about/about.json'
METRICS = 'metrics/metrics'  # where Orbax keeps what it ranks by
PARTS = ('state/_METADATA', ABOUT)  # what a whole checkpoint has
MAX_LISTED = 7  # differing leaves that an error names


class Checkpointer:
    """Keeps two checkpoints under workdir/checkpoints: the newest, and the one with the highest metric.

    The state is a pytree of arrays (jax or numpy, typed PRNG keys included). It is stored as nested dicts of plain
    arrays; a template gives back containers, key types and placement. Restored values are bit for bit those saved.

    Args:
        workdir: the run's folder; made if need be.
    """

    def __init__(self, workdir: str | os.PathLike):
        self._folder = pathlib.Path(workdir).absolute() / FOLDER

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        """Writes and prunes; made at the first save: it removes debris, which a reader beside a trainer must not."""
        for step in self.broken() if jax.process_index() == 0 else ():
            shutil.rmtree(self._folder / str(step))
        newest, best = policies.LatestN(n=1), policies.BestN(get_metric_fn=_metric, n=1)
        return ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                enable_async_checkpointing=False,
                cleanup_tmp_directories=True,
                best_fn=_metric,
                preservation_policy=policies.AnyPreservationPolicy([newest, best]),
            ),
            item_handlers={'state': ocp.PyTreeCheckpointHandler(), 'about': ocp.JsonCheckpointHandler('about.json')},
        )

    def save(self, step: int, state: PyTree, *, config_dict: dict, metric: float | None = None) -> None:
        """Saves; returns once the checkpoint is whole on disk. A step that is already saved takes the metric alone.

        Args:
            step: training steps done.
            state: pytree of arrays.
            config_dict: JSON values, given back by ``restore``.
            metric: the higher the better (held-out success); None or NaN ranks below every number, so that without any
                metric the newest checkpoint is the best.

        Raises:
            ValueError: a later step is saved here already.
        """
        steps = self.steps()
        ranked = -math.inf if metric is None or math.isnan(metric) else float(metric)
        if step in steps:
            self._rank(step, ranked)
            return
        if steps and step < steps[-1]:
            raise ValueError(f'{self._folder} already holds step {steps[-1]}; to go back to {step} take a new workdir')
        leaves = _flatten(state)
        specs = {name: _spec(leaf) for name, leaf in leaves.items()}
        about = {'config': config_dict, 'metric': ranked, 'leaves': specs}
        raw = _nest({name: _raw(leaf) for name, leaf in leaves.items()})
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(raw), about=ocp.args.JsonSave(about))
        self._manager.save(step, args=items, metrics={'metric': ranked}, force=True)

    def _rank(self, step: int, metric: float) -> None:
        """Gives a saved step the metric of an evaluation that came after it, unless it has one."""
        about = self._about(step)
        if metric == -math.inf or about['metric'] != -math.inf:
            return
        self.close()  # which has read the metrics
        for path, values in ((METRICS, {'metric': metric}), (ABOUT, about | {'metric': metric})):
            file = self._folder / str(step) / path
            part = file.with_name(f'{file.name}.part')
            part.write_text(json.dumps(values))
            part.replace(file)

    def steps(self) -> list[int]:
        """Returns the steps of the whole checkpoints here, ascending; half-written ones do not count."""
        return sorted(step for step in self._numbered() if self._is_whole(step))

    def broken(self) -> list[int]:
        """Returns the steps whose checkpoint here is not whole, ascending."""
        return sorted(step for step in self._numbered() if not self._is_whole(step))

    def restore(self, template: PyTree) -> tuple[PyTree, int, dict] | None:
        """Returns (state, step, config_dict) of the newest checkpoint, or None when there is none.

        Args:
            template: a pytree like the one saved; arrays or jax.ShapeDtypeStruct. A jax leaf comes back as a jax array
                with the template's sharding, a numpy leaf as a numpy array.

        Raises:
            ValueError: the leaves differ in name, shape or dtype; the message lists them.
        """
        steps = self.steps()
        return self._restore(steps[-1], template) if steps else None

    def restore_best(self, template: PyTree) -> tuple[PyTree, int, dict] | None:
        """Returns (state, step, config_dict) of the checkpoint with the highest metric; see ``restore``."""
        steps = self.steps()
        if not steps:
            return None
        return self._restore(max(steps, key=lambda step: (self._about(step)['metric'], step)), template)

    def config(self) -> dict | None:
        """Returns the newest checkpoint's config_dict without reading its state, or None when there is none."""
        steps = self.steps()
        return self._about(steps[-1])['config'] if steps else None

    def holds(self, name: str) -> bool:
        """Says whether the newest checkpoint has leaves under a name of the state's top level."""
        steps = self.steps()
        return bool(steps) and any(leaf.partition('/')[0] == name for leaf in self._about(steps[-1])['leaves'])

    def close(self) -> None:
        """Releases Orbax's threads."""
        if '_manager' in self.__dict__:
            self._manager.close()
            del self._manager

    def _numbered(self) -> list[int]:
        """Returns the steps whose folder has its final name."""
        return [int(path.name) for path in self._folder.glob('*') if path.name.isdigit()]

    def _is_whole(self, step: int) -> bool:
        return all((self._folder / str(step) / part).exists() for part in PARTS)

    def _about(self, step: int) -> dict:
        return json.loads((self._folder / str(step) / ABOUT).read_text())

    def _restore(self, step: int, template: PyTree) -> tuple[PyTree, int, dict]:
        wanted = _flatten(template)
        about = self._about(step)
        _check_leaves(about['leaves'], {name: _spec(leaf) for name, leaf in wanted.items()}, step)
        raw = {name: _raw_template(leaf) for name, leaf in wanted.items()}
        arguments = _nest({name: _restore_args(leaf) for name, leaf in raw.items()})
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            restored = reader.restore(
                self._folder / str(step) / 'state',
                args=ocp.args.PyTreeRestore(item=_nest(raw), restore_args=arguments),
            )
        values = _flatten(restored)
        leaves = [_wrap(values[name], leaf) for name, leaf in wanted.items()]
        return jax.tree.unflatten(jax.tree.structure(template), leaves), step, about['config']


def _flatten(tree: PyTree) -> dict[str, Any]:
    """Returns {'model/layers/0/w': leaf, ...}; None and empty containers hold no leaf and come from the template."""
    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in pairs}


def _nest(flat: dict[str, Any]) -> dict[str, Any]:
    """Undoes ``_flatten`` with dicts only, so that what is stored does not depend on the state's classes."""
    nested: dict[str, Any] = {}
    for name, leaf in flat.items():
        *parents, last = name.split('/')
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return nested


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, 'dtype') and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _spec(leaf: Any) -> str:
    """Returns 'float32[3, 4]' or 'key<fry>[]'."""
    if not hasattr(leaf, 'dtype'):
        leaf = np.asarray(leaf)
    return f'{leaf.dtype}{list(leaf.shape)}'


def _raw(leaf: Any) -> Any:
    """Returns the leaf as an array that Orbax stores: a typed key as its words."""
    if _is_key(leaf):
        return jax.random.key_data(leaf)
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _raw_template(leaf: Any) -> Any:
    if not _is_key(leaf):
        return leaf if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) else np.asarray(leaf)
    if isinstance(leaf, jax.Array):
        return jax.random.key_data(leaf)
    words = jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=leaf.sharding)


def _restore_args(leaf: Any) -> ocp.RestoreArgs:
    if isinstance(leaf, np.ndarray):
        return ocp.RestoreArgs(restore_type=np.ndarray)
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return ocp.ArrayRestoreArgs(sharding=sharding, dtype=leaf.dtype, global_shape=leaf.shape)


def _wrap(value: Any, template: Any) -> Any:
    """Gives a restored array the template's kind: typed key, jax array, numpy array or Python scalar."""
    if _is_key(template):
        impls = []  # key_impl wants an array or a tracer, and a template may be abstract
        jax.eval_shape(lambda key: impls.append(jax.random.key_impl(key)), template)
        return jax.random.wrap_key_data(value, impl=impls[0])
    if isinstance(template, bool | int | float):
        return type(template)(value)
    return value


def _metric(metrics: dict) -> float:
    return metrics['metric']


def _check_leaves(saved: dict[str, str], wanted: dict[str, str], step: int) -> None:
    """Raises ValueError that lists the leaves in which a checkpoint and a template differ."""
    names = [name for name in saved | wanted if saved.get(name) != wanted.get(name)]
    if not names:
        return
    rows = [f'  {n}: {saved.get(n, "absent")} in the checkpoint, {wanted.get(n, "absent")} now' for n in names]
    more = f'\n  and {len(rows) - MAX_LISTED} more' if len(rows) > MAX_LISTED else ''
    listed = '\n'.join(rows[:MAX_LISTED])
    raise ValueError(f'the state does not match the checkpoint of step {step} (another model?):\n{listed}{more}')
