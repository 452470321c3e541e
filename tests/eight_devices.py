"""Runs on a mesh of eight virtual devices; tests/test_sharding.py starts this file in a process that has them.

XLA_FLAGS=--xla_force_host_platform_device_count=8 pytest tests/eight_devices.py
"""

import dataclasses
import functools
import math
import re

import jax
import numpy as np
import pytest
from builders import random_turns
from flax import nnx
from mesh_runs import KINDS, WORLDS, Asked, assert_close, assert_laid_out, host, start

from infopo_jax import build, build_state, config as config_lib, envs, loops, packing, sharding, update as update_lib
from infopo_jax.checkpoint import Checkpointer
from infopo_jax.lm import head
from infopo_jax.lm.transformer import Transformer
from infopo_jax.rollout import jitted, slot_programs
from infopo_jax.rollout.batches import to_turns
from infopo_jax.state import nnx_state, pure

assert len(jax.devices()) == 8, 'start this file as its first lines say'

COMPILED = []  # an entry for every program that XLA has compiled
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: COMPILED.append(event) if event.endswith('backend_compile_duration') else None
)

ONE, ALL_AXES, MOSTLY_FSDP = (1, 1, 1), (2, 2, 2), (1, 4, 2)
OTHERS = [
    *[(d, f, 8 // (d * f)) for d in (1, 2, 4, 8) for f in (1, 2, 4, 8) if d * f <= 8],
    *[(2, 1, 1), (1, 2, 1), (1, 1, 2), (1, 2, 2)],
]
OTHERS.remove(ALL_AXES)
MESHES = [ALL_AXES, *(pytest.param(mesh, marks=pytest.mark.slow) for mesh in OTHERS)]


@pytest.fixture(scope='module', autouse=True)
def environments():
    with pytest.MonkeyPatch.context() as patch:
        for name, where in WORLDS.items():
            patch.setitem(envs.ENVIRONMENTS, name, where)
        yield


# --- Steps.


@functools.cache
def jitted_reference():
    loop, state = start('jitted', ONE)
    state, metrics, _ = loop.step(state)
    return host(state), metrics


@pytest.mark.parametrize('mesh', MESHES)
def test_jitted_step_equals_one_device(mesh, monkeypatch):
    wanted, wanted_metrics = jitted_reference()
    traces, rollout = [], jitted.rollout
    monkeypatch.setattr(jitted, 'rollout', lambda *args, **kwargs: traces.append(0) or rollout(*args, **kwargs))
    loop, state = start('jitted', mesh)
    before = jax.tree.leaves(state.params)
    state, metrics, _ = loop.step(state)
    assert metrics['length'] == wanted_metrics['length'] and metrics['reward'] == wanted_metrics['reward']
    assert metrics['grad_norm'] > 1e-2 and metrics['kl'] > 1e-3 and metrics['gain_mean'] != 0
    assert_close(metrics, wanted_metrics, least=0.1)
    assert_close(state, wanted)  # Adam's first moment is the gradient
    assert_laid_out(state, loop.rule.mesh)
    assert all(leaf.is_deleted() for leaf in before), 'the state is donated'
    count = len(COMPILED)
    for _ in range(2):
        state, metrics, _ = loop.step(state)
    assert metrics['skipped'] == 0 and len(traces) == 1 and count == len(COMPILED) > 0


@functools.cache
def hosted_reference():
    """Returns what one device rolls out, and the state and metrics after an update on it."""
    loop, state = start('hosted', ONE)
    dialogues, turns = play(loop, state)
    (branch_len, target_len), turns = loop.ladder.fit(turns, loop.rule.placeholder, loop.rule.horizon)
    sizes = dict(branch_len=branch_len, target_len=target_len)
    state, metrics = loop._update(state, turns, jax.random.key(5), **sizes)
    return dialogues, turns, sizes, host(state), jax.device_get(metrics)


def play(loop, state):
    tasks = ['red', 'blue', 'red', 'blue']
    dialogues, _ = loop.engine.rollout(
        state.params, jax.random.key(3), tasks, group_size=4, seed=1, temperature=1.0
    )  # fmt: skip
    return dialogues, to_turns(dialogues, loop.engine.limits.max_tokens, loop.engine.limits.max_turns)


@pytest.mark.parametrize('mesh', MESHES)
def test_hosted_step_equals_one_device(mesh):
    wanted, turns, sizes, wanted_state, wanted_metrics = hosted_reference()
    loop, state = start('hosted', mesh)
    mesh = loop.rule.mesh
    dialogues, _ = play(loop, state)
    assert [d.ids for d in dialogues] == [d.ids for d in wanted]
    assert len({len(d.ids) for d in dialogues}) > 3 and len({d.outcome for d in dialogues}) >= 3
    for mine, theirs in zip(dialogues, wanted, strict=True):
        np.testing.assert_allclose(mine.logps, theirs.logps, atol=1e-5)

    before = jax.tree.leaves(state.params)
    state, metrics = loop._update(state, sharding.rows(turns, mesh), jax.random.key(5), **sizes)
    assert metrics['grad_norm'] > 1e-2 and metrics['kl'] > 1e-3 and metrics['gain_mean'] != 0
    assert_close(metrics, wanted_metrics, least=0.1)
    assert_close(state, wanted_state)
    assert_laid_out(state, mesh)
    assert all(leaf.is_deleted() for leaf in before), 'the state is donated'
    count = len(COMPILED)
    state, _ = loop._update(state, sharding.rows(turns, mesh), jax.random.key(6), **sizes)
    play(loop, state)
    assert count == len(COMPILED) > 0


@pytest.mark.slow
def test_policy_user_answers_as_on_one_device(monkeypatch):
    """He decodes on the first device while the agents decode on all of them, with whole copies of what is in pieces."""
    knobs = {'user.name': 'policy', 'user.weights': 'frozen', 'user.max_tokens': 6, 'user.concurrency': 4}
    heard = {}
    for mesh in (ONE, ALL_AXES):
        loop, state = start('hosted', mesh, **{'env.name': 'asked', 'loss.kl_coef': 0.0, **knobs})
        heard[mesh] = {}
        monkeypatch.setattr(Asked, 'heard', heard[mesh])
        state, metrics, _ = loop.step(state)
        loop.step(state)
        assert metrics['end_user_error'] == 0 and metrics['skipped'] == 0
    assert heard[ONE] == heard[ALL_AXES] and len(set(heard[ONE].values())) > 10


def test_hosted_cache_stays_in_pieces():
    """Rows are divided over data and fsdp, key heads over tensor; rows that change places are not brought together."""
    loop, state = start('hosted', ALL_AXES)
    device, mesh = loop.engine.slots, loop.rule.mesh
    device.begin(state.params, jax.random.key(0))
    for cache in (device._cache, device._aside):
        for leaf in (*cache.k, *cache.v):
            assert leaf.shape[:2] == (8, 8) and leaf.addressable_shards[0].data.shape[:2] == (2, 4)
        assert cache.position.addressable_shards[0].data.shape[0] == 2
    assert device._logits.addressable_shards[0].data.shape[0] == 2
    pairs, count = np.array([[1, 6], [5, 0], [1, 6], [5, 0]], np.int32), np.int32(2)
    caches = [
        jax.tree.map(lambda a, sign=sign: sign * np.arange(a.size, dtype=a.dtype).reshape(a.shape), host(device._cache))
        for sign in (1, -1)
    ]
    wanted = slot_programs.swap(None, *caches, pairs, count)
    pieces = [sharding.kv_cache(cache, mesh) for cache in caches]
    program = slot_programs.swap.lower(mesh, *pieces, pairs, count).compile()
    assert 'all-gather' not in program.as_text()
    jax.tree.map(np.testing.assert_array_equal, program(*pieces, pairs, count), wanted)


# --- Many passes over a batch, and what a device computes and holds.


@pytest.fixture(scope='module')
def passes():
    """Returns {mesh: (program, state, metrics)} of an update with epochs, minibatches and microbatches, five layers."""
    turns = random_turns(0, num_turns=(1, 2, 3, 4) * 4, vocab=20)
    turns = dataclasses.replace(turns, outcome=np.random.default_rng(0).normal(size=16).astype(np.float32))
    done = {}
    for mesh in (ONE, MOSTLY_FSDP):
        many = {'updates.epochs': 2, 'updates.minibatches': 2, 'updates.microbatches': 2}
        loop, state = start('jitted', mesh, **{'model.num_layers': 5, 'model.mlp_dim': 128, **many})
        bounds = packing.bounds(turns, loop.rule.placeholder)
        rule = dataclasses.replace(loop.rule, branch_len=bounds[0], target_len=bounds[1])
        step = jax.jit(functools.partial(update_lib.update, rule), donate_argnums=0)
        inputs = sharding.rows(turns, rule.mesh), jax.random.key(2)
        program = step.lower(state, *inputs).compile()
        state, metrics = program(state, *inputs)
        done[mesh] = program, host(state), jax.device_get(metrics)
    return done


def test_update_in_many_passes_equals_one_device(passes):
    (_, wanted, wanted_metrics), (_, state, metrics) = passes[ONE], passes[MOSTLY_FSDP]
    assert metrics['clip_fraction'] == wanted_metrics['clip_fraction'] and metrics['grad_norm'] > 1e-2
    assert_close(metrics, wanted_metrics, least=0.1)
    assert_close(state, wanted)


def test_update_divides_work_and_memory(passes):
    """A device computes an eighth; were activations split in place of weights being gathered, it would be more."""
    (alone, *_), (divided, *_) = passes[ONE], passes[MOSTLY_FSDP]
    flops = [program.cost_analysis()['flops'] for program in (alone, divided)]
    assert flops[1] < 1.12 / 8 * flops[0]
    sizes = [program.memory_analysis() for program in (alone, divided)]
    assert sizes[1].temp_size_in_bytes < 0.2 * sizes[0].temp_size_in_bytes


def test_score_of_a_large_vocabulary_chunks_by_what_a_device_holds():
    """Four devices divide the rows and two the vocabulary: chunks are those of four rows and half of it."""
    loop, state = start('jitted', MOSTLY_FSDP)
    config = dataclasses.replace(nnx.merge(loop.rule.graphdef, state.params).config, vocab_size=151936)
    graphdef, params = nnx.split(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0))))
    rule = dataclasses.replace(loop.rule, graphdef=graphdef, branch_len=64, target_len=80)
    turns = random_turns(0, num_turns=(1, 2, 3, 4) * 4, vocab=20)

    def run(params, turns):
        return update_lib.score_turns(rule, rule.model(params), turns, paired=True).logp

    text = str(jax.make_jaxpr(run)(params, turns))
    assert head.chunk_size((16, 80), 151936, 2, shards=(4, 2)) == 16
    assert 'f32[16,16,151936]' in text and 'f32[16,80,151936]' not in text


