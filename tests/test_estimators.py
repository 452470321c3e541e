"""The contract that every estimator keeps."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from signals import HYPER, KEY, NAN, RELEASE, assert_equal, credit_of, make_signals

from infopo_jax import config
from infopo_jax.estimators import ESTIMATORS, get

each_estimator = pytest.mark.parametrize('name', ESTIMATORS)
each_form = pytest.mark.parametrize('form', [{}, RELEASE], ids=['ours', 'release'])


@each_estimator
def test_estimators_return_finite_credit_inside_the_loss_mask(name):
    signals = make_signals()
    credit = credit_of(name, signals)
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
    signals = make_signals()
    eager = get(name)(signals, group_size=4, key=KEY, **HYPER | form)
    assert_equal(credit_of(name, signals, **form), eager, rtol=1e-5)


@each_estimator
def test_estimators_vmap_over_seeds(name):
    batch = [make_signals(seed) for seed in range(3)]
    keys = jax.random.split(KEY, 3)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *batch)
    credits = jax.jit(jax.vmap(lambda s, k: credit_of(name, s, key=k)))(stacked, keys)
    for i in range(3):
        assert_equal(jax.tree.map(lambda x, i=i: x[i], credits), credit_of(name, batch[i], key=keys[i]), rtol=1e-5)


@each_estimator
@each_form
def test_estimators_ignore_invalid_rows_padding_and_masked_gains(name, form):
    signals = make_signals()
    row = jnp.arange(12) == 9
    garbage = dataclasses.replace(
        signals,
        turn=jnp.where(signals.turn < 0, 2, signals.turn),
        action_mask=signals.action_mask ^ (row[:, None] & (signals.turn == 0)),
        outcome=jnp.where(row, NAN, signals.outcome),
        gain=jnp.where(signals.gain_mask & ~row[:, None], signals.gain, NAN),
        num_turns=jnp.where(row, 1, signals.num_turns),
    )
    assert_equal(credit_of(name, garbage, **form), credit_of(name, signals, **form))


@each_estimator
@pytest.mark.parametrize('empty', ['invalid', 'no gain', 'no tokens'])
def test_estimators_are_finite_on_an_empty_batch(name, empty):
    signals = make_signals()
    nothing = {
        'invalid': {'valid': jnp.zeros_like(signals.valid)},
        'no gain': {'gain_mask': jnp.zeros_like(signals.gain_mask), 'gain': jnp.zeros_like(signals.gain)},
        'no tokens': {'action_mask': jnp.zeros_like(signals.action_mask)},
    }
    signals = dataclasses.replace(signals, **nothing[empty])
    for form in ({}, RELEASE):
        credit = credit_of(name, signals, **form)
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
        credit_of(name, make_signals(), norm='rollout')
