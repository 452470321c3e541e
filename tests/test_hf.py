"""Loading and saving without torch: trees, dtypes, meshes, and every way in which a checkpoint can be wrong."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec
from models import tiny_model

from infopo_jax.lm import hf, hf_placing, tensor_files
from infopo_jax.lm.transformer import Transformer

VOCAB = 20
KINDS = {
    'llama': dict(tie_embeddings=False, o_bias=True, qkv_bias=True, mlp_bias=True),
    'qwen3_moe': dict(qk_norm=True, num_experts=3, experts_per_token=2),
    'gemma3': dict(
        qk_norm=True, activation='gelu_tanh', norm_plus_one=True, post_norms=True, scale_embed=True,
        sliding_window=4, sliding_layers=(True, False), rope_theta_local=30.0,
    ),
}  # fmt: skip


def make(kind='llama'):
    return tiny_model(VOCAB, num_layers=2, **KINDS[kind])


@pytest.fixture
def saved(tmp_path):
    hf.save(make(), str(tmp_path))
    return tmp_path


def entries(folder):
    return {name: tensor_files.read(e) for name, e in tensor_files.scan(folder).items()}


def rewrite(folder, values):
    tensors = [tensor_files.Tensor(n, v.shape, v.dtype, lambda v=v: v) for n, v in values.items()]
    tensor_files.write(folder, tensors, shard_bytes=10**9)


def edit_config(folder, **fields):
    path = folder / 'config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize('kind', KINDS)
def test_save_then_load_gives_the_tree_back(kind, tmp_path):
    model = make(kind)
    hf.save(model, str(tmp_path), shard_bytes=4000)
    assert len(list(tmp_path.glob('model-*-of-*.safetensors'))) > 1
    again = hf.load(str(tmp_path))
    assert again.config == model.config
    ours, theirs = nnx.split(model), nnx.split(again)
    assert ours[0] == theirs[0]
    jax.tree.map(np.testing.assert_array_equal, ours[1], theirs[1])
    fresh = nnx.split(nnx.eval_shape(lambda: Transformer(model.config, nnx.Rngs(0))))
    assert fresh[0] == theirs[0]
    assert jax.tree.structure(fresh[1]) == jax.tree.structure(theirs[1])


def test_load_in_bfloat16_rounds_once(saved):
    full, half = hf.load(str(saved)), hf.load(str(saved), dtype='bfloat16')
    assert full.config.dtype == full.config.param_dtype == 'float32'  # as they are stored
    assert half.config.dtype == half.config.param_dtype == 'bfloat16'
    rounded = jax.tree.map(lambda a: a.astype(jnp.bfloat16), nnx.state(full))
    jax.tree.map(np.testing.assert_array_equal, nnx.state(half), rounded)
    mixed = hf.load(str(saved), dtype='bfloat16', param_dtype='float32', remat=True)
    assert mixed.config.remat and mixed.config.dtype == 'bfloat16' and mixed.embed[...].dtype == jnp.float32


def test_save_in_bfloat16_is_what_is_loaded(saved, tmp_path):
    model = hf.load(str(saved))
    hf.save(model, str(tmp_path / 'half'), dtype='bfloat16')
    assert json.loads((tmp_path / 'half' / 'config.json').read_text())['dtype'] == 'bfloat16'
    again = hf.load(str(tmp_path / 'half'))
    assert again.config.dtype == 'bfloat16'
    np.testing.assert_array_equal(again.embed[...], model.embed[...].astype(jnp.bfloat16))


def test_load_reads_float16_as_bfloat16(saved):
    rewrite(saved, {name: value.astype(np.float16) for name, value in entries(saved).items()})
    assert hf.load(str(saved)).embed[...].dtype == jnp.bfloat16
    assert hf.load(str(saved), dtype='float32').embed[...].dtype == jnp.float32


def test_load_names_tensors_that_are_missing_unexpected_or_of_another_shape(saved):
    values = entries(saved)
    some = 'model.layers.1.mlp.up_proj.weight'
    rewrite(saved, {n: v for n, v in values.items() if n != some})
    with pytest.raises(ValueError, match=f'lacks tensors that its config.json needs: {some}'):
        hf.load(str(saved))
    rewrite(saved, values | {'model.layers.1.self_attn.q_norm.weight': np.ones(4, np.float32)})
    with pytest.raises(ValueError, match=r'has no place for: model\.layers\.1\.self_attn\.q_norm\.weight'):
        hf.load(str(saved))
    rewrite(saved, values | {some: values[some].T})
    with pytest.raises(ValueError, match=r'up_proj.weight has shape \[16, 24\], config.json means \[24, 16\]'):
        hf.load(str(saved))


def test_load_passes_over_what_holds_nothing(tmp_path):
    model = tiny_model(VOCAB)
    hf.save(model, str(tmp_path))
    wanted = entries(tmp_path)
    more = {
        'model.layers.0.self_attn.rotary_emb.inv_freq': np.ones(2, np.float32),
        'lm_head.weight': wanted['model.embed_tokens.weight'],  # a copy, of tied embeddings
        'vision_tower.vision_model.weight': np.ones(2, np.float32),
    }
    rewrite(tmp_path, wanted | more)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(hf.load(str(tmp_path))), nnx.state(model))
    for prefix in ('language_model.model.', 'model.language_model.'):  # Gemma 3 with images, saved by 4 and by 5
        rewrite(tmp_path, {n.replace('model.', prefix, 1): v for n, v in wanted.items()})
        jax.tree.map(np.testing.assert_array_equal, nnx.state(hf.load(str(tmp_path))), nnx.state(model))


def test_load_names_what_is_wrong_with_a_folder(tmp_path, saved, monkeypatch):
    with pytest.raises(ValueError, match='neither a folder nor the name of a repository'):
        hf.load('/no/such/folder')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match=r'has no config\.json'):
        hf.load(str(tmp_path / 'empty'))
    with pytest.raises(ValueError, match='widht: no field of LMConfig'):
        hf.load(str(saved), widht=3)
    with pytest.raises(ValueError, match=r"dtype must be one of .*'float16'"):
        hf.load(str(saved), dtype='float16')
    edit_config(saved, model_type='rwkv')
    with pytest.raises(ValueError, match="model_type 'rwkv' is not supported"):
        hf.load(str(saved))
    (saved / 'config.json').write_text('{')
    with pytest.raises(ValueError, match=r'config\.json does not parse'):
        hf.load_config(str(saved))


def test_load_asks_the_hub_and_says_how_to_do_without(saved, monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', lambda name, **k: asked.append((name, k)) or str(saved))
    assert hf.load_config('owner/tiny').dim == 16
    assert asked[0][0] == 'owner/tiny' and '*.safetensors' in asked[0][1]['allow_patterns']

    def offline(*args, **kwargs):
        raise ConnectionError('no route to host')

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', offline)
    with pytest.raises(ValueError, match=r'no route to host.*hf download owner/tiny --local-dir'):
        hf.load('owner/tiny')


def test_save_names_a_switch_that_no_architecture_has(tmp_path):
    model = tiny_model(VOCAB, qk_norm=True, qkv_bias=True)
    with pytest.raises(ValueError, match='cannot have qk_norm=True'):
        hf.save(model, str(tmp_path / 'out'))
    assert not (tmp_path / 'out').exists()


def test_load_reads_a_tensor_when_it_is_due(saved, monkeypatch):
    """The host holds one: none is read before the last one was handed to its devices."""
    reads, waits = [], []
    read, to_device = tensor_files.read, hf_placing._to_device
    monkeypatch.setattr(tensor_files, 'read', lambda *a: reads.append(a[0]) or read(*a))
    monkeypatch.setattr(hf_placing, '_to_device', lambda *a: waits.append(len(reads)) or to_device(*a))
    hf.load(str(saved))
    assert waits == list(range(1, len(reads) + 1))
    assert len(reads) == len(tensor_files.scan(saved))


def test_default_sharding_splits_the_longest_axis_that_divides_but_no_layers():
    mesh = jax.make_mesh((1,), ('all',), axis_types=(AxisType.Auto,))
    assert hf_placing.default_sharding(mesh, 'embed', (20, 16)).spec == PartitionSpec('all', None)
    assert hf_placing.default_sharding(mesh, 'blocks/up/kernel', (90, 16, 24)).spec == PartitionSpec(None, None, 'all')


ON_A_MESH = """
import sys
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from infopo_jax import sharding
from infopo_jax.lm import hf

