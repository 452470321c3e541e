"""Sampling: the right distribution, its own log-probability, a key per row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infopo_jax.lm import sampling
from infopo_jax.lm.sampling import BLOCK, check, truncate

draw, sample = (
    jax.jit(function, static_argnames=('temperature', 'top_k', 'top_p', 'min_p'))
    for function in (sampling.draw, sampling.sample)
)
LOGITS = jnp.array([0.5, -1.0, 2.0, 0.0, -3.0])


@pytest.mark.parametrize('temperature', [1.0, 0.7, 2.0])
def test_sample_frequencies_follow_the_tempered_softmax(temperature):
    count = 40_000
    keys = jax.random.split(jax.random.key(0), count)
    token, logp = sample(keys, jnp.tile(LOGITS, (count, 1)), temperature=temperature)
    wanted = np.asarray(jax.nn.softmax(LOGITS / temperature))
    found = np.bincount(token, minlength=5) / count
    assert (np.abs(found - wanted) < 5 * np.sqrt(wanted * (1 - wanted) / count)).all()
    np.testing.assert_allclose(logp, np.log(wanted)[token], atol=1e-5)


def test_sample_at_zero_is_greedy_with_the_plain_softmax():
    keys = jax.random.split(jax.random.key(0), 3)
    logits = jnp.stack([LOGITS, -LOGITS, jnp.roll(LOGITS, 1)])
    token, logp = sample(keys, logits, temperature=0.0)
    np.testing.assert_array_equal(token, [2, 4, 3])
    np.testing.assert_allclose(logp, jax.nn.log_softmax(logits)[jnp.arange(3), token], atol=1e-6)


def test_sample_of_a_row_does_not_depend_on_the_batch_around_it():
    keys = jax.random.split(jax.random.key(0), 6)
    logits = jax.random.normal(jax.random.key(1), (6, 50))
    token, logp = sample(keys, logits, temperature=1.0)
    order = jnp.array([4, 1])
    alone, alone_logp = sample(keys[order], logits[order], temperature=1.0)
    np.testing.assert_array_equal(alone, token[order])
    np.testing.assert_allclose(alone_logp, logp[order], atol=1e-6)


def test_sample_with_other_keys_differs_and_repeats_with_the_same():
    logits = jnp.zeros((64, 50))
    draws = [np.asarray(sample(jax.random.split(jax.random.key(s), 64), logits, temperature=1.0)[0]) for s in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).mean() > 0.8 and len(set(draws[0])) > 20


# --- The two-level draw at large vocabularies, and truncation.


@pytest.mark.parametrize('size', [600, 5000])
def test_sample_over_several_blocks_follows_the_softmax(size):
    """Chi-squared over bins of equal mass: probabilities span ten orders, and the last block is not full."""
    count = 20_000
    logits = np.random.default_rng(0).normal(0, 4, size).astype(np.float32)
    keys = jax.random.split(jax.random.key(3), count)
    token, logp = jax.jit(lambda k: sample(k, jnp.broadcast_to(logits, (count, size)), temperature=1.0))(keys)
    prob = np.exp(logits.astype(np.float64) - logits.max())
    prob /= prob.sum()
    order = np.argsort(prob)
    bins = np.empty(size, int)
    bins[order] = np.minimum((np.cumsum(prob[order]) * 20).astype(int), 19)
    wanted = np.bincount(bins, prob, minlength=20) * count
    found = np.bincount(bins[token], minlength=20)
    used = wanted > 5
    chi = np.sum((found - wanted)[used] ** 2 / wanted[used])
    assert chi < used.sum() + 5 * np.sqrt(2 * used.sum())
    np.testing.assert_allclose(logp, np.log(prob)[token], atol=1e-4)


def test_draw_reaches_a_rare_token_where_one_cumulative_sum_would_not():
    """152,064 equal weights: in float32 a plain cumulative sum is off by more than a token at its end."""
    size = 152_064
    logits = jnp.zeros((1, size))
    near = [0.0, 0.5, 1 - 2**-23]
    for first in near:
        for second in near:
            token, logp = draw(jnp.array([[first, second]]), logits, temperature=1.0)
            block = min(int(first * (size // BLOCK)), size // BLOCK - 1)
            assert int(token[0]) == block * BLOCK + int(second * BLOCK)
            np.testing.assert_allclose(logp, -np.log(size), rtol=1e-6)


def test_draw_never_takes_what_has_no_probability():
    logits = jnp.full((4, 700), -jnp.inf).at[jnp.arange(4), jnp.array([0, 255, 256, 699])].set(1.0)
    for u in (0.0, 0.3, 1 - 2**-23):
        token, logp = draw(jnp.full((4, 2), u), logits, temperature=1.0)
        np.testing.assert_array_equal(token, [0, 255, 256, 699])
        np.testing.assert_allclose(logp, 0.0, atol=1e-6)


def test_sample_greedy_takes_the_first_of_equals_in_any_block():
    logits = jnp.zeros((3, 1000)).at[0, 300].set(2.0).at[0, 900].set(2.0).at[1, 999].set(1.0)
    token, _ = sample(jax.random.split(jax.random.key(0), 3), logits, temperature=0.0)
    np.testing.assert_array_equal(token, [300, 999, 0])


PROB = np.array([0.4, 0.05, 0.3, 0.15, 0.1])


@pytest.mark.parametrize(
    ('setting', 'kept'),
    [
        (dict(top_k=2), [0, 2]),
        (dict(top_k=9), [0, 1, 2, 3, 4]),
        (dict(top_p=0.69), [0, 2]),
        (dict(top_p=0.71), [0, 2, 3]),
        (dict(min_p=0.3), [0, 2, 3]),  # at least 0.12
        (dict(top_k=3, top_p=0.8), [0, 2]),  # 0.4 and 0.3 are 0.82 of what top-k leaves
        (dict(top_p=0.9, min_p=0.5), [0, 2]),
    ],
)
def test_sample_truncates_and_records_what_is_left(setting, kept):
    count = 4000
    logits = jnp.tile(jnp.log(PROB.astype(np.float32)), (count, 1))
    token, logp = sample(jax.random.split(jax.random.key(1), count), logits, temperature=1.0, **setting)
    left = np.where(np.isin(np.arange(5), kept), PROB, 0.0)
    left /= left.sum()
    found = np.bincount(token, minlength=5) / count
    assert (found[left == 0] == 0).all()
    assert (np.abs(found - left) < 5 * np.sqrt(left * (1 - left) / count) + 1e-9).all()
    np.testing.assert_allclose(logp, np.log(left[np.asarray(token)]), atol=1e-5)


def test_truncate_counts_after_the_temperature():
    weight = jnp.exp(jnp.log(jnp.asarray(PROB, jnp.float32)) / 0.5)[None]
    weight = weight / weight.max()
    np.testing.assert_array_equal(np.flatnonzero(truncate(weight, top_p=0.8)[0]), [0, 2])  # 0.16 and 0.09 of 0.285


@pytest.mark.parametrize('setting', [dict(), dict(top_k=3, top_p=0.9, min_p=0.01)])
def test_sample_under_jit_equals_eager(setting):
    keys, logits = jax.random.split(jax.random.key(0), 8), jax.random.normal(jax.random.key(1), (8, 600))
    eager = sampling.sample(keys, logits, temperature=0.8, **setting)
    jitted = sample(keys, logits, temperature=0.8, **setting)
    np.testing.assert_array_equal(jitted[0], eager[0])
    np.testing.assert_allclose(jitted[1], eager[1], atol=1e-5)


@pytest.mark.parametrize(
    ('setting', 'words'),
    [
        (dict(temperature=-1.0), 'temperature must be at least 0'),
        (dict(temperature=1.0, top_k=-1), 'top_k must be at least 1, or 0'),
        (dict(temperature=1.0, top_p=0.0), 'top_p must be above 0'),
        (dict(temperature=1.0, min_p=1.5), 'min_p must be in'),
    ],
)
def test_check_names_what_makes_no_sense(setting, words):
    with pytest.raises(ValueError, match=words):
        check(**setting)
