"""Tests of infopo_jax.estimators: one contract for all of them, then what each one adds up to."""

import dataclasses
import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infopo_jax import advantage, config, types
from infopo_jax.estimators import ESTIMATORS, get
from infopo_jax.estimators.ablations import shuffle_in_groups

NAN = np.nan
KEY = jax.random.key(0)
HYPER = {
    'info_weight': 0.5,
    'weight_decay': 0.01,
    'gate_temperature': 0.05,
    'outcome_range': 2.0,
    'std_floor': 0.1,
    'baseline': 'turn',
    'norm': 'turn',
    'downscale': False,
}
PAPER = {'baseline': 'group', 'std_floor': 0.0}
RELEASE = {**PAPER, 'norm': 'token', 'downscale': True}
each_estimator = pytest.mark.parametrize('name', ESTIMATORS)
each_form = pytest.mark.parametrize('form', [{}, RELEASE], ids=['ours', 'release'])


def _signals(seed=0, num_rows=12, num_turns=4, action_len=(1, 4)):
    """Groups of 4 (or 3): the first ties at 0.7; one row is invalid; a_t is 1-3 tokens, o_t one token."""
    rng = np.random.default_rng(seed)
    length = 1 + num_turns * action_len[1]
    turn = np.full((num_rows, length), -1, np.int32)
    action_mask = np.zeros((num_rows, length), bool)
    taken = rng.integers(2, num_turns + 1, num_rows).astype(np.int32)
    for n in range(num_rows):
        at = 1
        for t in range(taken[n]):
            k = rng.integers(*action_len)
            turn[n, at : at + k + 1], action_mask[n, at : at + k] = t, True
            at += k + 1
    outcome = rng.random(num_rows).astype(np.float32)
    outcome[:4] = 0.7
    gain_mask = np.arange(num_turns) < taken[:, None] - 1
    gain_mask[5, 0] = False  # an error
    gain = np.where(gain_mask, rng.normal(0.5, 0.4, gain_mask.shape), 0).astype(np.float32)
    return types.Signals(
        turn=jnp.asarray(turn),
        action_mask=jnp.asarray(action_mask),
        outcome=jnp.asarray(outcome),
        turn_reward=jnp.zeros((num_rows, num_turns)),
        valid=jnp.asarray(np.arange(num_rows) != 9),
        num_turns=jnp.asarray(taken),
        gain=jnp.asarray(gain),
        gain_mask=jnp.asarray(gain_mask),
        update=jnp.int32(30),
    )


STATIC = ('group_size', 'baseline', 'norm', 'downscale')
JITTED = {name: jax.jit(function, static_argnames=STATIC) for name, function in ESTIMATORS.items()}


def _run(name, signals, group_size=4, key=KEY, **hyper):
    return JITTED[name](signals, group_size=group_size, key=key, **HYPER | hyper)


def _tokens(turn_adv, signals):
    """[N, T] -> [N, L] by a loop."""
    out = np.zeros(signals.turn.shape)
    for n, i in zip(*np.nonzero(np.asarray(signals.action_mask & signals.valid[:, None])), strict=True):
        out[n, i] = turn_adv[n, signals.turn[n, i]]
    return out


def assert_equal(credit, other, rtol=0.0):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=rtol), credit, other)


# ---- the contract


@each_estimator
def test_estimators_return_finite_credit_inside_the_loss_mask(name):
    signals = _signals()
    credit = _run(name, signals)
    np.testing.assert_array_equal(credit.loss_mask, signals.action_mask & (jnp.arange(12) != 9)[:, None])
    assert credit.advantage.shape == signals.turn.shape
    assert jnp.all(jnp.isfinite(credit.advantage)) and credit.advantage.any()
    np.testing.assert_array_equal(credit.advantage[~credit.loss_mask], 0)
    assert set(credit.metrics) == {
        *('tied_groups', 'gate', 'info_share', 'advantage_abs', 'gain_mean', 'gain_std', 'gain_outcome_corr')
    }
    assert all(jnp.shape(v) == () and jnp.isfinite(v) for v in credit.metrics.values())


