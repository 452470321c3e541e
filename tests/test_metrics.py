"""Scalars of a batch, counted by hand."""

import dataclasses

import builders
import jax
import jax.numpy as jnp
import numpy as np

from infopo_jax import metrics
from infopo_jax.types import EndReason, Role

P, A, F = Role.PROMPT, Role.ACTION, Role.FEEDBACK
ROWS = [
    [(5, P, -1), (6, A, 0), (7, A, 0), (8, F, 0), (9, A, 1)],  # 5 tokens, 2 actions of 2 and 1
    [(5, P, -1), (6, A, 0)],  # 2 tokens, 1 action
    [(5, P, -1), (5, P, -1), (6, A, 0), (8, F, 0), (9, A, 1), (8, F, 1), (9, A, 2)],  # fails: in no mean
    [(5, P, -1), (6, A, 0), (6, A, 0), (6, A, 0)],  # 4 tokens, 1 action of 3
]
D, L, B, E = EndReason.DONE, EndReason.TURN_LIMIT, EndReason.BAD_ACTION, EndReason.ENV_ERROR


def turns(**fields):
    values = {
        'outcome': np.array([1.0, 0.5, 9.0, 0.0], np.float32), 'success': np.array([True, False, True, False]),
        'valid': np.array([True, True, False, True]), 'end_reason': np.array([D, L, E, B], np.int8),
        'turn_error': np.array([[True, False, False], [False] * 3, [True] * 3, [True, True, True]]),
    }  # fmt: skip
    return dataclasses.replace(builders.turns_of(ROWS), **values | fields)


def test_rollout_metrics_golden():
    found = metrics.rollout_metrics(turns())
    wanted = {
        'reward': 1.5 / 3, 'success': 1 / 3, 'turns': 4 / 3, 'length': 11 / 3, 'action_length': 7 / 4, 'failed': 1 / 4,
        'error_turns': 2 / 4, 'end_done': 1 / 4, 'end_turn_limit': 1 / 4, 'end_token_limit': 0, 'end_bad_action': 1 / 4,
        'end_env_error': 1 / 4, 'end_user_error': 0,
    }  # fmt: skip
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, atol=1e-6, err_msg=name)
        assert found[name].dtype == jnp.float32 and found[name].shape == ()


def test_rollout_metrics_under_jit_equal_eager_and_do_not_read_failed_rows():
    jitted = jax.jit(metrics.rollout_metrics)
    broken = turns(outcome=np.array([1.0, 0.5, np.nan, 0.0], np.float32))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), jitted(broken), metrics.rollout_metrics(turns())
    )


def test_rollout_metrics_of_nothing_are_zero():
    found = metrics.rollout_metrics(turns(valid=np.zeros(4, bool), turn_error=None))
    assert found['failed'] == 1 and all(found[name] == 0 for name in ('reward', 'success', 'length', 'action_length'))


def test_gain_metrics_average_by_turn_and_keep_errors_apart():
    gain = jnp.array([[1.0, 2.0, 0.0], [3.0, 7.0, 0.0]])
    exists = jnp.array([[True, True, False], [True, False, False]])
    errors = jnp.array([[False, True, True], [False, False, False]])
    found = metrics.gain_metrics(gain, exists, errors)
    assert {name: float(value) for name, value in found.items()} == {
        'gain_turn_0': 2.0, 'gain_turn_1': 0.0, 'gain_error': 2.0
    }  # fmt: skip


def test_sampler_gap_is_a_mean_of_absolute_differences_over_the_mask():
    gap = metrics.sampler_gap(
        jnp.array([[-1.0, -2.0, jnp.nan]]), jnp.array([[-1.5, -1.75, 0.0]]), jnp.array([[True, True, False]])
    )
    np.testing.assert_allclose(gap, 0.375)
