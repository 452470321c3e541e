"""What a batch of rollouts and its gains look like, as scalars; pure and traceable."""

import jax
import jax.numpy as jnp

from infopo_jax.losses import masked_mean
from infopo_jax.types import EndReason, Turns


def rollout_metrics(turns: Turns) -> dict[str, jax.Array]:
    """Returns scalars about the rollouts themselves; means run over valid rows.

    reward (mean outcome), success, turns and length (tokens per rollout), action_length (tokens per action), failed
    (share of invalid rows), end_<reason> (shares of all rows), error_turns (share of turns answered by an error).
    """
    valid = turns.valid
    actions = turns.action_mask & valid[:, None]
    num_actions = jnp.sum(jnp.where(valid, turns.num_turns, 0))
    played = (jnp.arange(turns.turn_reward.shape[1]) < turns.num_turns[:, None]) & valid[:, None]
    errors = jnp.zeros(played.shape, bool) if turns.turn_error is None else turns.turn_error
    metrics = {
        'reward': masked_mean(turns.outcome, valid),
        'success': masked_mean(turns.success, valid),
        'turns': masked_mean(turns.num_turns, valid),
        'length': masked_mean(jnp.sum(turns.real_mask, axis=1), valid),
        'action_length': jnp.sum(actions) / jnp.maximum(num_actions, 1),
        'failed': 1.0 - jnp.mean(valid),
        'error_turns': masked_mean(errors, played),
    }
    for reason in EndReason:
        if reason != EndReason.RUNNING:
            metrics[f'end_{reason.name.lower()}'] = jnp.mean(turns.end_reason == reason)
    return {k: v.astype(jnp.float32) for k, v in metrics.items()}


def gain_metrics(gain: jax.Array, gain_mask: jax.Array, error_mask: jax.Array) -> dict[str, jax.Array]:
    """Returns gain_turn_<t>, the mean gain by turn, and gain_error, that of turns answered by an error.

    Args:
        gain: [N, T] nats per token, before error turns are masked out.
        gain_mask: [N, T] bool, True where a gain exists.
        error_mask: [N, T] bool, True at turns answered by an error.
    """
    fine = gain_mask & ~error_mask
    metrics = {f'gain_turn_{t}': masked_mean(gain[:, t], fine[:, t]) for t in range(gain.shape[1] - 1)}
    return metrics | {'gain_error': masked_mean(gain, gain_mask & error_mask)}


def sampler_gap(logp: jax.Array, sampled_logp: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the mean absolute difference of the scorer's and the sampler's log-probabilities, nats per token."""
    return masked_mean(jnp.abs(logp - sampled_logp), mask)
