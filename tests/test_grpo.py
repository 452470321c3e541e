"""GRPO, and the metrics that stand beside the credit of every estimator."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest
from signals import NAN, by_token, credit_of, make_signals

from infopo_jax import advantage, types


def test_grpo_is_the_outcome_advantage_alone():
    signals = make_signals()
    credit = credit_of('grpo', signals)
    adv = advantage.outcome_advantage(signals.outcome, group_size=4, valid=signals.valid)
    expected = by_token(np.repeat(adv[:, None], 4, axis=1), signals)
    np.testing.assert_allclose(credit.advantage, expected, rtol=1e-6)
    np.testing.assert_array_equal(credit.advantage[:4], 0)  # the group that ties
    assert credit.metrics['info_share'] == 0 and credit.metrics['gate'] == 0


def test_metrics_of_a_small_batch():
    """Two groups of two rows, two turns, one token per action; the second group ties."""
    signals = types.Signals(
        turn=jnp.array([[0, 1]] * 4),
        action_mask=jnp.ones((4, 2), bool),
        outcome=jnp.array([0.0, 1.0, 3.0, 3.0]),
        turn_reward=jnp.zeros((4, 2)),
        valid=jnp.ones(4, bool),
        num_turns=jnp.full(4, 2),
        gain=jnp.array([[1.0, 0], [2.0, 0], [4.0, 0], [5.0, 0]]),
        gain_mask=jnp.array([[True, False]] * 4),
        update=jnp.int32(0),
    )
    metrics = credit_of('raw_gain', signals, group_size=2, info_weight=1.0).metrics
    outcome_adv = 0.5 / math.sqrt(0.5)
    expected = {
        'tied_groups': 0.5,
        'gate': 1.0,
        'gain_mean': 3.0,
        'gain_std': math.sqrt((4 + 1 + 1 + 4) / 4),
        'gain_outcome_corr': np.corrcoef([1, 2, 4, 5], [0, 1, 3, 3])[0, 1],
        # mean |info| = 12 / 8 and mean |outcome| = 4 * outcome_adv / 8 over the eight tokens
        'info_share': 12 / (12 + 4 * outcome_adv),
        'advantage_abs': ((1 - outcome_adv) + (2 + outcome_adv) + 2 * outcome_adv + 4 + 5) / 8,
    }
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=1e-5), name


def test_metrics_tied_groups_counts_groups_with_two_valid_rows():
    signals = dataclasses.replace(make_signals(), outcome=jnp.array([0.7] * 4 + [0, 1, 0, 1] + [2.0, NAN, NAN, NAN]))
    signals = dataclasses.replace(signals, valid=jnp.arange(12) < 9)
    assert credit_of('grpo', signals).metrics['tied_groups'] == 0.5


def test_metrics_correlation_is_zero_where_undefined():
    signals = make_signals()
    flat = dataclasses.replace(signals, gain=jnp.where(signals.gain_mask, 0.7, 0))
    assert credit_of('grpo', flat).metrics['gain_outcome_corr'] == 0
    tied = dataclasses.replace(signals, outcome=jnp.full(12, 10.7))
    assert credit_of('grpo', tied).metrics['gain_outcome_corr'] == 0
