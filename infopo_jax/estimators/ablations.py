"""Ablations of InfoPO: the gain without normalisation and gate, and the placebo."""

import dataclasses

import jax
import jax.numpy as jnp

from infopo_jax import advantage
from infopo_jax.estimators.grpo import assemble
from infopo_jax.estimators.infopo import decayed, infopo
from infopo_jax.types import Array, Credit, Signals


def raw_gain(
    signals: Signals,
    *,
    group_size: int,
    key: jax.Array,
    info_weight: float | Array = 0.5,
    weight_decay: float | Array = 0.0,
    **_,
) -> Credit:
    """Adds the gain itself, in nats, without statistics and without a gate.

        advantage[n, i] = outcome_adv[n] + info_weight * exp(-weight_decay * update) * gain[n, turn[i]]

    Args:
        signals, group_size, key, info_weight, weight_decay: as for `infopo`.

    Returns:
        Credit; see `assemble` for its metrics.
    """
    del key
    outcome_adv = advantage.outcome_advantage(signals.outcome, group_size=group_size, valid=signals.valid)
    used = signals.gain_mask & signals.valid[:, None]
    gain = jnp.where(used, signals.gain, 0).astype(jnp.float32)
    weight = decayed(info_weight, signals.update, rate=weight_decay)
    return assemble(signals, outcome_adv, gain, jnp.ones_like(outcome_adv), info_weight=weight, group_size=group_size)


def shuffled_gain(signals: Signals, *, group_size: int, key: jax.Array, **hyper) -> Credit:
    """Runs InfoPO on gains that were shuffled inside each group: the placebo.

    The multiset of gains, the turns that have one and the statistics of baseline 'group' stay; which turn earned what
    is lost. What still improves over GRPO is then a bonus for having such turns, not information.

    Args:
        signals, group_size, hyper: as for `infopo`.
        key: shuffles; one key per update.

    Returns:
        Credit; see `assemble` for its metrics.
    """
    used = signals.gain_mask & signals.valid[:, None]
    shuffle_key, rest_key = jax.random.split(key)
    gain = shuffle_in_groups(signals.gain, used, group_size=group_size, key=shuffle_key)
    return infopo(dataclasses.replace(signals, gain=gain), group_size=group_size, key=rest_key, **hyper)


def shuffle_in_groups(gain: Array, mask: Array, *, group_size: int, key: jax.Array) -> Array:
    """Permutes the entries under the mask inside each group of rows; other entries stay where they are.

    Args:
        gain: [N, T] float. mask: [N, T] bool. group_size: G, static. key: PRNG key.

    Returns:
        [N, T], dtype of gain.
    """
    mask_rows = mask.reshape(-1, group_size * mask.shape[1])
    flat = gain.reshape(mask_rows.shape)
    # Both orders put the k used slots first and the unused ones, in place order, behind them: by place, and by lot.
    by_place = jnp.argsort(~mask_rows, axis=1, stable=True)
    lot = jnp.where(mask_rows, jax.random.uniform(key, mask_rows.shape), 2.0)
    by_lot = jnp.argsort(lot, axis=1, stable=True)
    drawn = jnp.take_along_axis(flat, by_lot, axis=1)
    groups = jnp.arange(mask_rows.shape[0])[:, None]
    return flat.at[groups, by_place].set(drawn).reshape(gain.shape)
