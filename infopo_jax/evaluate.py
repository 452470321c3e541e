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


def look(rule: update_lib.UpdateRule, model: Any, rows: Turns, key: jax.Array, step: jax.Array) -> Look:
    """Scores and credits whole groups as training would, for people to look at.

    Args:
        rule: of training; its static bounds hold the branches of all rows.
        model: scores.
        rows: ``rows_of_look`` of N rollouts.
        key: of the credit.
        step: of the run.
    """
    if rule.needs_gain:
        parts = jax.tree.map(lambda a: a.reshape(2, -1, *a.shape[1:]), rows)
        both = jax.lax.map(lambda part: update_lib.score_turns(rule, model, part, paired=True), parts)
        turns, scores = jax.tree.map(lambda a: a[0], (parts, both))
        controls, blank = jax.tree.map(lambda a: a[1], (parts, both))
        noise = _noise(blank.token_gain, controls)
    else:
        turns, scores, noise = rows, None, jnp.float32(jnp.nan)  # credit reads no scores
    credit, gain, gain_mask, _ = update_lib.credit(rule, scores, turns, key, step)
    token_gain = None if scores is None else scores.token_gain[:, 0]
    return Look(turns, token_gain, gain, gain_mask, credit.advantage, noise)


def rows_of_look(rule: update_lib.UpdateRule, turns: Turns) -> Turns:
    """Returns what ``look`` takes: the rollouts, and below them their controls where the rule needs gains."""
    return with_controls(turns, rule.placeholder) if rule.needs_gain else turns


def with_controls(turns: Turns, placeholder: Sequence[int]) -> Turns:
    """Returns the rows, and below them controls: the same rows, in which feedback begins with the placeholder.

    Of all feedback only that beginning, in one run, counts as such and the rest as markup, so that a control's
    counterfactual is the control itself: its gain is 0 but for rounding, which in bfloat16 is the noise floor of the
    signal. Of the runs that have room for the placeholder it is the shortest, as its branch is, of those the first.

    Args:
        turns: N rows.
        placeholder: K ids.

    Returns:
        2N rows.
    """
    feedback = turns.role == Role.FEEDBACK
    length = feedback.shape[1]
    index = jnp.arange(length)
    starts = feedback & ~jnp.pad(feedback[:, :-1], ((0, 0), (1, 0)))
    start = jax.lax.cummax(jnp.where(starts, index, -1), axis=1)
    end = jax.lax.cummin(jnp.where(feedback, length, index), axis=1, reverse=True)
    size = jnp.where(feedback & (end - start >= len(placeholder)), end - start, length + 1)
    chosen = jnp.argmin(size, axis=1, keepdims=True)  # the first token of a run, if any has room
    shown = (size <= length) & (start == chosen) & (index - start < len(placeholder))
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
