"""The decoder: cached decoding equals the plain pass, and padding changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import tiny_model

from infopo_jax.lm import cache as cache_lib, transformer
from infopo_jax.lm.config import LMConfig, RopeScaling

VOCAB, N, L = 30, 3, 11
GEMMA = dict(
    qk_norm=True, activation='gelu_tanh', norm_plus_one=True, post_norms=True, scale_embed=True, sliding_window=4,
    sliding_layers=(True, False), rope_theta_local=5.0, query_scalar=3.0, attn_soft_cap=1.5, final_soft_cap=4.0,
)  # fmt: skip
KINDS = {
    'plain': dict(qkv_bias=True),
    'qwen3_window': dict(qk_norm=True, sliding_window=4, tie_embeddings=False),
    'gemma': GEMMA,
    'moe': dict(qk_norm=True, num_experts=3, experts_per_token=2),
}


def make(**fields):
    return tiny_model(VOCAB, **{'num_layers': 2, 'head_dim': 6, 'rope_theta': 50.0, 'head': 2.0} | fields)


@pytest.fixture(scope='module', params=KINDS)
def model(request):
    return make(**KINDS[request.param])


@pytest.fixture(scope='module')
def tokens():
    return jax.random.randint(jax.random.key(5), (N, L), 0, VOCAB)


@nnx.jit
def plain(model, tokens, mask=None):
    return model(tokens, mask)


@nnx.jit
def feed(model, tokens, position, cache, start):
    hidden, cache = model.extend(tokens, position, cache, start)
    return model.logits(hidden), cache


def empty(model, size=L + 4):
    return cache_lib.empty(model.config, N, size)


def test_extend_in_chunks_then_one_by_one_equals_the_plain_pass(model, tokens):
    cache, outs, start = empty(model), [], 0
    for size in (4, 4, 1, 1, 1):
        position = jnp.broadcast_to(jnp.arange(start, start + size), (N, size))
        logits, cache = feed(model, tokens[:, start : start + size], position, cache, jnp.int32(start))
        outs.append(logits)
        start += size
    np.testing.assert_allclose(jnp.concatenate(outs, 1), plain(model, tokens), atol=1e-5)


def test_extend_from_a_column_per_row_equals_the_plain_pass(model, tokens):
    wanted, cache = plain(model, tokens), empty(model)
    counts = np.array([[3, 1, 4], [0, 4, 4], [4, 2, 2], [1, 1, 1]])  # tokens fed to each row, a dispatch a line
    fed = np.zeros(N, np.int32)
    for count in counts:
        part = np.full((N, 4), 7, np.int32)  # what stands beyond a row's count is garbage
        position = np.full((N, 4), -1, np.int32)
        for n, c in enumerate(count):
            part[n, :c], position[n, :c] = tokens[n, fed[n] : fed[n] + c], np.arange(fed[n], fed[n] + c)
        logits, cache = feed(model, part, position, cache, jnp.asarray(fed))
        for n, c in enumerate(count):
            np.testing.assert_allclose(logits[n, :c], wanted[n, fed[n] : fed[n] + c], atol=1e-5)
        fed = fed + count.astype(np.int32)


def test_extend_leaves_holes_that_nobody_sees(model, tokens):
    """Columns are fixed and rows of different length leave holes; the tokens around them do not notice."""
    real = np.array([[1, 1, 1, 0, 1, 1], [1, 0, 0, 0, 1, 0], [0, 0, 1, 1, 1, 1]], bool)
    position = np.where(real, np.cumsum(real, 1) - 1, -1).astype(np.int32)
    columns = np.where(real, np.take_along_axis(np.asarray(tokens), np.maximum(position, 0), 1), 9)
    cache, outs = empty(model), []
    for part in (slice(0, 4), slice(4, 5), slice(5, 6)):
        logits, cache = feed(model, columns[:, part], position[:, part], cache, jnp.int32(part.start))
        outs.append(logits)
    out, wanted = np.concatenate(outs, 1), plain(model, tokens)
    for n, column in np.argwhere(real):
        np.testing.assert_allclose(out[n, column], wanted[n, position[n, column]], atol=1e-5)


@pytest.mark.parametrize('side', ['left', 'right'])
def test_call_does_not_see_padding(model, tokens, side):
    wanted = plain(model, tokens)
    pad = ((0, 0), (3, 0)) if side == 'left' else ((0, 0), (0, 3))
    mask = jnp.pad(jnp.ones((N, L), bool), pad)
    out = plain(model, jnp.pad(tokens, pad, constant_values=3), mask)
    other = plain(model, jnp.pad(tokens, pad, constant_values=8), mask)
    cut = slice(3, None) if side == 'left' else slice(0, L)
    np.testing.assert_allclose(out[:, cut], wanted, atol=1e-5)
    np.testing.assert_array_equal(out[:, cut], other[:, cut])


def test_sliding_window_hides_what_is_further_back(tokens):
    model = make(num_layers=1, sliding_window=3)
    changed = tokens.at[:, 2].set((tokens[:, 2] + 1) % VOCAB)
    moved = np.abs(plain(model, tokens) - plain(model, changed)).max(axis=(0, 2)) > 1e-4
    np.testing.assert_array_equal(np.flatnonzero(moved), [2, 3, 4])


def test_remat_and_bfloat16_give_the_same_model(tokens):
    model = make()
    wanted = plain(model, tokens)
    params = nnx.split(model)[1]

    def loss(fields):
        twin = nnx.split(nnx.eval_shape(lambda: make(**fields)))[0]
        return jax.jit(jax.value_and_grad(lambda p: jnp.mean(jnp.sin(nnx.merge(twin, p)(tokens)))))(params)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), loss({'remat': True}), loss({}))
    half = nnx.split(nnx.eval_shape(lambda: make(dtype='bfloat16')))[0]
    out = plain(nnx.merge(half, params), tokens)
    assert out.dtype == jnp.float32
    assert 1e-4 < np.abs(out - wanted).mean() / np.abs(wanted).mean() < 0.05
    assert cache_lib.empty(nnx.merge(half, params).config, 1, 2).k[0].dtype == jnp.bfloat16


def test_cache_view_and_fork_keep_rows(model, tokens):
    position = jnp.broadcast_to(jnp.arange(4), (N, 4))
    _, cache = feed(model, tokens[:, :4], position, empty(model), jnp.int32(0))
    small = cache_lib.view(cache, 6)
    assert small.size == small.k[0].shape[3] == small.v[0].shape[2] == 6
    logits, _ = feed(model, tokens[:, 4:6], position[:, :2] + 4, small, jnp.int32(4))
    np.testing.assert_allclose(logits, plain(model, tokens)[:, 4:6], atol=1e-5)
    forked = cache_lib.fork(cache, 2)
    np.testing.assert_array_equal(forked.v[1], np.repeat(cache.v[1], 2, axis=0))
    np.testing.assert_array_equal(forked.position, np.repeat(cache.position, 2, axis=0))


def test_scanned_and_unrolled_layers_that_differ_are_the_same_model(tokens, monkeypatch):
    """A scan picks window and rotary table by a flag, unrolled layers by name; ``extend`` compares by itself."""
    model = make(**GEMMA)
    wanted = plain(model, tokens)
    monkeypatch.setattr(transformer, 'UNROLL', 0)
    np.testing.assert_allclose(nnx.jit(lambda m, t: m(t))(model, tokens), wanted, atol=1e-5)
    other = make(**GEMMA | dict(sliding_layers=(False, True)))
    assert np.abs(plain(other, tokens) - wanted).max() > 0.01


def test_layers_that_are_alike_have_no_flags(tokens):
    """A model without windows computes no mask for them."""

    def text(**fields):
        model = make(**fields)
        return str(jax.make_jaxpr(lambda t: model(t))(tokens))

    assert str(transformer.NO_WINDOW) in text(sliding_window=3, sliding_layers=(True, False))
    assert str(transformer.NO_WINDOW) not in text() + text(sliding_window=3)
    assert text(sliding_window=3).count(' lt ') - text().count(' lt ') == 1  # one comparison, in the scan's body


def test_logits_are_capped_and_embeddings_scaled(tokens):
    model = make(final_soft_cap=0.5)
    out = plain(model, tokens)
    assert 0.4 < np.abs(out).max() < 0.5
    free = make()
    np.testing.assert_allclose(out, 0.5 * np.tanh(plain(free, tokens) / 0.5), atol=1e-5)
    larger = make(tie_embeddings=False)
    scaled = make(tie_embeddings=False, scale_embed=True)
    larger.embed[...] = larger.embed[...] * 4.0  # sqrt of the 16 channels
    np.testing.assert_allclose(plain(scaled, tokens), plain(larger, tokens), atol=1e-5)


@pytest.mark.parametrize('fields, words', [
    (dict(sliding_layers=(True, False)), 'need model.sliding_window'),
    (dict(sliding_window=3, sliding_layers=(True,)), 'each of the 2 layers, got 1'),
    (dict(num_experts=2), 'model.experts_per_token must be in'),
    (dict(num_experts=2, experts_per_token=1, mlp_bias=True), 'mlp_bias is for a dense MLP'),
    (dict(activation='relu'), "activation must be one of .*'relu'"),
    (dict(attn_soft_cap=0.0), 'attn_soft_cap must be positive or None'),
])  # fmt: skip
def test_config_names_what_does_not_fit(fields, words):
    with pytest.raises(ValueError, match=words):
        LMConfig(vocab_size=8, dim=8, num_layers=2, num_heads=1, num_kv_heads=1, head_dim=8, mlp_dim=8, **fields)


@pytest.mark.parametrize('fields, words', [
    (dict(kind='yarn'), "kind must be one of .*'yarn'"),
    (dict(factor=0.0), 'factor must be positive'),
    (dict(low_freq_factor=4.0), 'must be below'),
])  # fmt: skip
def test_rope_scaling_names_what_does_not_fit(fields, words):
    with pytest.raises(ValueError, match=words):
        RopeScaling(**fields)