@each_estimator
@each_form
def test_estimators_under_jit_with_traced_scalars_equal_eager(name, form):
    signals = _signals()
    eager = get(name)(signals, group_size=4, key=KEY, **HYPER | form)
    assert_equal(_run(name, signals, **form), eager, rtol=1e-5)


@each_estimator
def test_estimators_vmap_over_seeds(name):
    batch = [_signals(seed) for seed in range(3)]
    keys = jax.random.split(KEY, 3)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *batch)
    credits = jax.jit(jax.vmap(lambda s, k: _run(name, s, key=k)))(stacked, keys)
    for i in range(3):
        assert_equal(jax.tree.map(lambda x, i=i: x[i], credits), _run(name, batch[i], key=keys[i]), rtol=1e-5)


@each_estimator
@each_form
def test_estimators_ignore_invalid_rows_padding_and_masked_gains(name, form):
    signals = _signals()
    row = jnp.arange(12) == 9
    garbage = dataclasses.replace(
        signals,
        turn=jnp.where(signals.turn < 0, 2, signals.turn),
        action_mask=signals.action_mask ^ (row[:, None] & (signals.turn == 0)),
        outcome=jnp.where(row, NAN, signals.outcome),
        gain=jnp.where(signals.gain_mask & ~row[:, None], signals.gain, NAN),
        num_turns=jnp.where(row, 1, signals.num_turns),
    )
    assert_equal(_run(name, garbage, **form), _run(name, signals, **form))


@each_estimator
@pytest.mark.parametrize('empty', ['invalid', 'no gain', 'no tokens'])
def test_estimators_are_finite_on_an_empty_batch(name, empty):
    signals = _signals()
    nothing = {
        'invalid': {'valid': jnp.zeros_like(signals.valid)},
        'no gain': {'gain_mask': jnp.zeros_like(signals.gain_mask), 'gain': jnp.zeros_like(signals.gain)},
        'no tokens': {'action_mask': jnp.zeros_like(signals.action_mask)},
    }
    signals = dataclasses.replace(signals, **nothing[empty])
    for form in ({}, RELEASE):
        credit = _run(name, signals, **form)
        assert all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(credit))


@each_estimator
def test_estimators_defaults_are_those_of_the_config(name):
    info = config.base_config().info
    declared = {
        'info_weight': info.weight,
        'weight_decay': info.weight_decay,
        'gate_temperature': info.gate_temperature,
        'outcome_range': 1.0,  # the environment's, not the config's
        'std_floor': info.std_floor,
        'baseline': info.baseline,
        'norm': info.norm,
        'downscale': info.downscale,
    }
    for parameter in inspect.signature(get(name)).parameters.values():
        if parameter.default is not inspect.Parameter.empty:
            assert parameter.default == declared[parameter.name]


def test_get_names_the_nearest_estimator():
    with pytest.raises(ValueError, match="'infpo' is unknown; did you mean 'infopo'"):
        get('infpo')
    assert all(get(name) is function for name, function in ESTIMATORS.items())


@pytest.mark.parametrize('name', ['infopo', 'info_only', 'shuffled_gain'])
def test_estimators_refuse_an_unknown_norm(name):
    with pytest.raises(ValueError, match="'rollout' is unknown; valid names: turn, token"):
        _run(name, _signals(), norm='rollout')


# ---- each one


def test_grpo_is_the_outcome_advantage_alone():
    signals = _signals()
    credit = _run('grpo', signals)
    adv = advantage.outcome_advantage(signals.outcome, group_size=4, valid=signals.valid)
    expected = _tokens(np.repeat(adv[:, None], 4, axis=1), signals)
    np.testing.assert_allclose(credit.advantage, expected, rtol=1e-6)
    np.testing.assert_array_equal(credit.advantage[:4], 0)  # the group that ties
    assert credit.metrics['info_share'] == 0 and credit.metrics['gate'] == 0


