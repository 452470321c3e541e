"""Tests of infopo_jax.info_gain: goldens by hand, a plain loop as reference, and what masks must keep out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infopo_jax.info_gain import info_gain, turn_sum

NAN = np.nan
# One row, three turns; a_1 is one token, a_2 two tokens.
ROLE = ['P', 'A', 'F', 'A', 'F', 'A', 'A', '-']
TURN = [-1, 0, 0, 1, 1, 2, 2, -1]


def _row(token_gain):
    role = np.array([ROLE])
    return {
        'token_gain': jnp.asarray([token_gain], jnp.float32),
        'turn': jnp.asarray([TURN], jnp.int32),
        'action_mask': jnp.asarray(role == 'A'),
        'feedback_mask': jnp.asarray(role == 'F'),
    }


def _loop(token_gain, turn, action_mask, feedback_mask, num_turns):
    """The definition, entry by entry, in float64."""
    num_rows, horizon, _ = token_gain.shape
    gain, mask = np.zeros((num_rows, num_turns)), np.zeros((num_rows, num_turns), bool)
    for n in range(num_rows):
        for t in range(num_turns):
            means = []
            for h in range(1, horizon + 1):
                of_action = action_mask[n] & (turn[n] == t + h)
                if t + h < num_turns and of_action.any():
                    means.append(token_gain[n, h - 1, of_action].mean(dtype=np.float64))
            if means and (feedback_mask[n] & (turn[n] == t)).any():
                gain[n, t], mask[n, t] = np.mean(means), True
    return gain, mask


def _random_batch(seed=0, num_rows=5, horizon=3, num_turns=4):
    """Rows of different numbers of turns, actions and feedback of 1-3 tokens, some turns without feedback."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(num_rows):
        roles, turns = ['P'], [-1]
        last = rng.integers(1, num_turns + 1)
        for t in range(last):
            roles += ['A'] * (k := rng.integers(1, 4))
            turns += [t] * k
            if t < last - 1:
                roles += ['T'] + ['F'] * (k := rng.integers(0, 3)) + ['T']
                turns += [t] * (k + 2)
        rows.append((roles, turns))
    length = max(len(r) for r, _ in rows) + 2
    role = np.array([r + ['-'] * (length - len(r)) for r, _ in rows])
    turn = np.array([t + [-1] * (length - len(t)) for _, t in rows], np.int32)
    token_gain = rng.normal(size=(num_rows, horizon, length)).astype(np.float32)
    return token_gain, turn, role == 'A', role == 'F', num_turns


def test_turn_sum_adds_by_turn_and_drops_other_turns():
    x = jnp.array([[1.0, 2.0, 4.0, 8.0, NAN]])
    turn = jnp.array([[0, 1, 1, 5, 0]])
    mask = jnp.array([[True, True, True, True, False]])
    np.testing.assert_array_equal(turn_sum(x, turn, mask, num_turns=3), [[1.0, 6.0, 0.0]])


def test_info_gain_credits_the_turn_before_the_action():
    token_gain = [[NAN, NAN, NAN, 3.0, NAN, 1.0, 2.0, NAN]]
    gain, mask = info_gain(**_row(token_gain), num_turns=3)
    np.testing.assert_allclose(gain, [[3.0, (1 + 2) / 2, 0.0]])
    np.testing.assert_array_equal(mask, [[True, True, False]])


def test_info_gain_averages_the_later_actions_that_exist():
    # Row h-1 holds the log-ratio with only o_{turn - h} masked: at h = 2 only a_2 (about o_0) has a meaning.
    token_gain = [[NAN, NAN, NAN, 3.0, NAN, 1.0, 2.0, NAN], [NAN, NAN, NAN, NAN, NAN, 10.0, 20.0, NAN]]
    gain, mask = info_gain(**_row(token_gain), num_turns=3)
    np.testing.assert_allclose(gain, [[(3 + (10 + 20) / 2) / 2, (1 + 2) / 2, 0.0]])
    np.testing.assert_array_equal(mask, [[True, True, False]])


@pytest.mark.parametrize('horizon', [1, 2, 3, 6])
def test_info_gain_equals_the_definition(horizon):
    batch = _random_batch(horizon=horizon)
    expected, expected_mask = _loop(*batch)
    for function in (info_gain, jax.jit(info_gain, static_argnames='num_turns')):
        gain, mask = function(*batch[:4], num_turns=batch[4])
        np.testing.assert_allclose(gain, expected, atol=1e-6)
        np.testing.assert_array_equal(mask, expected_mask)
    assert expected_mask.any() and not expected_mask.all()


def test_info_gain_ignores_what_it_must_not_read():
    token_gain, turn, action_mask, feedback_mask, num_turns = _random_batch()
    expected, _ = info_gain(token_gain, turn, action_mask, feedback_mask, num_turns=num_turns)
    too_early = turn[:, None] < np.arange(1, token_gain.shape[1] + 1)[:, None]  # there is no o_{turn - h}
    garbage = np.where(~action_mask[:, None] | too_early, NAN, token_gain)
    gain, _ = info_gain(garbage, turn, action_mask, feedback_mask, num_turns=num_turns)
    np.testing.assert_array_equal(gain, expected)


def test_info_gain_of_masked_feedback_is_exactly_zero():
    row = _row([[NAN, NAN, NAN, NAN, NAN, 1.0, 2.0, NAN]])  # a_1 scored NaN; its feedback o_0 is an error
    row['feedback_mask'] &= row['turn'] != 0
    gain, mask = info_gain(**row, num_turns=3)
    np.testing.assert_array_equal(gain, [[0.0, 1.5, 0.0]])
    np.testing.assert_array_equal(mask, [[False, True, False]])


def test_info_gain_of_a_single_turn_is_masked():
    batch = _random_batch(num_turns=1)
    gain, mask = info_gain(*batch[:4], num_turns=1)
    assert gain.shape == mask.shape == (5, 1)
    assert not gain.any() and not mask.any()


def test_info_gain_counts_in_float32():
    length = 600  # bfloat16 cannot count past 256
    turn = jnp.concatenate([jnp.zeros((1, 2), jnp.int32), jnp.ones((1, length), jnp.int32)], axis=1)
    action_mask = (turn == 1).at[0, 0].set(True)
    gain, _ = info_gain(jnp.ones((1, 1, length + 2), jnp.bfloat16), turn, action_mask, ~action_mask, num_turns=2)
    assert gain.dtype == jnp.float32
    np.testing.assert_array_equal(gain, [[1.0, 0.0]])


def test_info_gain_refuses_wrong_shapes_and_types():
    row = _row([[0.0] * 8])
    with pytest.raises(ValueError, match='token_gain must have shape'):
        info_gain(**{**row, 'token_gain': row['token_gain'][0]}, num_turns=3)
    with pytest.raises(ValueError, match='action_mask must be bool'):
        info_gain(**{**row, 'action_mask': row['turn']}, num_turns=3)
    with pytest.raises(ValueError, match='turn must have shape'):
        info_gain(**{**row, 'turn': row['turn'][:, 1:]}, num_turns=3)
