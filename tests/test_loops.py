"""A training step as one program, over seeds too, and the known answers of the probes."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chatter import Chatter
from flax import nnx
from models import tiny_model

from infopo_jax import build, build_state, config as config_lib, evaluate, loops
from infopo_jax.envs.probe import Probe
from infopo_jax.lm.config import LMConfig
from infopo_jax.lm.transformer import Transformer
from infopo_jax.rollout import jitted


def tiny_config(**overrides):
    config = config_lib.base_config()
    config.update_from_flattened_dict({
        'batch.prompts': 4, 'batch.group_size': 2, 'model.dim': 16, 'model.num_layers': 1, 'model.num_heads': 2,
        'model.num_kv_heads': 1, 'model.head_dim': 8, 'model.mlp_dim': 16, 'optim.lr': 1e-2, 'optim.warmup_steps': 0,
        'eval.episodes': 8, **overrides,
    })  # fmt: skip
    return config


def start(env, config):
    """Returns the loop of a config, on an environment of the tests, and a fresh state."""
    model_config = build.make_model_config(config, vocab_size=len(env.vocab))
    rule = build.make_rule(config, model_config, placeholder=env.placeholder, outcome_range=env.outcome_range)
    sizes = loops.Sizes(
        num_prompts=config.batch.prompts, group_size=config.batch.group_size, eval_groups=3, look_groups=1,
        temperature=1.0, eval_temperature=1.0, max_bad_actions=3,
    )  # fmt: skip
    loop = loops.JittedLoop(env, rule, sizes, num_seeds=config.num_seeds)
    return loop, build_state.make_state(loop, model_config, loops.seed_keys(config.seed, config.num_seeds))


ENV = Chatter()
FORBIDDEN = re.compile(r'custom_call_target="[^"]*callback|\b(infeed|outfeed|send|recv)\(')


@pytest.fixture(scope='module')
def single():
    """Returns a loop, its step compiled ahead of time."""
    loop, state = start(ENV, tiny_config())
    loop.lowered = loop._step.lower(state)
    loop._step = loop.lowered.compile()
    return loop


def test_step_is_one_program_that_never_calls_back(single):
    state = start(ENV, tiny_config())[1]
    assert not FORBIDDEN.search(single._step.as_text())
    talks = jax.jit(lambda x: jax.debug.print('{}', x) or x).lower(1.0).compile().as_text()
    assert FORBIDDEN.search(talks), 'the search finds a callback where there is one'

    new_state, metrics = single.lowered.out_info
    assert {a.shape for a in jax.tree.leaves(metrics)} == {()}, 'beside the state only scalars come back'
    shapes = [[(a.shape, a.dtype) for a in jax.tree.leaves(tree)] for tree in (new_state, state)]
    assert shapes[0] == shapes[1]
    before = jax.tree.leaves(state.params)
    state, metrics, clock = single.step(state)
    assert all(a.is_deleted() for a in before), 'the state is donated'
    assert int(state.step) == 1 and metrics['grad_norm'] > 0 and metrics['sampler_gap'] < 1e-4
    assert clock['seconds'] > 0 and clock['tokens_per_second'] > 0


def test_step_draws_anew_each_time_and_repeats_from_the_same_state(single):
    state = start(ENV, tiny_config())[1]
    copy = jax.tree.map(jnp.copy, state)
    state, first, _ = single.step(state)
    _, second, _ = single.step(state)
    _, again, _ = single.step(copy)
    assert first['reward'] != second['reward']
    jax.tree.map(np.testing.assert_array_equal, first, again)


def test_step_over_seeds_is_traced_once_and_equals_single_runs(single, monkeypatch):
    traces, rollout = [], jitted.rollout
    monkeypatch.setattr(jitted, 'rollout', lambda *args, **kwargs: traces.append(0) or rollout(*args, **kwargs))
    both, states = start(ENV, tiny_config(num_seeds=2, seed=3))
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    for _ in range(4):
        states, metrics, _ = both.step(states)
    assert len(traces) == 1 and both._step._cache_size() == 1
    evals, look = both.evaluate(states.params, keys, states.step)
    assert metrics['loss'].shape == evals['reward'].shape == (2,) and metrics['reward'][0] != metrics['reward'][1]
    for i in range(2):
        state = start(ENV, tiny_config(seed=3 + i))[1]
        for _ in range(4):
            state, alone, _ = single.step(state)
        alone_eval, alone_look = single.evaluate(state.params, keys[i], state.step)
        mine = jax.tree.map(lambda a, i=i: a[i], (states.params, metrics, evals))
        close = functools.partial(np.testing.assert_allclose, atol=5e-4, rtol=5e-4)
        jax.tree.map(close, mine, (state.params, alone, alone_eval))
        if i == 0:  # people look at the first seed
            jax.tree.map(close, look, alone_look)


# --- Known answers of the probes.


def look_at(name, model, estimator='infopo', **overrides):
    """Plays a probe; returns rollouts, gain, where it exists, and advantage."""
    env = Probe(probe=name)
    loop, _ = start(env, tiny_config(**{'advantage.estimator': estimator, **overrides}))

    @jax.jit
    def run(params, key):
        model = nnx.merge(graphdef, params)
        turns = jitted.rollout(model, env, key, num_prompts=16, group_size=2)
        return evaluate.look(loop._looks, model, evaluate.with_controls(loop.rule, turns), key, jnp.int32(0))

    graphdef, params = nnx.split(model)
    return jax.device_get(run(params, jax.random.key(0)))


@pytest.fixture(scope='module')
def asker():
    """An agent that mostly asks: attention and SwiGLU add nothing, so it sees the last token alone."""
    env, dim = Probe(), 4
    config = LMConfig(
        vocab_size=len(env.vocab), dim=dim, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=2, mlp_dim=2,
        tie_embeddings=False,
    )  # fmt: skip
    graphdef, params = nnx.split(Transformer(config, nnx.Rngs(0)))
    model = nnx.merge(graphdef, jax.tree.map(jnp.zeros_like, params))
    ask, end, agent = env.encode('ask <end> <agent>')
    embed, head = np.zeros((2, len(env.vocab), dim), np.float32)
    embed[:, 0] = embed[agent, 1] = embed[ask, 2] = 1.0
    head[ask, 1] = head[end, 2] = 5.0  # <agent> is followed by ask, ask by <end>
    model.final_norm.scale[...] = jnp.ones(dim)
    model.embed[...], model.head[...] = jnp.asarray(embed), jnp.asarray(head)
    return model


def test_gain_of_an_agent_that_does_not_listen_is_zero(asker):
    look = look_at('no_info', asker)
    assert look.gain_mask.sum() > 10 and (look.turns.num_turns > 2).any()
    np.testing.assert_allclose(look.gain, 0.0, atol=1e-5)


def test_gain_of_errors_is_masked():
    """Random weights malform almost every action, and every error message that another action follows moves them."""
    model = tiny_model(len(Probe.vocab), head=3.0)
    masked, shown = (look_at('error_surprise', model, **{'info.mask_errors': mask}) for mask in (True, False))
    errors = masked.turns.turn_error
    assert errors.sum() > 10 and not (masked.gain_mask & errors).any() and (masked.gain[errors] == 0).all()
    assert (shown.gain_mask & errors).sum() > 10
    assert np.abs(shown.gain[shown.gain_mask & errors]).mean() > 1e-2


def test_advantage_of_grpo_is_exactly_zero_where_all_tie(asker):
    look = look_at('tied', asker, 'grpo')
    assert (look.turns.outcome == np.float32(0.7)).all()
    assert (look.advantage == 0.0).all() and look.token_gain is None
