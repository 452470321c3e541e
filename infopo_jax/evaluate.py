"""Held-out evaluation: scores of a batch of episodes, and a look at a few of them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from infopo_jax import info_gain, metrics as metrics_lib, update as update_lib
from infopo_jax.losses import masked_mean
from infopo_jax.types import Role, Turns, pytree_dataclass


@pytree_dataclass
class Look:
    """A few rollouts with everything that the report shows of them."""

    turns: Turns
    token_gain: jax.Array | None  # [N, L] nats, horizon 1
    gain: jax.Array  # [N, T]
    gain_mask: jax.Array  # [N, T]
    advantage: jax.Array  # [N, L]
    gain_noise: jax.Array  # [] nats per token, mean absolute gain of controls (with_controls); NaN: there are none


def eval_metrics(turns: Turns, *, group_size: int) -> dict[str, jax.Array]:
    """Returns rollout_metrics and pass^k: the share of tasks on which all k = group_size rollouts succeed.

    Tasks of which a rollout failed (``valid`` is False) are left out: with fewer than k rollouts they would be easier.
    Where no task is left, pass^k is 0.
    """
    success, valid = (jnp.all(mask.reshape(-1, group_size), axis=1) for mask in (turns.success, turns.valid))
    return metrics_lib.rollout_metrics(turns) | {f'pass_{group_size}': masked_mean(success, valid).astype(jnp.float32)}


def look(rule: update_lib.UpdateRule, model: Any, turns: Turns, key: jax.Array, step: jax.Array) -> Look:
    """Scores and credits whole groups as training would, for people to look at.

    The rule's static bounds are to hold ``with_controls(turns, rule.placeholder)`` where it needs gains.
    """
    if rule.needs_gain:
        rows = jax.tree.map(lambda a: a.reshape(2, -1, *a.shape[1:]), with_controls(turns, rule.placeholder))
        both = jax.lax.map(lambda part: update_lib.score_turns(rule, model, part, paired=True), rows)
        scores, controls = (jax.tree.map(lambda a, i=i: a[i], both) for i in range(2))
        noise = _noise(controls.token_gain, jax.tree.map(lambda a: a[1], rows))
    else:
        scores, noise = None, jnp.float32(jnp.nan)  # credit reads none
    credit, gain, gain_mask, _ = update_lib.credit(rule, scores, turns, key, step)
    token_gain = None if scores is None else scores.token_gain[:, 0]
    return Look(turns, token_gain, gain, gain_mask, credit.advantage, noise)


def with_controls(turns: Turns, placeholder: Sequence[int]) -> Turns:
    """Returns the rows, and below them controls: the same rows, in which feedback begins with the placeholder.

    Of all feedback only that beginning, in the first run that has room for it, counts as such and the rest as markup,
    so a control's counterfactual is the control itself: its gain is 0 but for rounding, which in bfloat16 is the noise
    floor of the signal. One run a row, so that the branches of long answers do not add up.

    Args:
        turns: N rows.
        placeholder: K ids.

    Returns:
        2N rows.
    """
    feedback = turns.role == Role.FEEDBACK
    index = jnp.arange(feedback.shape[1])
    starts = feedback & ~jnp.pad(feedback[:, :-1], ((0, 0), (1, 0)))
    start = jax.lax.cummax(jnp.where(starts, index, -1), axis=1)
    last = jnp.clip(start + len(placeholder) - 1, 0, feedback.shape[1] - 1)
    run = jnp.where(feedback, jnp.cumsum(starts, axis=1), 0)
    is_long = jnp.take_along_axis(run, last, axis=1) == run
    is_first = jnp.cumsum(starts & is_long, axis=1) == 1
    shown = feedback & is_long & is_first & (index - start < len(placeholder))
    told = jnp.asarray([*placeholder, 0], turns.tokens.dtype)[jnp.clip(index - start, 0, len(placeholder))]
    both = jax.tree.map(lambda a: jnp.concatenate([a, a]), turns)
    return dataclasses.replace(
        both,
        tokens=jnp.concatenate([turns.tokens, jnp.where(shown, told, turns.tokens)]),
        role=jnp.concatenate(
            [turns.role, jnp.where(feedback & ~shown, Role.TEMPLATE, turns.role).astype(turns.role.dtype)]
        ),
    )


def _noise(token_gain, controls):
    """Returns the mean absolute gain of turns; NaN where no run of feedback has room for the placeholder."""
    valid, num_turns = controls.valid[:, None], controls.turn_reward.shape[1]
    gain, exists = info_gain.info_gain(
        token_gain, controls.turn, controls.action_mask & valid, controls.feedback_mask & valid, num_turns=num_turns
    )
    return jnp.where(jnp.any(exists), masked_mean(jnp.abs(gain), exists), jnp.nan)