def test_infopo_adds_the_gated_information():
    signals = _signals()
    adv = np.asarray(advantage.outcome_advantage(signals.outcome, group_size=4, valid=signals.valid))
    info = advantage.info_advantage(
        signals.gain,
        signals.gain_mask,
        group_size=4,
        valid=signals.valid,
        std_floor=0.1,
        baseline='turn',
        num_turns=signals.num_turns,
    )
    gate = np.zeros(12)
    for n in range(12):
        rows = [m for m in range(n // 4 * 4, n // 4 * 4 + 4) if m != 9]
        std = np.std(np.asarray(signals.outcome)[rows], ddof=1) if n >= 4 else 0.0
        gate[n] = 1 / (1 + math.exp(std / (0.05 * 2.0)))  # outcome_range 2 doubles the temperature
    weight = 0.5 * math.exp(-0.01 * 30)
    expected = _tokens(adv[:, None] + weight * gate[:, None] * np.asarray(info), signals)
    np.testing.assert_allclose(_run('infopo', signals).advantage, expected, rtol=1e-4, atol=1e-6)


def test_infopo_without_weight_is_grpo():
    signals = _signals()
    credit = _run('infopo', signals, info_weight=0.0)
    np.testing.assert_array_equal(credit.advantage, _run('grpo', signals).advantage)


def test_infopo_teaches_where_every_outcome_ties():
    signals = _signals()
    tied = dataclasses.replace(signals, outcome=jnp.full(12, 10.7))
    assert not _run('grpo', tied).advantage.any()
    credit = _run('infopo', tied)
    assert credit.advantage.any()
    assert credit.metrics['tied_groups'] == 1 and credit.metrics['gate'] == 0.5 and credit.metrics['info_share'] == 1


def test_infopo_by_token_with_downscale_is_the_release():
    """Statistics, scaling and gate over explicit lists of tokens, as InfoPO's released code takes them."""
    signals = _signals()
    turn, gain, mask = np.asarray(signals.turn), np.asarray(signals.gain), np.asarray(signals.action_mask).copy()
    mask[9] = False  # the invalid row
    spread, info = np.zeros(turn.shape), np.zeros(turn.shape)
    for n, i in zip(*np.nonzero(mask), strict=True):
        spread[n, i] = gain[n, turn[n, i]] / np.sum(mask[n] & (turn[n] == turn[n, i]))
    for start in range(0, 12, 4):
        rows = slice(start, start + 4)
        values = spread[rows][spread[rows] != 0]
        info[rows] = np.where(spread[rows] != 0, (spread[rows] - values.mean()) / (values.std(ddof=1) + 1e-6), 0)
    gate = advantage.variance_gate(signals.outcome, group_size=4, temperature=0.5, valid=signals.valid)
    outcome_adv = advantage.outcome_advantage(signals.outcome, group_size=4, valid=signals.valid)
    outcome = np.where(mask, outcome_adv[:, None], 0)
    bound = max(outcome[mask].std(ddof=1) + 1e-6, 1.0) / (info[mask].std(ddof=1) + 1e-6)
    expected = outcome + 0.5 * math.exp(-0.3) * np.asarray(gate)[:, None] * min(1.0, bound) * info
    credit = _run('infopo', signals, **RELEASE, gate_temperature=0.25)
    np.testing.assert_allclose(credit.advantage, expected, rtol=1e-4, atol=1e-5)


def test_infopo_downscale_bounds_the_std_over_tokens_and_never_scales_up():
    """Two rows of three turns; the extreme gains belong to the long actions, so tokens vary more than turns."""
    lengths, gains = np.array([[10, 1, 1], [1, 10, 1]]), np.array([[1.0, 2.0, 0.0], [2.0, 3.0, 0.0]])
    turn = np.stack([np.repeat(np.arange(3), k) for k in lengths])
    signals = types.Signals(
        turn=jnp.asarray(turn),
        action_mask=jnp.ones(turn.shape, bool),
        outcome=jnp.zeros(2),
        turn_reward=jnp.zeros((2, 3)),
        valid=jnp.ones(2, bool),
        num_turns=jnp.full(2, 3),
        gain=jnp.asarray(gains, jnp.float32),
        gain_mask=jnp.array([[True, True, False]] * 2),
        update=jnp.int32(0),
    )
    # Gains 1 2 2 3: mean 2, squares 2, over 3.
    per_turn = np.where(np.arange(3) < 2, (gains - 2) / math.sqrt(2 / 3), 0)
    info = np.stack([np.repeat(v, k) for v, k in zip(per_turn, lengths, strict=True)])
    std = info.std(ddof=1)
    assert std > 1
    run = functools.partial(_run, 'info_only', signals, group_size=2, **PAPER)
    np.testing.assert_allclose(run().advantage, info, rtol=1e-4)
    np.testing.assert_allclose(run(downscale=True).advantage, info / std, rtol=1e-4)
    small = _run('info_only', signals, group_size=2, **PAPER | {'std_floor': 5.0, 'downscale': True})  # not scaled up
    np.testing.assert_allclose(small.advantage, info * math.sqrt(2 / 3) / 5.0, rtol=1e-4)
    spread = dataclasses.replace(signals, outcome=jnp.array([0.0, 1.0]))
    wide_open = {'downscale': True, 'gate_temperature': 1e6, 'weight_decay': 0.0}
    fused = _run('infopo', spread, group_size=2, **PAPER | wide_open)
    outcome = np.array([[-1], [1]]) * math.sqrt(0.5) + np.zeros(info.shape)
    scale = min(1.0, max(1.0, outcome.std(ddof=1)) / std)
    np.testing.assert_allclose(fused.advantage, outcome + 0.5 * 0.5 * scale * info, rtol=1e-4, atol=1e-6)


def test_info_only_does_not_know_the_outcome():
    signals = _signals()
    other = dataclasses.replace(signals, outcome=signals.outcome[::-1])
    credit = _run('info_only', signals, **RELEASE)
    np.testing.assert_array_equal(credit.advantage, _run('info_only', other, **RELEASE).advantage)
    assert credit.metrics['info_share'] == 1 and credit.metrics['gate'] == 1


def test_raw_gain_adds_the_gain_in_nats():
    signals = _signals()
    adv = np.asarray(advantage.outcome_advantage(signals.outcome, group_size=4, valid=signals.valid))
    expected = _tokens(adv[:, None] + 0.5 * math.exp(-0.3) * np.asarray(signals.gain), signals)
    np.testing.assert_allclose(_run('raw_gain', signals).advantage, expected, rtol=1e-5)


def test_shuffled_gain_is_infopo_on_permuted_gains():
    signals = _signals()
    used = signals.gain_mask & signals.valid[:, None]
    shuffled = _run('shuffled_gain', signals)
    assert jnp.any(shuffled.advantage != _run('infopo', signals).advantage)
    assert jnp.any(shuffled.advantage != _run('shuffled_gain', signals, key=jax.random.key(1)).advantage)
    np.testing.assert_allclose(shuffled.metrics['gain_mean'], _run('infopo', signals).metrics['gain_mean'], rtol=1e-6)
    equal = dataclasses.replace(signals, gain=jnp.where(used, 0.7, 0))  # nothing to lose: the placebo changes nothing
    assert_equal(_run('shuffled_gain', equal), _run('infopo', equal))


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


# ---- metrics


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
    metrics = _run('raw_gain', signals, group_size=2, info_weight=1.0).metrics
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
    signals = dataclasses.replace(_signals(), outcome=jnp.array([0.7] * 4 + [0, 1, 0, 1] + [2.0, NAN, NAN, NAN]))
    signals = dataclasses.replace(signals, valid=jnp.arange(12) < 9)
    assert _run('grpo', signals).metrics['tied_groups'] == 0.5


def test_metrics_correlation_is_zero_where_undefined():
    signals = _signals()
    flat = dataclasses.replace(signals, gain=jnp.where(signals.gain_mask, 0.7, 0))
    assert _run('grpo', flat).metrics['gain_outcome_corr'] == 0
    tied = dataclasses.replace(signals, outcome=jnp.full(12, 10.7))
    assert _run('grpo', tied).metrics['gain_outcome_corr'] == 0
