"""Tests of infopo_jax.advantage: goldens by hand, plain loops as reference, exact zeros, masks."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infopo_jax import advantage

NAN = np.nan
TIED_VALUES, TIED_GROUPS = (0.1, 0.7, 1.892, 10.7), (3, 5, 8, 16)


def _f(x):
    return jnp.asarray(x, jnp.float32)


def _outcome_loop(outcome, valid, group_size):
    out = np.zeros(len(outcome))
    for start in range(0, len(outcome), group_size):
        rows = [n for n in range(start, start + group_size) if valid[n]]
        if len(rows) >= 2:
            x = outcome[rows].astype(np.float64)
            out[rows] = (x - x.mean()) / (x.std(ddof=1) + 1e-6)
    return out


def _info_loop(gain, mask, valid, num_turns, action_len, *, group_size, baseline, std_floor):
    """The docstring of info_advantage, entry by entry, in float64; with action_len over an explicit list of tokens."""
    out = np.zeros(gain.shape)
    for start in range(0, len(gain), group_size):
        cells = {}  # (n, t) -> (value, copies)
        for n in range(start, start + group_size):
            for t in range(gain.shape[1]):
                copies = 1 if action_len is None else max(action_len[n, t], 1)
                value = float(gain[n, t]) / copies
                if valid[n] and mask[n, t] and (action_len is None or value != 0):
                    cells[n, t] = (value, copies)
                elif valid[n] and baseline == 'turn' and t == num_turns[n] - 1:
                    cells[n, t] = (0.0, copies)
        centred = {}
        for (n, t), (value, copies) in cells.items():
            peers = [c for (m, s), c in cells.items() if baseline != 'turn' or s == t]
            if len(peers) >= 2 or baseline != 'turn':
                centred[n, t] = (value - np.mean(np.repeat(*zip(*peers, strict=True))), copies)
        tokens = np.repeat(*zip(*centred.values(), strict=True)) if centred else np.zeros(1)
        std = math.sqrt(np.sum(tokens**2) / max(len(tokens) - (baseline != 'turn'), 1))
        std = max(std, std_floor)
        for cell, (value, _) in centred.items():
            if baseline != 'none':
                out[cell] = value / (std + 1e-6)
            elif std > 0:
                out[cell] = cells[cell][0] / (std + 1e-6)
    return out


def _random_batch(seed=0, num_rows=12, num_turns=5):
    rng = np.random.default_rng(seed)
    taken = rng.integers(1, num_turns + 1, num_rows).astype(np.int32)
    gain = rng.normal(0.3, 0.5, (num_rows, num_turns)).astype(np.float32)
    mask = (np.arange(num_turns) < taken[:, None] - 1) & (rng.random(gain.shape) < 0.85)
    gain[0, 0], mask[0, 0] = 0.0, True  # a measured gain of exactly zero
    taken[0] = max(taken[0], 2)
    valid = rng.random(num_rows) < 0.8
    valid[0] = True
    action_len = np.where(np.arange(num_turns) < taken[:, None], rng.integers(1, 6, gain.shape), 0).astype(np.int32)
    outcome = rng.random(num_rows).astype(np.float32)
    return {'gain': gain, 'mask': mask, 'valid': valid, 'taken': taken, 'len': action_len, 'outcome': outcome}


# ---- outcome_advantage


def test_outcome_advantage_standardises_each_group():
    outcome = _f([0, 0, 0, 1, 1, 2, 3, 4])
    # mean 1/4, squares 3/16 + 9/16, over 3: std 1/2. mean 5/2, squares 2 * (9/4 + 1/4), over 3: std sqrt(5/3).
    std = math.sqrt(5 / 3)
    expected = [-0.5, -0.5, -0.5, 1.5, -1.5 / std, -0.5 / std, 0.5 / std, 1.5 / std]
    np.testing.assert_allclose(advantage.outcome_advantage(outcome, group_size=4), expected, rtol=1e-5)


@pytest.mark.parametrize('group_size', [1, 3, 6])
def test_outcome_advantage_equals_the_definition(group_size):
    batch = _random_batch()
    expected = _outcome_loop(batch['outcome'], batch['valid'], group_size)
    function = functools.partial(advantage.outcome_advantage, group_size=group_size)
    for f in (function, jax.jit(function)):
        np.testing.assert_allclose(f(batch['outcome'], valid=batch['valid']), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('group_size', TIED_GROUPS)
def test_outcome_advantage_of_ties_is_exactly_zero(group_size):
    tied = np.repeat(np.float32(TIED_VALUES), group_size)
    outcome = np.concatenate([tied, np.arange(group_size, dtype=np.float32)])  # the last group does not tie
    function = functools.partial(advantage.outcome_advantage, group_size=group_size)
    for f in (function, jax.jit(function)):
        result = np.asarray(f(outcome))
        np.testing.assert_array_equal(result[:-group_size], 0)
        assert result[-group_size:].any()


def test_outcome_advantage_of_invalid_rows_is_zero_and_in_no_statistic():
    outcome = _f([NAN, 0.0, 1.0, 7.0, 5.0, NAN, NAN, NAN])
    valid = jnp.array([False, True, True, False, True, False, False, False])
    result = advantage.outcome_advantage(outcome, group_size=4, valid=valid)
    unit = 0.5 / (math.sqrt(0.5) + 1e-6)
    np.testing.assert_allclose(result, [0, -unit, unit, 0, 0, 0, 0, 0], rtol=1e-6)


def test_outcome_advantage_refuses_rows_that_do_not_fill_groups():
    with pytest.raises(ValueError, match='multiple of group_size=4'):
        advantage.outcome_advantage(jnp.zeros(6), group_size=4)
    with pytest.raises(ValueError, match='outcome must be floating'):
        advantage.outcome_advantage(jnp.zeros(4, jnp.int32), group_size=4)
    with pytest.raises(ValueError, match='valid must have shape'):
        advantage.outcome_advantage(jnp.zeros(4), group_size=4, valid=jnp.ones(3, bool))


# ---- variance_gate


def test_variance_gate_is_the_sigmoid_of_the_group_std():
    outcome = _f([0, 0, 0, 1, 3, 3, 3, 3])
    gate = advantage.variance_gate(outcome, group_size=4, temperature=0.25)
    np.testing.assert_allclose(gate[:4], 1 / (1 + math.exp(0.5 / 0.25)), rtol=1e-6)
    np.testing.assert_array_equal(gate[4:], 0.5)


def test_variance_gate_temperature_is_in_units_of_the_outcome():
    outcome = _f(_random_batch()['outcome'])
    scaled = advantage.variance_gate(10 * outcome, group_size=6, temperature=0.5)
    np.testing.assert_allclose(scaled, advantage.variance_gate(outcome, group_size=6), rtol=1e-5)


def test_variance_gate_without_two_valid_rows_is_one_half():
    outcome = _f([NAN, 3.0, NAN, NAN, NAN, NAN])
    gate = advantage.variance_gate(outcome, group_size=3, valid=jnp.arange(6) == 1)
    np.testing.assert_array_equal(gate, 0.5)
    np.testing.assert_array_equal(advantage.variance_gate(_f([1, 2]), group_size=1), 0.5)


def test_variance_gate_leaves_invalid_rows_out():
    valid = jnp.array([True, True, False])
    gate = advantage.variance_gate(_f([0, 1, NAN]), group_size=3, temperature=1.0, valid=valid)
    np.testing.assert_allclose(gate[:2], 1 / (1 + math.exp(math.sqrt(0.5))), rtol=1e-6)


# ---- info_advantage


def test_info_advantage_group_standardises_over_all_turns():
    gain = _f([[0.0, 1.0, NAN], [2.0, NAN, NAN]])
    mask = jnp.array([[True, True, False], [True, False, False]])
    result = advantage.info_advantage(gain, mask, group_size=2)  # mean 1, std 1 with ddof 1
    np.testing.assert_allclose(result, [[-1, 0, 0], [1, 0, 0]], atol=2e-6)


def test_info_advantage_turn_compares_asking_with_acting():
    # Row 0 asks at turns 0 and 1 and ends at 2; row 1 asks at 0 and ends at 1.
    gain = _f([[0.4, 0.2, NAN], [0.8, NAN, NAN]])
    mask = jnp.array([[True, True, False], [True, False, False]])
    num_turns = jnp.array([3, 2])
    result = advantage.info_advantage(gain, mask, group_size=2, baseline='turn', num_turns=num_turns)
    # Turn 0: mean 0.6. Turn 1: mean of 0.2 and the ending action's 0 is 0.1. Turn 2: one row, nothing to compare.
    std = math.sqrt((0.2**2 + 0.2**2 + 0.1**2 + 0.1**2) / 4)
    np.testing.assert_allclose(result, np.array([[-0.2, 0.1, 0], [0.2, -0.1, 0]]) / std, rtol=1e-4)


def test_info_advantage_turn_leaves_errors_out():
    # Row 2's turn 0 is an error: no gain and not the end. Row 0 and 1 are compared as if it were not there.
    gain, mask = _f([[0.4, NAN], [0.8, NAN], [NAN, NAN]]), jnp.array([[True, False], [True, False], [False, False]])
    num_turns = jnp.array([2, 2, 2])
    result = advantage.info_advantage(gain, mask, group_size=3, baseline='turn', num_turns=num_turns)
    std = math.sqrt((2 * 0.2**2 + 3 * 0.0) / 5)  # three ending actions at turn 1, all 0
    np.testing.assert_allclose(result, np.array([[-0.2, 0], [0.2, 0], [0, 0]]) / std, rtol=1e-4)


def test_info_advantage_none_only_scales():
    gain, mask = _f([[0.0, 1.0], [2.0, NAN]]), jnp.array([[True, True], [True, False]])
    result = advantage.info_advantage(gain, mask, group_size=2, baseline='none')
    np.testing.assert_allclose(result, [[0, 1], [2, 0]], rtol=2e-6)
    tied = advantage.info_advantage(jnp.full((2, 2), 0.7), mask, group_size=2, baseline='none')
    np.testing.assert_array_equal(tied, 0)
    floored = advantage.info_advantage(jnp.full((2, 2), 0.7), mask, group_size=2, baseline='none', std_floor=0.1)
    np.testing.assert_allclose(floored, np.where(mask, 7.0, 0), rtol=1e-4)


def test_info_advantage_action_len_weighs_turns_by_their_tokens():
    # gain / len: 6 / 3 = 2 (three tokens), 1 / 1 = 1, 0 is dropped.
    # Tokens 2 2 2 1: mean 7/4, squares 3/16 + 9/16, over 3.
    gain, mask = _f([[6.0, 0.0], [1.0, NAN]]), jnp.array([[True, True], [True, False]])
    action_len = jnp.array([[3, 5], [1, 0]])
    result = advantage.info_advantage(gain, mask, group_size=2, action_len=action_len)
    np.testing.assert_allclose(result, [[0.25 / 0.5, 0], [-0.75 / 0.5, 0]], rtol=1e-5)


@pytest.mark.parametrize('by_token', [False, True])
@pytest.mark.parametrize('baseline', advantage.BASELINES)
@pytest.mark.parametrize(('group_size', 'std_floor'), [(1, 0.0), (4, 0.3), (12, 0.0)])
def test_info_advantage_equals_the_definition(baseline, by_token, group_size, std_floor):
    b = _random_batch(seed=group_size)
    hyper = {'group_size': group_size, 'baseline': baseline, 'std_floor': std_floor}
    action_len = b['len'] if by_token else None
    expected = _info_loop(b['gain'], b['mask'], b['valid'], b['taken'], action_len, **hyper)
    function = functools.partial(advantage.info_advantage, **hyper)
    gain = np.where(b['mask'] & b['valid'][:, None], b['gain'], np.float32(NAN))
    arrays = {'valid': b['valid'], 'num_turns': b['taken'], 'action_len': action_len}
    for f in (jax.jit(function), function)[: 2 if group_size == 4 else 1]:
        np.testing.assert_allclose(f(gain, b['mask'], **arrays), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('baseline', ['group', 'turn'])
@pytest.mark.parametrize('group_size', TIED_GROUPS)
def test_info_advantage_of_ties_is_exactly_zero(group_size, baseline):
    gain = np.repeat(np.float32(TIED_VALUES), group_size)[:, None] * np.ones((1, 3), np.float32)
    mask = np.ones(gain.shape, bool)
    mask[::group_size, 0] = mask[:, 2] = False
    hyper = {'group_size': group_size, 'baseline': baseline, 'num_turns': np.full(len(gain), 3)}
    function = functools.partial(advantage.info_advantage, **hyper)
    for f in (function, jax.jit(function)):
        np.testing.assert_array_equal(f(gain, mask), 0)


def test_info_advantage_of_one_gain_is_zero():
    gain, mask = _f([[NAN, 5.0], [NAN, NAN]]), jnp.array([[False, True], [False, False]])
    np.testing.assert_array_equal(advantage.info_advantage(gain, mask, group_size=2), 0)
    alone = advantage.info_advantage(gain, mask, group_size=2, baseline='turn', num_turns=jnp.array([3, 1]))
    np.testing.assert_array_equal(alone, 0)


def test_info_advantage_without_any_gain_is_zero():
    gain, mask = jnp.full((4, 2), NAN), jnp.zeros((4, 2), bool)
    for baseline in advantage.BASELINES:
        hyper = {'group_size': 2, 'baseline': baseline, 'num_turns': jnp.zeros(4, jnp.int32)}
        np.testing.assert_array_equal(advantage.info_advantage(gain, mask, **hyper), 0)


def test_info_advantage_std_floor_tames_tiny_gains():
    gain, mask = _f([[0.001], [0.003]]), jnp.ones((2, 1), bool)
    result = advantage.info_advantage(gain, mask, group_size=2, std_floor=0.1)
    np.testing.assert_allclose(result, [[-0.01], [0.01]], rtol=1e-4)


def test_info_advantage_refuses_wrong_arguments():
    gain, mask = jnp.zeros((4, 2)), jnp.ones((4, 2), bool)
    with pytest.raises(ValueError, match="'mean' is unknown; valid names: group, turn, none"):
        advantage.info_advantage(gain, mask, group_size=2, baseline='mean')
    with pytest.raises(ValueError, match="'turn' needs num_turns"):
        advantage.info_advantage(gain, mask, group_size=2, baseline='turn')
    with pytest.raises(ValueError, match='multiple of group_size=3'):
        advantage.info_advantage(gain, mask, group_size=3)
    with pytest.raises(ValueError, match='gain_mask must be bool'):
        advantage.info_advantage(gain, gain, group_size=2)


# ---- fuse and to_tokens


def test_fuse_adds_the_gated_part():
    info = _f([[1, -2], [3, 0]])
    result = advantage.fuse(_f([10, 20]), info, _f([0.5, 0.25]), info_weight=2.0)
    np.testing.assert_allclose(result, [[11, 8], [21.5, 20]])
    with pytest.raises(ValueError, match='gate must have shape'):
        advantage.fuse(_f([10, 20]), info, _f([0.5]), info_weight=2.0)


def test_to_tokens_spreads_a_turn_over_its_action():
    turn = jnp.array([[-1, 0, 0, 0, 1, 7, -1]])
    action_mask = jnp.array([[False, True, True, False, True, True, False]])
    tokens = advantage.to_tokens(_f([[2, 3]]), turn, action_mask)
    np.testing.assert_array_equal(tokens, [[0, 2, 2, 0, 3, 0, 0]])  # turn 7 does not exist
    garbage = advantage.to_tokens(_f([[NAN, 3]]), turn, action_mask & (turn != 0))
    np.testing.assert_array_equal(garbage, [[0, 0, 0, 0, 3, 0, 0]])
