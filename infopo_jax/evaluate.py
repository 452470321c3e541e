"""Held-out evaluation: scores of a batch of episodes, and a look at a few of them."""

from typing import Any

import jax
import jax.numpy as jnp

from infopo_jax import metrics as metrics_lib, update as update_lib
from infopo_jax.losses import masked_mean
from infopo_jax.types import Turns, pytree_dataclass


@pytree_dataclass
class Look:
    """A few rollouts with everything that the report shows of them."""

    turns: Turns
    token_gain: jax.Array | None  # [N, L] nats, horizon 1
    gain: jax.Array  # [N, T]
    gain_mask: jax.Array  # [N, T]
    advantage: jax.Array  # [N, L]


def eval_metrics(turns: Turns, *, group_size: int) -> dict[str, jax.Array]:
    """Returns rollout_metrics and pass^k: the share of tasks on which all k = group_size rollouts succeed.

    Tasks of which a rollout failed (``valid`` is False) are left out: with fewer than k rollouts they would be easier.
    Where no task is left, pass^k is 0.
    """
    success, valid = (jnp.all(mask.reshape(-1, group_size), axis=1) for mask in (turns.success, turns.valid))
    return metrics_lib.rollout_metrics(turns) | {f'pass_{group_size}': masked_mean(success, valid).astype(jnp.float32)}


def look(rule: update_lib.UpdateRule, model: Any, turns: Turns, key: jax.Array, step: jax.Array) -> Look:
    """Scores and credits whole groups as training would, for people to look at."""
    scores = update_lib.score_turns(rule, model, turns, paired=rule.needs_gain)
    credit, gain, gain_mask, _ = update_lib.credit(rule, scores, turns, key, step)
    token_gain = None if scores.token_gain is None else scores.token_gain[:, 0]
    return Look(turns, token_gain, gain, gain_mask, credit.advantage)
