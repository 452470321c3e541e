"""The state of a run: everything that a resumed run needs, as one pytree."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from infopo_jax.types import pytree_dataclass


@pytree_dataclass
class TrainState:
    """What a training step takes and returns; with several seeds every leaf has a leading seed axis."""

    params: Any  # nnx.State of the policy
    reference: Any  # nnx.State of the policy after the warm start; None when the KL coefficient is 0
    opt_state: Any
    key: jax.Array  # typed key of the run; a step folds in its number
    step: jax.Array  # [] int32, steps done
    bad_updates: jax.Array  # [] int32, refused updates in a row


def fresh_state(
    optimizer: optax.GradientTransformation, params: Any, key: jax.Array, *, keep_reference: bool
) -> TrainState:
    """Returns the state before the first step; the reference is the policy as it is now."""
    return TrainState(
        params=params,
        reference=jax.tree.map(jnp.copy, params) if keep_reference else None,
        opt_state=optimizer.init(params),
        key=key,
        step=jnp.int32(0),
        bad_updates=jnp.int32(0),
    )


def step_of(state: TrainState) -> int:
    """Returns the steps done; all seeds agree."""
    return int(np.max(jax.device_get(state.step)))


def pure(state: TrainState) -> dict[str, Any]:
    """Returns the state as nested dicts of arrays, under names that do not depend on Flax's classes."""
    leaves = {
        'params': nnx.to_pure_dict(state.params),
        'opt_state': jax.tree.map(_unwrap, state.opt_state, is_leaf=_is_state),
        'key': state.key,
        'step': state.step,
        'bad_updates': state.bad_updates,
    }
    return leaves | ({} if state.reference is None else {'reference': nnx.to_pure_dict(state.reference)})


def nnx_state(values: dict[str, Any], template: TrainState) -> TrainState:
    """Undoes ``pure``: leaves stand in the same order in both."""
    leaves = pure(template)
    assert jax.tree.structure(leaves) == jax.tree.structure(values)
    fields = {}
    for name, value in values.items():
        fields[name] = jax.tree.unflatten(jax.tree.structure(getattr(template, name)), jax.tree.leaves(value))
    return dataclasses.replace(template, **fields)


def _is_state(node) -> bool:
    return isinstance(node, nnx.State)


def _unwrap(node):
    return nnx.to_pure_dict(node) if _is_state(node) else node
