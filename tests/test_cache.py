"""The cache: columns are kept where they were put, narrow dtypes within a bound, prefixes shared."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import tiny_model

from infopo_jax import losses, metrics
from infopo_jax.lm import cache as cache_lib, cached_attention

N, L, VOCAB = 3, 12, 30
BOUNDS = {'float32': 1e-5, 'bfloat16': 0.06, 'int8': 0.1}  # largest change of a log-probability, nats


@pytest.fixture(scope='module', params=['plain', 'capped_window'])
def model(request):
    extra = {} if request.param == 'plain' else dict(sliding_window=4, attn_soft_cap=5.0, qk_norm=True)
    return tiny_model(VOCAB, num_layers=2, head_dim=8, rope_theta=50.0, head=2.0, **extra)


@pytest.fixture(scope='module')
def tokens():
    return jax.random.randint(jax.random.key(5), (N, L), 0, VOCAB)


@nnx.jit
def feed(model, tokens, position, cache, start):
    hidden, cache = model.extend(tokens, position, cache, start)
    return jax.nn.log_softmax(model.logits(hidden)), cache


@nnx.jit
def plain(model, tokens):
    return jax.nn.log_softmax(model(tokens))


def logp_by_steps(model, tokens, dtype, starts=(0, 5, 6, 7, 8, 9, 10, 11)):
    """Feeds a chunk, then one token at a time."""
    cache, outs = cache_lib.empty(model.config, N, L + 2, dtype), []
    for start, end in zip(starts, (*starts[1:], L), strict=True):
        position = jnp.broadcast_to(jnp.arange(start, end), (N, end - start))
        out, cache = feed(model, tokens[:, start:end], position, cache, jnp.int32(start))
        outs.append(out)
    return jnp.concatenate(outs, 1), cache


@pytest.mark.parametrize('dtype', BOUNDS)
def test_extend_with_a_narrow_cache_keeps_log_probabilities(model, tokens, dtype):
    out, cache = logp_by_steps(model, tokens, dtype)
    error = np.abs(out - plain(model, tokens)).max()
    assert error < BOUNDS[dtype] and (dtype == 'float32' or error > 1e-6)
    assert str(cache.k[0].dtype) == dtype and bool(cache.k_scale) == (dtype == 'int8')


def test_empty_refuses_an_unknown_dtype(model):
    with pytest.raises(ValueError, match='one of float32, bfloat16, int8'):
        cache_lib.empty(model.config, 1, 4, 'float16')


def test_quantize_is_exact_to_half_a_level():
    x = jnp.array([[0.5, -1.27, 0.004, 1.0], [0.0, 0.0, 0.0, 0.0]])
    values, scale = cache_lib.quantize(x)
    np.testing.assert_allclose(scale, [0.01, 0.0], atol=1e-8)
    np.testing.assert_array_equal(values, [[50, -127, 0, 100], [0, 0, 0, 0]])
    noise = jax.random.normal(jax.random.key(0), (50, 64)) * 10.0 ** jnp.arange(-25, 25)[:, None]
    values, scale = cache_lib.quantize(noise)
    error = jnp.abs(values * scale[:, None] - noise)
    assert (error <= scale[:, None] * 0.501).all()


@pytest.mark.parametrize('dtype', ['float32', 'int8'])
def test_behind_shares_a_prefix_as_a_fork_copies_it(model, tokens, dtype):
    """Three prompts, two rows each: rows go different ways after the prompt that they read in one place."""
    _, cache = logp_by_steps(model, tokens, dtype, starts=(0,))
    forked = cache_lib.resize(cache_lib.fork(cache, 2), L + 4)
    shared = cache_lib.behind(cache_lib.view(cache, L), model.config, 2 * N, 4)
    for step in range(3):
        new = jax.random.randint(jax.random.key(step), (2 * N, 1), 0, VOCAB)
        position = jnp.full((2 * N, 1), L + step)
        wanted, forked = feed(model, new, position, forked, jnp.int32(L + step))
        found, shared = feed(model, new, position, shared, jnp.int32(step))
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    chunk = jax.random.randint(jax.random.key(9), (2 * N, 3), 0, VOCAB)
    shared, forked = cache_lib.resize(shared, 8), cache_lib.resize(forked, L + 8)
    position = L + 3 + jnp.broadcast_to(jnp.arange(3), (2 * N, 3))
    wanted, _ = feed(model, chunk, position, forked, jnp.int32(L + 3))
    np.testing.assert_allclose(feed(model, chunk, position, shared, jnp.int32(3))[0], wanted, atol=1e-5)


def test_attend_to_a_prefix_ignores_what_stands_nowhere(model, tokens):
    _, cache = logp_by_steps(model, tokens, 'float32', starts=(0,))
    cache = dataclasses.replace(cache, position=cache.position.at[:, 3].set(-1))
    spoiled = dataclasses.replace(cache, k=tuple(k.at[..., 3].set(99.0) for k in cache.k))
    spoiled = dataclasses.replace(spoiled, v=tuple(v.at[:, :, 3].set(-99.0) for v in cache.v))
    outs = [
        feed(model, tokens[:, :1], jnp.full((N, 1), L), cache_lib.behind(c, model.config, N, 2), jnp.int32(0))[0]
        for c in (cache, spoiled)
    ]
    np.testing.assert_array_equal(*outs)


def test_one_row_is_what_it_is_among_others(model, tokens):
    """One row is attended by sums, several by products."""
    cache = cache_lib.empty(model.config, 1, L)
    position = jnp.arange(L)[None]
    _, cache = feed(model, tokens[:1, : L - 1], position[:, : L - 1], cache, jnp.int32(0))
    alone, _ = feed(model, tokens[:1, L - 1 :], position[:, L - 1 :], cache, jnp.int32(L - 1))
    np.testing.assert_allclose(alone[0, 0], plain(model, tokens)[0, -1], atol=1e-5)


def test_merge_lays_a_chunk_behind_rows_of_different_length(model, tokens):
    lengths = np.array([4, 7, 5], np.int32)
    place = np.where(np.arange(8) < lengths[:, None], np.arange(8), -1)
    _, cache = feed(model, tokens[:, :8], place, cache_lib.empty(model.config, N, L + 4), jnp.int32(0))
    own = cache_lib.behind(cache, model.config, N, 2)
    rows = jnp.arange(N)
    for j in range(2):
        new = tokens[rows, lengths + j][:, None]
        _, own = feed(model, new, (lengths + j)[:, None], own, jnp.int32(j))
    merged = cache_lib.merge(cache, own, jnp.asarray(lengths))
    new = tokens[rows, lengths + 2][:, None]
    out, _ = feed(model, new, (lengths + 2)[:, None], merged, jnp.asarray(lengths + 2))
    np.testing.assert_allclose(out[:, 0], plain(model, tokens)[rows, lengths + 2], atol=1e-5)


def test_resize_there_and_back_keeps_what_stands(model, tokens):
    _, cache = logp_by_steps(model, tokens, 'int8', starts=(0,))
    again = cache_lib.resize(cache_lib.resize(cache, 40), L + 2)
    jax.tree.map(np.testing.assert_array_equal, again, cache)
    assert cache_lib.view(cache, 5).position.shape == (N, 5) and cache_lib.view(cache, 99).size == L + 2
    assert (cache_lib.resize(cache, 40).position[:, L + 2 :] == -1).all()


def test_importance_weights_correct_the_gap_of_an_int8_cache(model, tokens):
    """What an int8 cache samples from is off by a measured gap; its weights are bounded, and undo it on average."""
    out, _ = logp_by_steps(model, tokens, 'int8')
    index = tokens[:, 1:, None]
    sampled, scored = (jnp.take_along_axis(x[:, :-1], index, axis=2)[..., 0] for x in (out, plain(model, tokens)))
    mask = jnp.ones(sampled.shape, bool).at[0, 3:].set(False)
    gap = float(metrics.sampler_gap(scored, sampled, mask))
    np.testing.assert_allclose(gap, np.abs(scored - sampled)[np.asarray(mask)].mean(), rtol=1e-4)
    assert 1e-5 < gap < BOUNDS['int8']
    weight = losses.importance_weight(scored, sampled, mask, cap=1.01)
    wanted = np.minimum(np.exp(scored - sampled), 1.01)
    np.testing.assert_allclose(np.asarray(weight)[np.asarray(mask)], wanted[np.asarray(mask)], rtol=1e-4)
    # E[p / q] under q is 1: over the whole vocabulary the weights undo the gap exactly.
    q, p = np.exp(out), np.exp(plain(model, tokens))
    np.testing.assert_allclose(np.sum(q * (p / q), axis=-1), 1.0, atol=1e-5)


@pytest.mark.parametrize('size', [1, 2, 7, 12, 64])
@pytest.mark.parametrize(('rows', 'dtype'), [(1, jnp.float32), (1, jnp.int8), (3, jnp.float32), (3, jnp.int8)])
def test_product_with_a_cache_is_a_matrix_product(rows, dtype, size):
    rng = np.random.default_rng(size)
    a = rng.normal(size=(rows, 2, 3, size)).astype(np.float32)
    cached = rng.integers(-9, 9, (rows, 2, size, 5)).astype(dtype)
    np.testing.assert_allclose(cached_attention._product(a, cached), a @ cached.astype(np.float32), atol=1e-4)
