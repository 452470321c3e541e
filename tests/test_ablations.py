"""The ablations: the gain as it is, and the placebo of shuffled gains."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from signals import KEY, assert_equal, by_token, credit_of, make_signals

from infopo_jax import advantage
from infopo_jax.estimators.ablations import shuffle_in_groups


def test_raw_gain_adds_the_gain_in_nats():
    signals = make_signals()
    adv = np.asarray(advantage.outcome_advantage(signals.outcome, group_size=4, valid=signals.valid))
    expected = by_token(adv[:, None] + 0.5 * math.exp(-0.3) * np.asarray(signals.gain), signals)
    np.testing.assert_allclose(credit_of('raw_gain', signals).advantage, expected, rtol=1e-5)


def test_shuffled_gain_is_infopo_on_permuted_gains():
    signals = make_signals()
    used = signals.gain_mask & signals.valid[:, None]
    shuffled = credit_of('shuffled_gain', signals)
    assert jnp.any(shuffled.advantage != credit_of('infopo', signals).advantage)
    assert jnp.any(shuffled.advantage != credit_of('shuffled_gain', signals, key=jax.random.key(1)).advantage)
    np.testing.assert_allclose(
        shuffled.metrics['gain_mean'], credit_of('infopo', signals).metrics['gain_mean'], rtol=1e-6
    )
    equal = dataclasses.replace(signals, gain=jnp.where(used, 0.7, 0))  # nothing to lose: the placebo changes nothing
    assert_equal(credit_of('shuffled_gain', equal), credit_of('infopo', equal))


def test_shuffle_in_groups_permutes_inside_each_group_and_mask():
    gain = np.arange(24, dtype=np.float32).reshape(6, 4)
    mask = np.random.default_rng(0).random((6, 4)) < 0.6
    shuffle = jax.jit(functools.partial(shuffle_in_groups, group_size=3))
    draws = [np.asarray(shuffle(gain, mask, key=k)) for k in jax.random.split(KEY, 100)]
    for draw in draws[:20]:
        np.testing.assert_array_equal(draw[~mask], gain[~mask])
        for rows in (slice(0, 3), slice(3, 6)):
            np.testing.assert_array_equal(np.sort(draw[rows][mask[rows]]), gain[rows][mask[rows]])
    # Uniform: on average every used slot holds its group's mean.
    mean = np.mean(draws, axis=0)
    for rows in (slice(0, 3), slice(3, 6)):
        values = np.asarray(gain[rows][mask[rows]])
        error = values.std() / math.sqrt(len(draws))
        np.testing.assert_allclose(mean[rows][mask[rows]], values.mean(), atol=5 * error)
