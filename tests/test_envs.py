"""One contract for every array environment, and the dict of names."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infopo_jax import envs
from infopo_jax.envs.probe import PROBES

SPECS = {
    'sokoban': ('sokoban', {'level': 1}),
    'intent': ('intent', {}),
    'intent-hard': ('intent', {'num_slots': 3, 'num_hidden': 2, 'turn_limit': 4, 'reward': 'share', 'turn_cost': 0.05}),
    **{probe: ('probe', {'probe': probe}) for probe in PROBES},
}
COUNT = 1000  # one batch size, so that each function compiles once


@pytest.fixture(params=SPECS, scope='module')
def env(request):
    name, knobs = SPECS[request.param]
    return envs.make(name, **knobs)


def keys(seed):
    return jax.random.split(jax.random.key(seed), COUNT)


@functools.cache
def examples(env):
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(env.example))(keys(0)))


@functools.cache
def starts(env, split):
    """Returns states, prompts and masks of COUNT episodes of a split."""
    return jax.jit(jax.vmap(lambda key: env.reset(key, split)))(keys(1))


@functools.cache
def compiled_step(env):
    return jax.jit(jax.vmap(env.step))


def random_actions(env, seed):
    """Returns actions [COUNT, action_len] and masks: targets of examples, random tokens every other row."""
    rng = np.random.default_rng(seed)
    order, example = rng.permutation(COUNT), examples(env)
    target_mask = example.target_mask[order]
    mask = np.arange(env.action_len) < target_mask.sum(1)[:, None]
    actions = np.zeros(mask.shape, np.int32)
    actions[mask] = example.tokens[order][target_mask]
    actions[::2] = np.where(mask, rng.integers(0, len(env.vocab), mask.shape), 0)[::2]
    return jnp.asarray(actions), jnp.asarray(mask)


@functools.cache
def play(env):
    """Plays COUNT episodes of random actions; returns the last states, and (state before, output of step) by turn."""
    state, turns = starts(env, 'train')[0], []
    for t in range(env.max_turns):
        out = compiled_step(env)(keys(2 + t), state, *random_actions(env, t))
        turns.append((state, out))
        state = out[0]
    return state, turns


def assert_trees_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_trees_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), a, b)


def assert_aligned(tokens, mask, length):
    """Checks static length, left alignment, and PAD (id 0) behind it."""
    assert tokens.shape == mask.shape == (*tokens.shape[:-1], length)
    assert tokens.dtype == jnp.int32 and mask.dtype == jnp.bool_
    assert not np.any(mask[..., 1:] & ~mask[..., :-1])
    assert not np.any(np.asarray(tokens)[~np.asarray(mask)])
    assert np.all(np.asarray(tokens)[np.asarray(mask)] > 0)


def test_env_attributes_are_static(env):
    lengths = (env.prompt_len, env.action_len, env.feedback_len, env.max_turns, env.example_len, env.stop_id)
    assert all(type(value) is int for value in lengths)
    assert len(set(env.vocab)) == len(env.vocab) < 64
    for markup in (env.feedback_open, env.feedback_close, env.placeholder):
        assert markup and all(0 < i < len(env.vocab) for i in markup)
    assert env.outcome_range > 0


@pytest.mark.parametrize('split', ['train', 'test'])
def test_reset_prompt_is_left_aligned_and_decodes(env, split):
    _, prompt, mask = starts(env, split)
    assert_aligned(prompt, mask, env.prompt_len)
    close = env.decode(env.feedback_close)
    for row, m in zip(np.asarray(prompt[:50]), np.asarray(mask[:50]), strict=True):
        text = env.decode(row[m])
        assert text.endswith(close), 'the markup before the first action ends the prompt'
        assert env.encode(text) == row[m].tolist()


def test_reset_splits_are_disjoint(env):
    train, test = (set(map(tuple, starts(env, split)[0].goal.tolist())) for split in ('train', 'test'))
    assert not train & test
    assert len(train) > len(test) >= 8


def test_reset_refuses_unknown_split(env):
    with pytest.raises(ValueError, match="'train' or 'test'"):
        env.reset(jax.random.key(0), 'valid')


def test_reset_group_shares_its_key(env):
    group = jax.vmap(lambda key: env.reset(key, 'train'))(jnp.repeat(jax.random.split(jax.random.key(7), 1), 3))
    assert_trees_equal(*(jax.tree.map(lambda x, i=i: x[i], group) for i in (0, 2)))
    assert len(np.unique(starts(env, 'train')[0].goal, axis=0)) > 50


def test_step_feedback_is_left_aligned_and_flags_agree(env):
    _, turns = play(env)
    for old, (new, feedback, mask, reward, done, is_error) in turns:
        assert_aligned(feedback, mask, env.feedback_len)
        assert reward.dtype == jnp.float32 and done.dtype == is_error.dtype == jnp.bool_
        np.testing.assert_array_equal(done, new.done)
        np.testing.assert_array_equal(mask.any(1), ~done)  # every open turn has feedback, a closed one none
        assert not np.any(is_error & done)
        np.testing.assert_array_equal(is_error, feedback[:, 0] == env.vocab.index('<error>'))
        np.testing.assert_array_equal(old.goal, new.goal)
    assert any(out[-1].any() for _, out in turns) and turns[-1][1][4].any()


def test_step_rewards_sum_to_the_outcome_within_its_range(env):
    state, turns = play(env)
    outcome, success = jax.vmap(env.score)(state)
    assert outcome.dtype == jnp.float32 and success.dtype == jnp.bool_
    np.testing.assert_allclose(sum(out[3] for _, out in turns), outcome, atol=1e-6)
    assert outcome.max() - outcome.min() <= env.outcome_range + 1e-6
    assert not np.any(success & ~state.done)


def test_step_after_done_changes_nothing(env):
    state, _ = play(env)
    new, _, feedback_mask, reward, done, is_error = compiled_step(env)(keys(9), state, *random_actions(env, 9))
    over = np.asarray(state.done)
    assert over.sum() > 10
    assert_trees_equal(*(jax.tree.map(lambda x: np.asarray(x)[over], s) for s in (new, state)))
    assert not feedback_mask[over].any() and not reward[over].any() and done[over].all() and not is_error[over].any()


def test_step_ignores_garbage_in_padding(env):
    (state, *_), (actions, mask) = starts(env, 'train'), random_actions(env, 9)
    junk = jnp.where(mask, actions, np.random.default_rng(1).integers(0, len(env.vocab), mask.shape))
    clean, dirty = (compiled_step(env)(keys(9), state, tokens, mask) for tokens in (actions, junk))
    assert_trees_equal(clean, dirty)


def test_env_jit_and_vmap_equal_eager(env):
    at = lambda tree, i: jax.tree.map(lambda x: x[i], tree)  # noqa: E731
    assert_trees_close(env.reset(keys(1)[3], 'train'), at(starts(env, 'train'), 3))
    assert_trees_close(env.example(keys(0)[3]), at(examples(env), 3))
    state, out = play(env)[1][1]
    actions = random_actions(env, 1)
    for i in range(4):
        assert_trees_close(env.step(keys(3)[i], at(state, i), *at(actions, i)), at(out, i))


def test_example_is_left_aligned_and_ends_with_its_target(env):
    example = examples(env)
    assert_aligned(example.tokens, example.token_mask, env.example_len)
    length, num_target = example.token_mask.sum(1), example.target_mask.sum(1)
    index = np.arange(env.example_len)
    wanted = (index >= (length - num_target)[:, None]) & (index < length[:, None])
    np.testing.assert_array_equal(example.target_mask, wanted)
    assert np.all((num_target >= 1) & (num_target <= env.action_len))
    last = example.tokens[np.arange(COUNT), length - 1]
    assert np.all(last == env.stop_id)
    placeholders = np.isin(example.tokens, env.placeholder).any(1).mean()
    assert 0.1 < placeholders < 0.9


def test_make_names_the_nearest_environment():
    with pytest.raises(ValueError, match=r"'itent'.*did you mean 'intent'.*'retail'"):
        envs.make('itent')


def test_make_names_the_knobs():
    with pytest.raises(ValueError, match=r"'num_slot', did you mean 'num_slots'.*'turn_cost': 0.0"):
        envs.make('intent', num_slot=3)
    with pytest.raises(ValueError, match="no knob 'num_slots'"):
        envs.make('probe', num_slots=3)


def test_make_keeps_defaults_at_none():
    env = envs.make('intent', num_slots=5, num_values=None, probe=None)
    assert (env.num_slots, env.num_values) == (5, 12)


def test_knobs_returns_defaults():
    assert envs.knobs('probe') == {'probe': 'no_info'}
    assert envs.knobs('intent')['num_hidden'] == 3


def test_environments_are_strings_that_need_no_import():
    assert len(envs.ENVIRONMENTS) >= 11 and all(where.count(':') == 1 for where in envs.ENVIRONMENTS.values())
    code = 'import sys, infopo_jax.envs; sys.exit("numpy" in sys.modules or "jax" in sys.modules)'
    subprocess.run([sys.executable, '-c', code], check=True)


def test_encode_names_the_unknown_word():
    with pytest.raises(ValueError, match='hello'):
        envs.make('intent').encode('ask hello')
