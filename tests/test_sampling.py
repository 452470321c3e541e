"""Sampling: the right distribution, its own log-probability, a key per row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infopo_jax.lm.sampling import sample

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
