"""The chunked head against a plain log_softmax over all logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infopo_jax.lm import head

N, A, D, V = 3, 7, 5, 11


@pytest.fixture(scope='module')
def inputs():
    keys = jax.random.split(jax.random.key(0), 5)
    hidden, other = (jax.random.normal(k, (N, A, D)) for k in keys[:2])
    kernel, other_kernel = (jax.random.normal(k, (V, D)) for k in keys[2:4])
    return hidden, kernel, jax.random.randint(keys[4], (N, A), 0, V), (other, other_kernel)


def naive(hidden, kernel, targets, other, temperature):
    """Returns logp, entropy, other_logp and kl, from logits [N, A, V]."""
    logp = jax.nn.log_softmax(hidden @ kernel.T / temperature)
    other_logp = jax.nn.log_softmax(other[0] @ other[1].T / temperature)
    at = jnp.take_along_axis
    prob, index = jnp.exp(logp), targets[..., None]
    entropy, kl = -jnp.sum(prob * logp, -1), jnp.sum(prob * (logp - other_logp), -1)
    return at(logp, index, -1)[..., 0], entropy, at(other_logp, index, -1)[..., 0], kl


def chunked(hidden, kernel, targets, other, temperature, chunk=None):
    stats = head.target_stats(hidden, kernel, targets, others=[other], temperature=temperature, chunk=chunk)
    return stats.logp, stats.entropy, stats.other_logp[0], stats.kl[0]


@pytest.mark.parametrize('chunk', [None, 1, 3, 7, 99])
@pytest.mark.parametrize('temperature', [1.0, 0.6])
def test_target_stats_equals_log_softmax_for_any_chunk(inputs, chunk, temperature):
    wanted = naive(*inputs, temperature)
    for a, b in zip(chunked(*inputs, temperature, chunk), wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert (np.asarray(wanted[3]) > 0).all()


@pytest.mark.parametrize('chunk', [None, 3])
def test_target_stats_gradient_equals_that_of_log_softmax(inputs, chunk):
    hidden, kernel, targets, other = inputs
    weights = jax.random.normal(jax.random.key(9), (4, N, A))

    def loss(run):
        def value(hidden, kernel):
            return sum(jnp.sum(w * x) for w, x in zip(weights, run(hidden, kernel), strict=True))

        return jax.grad(value, argnums=(0, 1))(hidden, kernel)

    wanted = loss(lambda h, k: naive(h, k, targets, other, 0.8))
    grads = loss(lambda h, k: chunked(h, k, targets, other, 0.8, chunk))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, wanted)


def test_target_stats_of_equal_distributions_has_no_kl(inputs):
    hidden, kernel, targets, _ = inputs
    stats = head.target_stats(hidden, kernel, targets, others=[(hidden, kernel)])
    np.testing.assert_array_equal(stats.kl[0], 0.0)
    np.testing.assert_array_equal(stats.logp, stats.other_logp[0])


def test_target_stats_uniform_golden():
    stats = head.target_stats(jnp.zeros((1, 1, D)), jnp.ones((V, D)), jnp.array([[4]]))
    np.testing.assert_allclose([stats.logp[0, 0], stats.entropy[0, 0]], [-np.log(V), np.log(V)], rtol=1e-6)


def test_target_stats_chunks_by_the_size_of_logits(inputs, monkeypatch):
    hidden, kernel, targets, _ = inputs
    monkeypatch.setattr(head, 'CPU_CHUNK_BYTES', 4 * 2 * N * V)
    monkeypatch.setattr(head, 'MIN_ROWS', 1)
    text = str(jax.make_jaxpr(lambda h: head.target_stats(h, kernel, targets).logp)(hidden))
    assert f'f32[{N},2,{V}]' in text and f'[{N},{A},{V}]' not in text and f'[{N},8,{V}]' not in text


QWEN, GIB = 151936, 1 << 30


@pytest.mark.parametrize(
    ('shape', 'vocab', 'models', 'shards', 'wanted'),
    [
        ((128, 4096), QWEN, 3, (1, 1), 4),  # 4 * 3 * 128 * 151936 bytes are 223 MiB: 4.6 of them
        ((128, 4096), QWEN, 3, (8, 1), 36),  # eight devices, each with an eighth of the rows
        ((128, 4096), QWEN, 3, (4, 2), 36),
        ((128, 4096), QWEN, 1, (8, 1), 108),  # 110.4 would fit, and 38 chunks of 108 are as many as of 110
        ((4096, 512), QWEN, 3, (1, 1), 1),  # not one target of every row would fit, but one is the least
        ((8, 512), 1 << 30, 3, (8, 1), 64),  # so many rows read the vocabulary at least
        ((128, 100), 512, 3, (1, 1), 100),
        ((128, 0), 512, 3, (1, 1), 1),
    ],
)
def test_chunk_size_is_what_fits_a_device(shape, vocab, models, shards, wanted):
    size = head.chunk_size(shape, vocab, models, shards=shards, num_bytes=GIB)
    assert size == wanted
    rows = -(-shape[0] // shards[0])
    held = 4 * models * rows * size * (vocab // shards[1])
    assert held <= GIB or rows * (size - 1) < head.MIN_ROWS


def test_chunk_size_makes_chunks_of_about_one_size():
    """Of 97 targets 96 fit: two chunks of 49 and 48 in place of 96 and a padded one."""
    assert head.chunk_size((64, 97), 1024, 1, num_bytes=4 * 64 * 1024 * 96) == 49


def test_target_stats_in_bfloat16_sums_in_float32(inputs):
    hidden, kernel, targets, _ = inputs
    stats = head.target_stats(hidden.astype(jnp.bfloat16), kernel, targets)
    assert stats.logp.dtype == jnp.float32
    exact = head.target_stats(hidden, kernel, targets)
    np.testing.assert_allclose(stats.logp, exact.logp, atol=0.1)


@pytest.mark.parametrize('chunk', [None, 3])
def test_target_stats_soft_cap_bounds_logits_before_the_temperature(inputs, chunk):
    hidden, kernel, targets, other = inputs
    stats = head.target_stats(hidden, kernel, targets, others=[other], temperature=0.5, soft_cap=2.0, chunk=chunk)
    capped = [jax.nn.log_softmax(2.0 * jnp.tanh(h @ k.T / 2.0) / 0.5) for h, k in ((hidden, kernel), other)]
    at = [jnp.take_along_axis(logp, targets[..., None], -1)[..., 0] for logp in capped]
    np.testing.assert_allclose(stats.logp, at[0], atol=1e-5)
    np.testing.assert_allclose(stats.other_logp[0], at[1], atol=1e-5)
    np.testing.assert_allclose(stats.kl[0], jnp.sum(jnp.exp(capped[0]) * (capped[0] - capped[1]), -1), atol=1e-5)
