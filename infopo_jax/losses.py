"""Losses over action tokens: the clipped surrogate, the KL penalty, the entropy bonus, and how a token weighs.

All of them are a weighted sum over the mask divided by a denominator. The denominator is an argument: micro-batches
that share the whole batch's denominator add up to the whole batch's loss and gradient. Entries outside the mask may
hold anything, NaN included: inputs are replaced before any exp, so neither value nor gradient sees them. An empty
mask gives 0.
"""

import jax
import jax.numpy as jnp

from infopo_jax.info_gain import turn_sum
from infopo_jax.types import Array, check_shape

KL_KINDS = ('k2', 'k3', 'full')
UNITS = ('token', 'turn')
MAX_LOG_RATIO = 20.0  # exp(20) = 5e8; beyond it a token has left the trust region, and inf * 0 would poison the batch


def masked_mean(
    x: Array, mask: Array, *, denominator: float | Array | None = None, weight: Array | None = None
) -> Array:
    """Returns sum(weight * x over the mask) / denominator.

    Args:
        x: any shape. mask: bool, shape of x.
        denominator: scalar; None: the mask's count, or the sum of the weights over the mask.
        weight: shape of x, without gradient; None: 1.

    Returns:
        scalar; 0 for an empty mask.
    """
    weight = jnp.where(mask, 1.0 if weight is None else jax.lax.stop_gradient(weight), 0.0)
    if denominator is None:
        denominator = jnp.sum(weight)
    denominator = jnp.asarray(denominator)
    return jnp.sum(weight * jnp.where(mask, x, 0)) / jnp.where(denominator > 0, denominator, 1)