# --- Before and after.


@pytest.mark.parametrize('kind', KINDS)
def test_warm_start_equals_one_device(kind):
    losses = {}
    for mesh in (ONE, ALL_AXES):
        loop, state = start(kind, mesh)
        losses[mesh] = []
        params = loop.warm_start(
            state.params,
            jax.random.key(0),
            steps=3,
            batch=16,
            lr=1e-2,
            progress=lambda _, loss, mesh=mesh: losses[mesh].append(loss),
        )
        wanted = sharding.shardings(params, loop.rule.mesh)
        for leaf, place in zip(jax.tree.leaves(params), jax.tree.leaves(wanted), strict=True):
            assert mesh == ONE or leaf.sharding.is_equivalent_to(place, leaf.ndim)
    np.testing.assert_allclose(losses[ALL_AXES], losses[ONE], rtol=1e-5)
    assert losses[ONE][2] < losses[ONE][0] - 0.01


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        ({'mesh.tensor': 16}, 'mesh.data * mesh.fsdp * mesh.tensor = 2 * 2 * 16 = 64 devices, and there are 8'),
        (
            {'mesh.data': 1, 'mesh.tensor': 4, 'model.num_kv_heads': 2},
            'mesh.tensor = 4 does not divide model.num_kv_heads = 2',
        ),
        ({'updates.microbatches': 8}, '= 2 * 2 = 4 does not divide the 2 rollouts of a microbatch (batch.prompts / '),
        ({'num_seeds': 2}, 'config.num_seeds = 2 on the mesh data 2 x fsdp 2 x tensor 2, 8 of 8 devices: seeds'),
    ],
)
def test_make_loop_refuses_what_does_not_fit(overrides, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        start('jitted', ALL_AXES, **overrides)


def test_checkpoint_of_one_mesh_restores_on_another(tmp_path):
    loop, state = start('jitted', ALL_AXES)
    Checkpointer(tmp_path).save(3, pure(state), config_dict={})
    for mesh in ((1, 4, 2), (4, 1, 1), ONE):
        config = config_lib.base_config()
        sizes = dict(zip(('mesh.data', 'mesh.fsdp', 'mesh.tensor'), mesh, strict=True))
        config.update_from_flattened_dict(KINDS['jitted'] | sizes)
        loop, model_config = build.make_loop(config)
        template = build_state.state_template(loop, model_config, loops.seed_keys(0, 1))
        values, step, _ = Checkpointer(tmp_path).restore(pure(template))
        restored = nnx_state(values, template)
        jax.tree.map(np.testing.assert_array_equal, host(restored), host(state))
        assert step == 3 and {len(leaf.devices()) for leaf in jax.tree.leaves(restored)} == {math.prod(mesh)}
        if mesh != ONE:
            assert_laid_out(restored, loop.rule.mesh)
        assert jax.random.key_impl(restored.key) == jax.random.key_impl(state.key)
        jax.random.bits(restored.key, ())
