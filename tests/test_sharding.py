"""The mesh's arithmetic and rules; what runs on it is in eight_devices.py, which needs a process with eight devices."""

import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, PartitionSpec as P

from infopo_jax import config as config_lib, sharding
from infopo_jax.lm.config import LMConfig
from infopo_jax.lm.transformer import Transformer
from infopo_jax.state import fresh_state

MESH = AbstractMesh((2, 4, 2), sharding.AXES)
SIZES = {'dim': 16, 'num_layers': 2, 'num_heads': 8, 'num_kv_heads': 4, 'head_dim': 4, 'mlp_dim': 24}
DENSE = LMConfig(vocab_size=20, **SIZES)
EVERYTHING = LMConfig(
    vocab_size=20,
    tie_embeddings=False,
    qkv_bias=True,
    qk_norm=True,
    o_bias=True,
    mlp_bias=True,
    post_norms=True,
    **SIZES,
)
ADAPTED = LMConfig(vocab_size=20, lora_rank=3, **SIZES)
EXPERTS = LMConfig(vocab_size=20, num_experts=6, experts_per_token=2, **SIZES)


def abstract_params(config):
    return nnx.split(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0))))[1]


def names_of(tree):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator='/').removesuffix('/value'): leaf for path, leaf in leaves
    }


# --- The mesh.


@pytest.mark.parametrize(
    ('asked', 'sizes'),
    [
        ((-1, 1, 1), (8, 1, 1)),
        ((2, -1, 2), (2, 2, 2)),
        ((2, 2, -1), (2, 2, 2)),
        ((1, 8, 1), (1, 8, 1)),
        ((1, 1, 2), (1, 1, 2)),
    ],
)
def test_axis_sizes_fills_one_axis(asked, sizes):
    assert sharding.axis_sizes(*asked, num_devices=8) == sizes


