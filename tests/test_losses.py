"""Tests of infopo_jax.losses: goldens by hand, gradients, micro-batches, and what masks must keep out."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infopo_jax import losses

NAN, INF = np.nan, np.inf
CLIP = {'clip_low': 0.2, 'clip_high': 0.3}


def _f(x):
    return jnp.asarray(x, jnp.float32)


def _ratios(ratio, advantage, **hyper):
    """Loss of one row of tokens with the given ratios; old log-probabilities of 0."""
    logp = jnp.log(_f([ratio]))
    return losses.clipped_policy_loss(logp, 0 * logp, _f([advantage]), jnp.ones(logp.shape, bool), **CLIP | hyper)


def _random_batch(seed=0, shape=(8, 6)):
    rng = np.random.default_rng(seed)
    old = rng.normal(-1.5, 0.5, shape).astype(np.float32)
    batch = {
        'logp': old + rng.normal(0, 0.4, shape).astype(np.float32),
        'old_logp': old,
        'advantage': rng.normal(size=shape).astype(np.float32),
        'mask': rng.random(shape) < 0.6,
        'weight': rng.random(shape).astype(np.float32),
    }
    return {k: jnp.asarray(v) for k, v in batch.items()}


def _poison(batch, value):
    """Puts garbage outside the mask of every float array."""
    return {k: v if k == 'mask' else jnp.where(batch['mask'], v, value) for k, v in batch.items()}


def _policy(batch, **hyper):
    arrays = (batch['logp'], batch['old_logp'], batch['advantage'], batch['mask'])
    return losses.clipped_policy_loss(*arrays, weight=batch['weight'], dual_clip=3.0, **CLIP, **hyper)[0]


def _kl(batch, kind='k3', **hyper):
    full = {'full_kl': 2 * batch['logp']} if kind == 'full' else {}
    arrays = (batch['logp'], batch['old_logp'], batch['mask'])
    return losses.kl_penalty(*arrays, kind=kind, weight=batch['weight'], **full, **hyper)


def _entropy(batch, **hyper):
    return losses.entropy_bonus(batch['logp'], batch['mask'], weight=batch['weight'], **hyper)


LOSSES = {
    'policy': _policy,
    'k2': functools.partial(_kl, kind='k2'),
    'k3': _kl,
    'full': functools.partial(_kl, kind='full'),
    'entropy': _entropy,
}
each_loss = pytest.mark.parametrize('loss', LOSSES.values(), ids=LOSSES)


@functools.partial(jax.jit, static_argnames='loss')
def _value_and_grad(loss, batch, denominator=None):
    return jax.value_and_grad(lambda logp: loss({**batch, 'logp': logp}, denominator=denominator))(batch['logp'])


# ---- what every loss must satisfy


@each_loss
def test_losses_of_microbatches_sum_to_the_large_batch(loss):
    batch = _random_batch()
    denominator = jnp.sum(batch['mask'] * batch['weight'])
    value, grad = _value_and_grad(loss, batch)
    parts = [
        _value_and_grad(loss, {k: v[rows] for k, v in batch.items()}, denominator=denominator)
        for rows in (slice(0, 4), slice(4, 8))
    ]
    np.testing.assert_allclose(sum(v for v, _ in parts), value, rtol=1e-5)
    np.testing.assert_allclose(jnp.concatenate([g for _, g in parts]), grad, rtol=1e-5, atol=1e-7)
    assert jnp.any(grad != 0)


@each_loss
def test_losses_ignore_garbage_outside_the_mask(loss):
    batch = _random_batch()
    value, grad = _value_and_grad(loss, batch)
    np.testing.assert_array_equal(np.asarray(grad)[~np.asarray(batch['mask'])], 0)
    for garbage in (NAN, INF, -INF, 1e30):
        poisoned_value, poisoned_grad = _value_and_grad(loss, _poison(batch, garbage))
        np.testing.assert_array_equal(poisoned_value, value)
        np.testing.assert_array_equal(poisoned_grad, grad)


@each_loss
def test_losses_of_an_empty_mask_are_zero(loss):
    batch = _random_batch()
    batch = _poison({**batch, 'mask': jnp.zeros_like(batch['mask'])}, NAN)
    for denominator in (None, 0):
        value, grad = _value_and_grad(loss, batch, denominator)
        assert value == 0
        np.testing.assert_array_equal(grad, 0)


@each_loss
def test_losses_under_jit_equal_eager(loss):
    batch = _random_batch()
    np.testing.assert_allclose(jax.jit(loss)(batch), loss(batch), rtol=1e-6)


@each_loss
def test_losses_send_gradient_to_the_policy_only(loss):
    batch = _random_batch()
    others = {k: v for k, v in batch.items() if k not in ('logp', 'mask')}
    grads = jax.jit(jax.grad(lambda others: loss({**batch, **others})))(others)
    for name, grad in grads.items():
        np.testing.assert_array_equal(grad, 0, err_msg=name)


# ---- clipped_policy_loss


def test_clipped_policy_loss_clips_on_the_side_that_gains():
    # ratio           1.0  1.5          0.5   1.5   0.5
    # advantage       2    2            2     -1    -1
    # min(free, clip) 2    1.3 * 2      1.0   -1.5  -0.8
    loss, metrics = _ratios([1.0, 1.5, 0.5, 1.5, 0.5], [2, 2, 2, -1, -1])
    assert loss == pytest.approx(-(2 + 2.6 + 1.0 - 1.5 - 0.8) / 5, rel=1e-5)
    assert metrics['clip_fraction'] == pytest.approx(2 / 5)
    assert metrics['dual_clip_fraction'] == 0
    assert metrics['ratio_mean'] == pytest.approx(1.0, rel=1e-5)
    assert metrics['ratio_max'] == pytest.approx(1.5, rel=1e-5)
    assert metrics['approx_kl'] == pytest.approx(-(2 * math.log(1.5) + 2 * math.log(0.5)) / 5, rel=1e-4)


def test_clipped_policy_loss_dual_clip_bounds_the_loss():
    ratio, advantage = [10.0, 2.0, 10.0], [-1.0, -1.0, 1.0]
    loss, _ = _ratios(ratio, advantage)
    assert loss == pytest.approx((10 + 2 - 1.3) / 3, rel=1e-5)
    loss, metrics = _ratios(ratio, advantage, dual_clip=3.0)
    assert loss == pytest.approx((3 + 2 - 1.3) / 3, rel=1e-5)
    assert metrics['dual_clip_fraction'] == pytest.approx(1 / 3)


def test_clipped_policy_loss_gradient_stops_where_it_clips():
    def loss(logp):
        mask = jnp.ones(logp.shape, bool)
        return losses.clipped_policy_loss(logp, 0 * logp, _f([[2, 2, -1, -1, -1]]), mask, dual_clip=3.0, **CLIP)[0]

    # d loss / d logp = -advantage * ratio / count where nothing clips.
    grad = jax.grad(loss)(jnp.log(_f([[1.1, 1.5, 1.5, 0.5, 10.0]])))
    np.testing.assert_allclose(grad, [[-2 * 1.1 / 5, 0, 1.5 / 5, 0, 0]], rtol=1e-5)


def test_clipped_policy_loss_on_policy_is_the_policy_gradient():
    batch = _random_batch()

    def loss(logp):  # the very same array as old_logp: it must count as a constant
        return losses.clipped_policy_loss(logp, logp, batch['advantage'], batch['mask'], **CLIP)[0]

    expected = -batch['advantage'] * batch['mask'] / jnp.sum(batch['mask'])
    np.testing.assert_allclose(jax.grad(loss)(batch['logp']), expected, rtol=1e-6)


def test_clipped_policy_loss_divides_by_the_denominator_or_the_weights():
    ones = jnp.ones((1, 3))
    arrays = (0 * ones, 0 * ones, _f([[1, 2, 6]]), jnp.array([[True, True, False]]))
    weight = _f([[1, 0.25, 9]])
    assert losses.clipped_policy_loss(*arrays, **CLIP)[0] == -3 / 2
    assert losses.clipped_policy_loss(*arrays, denominator=6, **CLIP)[0] == -3 / 6
    assert losses.clipped_policy_loss(*arrays, weight=weight, **CLIP)[0] == pytest.approx(-1.5 / 1.25)
    assert losses.clipped_policy_loss(*arrays, weight=weight, denominator=4, **CLIP)[0] == -1.5 / 4


def test_clipped_policy_loss_metrics_are_masked_and_safe():
    batch = _poison(_random_batch(), NAN)
    arrays = (batch['logp'], batch['old_logp'], batch['advantage'])
    _, metrics = losses.clipped_policy_loss(*arrays, batch['mask'], **CLIP)
    log_ratio = np.asarray(batch['logp'] - batch['old_logp'])[np.asarray(batch['mask'])]
    np.testing.assert_allclose(metrics['ratio_mean'], np.exp(log_ratio).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics['ratio_max'], np.exp(log_ratio).max(), rtol=1e-5)
    np.testing.assert_allclose(metrics['approx_kl'], -log_ratio.mean(), rtol=1e-4)
    _, empty = losses.clipped_policy_loss(*arrays, jnp.zeros_like(batch['mask']), **CLIP)
    assert all(value == 0 for value in empty.values())


def test_clipped_policy_loss_survives_a_huge_ratio():
    logp, zeros, mask = _f([[500.0, 500.0]]), jnp.zeros((1, 2)), jnp.ones((1, 2), bool)
    for advantage in ([[0.0, 1.0]], [[0.0, -1.0]]):
        value, grad = jax.value_and_grad(
            lambda x, a=advantage: losses.clipped_policy_loss(x, zeros, _f(a), mask, **CLIP)[0]
        )(logp)
        assert jnp.isfinite(value) and jnp.all(jnp.isfinite(grad))


def test_clipped_policy_loss_refuses_wrong_shapes_and_types():
    x, mask = jnp.zeros((2, 3)), jnp.ones((2, 3), bool)
    with pytest.raises(ValueError, match='advantage must have shape'):
        losses.clipped_policy_loss(x, x, x[0], mask, **CLIP)
    with pytest.raises(ValueError, match='mask must be bool'):
        losses.clipped_policy_loss(x, x, x, x, **CLIP)


# ---- kl_penalty and entropy_bonus


def test_kl_penalty_kinds():
    logp, ref_logp = jnp.log(_f([[0.5, 0.2, 0.9]])), jnp.log(_f([[0.25, 0.4, 0.1]]))
    mask = jnp.array([[True, True, False]])
    kl = functools.partial(losses.kl_penalty, logp, ref_logp, mask)
    log2 = math.log(2)
    assert kl(kind='k2') == pytest.approx((log2**2 / 2 + log2**2 / 2) / 2, rel=1e-5)
    assert kl(kind='k3') == pytest.approx(((0.5 + log2 - 1) + (2 - log2 - 1)) / 2, rel=1e-5)
    assert kl(kind='full', full_kl=_f([[1, 2, NAN]])) == pytest.approx(1.5)
    assert kl(kind='full', full_kl=_f([[1, 2, NAN]]), denominator=6) == pytest.approx(0.5)


def test_kl_penalty_estimates_the_exact_kl():
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    exact = np.sum(p * np.log(p / q))
    arrays = (_f(np.log(p))[None], _f(np.log(q))[None], jnp.ones((1, 3), bool))
    k3 = losses.kl_penalty(*arrays, kind='k3', weight=_f(p)[None])  # the expectation under p
    np.testing.assert_allclose(k3, exact, rtol=1e-5)
    k2_grad = jax.grad(lambda x: losses.kl_penalty(x, *arrays[1:], kind='k2', weight=_f(p)[None]))(arrays[0])
    np.testing.assert_allclose(k2_grad[0], p * np.log(p / q), rtol=1e-5)


@pytest.mark.parametrize('kind', ['k2', 'k3'])
def test_kl_penalty_of_equal_policies_is_zero(kind):
    batch = _random_batch()
    value, grad = jax.value_and_grad(losses.kl_penalty)(batch['logp'], batch['logp'], batch['mask'], kind=kind)
    assert value == 0
    np.testing.assert_array_equal(grad, 0)


def test_kl_penalty_refuses_unknown_kinds():
    x, mask = jnp.zeros((1, 2)), jnp.ones((1, 2), bool)
    with pytest.raises(ValueError, match="'k1' is unknown; valid names: k2, k3, full"):
        losses.kl_penalty(x, x, mask, kind='k1')
    with pytest.raises(ValueError, match="'full' needs full_kl"):
        losses.kl_penalty(x, x, mask, kind='full')


def test_entropy_bonus_averages_over_the_mask():
    entropy, mask = _f([[1, 3, NAN]]), jnp.array([[True, True, False]])
    assert losses.entropy_bonus(entropy, mask) == 2
    assert losses.entropy_bonus(entropy, mask, denominator=8) == 0.5
    assert losses.entropy_bonus(entropy, mask, weight=_f([[3, 1, NAN]])) == pytest.approx(6 / 4)


# ---- weights


def test_token_weight_makes_every_turn_count_once():
    turn = jnp.array([[-1, 0, 0, 0, 0, 1, -1], [-1, 0, 0, 1, 1, 1, 1]])
    action_mask = jnp.array([[0, 1, 1, 1, 0, 1, 0], [0, 1, 1, 0, 0, 0, 1]], bool)
    third = 1 / 3
    expected = [[0, third, third, third, 0, 1, 0], [0, 0.5, 0.5, 0, 0, 0, 1]]
    for function in (losses.token_weight, jax.jit(losses.token_weight, static_argnames=('unit', 'num_turns'))):
        weight = function(turn, action_mask, unit='turn', num_turns=2)
        np.testing.assert_allclose(weight, expected, rtol=1e-6)
        assert jnp.sum(weight) == pytest.approx(4)  # four actions
    weight = losses.token_weight(turn, action_mask, unit='token', num_turns=2)
    np.testing.assert_array_equal(weight, action_mask)
    with pytest.raises(ValueError, match="'rollout' is unknown; valid names: token, turn"):
        losses.token_weight(turn, action_mask, unit='rollout', num_turns=2)


def test_importance_weight_truncates_and_stops_the_gradient():
    logp, sampled = jnp.log(_f([[0.5, 0.1, 0.9, 1.0]])), jnp.log(_f([[0.4, 0.4, 0.1, 1.0]])).at[0, 3].set(NAN)
    mask = jnp.array([[True, True, True, False]])
    for function in (losses.importance_weight, jax.jit(losses.importance_weight)):
        np.testing.assert_allclose(function(logp, sampled, mask, cap=2.0), [[1.25, 0.25, 2.0, 0]], rtol=1e-5)
    grad = jax.grad(lambda x: jnp.sum(losses.importance_weight(x, sampled, mask, cap=2.0)))(logp)
    np.testing.assert_array_equal(grad, 0)