def clipped_policy_loss(
    logp: Array,
    old_logp: Array,
    advantage: Array,
    mask: Array,
    *,
    clip_low: float | Array,
    clip_high: float | Array,
    dual_clip: float | Array | None = None,
    denominator: float | Array | None = None,
    weight: Array | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Computes the clipped surrogate loss.

        ratio = exp(logp - old_logp)
        gain = min(ratio * advantage, clip(ratio, 1 - clip_low, 1 + clip_high) * advantage)
        gain = max(gain, dual_clip * advantage)             where advantage < 0, with dual_clip
        loss = -sum(weight * gain over the mask) / denominator

    PPO, https://arxiv.org/abs/1707.06347, equation 7; dual clip: https://arxiv.org/abs/1912.09729: the loss of a
    token with negative advantage is at most dual_clip * |advantage|.

    Args:
        logp: [N, L] float, log-probability under the weights in training; the only argument with gradient.
        old_logp: [N, L] float, log-probability under the weights that sampled.
        advantage: [N, L] float.
        mask: [N, L] bool, True at tokens in the loss.
        clip_low: how far the ratio may fall below 1. clip_high: how far it may rise above 1.
        dual_clip: above 1; None switches it off.
        denominator: scalar that divides the sum; None: the mask's count, or the sum of the weights over the mask.
        weight: [N, L] float, weight of each token (`token_weight`, `importance_weight`); None: 1.

    Returns:
        scalar loss; metrics, plain means over the mask: clip_fraction (tokens whose gradient the clip removes),
        dual_clip_fraction, ratio_mean, ratio_max, approx_kl (k1: mean of old_logp - logp). All are 0 for an empty mask.

    Raises:
        ValueError: for differing shapes or a wrong dtype.
    """
    _check_tokens(mask, logp=logp, old_logp=old_logp, advantage=advantage, weight=weight)
    advantage = jax.lax.stop_gradient(jnp.where(mask, advantage, 0))
    # The old policy is a constant also when the caller passes logp itself (one update per batch, ratio 1).
    log_ratio = jnp.where(mask, logp, 0) - jax.lax.stop_gradient(jnp.where(mask, old_logp, 0))
    ratio = jnp.exp(jnp.minimum(log_ratio, MAX_LOG_RATIO))
    free = ratio * advantage
    clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * advantage
    gain = jnp.minimum(free, clipped)
    below = jnp.zeros_like(mask)
    if dual_clip is not None:
        below = (advantage < 0) & (gain < dual_clip * advantage)
        gain = jnp.where(below, dual_clip * advantage, gain)
    metrics = {
        'clip_fraction': masked_mean(clipped < free, mask),
        'dual_clip_fraction': masked_mean(below, mask),
        'ratio_mean': masked_mean(ratio, mask),
        'ratio_max': jnp.max(jnp.where(mask, ratio, 0), initial=0),
        'approx_kl': masked_mean(-log_ratio, mask),
    }
    return masked_mean(-gain, mask, denominator=denominator, weight=weight), jax.lax.stop_gradient(metrics)


def kl_penalty(
    logp: Array,
    ref_logp: Array,
    mask: Array,
    *,
    kind: str,
    denominator: float | Array | None = None,
    weight: Array | None = None,
    full_kl: Array | None = None,
) -> Array:
    """Estimates KL(policy || reference) at the sampled tokens.

        'k2'    (logp - ref_logp)**2 / 2
        'k3'    exp(ref_logp - logp) - (ref_logp - logp) - 1
        'full'  full_kl, the exact sum over the vocabulary, computed where the logits are

    Schulman, http://joschu.net/blog/kl-approx.html. All are at least 0. On the policy's own samples k3 is unbiased as a
    value, and k2 is unbiased as a gradient.

    Args:
        logp: [N, L] float, with gradient. ref_logp: [N, L] float, without.
        mask: [N, L] bool, True at tokens in the loss.
        kind: 'k2', 'k3' or 'full'.
        denominator: scalar that divides the sum; None: the mask's count, or the sum of the weights over the mask.
        weight: [N, L] float; None: 1.
        full_kl: [N, L] float, with gradient; needed by 'full', which does not read logp and ref_logp.

    Returns:
        scalar, nats; 0 for an empty mask.

    Raises:
        ValueError: for an unknown kind, 'full' without full_kl, differing shapes or a wrong dtype.
    """
    if kind not in KL_KINDS:
        raise ValueError(f'kind {kind!r} is unknown; valid names: {", ".join(KL_KINDS)}')
    if kind == 'full' and full_kl is None:
        raise ValueError("kind 'full' needs full_kl [N, L], the exact KL of every token")
    _check_tokens(mask, logp=logp, ref_logp=ref_logp, weight=weight, full_kl=full_kl)
    if kind == 'full':
        kl = full_kl
    else:
        log_ratio = jax.lax.stop_gradient(jnp.where(mask, ref_logp, 0)) - jnp.where(mask, logp, 0)
        bounded = jnp.minimum(log_ratio, MAX_LOG_RATIO)
        kl = log_ratio**2 / 2 if kind == 'k2' else jnp.exp(bounded) - bounded - 1
    return masked_mean(kl, mask, denominator=denominator, weight=weight)


def entropy_bonus(
    entropy: Array, mask: Array, *, denominator: float | Array | None = None, weight: Array | None = None
) -> Array:
    """Averages the entropy of the next-token distributions; a loss subtracts it.

    Args:
        entropy: [N, L] float, nats, with gradient. mask: [N, L] bool, True at tokens in the loss.
        denominator: scalar that divides the sum; None: the mask's count, or the sum of the weights over the mask.
        weight: [N, L] float; None: 1.

    Returns:
        scalar, nats; 0 for an empty mask.

    Raises:
        ValueError: for differing shapes or a wrong dtype.
    """
    _check_tokens(mask, entropy=entropy, weight=weight)
    return masked_mean(entropy, mask, denominator=denominator, weight=weight)


def token_weight(turn: Array, action_mask: Array, *, unit: str, num_turns: int) -> Array:
    """Weighs tokens so that the unit of the loss is a token or a turn.

        'token'  1
        'turn'   1 / len(a_t): long actions count as much as short ones, and the weights sum to the number of actions

    Args:
        turn: [N, L] int32. action_mask: [N, L] bool, True at the agent's own tokens.
        unit: 'token' or 'turn'.
        num_turns: T, static.

    Returns:
        [N, L] float32, 0 outside action_mask.

    Raises:
        ValueError: for an unknown unit, a wrong rank, size or dtype.
    """
    if unit not in UNITS:
        raise ValueError(f'unit {unit!r} is unknown; valid names: {", ".join(UNITS)}')
    check_shape('turn', turn, (None, None), 'i')
    check_shape('action_mask', action_mask, tuple(turn.shape), 'b')
    ones = action_mask.astype(jnp.float32)
    if unit == 'token':
        return ones
    counts = turn_sum(ones, turn, action_mask, num_turns=num_turns)
    return ones / jnp.maximum(jnp.take_along_axis(counts, jnp.clip(turn, 0, num_turns - 1), axis=1), 1)


def importance_weight(logp: Array, sampled_logp: Array, mask: Array, *, cap: float | Array) -> Array:
    """Corrects for a sampler that differs from the scorer (kernels, precision) by truncated importance weights.

        weight = min(exp(logp - sampled_logp), cap)

    Ionides 2008, https://doi.org/10.1198/106186008X320456. Without gradient.

    Args:
        logp: [N, L] float, the scorer's log-probability under the weights that sampled.
        sampled_logp: [N, L] float, the sampler's own.
        mask: [N, L] bool, True at sampled tokens.
        cap: positive; the largest weight.

    Returns:
        [N, L] float, 0 outside the mask.

    Raises:
        ValueError: for differing shapes or a wrong dtype.
    """
    _check_tokens(mask, logp=logp, sampled_logp=sampled_logp)
    weight = jnp.minimum(jnp.exp(logp - sampled_logp), cap)
    return jax.lax.stop_gradient(jnp.where(mask, weight, 0))


def _check_tokens(mask: Array, **arrays: Array | None) -> None:
    """Checks that the mask is bool and that every array that is given is float and of its shape."""
    shape = tuple(jnp.shape(mask))
    check_shape('mask', mask, shape, 'b')
    for name, array in arrays.items():
        if array is not None:
            check_shape(name, array, shape, 'f')