@pytest.mark.parametrize(
    ('asked', 'message'),
    [
        ((2, 4, 2), 'mesh.data * mesh.fsdp * mesh.tensor = 2 * 4 * 2 = 16 devices, and there are 8'),
        (
            (-1, 1, 3),
            'mesh.data = -1 cannot be filled: mesh.fsdp * mesh.tensor = 1 * 3 = 3 does not divide the 8 devices',
        ),
        ((-1, -1, 1), 'at most one axis is -1'),
        ((0, 1, 1), 'sizes are at least 1'),
    ],
)
def test_axis_sizes_shows_what_does_not_fit(asked, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sharding.axis_sizes(*asked, num_devices=8)


def test_check_model_names_every_size_that_does_not_divide():
    sharding.check_model(MESH, DENSE)
    wide = AbstractMesh((1, 5, 8), sharding.AXES)
    with pytest.raises(ValueError) as error:
        sharding.check_model(wide, DENSE)
    assert str(error.value).splitlines() == [
        'mesh.tensor = 8 does not divide model.num_kv_heads = 4',
        'mesh.fsdp = 5 does not divide model.dim = 16',
    ]


def test_check_rows_shows_the_arithmetic():
    sharding.check_rows(MESH, {'slots': 16})
    with pytest.raises(ValueError, match=re.escape('mesh.data * mesh.fsdp = 2 * 4 = 8 does not divide the 12 slots')):
        sharding.check_rows(MESH, {'rollouts': 16, 'slots': 12})


def test_validate_refuses_axes_that_cannot_be():
    config = config_lib.base_config()
    config.mesh.fsdp, config.mesh.tensor = -1, 0
    with pytest.raises(ValueError) as error:
        config_lib.validate(config)
    assert 'config.mesh.fsdp = -1: config.mesh.data is -1 already' in str(error.value)
    assert 'config.mesh.tensor = 0: must be at least 1' in str(error.value)


# --- Rules.


def test_spec_of_golden():
    """Stacked weights: the layer axis is whole, the last two axes follow the table."""
    params = names_of(abstract_params(EVERYTHING))
    specs = {name: sharding.spec_of(MESH, name, leaf.shape) for name, leaf in params.items()}
    up, down, bias = P(None, 'fsdp', 'tensor'), P(None, 'tensor', 'fsdp'), P(None, 'tensor')
    assert specs['embed'] == specs['head'] == P('tensor', 'fsdp')
    assert {specs[f'blocks/{name}/kernel'] for name in ('q', 'k', 'v', 'gate', 'up')} == {up}
    assert {specs[f'blocks/{name}/kernel'] for name in ('o', 'down')} == {down}
    assert {specs[f'blocks/{name}/bias'] for name in ('q', 'k', 'v', 'gate', 'up')} == {bias}
    rest = {
        name: spec
        for name, spec in specs.items()
        if name.endswith('scale') or name in ('blocks/o/bias', 'blocks/down/bias')
    }
    assert len(rest) == 9 and all(not any(spec) for spec in rest.values())
    assert len(specs) == 2 + 7 + 5 + 9


def test_spec_of_splits_experts_inside_each_one():
    params = names_of(abstract_params(EXPERTS))
    found = {name: sharding.spec_of(MESH, name, leaf.shape) for name, leaf in params.items() if 'moe' in name}
    up, down = P(None, None, 'fsdp', 'tensor'), P(None, None, 'tensor', 'fsdp')
    shown = {name.rpartition('moe/')[2]: spec for name, spec in found.items()}
    assert shown == {'router': P(), 'gate': up, 'up': up, 'down': down}


def test_spec_of_splits_adapters_as_their_kernels():
    """A rank is never split; what a kernel has along an axis, its low-rank term has too."""
    params = names_of(abstract_params(ADAPTED))
    for kernel, (before, behind) in {'gate': ('fsdp', 'tensor'), 'down': ('tensor', 'fsdp')}.items():
        a, b = (
            sharding.spec_of(MESH, name, params[name].shape) for name in (f'blocks/{kernel}/adapter/{x}' for x in 'ab')
        )
        assert (a, b) == (P(None, before), P(None, None, behind))


def test_spec_of_leaves_whole_what_does_not_divide():
    """A vocabulary of 21 rows over tensor 2, and a factored moment that has lost an axis."""
    assert sharding.spec_of(MESH, 'embed', (21, 16)) == P(None, 'fsdp')
    assert sharding.spec_of(MESH, 'v_row/embed', (21,)) == P()
    assert sharding.spec_of(MESH, 'blocks/q/kernel', (2, 16, 32), whole=('fsdp',)) == P(None, None, 'tensor')


def test_spec_of_spells_a_layout_as_compiled_programs_do():
    """No axes of one device, nothing behind the last one that divides."""
    narrow = AbstractMesh((2, 4, 1), sharding.AXES)
    assert sharding.spec_of(narrow, 'blocks/q/kernel', (2, 16, 32)) == P(None, 'fsdp')
    assert sharding.spec_of(MESH, 'blocks/attn_norm/scale', (2, 16)) == P()


def test_spec_of_refuses_a_name_without_a_rule():
    with pytest.raises(ValueError, match=re.escape('no rule in sharding.RULES says how blocks/novel/weight [2, 3] is')):
        sharding.spec_of(MESH, 'blocks/novel/weight', (2, 3))


@pytest.mark.parametrize('config', [DENSE, EVERYTHING, EXPERTS, ADAPTED])
def test_shardings_of_the_state_follow_the_parameters(config):
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(0.0, 1.0, 3)))
    state = jax.eval_shape(
        lambda params: fresh_state(tx, params, jax.random.key(0), keep_reference=True), abstract_params(config)
    )
    found = names_of(sharding.shardings(state, MESH))
    for name, leaf in names_of(state.params).items():
        spec = sharding.spec_of(MESH, name, leaf.shape)
        for place in ('params', 'reference', 'opt_state/1/0/mu', 'opt_state/1/0/nu'):
            assert found.pop(f'{place}/{name}').spec == spec
    assert set(found) == {'key', 'step', 'bad_updates', 'opt_state/1/0/count', 'opt_state/1/2/count'}
    assert {place.spec for place in found.values()} == {P()}


# --- One device, and eight.


def test_nothing_is_done_on_one_device():
    mesh = sharding.make_mesh(-1, 1, 1, devices=jax.devices()[:1])
    assert dict(mesh.shape) == {'data': 1, 'fsdp': 1, 'tensor': 1}
    assert sharding.describe(mesh) == f'data 1 x fsdp 1 x tensor 1, 1 of {len(jax.devices())} devices'
    tree = {'anything': jnp.ones((3, 2))}
    for one in (mesh, None):
        for function in (sharding.by_name, sharding.rows, sharding.kv_cache, sharding.publish):
            assert function(tree, one)['anything'] is tree['anything']
    graphdef, params = nnx.split(Transformer(LMConfig(vocab_size=20, **SIZES), nnx.Rngs(0)))
    assert sharding.merge(graphdef, params, mesh).gather is None


def run_on_eight_devices(*arguments):
    tests = pathlib.Path(__file__).resolve().parent
    flags = '--xla_force_host_platform_device_count=8'
    env = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags, 'PYTHONPATH': str(tests.parent)}
    command = [sys.executable, '-m', 'pytest', '-n0', '-x', str(tests / 'eight_devices.py'), *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tests.parent)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def test_steps_on_a_mesh_equal_one_device():
    assert re.search(r'1[0-9] passed', run_on_eight_devices())


@pytest.mark.slow
def test_steps_on_every_mesh_equal_one_device():
    assert re.search(r'27 passed', run_on_eight_devices('-m', 'slow'))
