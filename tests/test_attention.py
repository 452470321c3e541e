"""Attention against plain numpy: grouped heads, windows, blocks of queries, rows that see nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infopo_jax.lm import attention
from infopo_jax.lm.config import LMConfig, RopeScaling

N, S, HEADS, KV_HEADS, DIM = 2, 12, 4, 2, 6


@pytest.fixture(scope='module')
def qkv():
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(k, (N, S, h, DIM)) for k, h in zip(keys, (HEADS, KV_HEADS, KV_HEADS), strict=True)]


@pytest.fixture(scope='module')
def place():
    real = np.ones((N, S), bool)
    real[0, 9:], real[1, :4] = False, False  # padding on the right, and on the left
    return attention.trunk_place(jnp.asarray(real))


def by_hand(qkv, position, window=None):
    """Loops over rows, heads and queries."""
    q, k, v = (np.asarray(x, np.float64) for x in qkv)
    out = np.zeros(q.shape)
    for n, h, i in np.ndindex(N, HEADS, S):
        sees = [
            j
            for j in range(S)
            if 0 <= position[n, j] <= position[n, i] and (window is None or position[n, i] - position[n, j] < window)
        ]
        if sees:
            scores = np.array([q[n, i, h] @ k[n, j, h // 2] / DIM**0.5 for j in sees])
            weights = np.exp(scores - scores.max())
            out[n, i, h] = sum(w * v[n, j, h // 2] for w, j in zip(weights / weights.sum(), sees, strict=True))
    return out


@pytest.mark.parametrize('backend', ['cpu', 'gpu'])
@pytest.mark.parametrize('window', [None, 1, 3])
def test_attend_equals_a_loop_in_numpy(qkv, place, window, backend, monkeypatch):
    """Heads that share a key are laid out in two ways."""
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    expected = by_hand(qkv, np.asarray(place.position), window)
    out = attention.attend(*qkv, place, place, window=window)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert (np.asarray(out)[~(np.asarray(place.position) >= 0)] == 0).all()


@pytest.mark.parametrize(
    ('aligned', 'window', 'block', 'spans'),
    [(False, None, 5, 9), (True, None, 5, 9), (True, 3, 11, 9), (False, 3, 11, 9), (True, None, 2, 2), (True, 3, 5, 1)],
)
def test_attend_in_blocks_equals_dense_with_its_gradient(qkv, place, monkeypatch, aligned, window, block, spans):
    """Blocks of their own span, several in one, and a last one that is not full."""

    def run(limit):
        def loss(qkv):
            out = attention.attend(*qkv, place, place, window=window, aligned=aligned)
            return jnp.sum(jnp.sin(out) * jnp.arange(S)[:, None, None]), out

        monkeypatch.setattr(attention, 'DENSE_LIMIT', limit)
        monkeypatch.setattr(attention, 'QUERY_BLOCK', block if limit == 1 else S)
        monkeypatch.setattr(attention, 'SPANS', spans)
        (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(qkv)
        return out, grads

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), run(1), run(S * S))


@pytest.mark.parametrize(('rows', 'size', 'most'), [(1, 4096, 64), (64, 2048, 300)])
def test_attend_never_holds_the_scores_of_all_blocks(rows, size, most, monkeypatch):
    """MiB that a compiled gradient needs, of scores that are 256 MiB a row at 4,096; with more rows, smaller blocks."""
    monkeypatch.setattr(attention, 'SCORE_BYTES', 1 << 25)
    x = jax.ShapeDtypeStruct((rows, size, 4, 2), jnp.float32)
    at = jax.tree.map(
        lambda _: jax.ShapeDtypeStruct((rows, size), jnp.int32), attention.trunk_place(jnp.ones((1, 1), bool))
    )

    def loss(q, k, v, at):
        return jnp.sum(attention.attend(q, k, v, at, at, aligned=True))

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x, at).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < most * 2**20


@pytest.mark.parametrize('limit', [S * S, 1])
def test_attend_gives_zeros_and_finite_gradients_where_nothing_is_seen(qkv, monkeypatch, limit):
    monkeypatch.setattr(attention, 'DENSE_LIMIT', limit)
    monkeypatch.setattr(attention, 'QUERY_BLOCK', 5)
    nowhere = attention.trunk_place(jnp.zeros((N, S), bool))
    value, grads = jax.jit(jax.value_and_grad(lambda x: jnp.sum(attention.attend(*x, nowhere, nowhere) ** 2)))(qkv)
    assert value == 0
    assert all((np.asarray(g) == 0).all() for g in grads)


def test_attend_ignores_garbage_in_padding(qkv, place):
    q, k, v = qkv
    hidden = (place.position < 0)[..., None, None]
    out = attention.attend(q, jnp.where(hidden, 1e4, k), jnp.where(hidden, -1e4, v), place, place)
    np.testing.assert_array_equal(out, attention.attend(q, k, v, place, place))


def test_attend_under_jit_equals_eager(qkv, place):
    eager = attention.attend(*qkv, place, place, window=4)
    jitted = jax.jit(lambda x, p: attention.attend(*x, p, p, window=4))(qkv, place)
    np.testing.assert_allclose(jitted, eager, atol=1e-6)


def test_trunk_place_counts_real_tokens():
    place = attention.trunk_place(jnp.array([[False, True, True, False]]))
    np.testing.assert_array_equal(place.position, [[-1, 0, 1, -1]])


def test_apply_rope_turns_pairs_by_position_over_wavelength():
    config = LMConfig(
        vocab_size=8, dim=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=4, mlp_dim=8, rope_theta=100.0
    )
    x = jnp.array([1.0, 0.0, 0.0, 1.0])  # halves (1, 0) and (0, 1): one pair at angle 0, one at a right angle
    out = attention.apply_rope(x[None, None, None], attention.rope_tables(jnp.array([[3]]), config))
    fast, slow = 3.0, 3.0 / 10  # position * theta ** (-i / half)
    np.testing.assert_allclose(out[0, 0, 0], [np.cos(fast), -np.sin(slow), np.sin(fast), np.cos(slow)], rtol=1e-6)


def test_rope_scaling_keeps_short_waves_and_divides_long_ones():
    config = LMConfig(
        vocab_size=8, dim=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=64, mlp_dim=8, rope_theta=5e5,
        rope_scaling=RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=64),
    )  # fmt: skip
    freq = 5e5 ** (-np.arange(32) / 32)
    cos, sin = attention.rope_tables(jnp.array([[1]]), config)
    angle = np.arctan2(np.asarray(sin), np.asarray(cos))[0, 0]
    wave = 2 * np.pi / freq
    np.testing.assert_allclose(angle[wave < 16], freq[wave < 16], rtol=1e-5)
    np.testing.assert_allclose(angle[wave > 64], freq[wave > 64] / 8, rtol=1e-4)
    between = (wave >= 16) & (wave <= 64)
    assert between.any() and ((angle[between] <= freq[between]) & (angle[between] >= freq[between] / 8)).all()


def test_rope_scaling_linear_divides_all_and_spares_layers_with_a_theta_of_their_own():
    config = LMConfig(
        vocab_size=8, dim=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=4, mlp_dim=8, rope_theta=100.0,
        rope_scaling=RopeScaling(kind='linear', factor=4.0), sliding_window=2, rope_theta_local=16.0,
    )  # fmt: skip
    for local, wanted in ((False, [1 / 4, 1 / 40]), (True, [1.0, 1 / 4])):  # theta ** (-i / half) / factor
        cos, sin = attention.rope_tables(jnp.array([[1]]), config, local=local)
        np.testing.assert_allclose(np.arctan2(sin, cos)[0, 0], wanted, rtol=1e-6)


def test_attend_soft_cap_bounds_scores_before_they_are_masked():
    """Two keys with scores 0 and 10, capped at 2: weights are a softmax of 0 and 2 * tanh(5)."""
    q, k = jnp.full((1, 2, 1, 1), 10.0), jnp.array([0.0, 1.0])[None, :, None, None]
    place = attention.trunk_place(jnp.ones((1, 2), bool))
    out = attention.attend(q, k, k, place, place, soft_cap=2.0)
    high = np.exp(2 * np.tanh(5.0))
    np.testing.assert_allclose(out[0, :, 0, 0], [0.0, high / (1 + high)], rtol=1e-6)


@pytest.mark.parametrize('limit', [attention.DENSE_LIMIT, 1])
def test_attend_with_a_traced_window_equals_a_static_one(qkv, place, monkeypatch, limit):
    """Also where blocks are recomputed in the backward pass, and in the branches' blocks of keys."""
    sizes = {'DENSE_LIMIT': limit, 'BRANCH_LIMIT': limit, 'QUERY_BLOCK': 4, 'BRANCH_BLOCK': 4, 'KEY_BLOCK': 4}
    for name, size in sizes.items():
        monkeypatch.setattr(attention, name, size)

    def run(window):
        def loss(qkv):
            out = attention.attend(*qkv, place, place, window=window, soft_cap=1.5, aligned=True)
            return jnp.sum(jnp.sin(out)), out

        grads, out = jax.grad(loss, has_aux=True)(qkv)
        blocks = attention.block_map(place, place, visible=attention.causal)
        assert (blocks is None) == (limit > 1)
        rule = dict(visible=attention.causal, window=window, soft_cap=1.5)
        return grads, out, None if blocks is None else attention.attend_sparse(*qkv, blocks, **rule)

    static, traced = jax.jit(run, static_argnums=0)(3), jax.jit(run)(jnp.int32(3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), static, traced)
    if limit == 1:
        np.testing.assert_allclose(static[2], static[1], atol=1e-5)
