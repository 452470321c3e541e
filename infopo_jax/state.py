"""The state of a run: everything that a resumed run needs, as one pytree."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from infopo_jax.lm import lora
from infopo_jax.types import pytree_dataclass


@pytree_dataclass
class TrainState:
    """What a training step takes and returns; with several seeds every leaf has a leading seed axis."""

    params: Any  # nnx.State of what trains: the policy, or its adapters
    reference: Any  # nnx.State of the policy after the warm start; None where neither KL nor user needs it
    opt_state: Any
    key: jax.Array  # typed key of the run; a step folds in its number
    step: jax.Array  # [] int32, steps done
    bad_updates: jax.Array  # [] int32, refused updates in a row
    frozen: Any = None  # nnx.State of the base under adapters, which is the reference too; None: everything trains

    @property
    def weights(self) -> Any:
        """nnx.State of the whole policy."""
        return join(self.params, self.frozen)

    @property
    def start(self) -> Any:
        """nnx.State of the policy as training began, under adapters of their base; None where it is not kept."""
        return self.reference if self.frozen is None else self.frozen


def join(params: Any, frozen: Any) -> Any:
    """Returns the whole policy's parameters of those that train and those that do not."""
    return params if frozen is None else lora.join(params, frozen)


def fresh_state(
    optimizer: optax.GradientTransformation, params: Any, key: jax.Array, *, keep_reference: bool, frozen: Any = None
) -> TrainState:
    """Returns the state before the first step; the reference is the policy as it is now, with adapters their base."""
    keep_reference = keep_reference and frozen is None
    return TrainState(
        params=params,
        reference=jax.tree.map(jnp.copy, params) if keep_reference else None,
        opt_state=optimizer.init(params),
        key=key,
        step=jnp.int32(0),
        bad_updates=jnp.int32(0),
        frozen=frozen,
    )


def step_of(state: TrainState) -> int:
    """Returns the steps done; all seeds agree."""
    return int(np.max(jax.device_get(state.step)))


def is_whole(state: TrainState) -> bool:
    """Says whether every array is there: an update that fails has taken the state apart that it was given."""
    return not any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in jax.tree.leaves(state))


def pure(state: TrainState, *, with_frozen: bool = True) -> dict[str, Any]:
    """Returns the state as nested dicts of arrays, under names that do not depend on Flax's classes.

    Args:
        state: of a run.
        with_frozen: False leaves out a frozen base, for a checkpoint whose base can be loaded from where it came.
    """
    leaves = {
        'params': nnx.to_pure_dict(state.params),
        'opt_state': jax.tree.map(_unwrap, state.opt_state, is_leaf=_is_state),
        'key': state.key,
        'step': state.step,
        'bad_updates': state.bad_updates,
    }
    others = {'reference': state.reference, 'frozen': state.frozen if with_frozen else None}
    return leaves | {name: nnx.to_pure_dict(part) for name, part in others.items() if part is not None}


def nnx_state(values: dict[str, Any], template: TrainState) -> TrainState:
    """Undoes ``pure``: leaves stand in the same order in both. What was left out is taken from the template."""
    leaves = pure(template, with_frozen='frozen' in values)
    assert jax.tree.structure(leaves) == jax.tree.structure(values)
    fields = {}
    for name, value in values.items():
        fields[name] = jax.tree.unflatten(jax.tree.structure(getattr(template, name)), jax.tree.leaves(value))
    return dataclasses.replace(template, **fields)


def _is_state(node) -> bool:
    return isinstance(node, nnx.State)


def _unwrap(node):
    return nnx.to_pure_dict(node) if _is_state(node) else node