plain = hf.load(sys.argv[1])
tokens = np.arange(8, dtype=np.int32).reshape(2, 4)
mesh = sharding.make_mesh(1, 2, 2)
by_name = lambda name, shape: NamedSharding(mesh, sharding.spec_of(mesh, name, shape))
for how in (dict(mesh=mesh), dict(sharding_of=by_name)):
    model = hf.load(sys.argv[1], **how)
    np.testing.assert_array_equal(model.blocks.up.kernel[...], plain.blocks.up.kernel[...])
    np.testing.assert_allclose(jax.jit(model)(tokens), jax.jit(plain)(tokens), atol=1e-5)
    print([tuple(leaf[...].sharding.spec) for leaf in (model.embed, model.blocks.up.kernel, model.blocks.q.bias)])
    print(model.blocks.up.kernel[...].addressable_shards[0].data.shape)
try:
    hf.load(sys.argv[1], sharding_of=lambda name, shape: NamedSharding(mesh, P('fsdp')))
except ValueError as e:
    print(e)
"""


def test_load_lays_parameters_straight_onto_a_mesh(saved):
    env = os.environ | {'XLA_FLAGS': os.environ['XLA_FLAGS'] + ' --xla_force_host_platform_device_count=4'}
    env['PYTHONPATH'] = os.pathsep.join([str(pathlib.Path(hf.__file__).parents[2]), env.get('PYTHONPATH', '')])
    out = subprocess.run([sys.executable, '-c', ON_A_MESH, saved], env=env, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    every = ('data', 'fsdp', 'tensor')
    assert out.stdout.splitlines() == [
        str([(every, None), (None, None, every), (None, every)]),
        '(2, 16, 6)',
        str([('tensor', 'fsdp'), (None, 'fsdp', 'tensor'), (None, 'tensor')]),
        '(2, 8, 12)',
        "the layer axis of a parameter must stay whole, got ('fsdp',)",
    ]


def test_load_config_takes_overrides(saved):
    config = hf.load_config(str(saved))
    assert hf.load_config(str(saved), remat=True) == dataclasses.replace(config, remat=True)
