"""Experts: the grouped and the dense computation against a loop over tokens, values and gradients."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from infopo_jax.lm import moe
from infopo_jax.lm.config import LMConfig

DIM, WIDTH, EXPERTS = 6, 5, 4


def make(k=2, norm=True):
    config = LMConfig(
        vocab_size=8, dim=DIM, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=WIDTH,
        num_experts=EXPERTS, experts_per_token=k, norm_expert_weights=norm,
    )  # fmt: skip
    return moe.MoE(config, nnx.Rngs(0))


def by_hand(model, x):
    """Computes y = sum_j w_j down_j(silu(gate_j x) * up_j x) token by token."""
    c, out = model.config, np.zeros(x.shape, np.float64)
    router, gate, up, down = (np.asarray(p[...], np.float64) for p in (model.router, model.gate, model.up, model.down))
    for i, row in enumerate(np.asarray(x, np.float64)):
        prob = np.exp(row @ router)
        prob /= prob.sum()
        best = np.argsort(-prob)[: c.experts_per_token]
        total = prob[best].sum() if c.norm_expert_weights else 1.0
        for e in best:
            h = row @ gate[e]
            out[i] += prob[e] / total * ((h / (1 + np.exp(-h)) * (row @ up[e])) @ down[e])
    return out


@nnx.jit
def run(model, x):
    return model(x)


@pytest.mark.parametrize(
    'num_tokens, k, norm', [(1, 1, False), (1, 2, True), (64, 2, False), (65, 2, True), (200, 4, True)]
)
def test_moe_equals_a_loop_over_tokens(num_tokens, k, norm):
    model = make(k, norm)
    x = jax.random.normal(jax.random.key(num_tokens), (num_tokens, DIM))
    np.testing.assert_allclose(run(model, x), by_hand(model, x), atol=1e-5)


@pytest.mark.parametrize('num_tokens', [3, 40])
def test_grouped_equals_dense_in_values_and_gradients(num_tokens):
    model = make()
    graphdef, params = nnx.split(model)
    x = jax.random.normal(jax.random.key(1), (num_tokens, DIM))

    def loss(params, x, way):
        model = nnx.merge(graphdef, params)
        return jnp.sum(jnp.sin(getattr(model, way)(x, *model._route(x))))

    grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), static_argnums=2)
    dense, grouped = grad(params, x, '_dense'), grad(params, x, '_grouped')
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), dense, grouped)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grouped))


def test_grouped_takes_every_token_when_all_choose_one_expert():
    """No token is dropped, however uneven the load."""
    model = make(k=1, norm=False)
    model.router[...] = jnp.zeros((DIM, EXPERTS)).at[0, 2].set(9.0)
    x = jnp.abs(jax.random.normal(jax.random.key(2), (150, DIM))) + 0.1
    assert set(np.asarray(model._route(x)[1]).ravel()) == {2}
    np.testing.assert_allclose(run(model, x), by_hand(model, x), atol=1e-5)


def test_grouped_holds_no_hidden_layer_of_all_experts():
    """At many tokens the largest array grows with tokens * k, not with tokens * E."""
    model, num_tokens = make(k=1), 4096
    text = str(jax.make_jaxpr(model)(jnp.zeros((num_tokens, DIM))))
    shapes = re.findall(r'f32\[([\d,]+)\]', text)
    sizes = [math.prod(int(n) for n in shape.split(',')) for shape in shapes]
    assert max(sizes) <= 2 * num_tokens * max(DIM, WIDTH) < num_tokens * EXPERTS * WIDTH


def test_moe_of_leading_axes_and_bfloat16_keeps_shape_and_dtype():
    out = make()(jnp.ones((2, 3, DIM), jnp.bfloat16))
    assert out.shape == (2, 3, DIM) and out.dtype == jnp.bfloat16
