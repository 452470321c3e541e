"""Adapters: a base that stays as it is, a term that starts at nothing, and a file that the peft library reads."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import tiny_model

from infopo_jax.lm import hf, hf_adapter, lora
from infopo_jax.lm.config import LMConfig
from infopo_jax.lm.transformer import Transformer

CONFIG = LMConfig(
    vocab_size=40, dim=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=24, rope_theta=500.0,
    lora_rank=3, lora_alpha=6.0,
)  # fmt: skip
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 40, (2, 9)), jnp.int32)


@pytest.fixture(scope='module')
def parts():
    """Returns graphdef, adapters and base of a model whose adapters are not at their start."""
    graphdef, params = nnx.split(Transformer(CONFIG, nnx.Rngs(0)))
    adapters, base = lora.split(params)
    rng = np.random.default_rng(1)
    adapters = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.3, jnp.float32), adapters)
    return graphdef, adapters, base


def base_model(base):
    graphdef = nnx.split(Transformer(lora.base_of(CONFIG), nnx.Rngs(0)))[0]
    return nnx.merge(graphdef, base)


def test_adapter_starts_as_its_base():
    model = Transformer(CONFIG, nnx.Rngs(0))
    _, base = lora.split(nnx.split(model)[1])
    np.testing.assert_array_equal(model(TOKENS), base_model(base)(TOKENS))


def test_adapter_adds_the_scaled_low_rank_term():
    """Hand-derived: x = [1, 2], a = [[1], [3]], b = [[2, 0, 1]]: x @ a = 7, times b and alpha / rank = 4."""
    config = dataclasses.replace(CONFIG, lora_rank=1, lora_alpha=4.0)
    adapter = lora.Adapter(2, 3, config, jax.random.key(0))
    adapter.a[...], adapter.b[...] = jnp.array([[1.0], [3.0]]), jnp.array([[2.0, 0.0, 1.0]])
    np.testing.assert_allclose(adapter(jnp.array([1.0, 2.0])), [56.0, 0.0, 28.0])


def test_split_takes_out_the_adapters_of_every_projection_and_join_puts_them_back(parts):
    graphdef, adapters, base = parts
    shapes = {'/'.join(map(str, at)): leaf.shape for at, leaf in nnx.to_flat_state(adapters)}
    assert len(shapes) == 7 * 2 and shapes['blocks/q/adapter/a'] == (2, 16, 3)
    assert shapes['blocks/down/adapter/b'] == (2, 3, 16)
    assert not any(lora.NAME in at for at, _ in nnx.to_flat_state(base))
    model = Transformer(CONFIG, nnx.Rngs(0))
    joined = lora.join(*lora.split(nnx.split(model)[1]))
    np.testing.assert_array_equal(nnx.merge(graphdef, joined)(TOKENS), model(TOKENS))


def test_base_keeps_the_tree_of_a_model_without_adapters(parts):
    plain = nnx.split(Transformer(lora.base_of(CONFIG), nnx.Rngs(0)))[1]
    assert jax.tree.structure(parts[2]) == jax.tree.structure(plain)
    jax.tree.map(np.testing.assert_array_equal, parts[2], plain)  # adapters take no draw away from the base


def test_merged_gives_the_logits_of_base_and_adapters(parts):
    graphdef, adapters, base = parts
    adapted = nnx.merge(graphdef, lora.join(adapters, base))(TOKENS)
    merged = base_model(lora.merged(adapters, base, CONFIG))(TOKENS)
    np.testing.assert_allclose(merged, adapted, atol=2e-5)
    assert np.abs(adapted - base_model(base)(TOKENS)).max() > 0.1


def test_tiny_models_without_a_rank_have_no_adapters():
    adapters, _ = lora.split(nnx.split(tiny_model(20))[1])
    assert not jax.tree.leaves(adapters)


def test_save_adapter_is_what_peft_loads(parts, tmp_path):
    torch = pytest.importorskip('torch', reason="needs torch: pip install -e '.[parity]'")
    peft = pytest.importorskip('peft', reason="needs peft: pip install -e '.[parity]'")
    transformers = pytest.importorskip('transformers')
    graphdef, adapters, base = parts
    hf.save(base_model(base), str(tmp_path / 'base'))
    hf_adapter.save_adapter(adapters, CONFIG, str(tmp_path / 'adapter'), base=str(tmp_path / 'base'))
    assert json.loads((tmp_path / 'adapter' / hf_adapter.CONFIG).read_text())['r'] == 3
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'base', dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / 'adapter')
    with torch.no_grad():
        wanted = theirs(torch.tensor(np.asarray(TOKENS))).logits.numpy()
    ours = nnx.merge(graphdef, lora.join(adapters, base))(TOKENS)
    np.testing.assert_allclose(ours, wanted, atol=2e-5)
