"""The decoder: cached decoding equals the plain pass, padding changes nothing, and transformers' models agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import tiny_model

from infopo_jax.lm import cache as cache_lib
from infopo_jax.lm.config import LMConfig, RopeScaling

VOCAB, N, L = 30, 3, 11


def make(**fields):
    return tiny_model(VOCAB, **{'num_layers': 2, 'head_dim': 6, 'rope_theta': 50.0, 'head': 2.0} | fields)


@pytest.fixture(scope='module', params=['plain', 'qwen3_window'])
def model(request):
    extra = {} if request.param == 'plain' else dict(qk_norm=True, sliding_window=4, tie_embeddings=False)
    return make(qkv_bias=request.param == 'plain', **extra)


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
    assert small.k[0].shape[1] == 6 and small.position.shape == (N, 6)
    logits, _ = feed(model, tokens[:, 4:6], position[:, :2] + 4, small, jnp.int32(4))
    np.testing.assert_allclose(logits, plain(model, tokens)[:, 4:6], atol=1e-5)
    forked = cache_lib.fork(cache, 2)
    np.testing.assert_array_equal(forked.v[1], np.repeat(cache.v[1], 2, axis=0))
    np.testing.assert_array_equal(forked.position, np.repeat(cache.position, 2, axis=0))


# --- transformers' own models, their weights laid into ours by hand.

FAMILIES = {
    'llama3': dict(
        rope_theta=5e3, tie_embeddings=False, norm_eps=1e-5,
        rope_scaling=RopeScaling(factor=4.0, low_freq_factor=1.0, high_freq_factor=3.0, original_max_position=16),
    ),
    'qwen2': dict(rope_theta=2e4, qkv_bias=True, tie_embeddings=True),
    'qwen3': dict(rope_theta=3e4, qk_norm=True, head_dim=10, tie_embeddings=False),
}  # fmt: skip


def reference(family, config):
    """Returns a random transformers model of our config's sizes."""
    torch = pytest.importorskip('torch', reason='parity with transformers needs torch: pip install torch')
    import transformers

    names = {'llama3': 'Llama', 'qwen2': 'Qwen2', 'qwen3': 'Qwen3'}
    rope = {'rope_type': 'default', 'rope_theta': config.rope_theta}
    if config.rope_scaling is not None:
        s = config.rope_scaling
        rope |= dict(
            rope_type='llama3', factor=s.factor, low_freq_factor=s.low_freq_factor, high_freq_factor=s.high_freq_factor,
            original_max_position_embeddings=s.original_max_position,
        )  # fmt: skip
    new = int(transformers.__version__.split('.')[0]) >= 5
    shape = {'head_dim': config.head_dim} if family != 'qwen2' else {}
    hf_config = getattr(transformers, names[family] + 'Config')(
        vocab_size=VOCAB, hidden_size=config.dim, intermediate_size=config.mlp_dim, num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads, num_key_value_heads=config.num_kv_heads, rms_norm_eps=config.norm_eps,
        tie_word_embeddings=config.tie_embeddings, max_position_embeddings=64, attn_implementation='eager',
        **({'rope_parameters': rope} if new else {'rope_theta': config.rope_theta, 'rope_scaling': rope}), **shape,
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, names[family] + 'ForCausalLM')(hf_config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape) * 0.4 + (1.0 if p.ndim == 1 else 0.0))
    return torch, model


def load(model, weights):
    """Copies transformers' weights: [out, in] there, [layers, in, out] here."""
    num_layers = model.config.num_layers

    def stack(name, transpose=False):
        every = [np.asarray(weights[f'model.layers.{i}.{name}']) for i in range(num_layers)]
        return jnp.stack([w.T if transpose else w for w in every])

    blocks = model.blocks
    for ours in ('q', 'k', 'v', 'o'):
        layer = getattr(blocks, ours)
        layer.kernel[...] = stack(f'self_attn.{ours}_proj.weight', True)
        if layer.bias is not None:
            layer.bias[...] = stack(f'self_attn.{ours}_proj.bias')
    for ours in ('gate', 'up', 'down'):
        getattr(blocks, ours).kernel[...] = stack(f'mlp.{ours}_proj.weight', True)
    norms = {'attn_norm': 'input_layernorm', 'mlp_norm': 'post_attention_layernorm'}
    if model.config.qk_norm:
        norms |= {'q_norm': 'self_attn.q_norm', 'k_norm': 'self_attn.k_norm'}
    for ours, theirs in norms.items():
        getattr(blocks, ours).scale[...] = stack(f'{theirs}.weight')
    model.final_norm.scale[...] = np.asarray(weights['model.norm.weight'])
    model.embed[...] = np.asarray(weights['model.embed_tokens.weight'])
    if not model.config.tie_embeddings:
        model.head[...] = np.asarray(weights['lm_head.weight'])


@pytest.mark.parametrize('family', FAMILIES)
def test_call_equals_transformers_at_other_than_default_theta(family):
    fields = dict(head_dim=4) | FAMILIES[family]
    model = make(**fields)
    torch, theirs = reference(family, model.config)
    load(model, {name: value.detach().numpy() for name, value in theirs.state_dict().items()})
    ids = np.random.default_rng(0).integers(0, VOCAB, (2, 40))
    with torch.no_grad():
        wanted = theirs(torch.tensor(ids)).logits.numpy()
    out = plain(model, jnp.asarray(ids, jnp.int32))
    assert np.abs(wanted).max() > 1
    np.testing.assert_allclose(out, wanted, atol=1e-4 * np.abs(wanted).max())
    model.config = LMConfig(**vars(model.config) | {'rope_theta': 1e4, 'rope_scaling': None})
    assert np.abs(plain(model, jnp.asarray(ids, jnp.int32)) - wanted).max() > 0.1  # theta matters at these sizes
