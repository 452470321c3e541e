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
    gain_noise: jax.Array  # [] nats per token, mean absolute gain of controls (controls_of); NaN: there are none


def eval_metrics(turns: Turns, *, group_size: int) -> dict[str, jax.Array]:
    """Returns rollout_metrics and pass^k: the share of tasks on which all k = group_size rollouts succeed.

    Tasks of which a rollout failed (``valid`` is False) are left out: with fewer than k rollouts they would be easier.
    Where no task is left, pass^k is 0.
    """
    success, valid = (jnp.all(mask.reshape(-1, group_size), axis=1) for mask in (turns.success, turns.valid))
    return metrics_lib.rollout_metrics(turns) | {f'pass_{group_size}': masked_mean(success, valid).astype(jnp.float32)}


def with_controls(rule: update_lib.UpdateRule, turns: Turns) -> Turns:
    """Returns the rollouts [1, N, ...], and behind them their controls where the rule needs a gain: [2, N, ...]."""
    parts = [turns, controls_of(turns, rule.placeholder)] if rule.needs_gain else [turns]
    return jax.tree.map(lambda *a: jnp.stack(a), *parts)


def look(rule: update_lib.UpdateRule, model: Any, rows: Turns, key: jax.Array, step: jax.Array) -> Look:
    """Scores and credits whole groups as training would, for people to look at.

    Args:
        rule: of training; its static bounds hold the branches of all ``rows``.
        model: the policy, a ``lm.transformer.Transformer``.
        rows: ``with_controls`` of N rollouts, whole groups.
        key: of the credit.
        step: [] int32, training steps done.
    """
    turns, *controls = (jax.tree.map(lambda a, i=i: a[i], rows) for i in range(len(rows.outcome)))
    scores, noise = None, jnp.float32(jnp.nan)  # credit without gains reads no scores
    if rule.needs_gain:
        both = jax.lax.map(lambda part: update_lib.score_turns(rule, model, part, paired=True), rows)
        scores, control_scores = (jax.tree.map(lambda a, i=i: a[i], both) for i in range(2))
        noise = _noise(control_scores.token_gain, *controls)
    credit, gain, gain_mask, _ = update_lib.credit(rule, scores, turns, key, step)
    token_gain = None if scores is None else scores.token_gain[:, 0]
    return Look(turns, token_gain, gain, gain_mask, credit.advantage, noise)


def controls_of(turns: Turns, placeholder: Sequence[int]) -> Turns:
    """Returns rows whose gain is 0 but for rounding: in bfloat16, the noise floor of the signal.

    One message of a row begins with the placeholder, and only that beginning counts as feedback, all the rest as
    markup: its counterfactual is the row itself. Of the messages that have room for the placeholder it is one of the
    turn with the shortest answer, all of which stands in the branch; of those the first. So the branch is short, but
    for rows that have heard nothing but long answers.

    Args:
        turns: N rows.
        placeholder: K ids.

    Returns:
        N rows.
    """
    feedback = turns.role == Role.FEEDBACK
    length = feedback.shape[1]
    index, row = jnp.arange(length), jnp.arange(len(feedback))[:, None]
    starts = feedback & ~jnp.pad(feedback[:, :-1], ((0, 0), (1, 0)))
    start = jax.lax.cummax(jnp.where(starts, index, -1), axis=1)
    end = jax.lax.cummin(jnp.where(feedback, length, index), axis=1, reverse=True)
    has_room = feedback & (end - start >= len(placeholder))
    answers = jnp.zeros((len(feedback), turns.turn_reward.shape[1] + 1), jnp.int32).at[row, turns.turn].add(feedback)
    chosen = jnp.argmin(jnp.where(has_room, answers[row, turns.turn], length + 1), axis=1, keepdims=True)
    shown = has_room & (start == chosen) & (index - start < len(placeholder))
    told = jnp.asarray([*placeholder, 0], turns.tokens.dtype)[jnp.clip(index - start, 0, len(placeholder))]
    return dataclasses.replace(
        turns,
        tokens=jnp.where(shown, told, turns.tokens),
        role=jnp.where(feedback & ~shown, Role.TEMPLATE, turns.role).astype(turns.role.dtype),
    )


def _noise(token_gain, controls):
    """Returns the mean absolute gain of turns; NaN where no run of feedback has room for the placeholder."""
    valid, num_turns = controls.valid[:, None], controls.turn_reward.shape[1]
    gain, exists = info_gain.info_gain(
        token_gain, controls.turn, controls.action_mask & valid, controls.feedback_mask & valid, num_turns=num_turns
    )
    return jnp.where(jnp.any(exists), masked_mean(jnp.abs(gain), exists), jnp.nan)
