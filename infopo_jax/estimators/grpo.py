"""GRPO, and the assembly of credit that every estimator of the InfoPO family shares.

GRPO is the family's base: the outcome advantage alone, with the information part switched off. All of them report the
same metrics, so that their curves lie on one plot.
"""

import jax
import jax.numpy as jnp

from infopo_jax import advantage
from infopo_jax.losses import masked_mean
from infopo_jax.types import Array, Credit, Signals


def grpo(signals: Signals, *, group_size: int, key: jax.Array, **_) -> Credit:
    """Gives every token of a rollout the outcome advantage of the rollout.

        advantage = outcome_adv

    DeepSeekMath, https://arxiv.org/abs/2402.03300.

    Args:
        signals: what there is to turn into credit.
        group_size: G, static.
        key: not used.

    Returns:
        Credit; see `assemble` for its metrics.
    """
    outcome_adv = advantage.outcome_advantage(signals.outcome, group_size=group_size, valid=signals.valid)
    nothing = jnp.zeros_like(outcome_adv)
    info_adv = jnp.zeros(signals.gain.shape, outcome_adv.dtype)
    return assemble(signals, outcome_adv, info_adv, nothing, info_weight=0.0, group_size=group_size)


def assemble(
    signals: Signals, outcome_adv: Array, info_adv: Array, gate: Array, *, info_weight: float | Array, group_size: int
) -> Credit:
    """Fuses both parts, spreads them over tokens and measures them.

    Args:
        signals: the batch.
        outcome_adv: [N] float, 0 to leave the outcome out.
        info_adv: [N, T] float.
        gate: [N] float, factor on the rollout's info_adv: 1 is no gate.
        info_weight: scalar, may be traced.
        group_size: G, static.

    Returns:
        Credit with loss_mask = action_mask of valid rows, advantage 0 outside it, and scalar metrics, 0 where
        undefined:
            tied_groups        share of the groups with two valid rows or more whose valid outcomes are all equal
            gate               mean factor on the information part over valid rows
            info_share         mean |info part| / (mean |info part| + mean |outcome part|) over loss_mask
            advantage_abs      mean |advantage| over loss_mask
            gain_mean          mean over valid gains, nats per token
            gain_std           their standard deviation, ddof 0
            gain_outcome_corr  Pearson's correlation of a rollout's mean gain and its outcome
    """
    loss_mask = signals.action_mask & signals.valid[:, None]
    info_part = info_weight * gate[:, None] * info_adv
    turn_adv = advantage.fuse(outcome_adv, info_adv, gate, info_weight=info_weight)
    token_adv = advantage.to_tokens(turn_adv, signals.turn, loss_mask)
    info_abs = masked_mean(jnp.abs(advantage.to_tokens(info_part, signals.turn, loss_mask)), loss_mask)
    outcome_abs = masked_mean(jnp.broadcast_to(jnp.abs(outcome_adv)[:, None], loss_mask.shape), loss_mask)
    total_abs = info_abs + outcome_abs
    metrics = {
        'tied_groups': _tied_groups(signals.outcome, signals.valid, group_size=group_size),
        'gate': masked_mean(gate, signals.valid),
        'info_share': info_abs / jnp.where(total_abs > 0, total_abs, 1),
        'advantage_abs': masked_mean(jnp.abs(token_adv), loss_mask),
        **_gain_metrics(signals),
    }
    return Credit(advantage=token_adv, loss_mask=loss_mask, metrics=metrics)


def _tied_groups(outcome: Array, valid: Array, *, group_size: int) -> Array:
    """Returns the share of groups with at least two valid rows whose valid outcomes are all equal."""
    outcome, valid = outcome.reshape(-1, group_size), valid.reshape(-1, group_size)
    low = jnp.min(jnp.where(valid, outcome, jnp.inf), axis=1)
    high = jnp.max(jnp.where(valid, outcome, -jnp.inf), axis=1)
    return masked_mean((low == high).astype(jnp.float32), jnp.sum(valid, axis=1) >= 2)


def _gain_metrics(signals: Signals) -> dict[str, Array]:
    """Returns gain_mean, gain_std and gain_outcome_corr; see `assemble`."""
    used = signals.gain_mask & signals.valid[:, None]
    gain = jnp.where(used, signals.gain, 0).astype(jnp.float32)
    mean = masked_mean(gain, used)
    rows = jnp.any(used, axis=1)
    row_gain = jnp.sum(gain, axis=1) / jnp.maximum(jnp.sum(used, axis=1), 1)
    return {
        'gain_mean': mean,
        'gain_std': jnp.sqrt(masked_mean((gain - mean) ** 2, used)),
        'gain_outcome_corr': _correlation(row_gain, jnp.where(rows, signals.outcome, 0), rows),
    }


def _correlation(x: Array, y: Array, mask: Array) -> Array:
    """Returns Pearson's correlation of x and y over the mask; 0 where a standard deviation is at most 1e-6."""
    x, y = x - masked_mean(x, mask), y - masked_mean(y, mask)
    std_x, std_y = jnp.sqrt(masked_mean(x**2, mask)), jnp.sqrt(masked_mean(y**2, mask))
    defined = jnp.minimum(std_x, std_y) > advantage.EPSILON
    return jnp.where(defined, masked_mean(x * y, mask) / jnp.where(defined, std_x * std_y, 1), 0)
