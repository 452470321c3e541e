"""Rollouts inside XLA: rows are what the environment would have answered, and depend on nothing else in the batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chatter import STOP, VOCAB, Chatter
from flax import nnx
from invariants import check_turns
from models import often_stopping, tiny_model

from infopo_jax import packing, score
from infopo_jax.rollout import jitted
from infopo_jax.types import EndReason, Role

P, G = 6, 3
ENV, FULL = Chatter(), Chatter(end=0.0, error=0.0, least=4)


def make_model(stop=1.5):
    model = tiny_model(VOCAB, rope_theta=100.0, tie_embeddings=False, head=2.0)
    return often_stopping(model, STOP, stop)


@pytest.fixture(scope='module')
def model():
    return make_model()


@functools.partial(
    jax.jit, static_argnames=('graphdef', 'env', 'num_prompts', 'group_size', 'split', 'temperature', 'bad')
)
def _play(graphdef, params, env, key, num_prompts, group_size, split, temperature, bad):
    return jitted.rollout(
        nnx.merge(graphdef, params), env, key,
        num_prompts=num_prompts, group_size=group_size, split=split, temperature=temperature, max_bad_actions=bad,
    )  # fmt: skip


def play(model, env=ENV, *, seed=0, num_prompts=P, group_size=G, split='train', temperature=1.0, bad=3):
    turns = _play(*nnx.split(model), env, jax.random.key(seed), num_prompts, group_size, split, temperature, bad)
    return jax.device_get(turns)


@pytest.fixture(scope='module')
def played(model):
    return play(model)


def test_rollout_keeps_the_invariants_of_turns(played):
    check_turns(played, stop_id=STOP, max_action=ENV.action_len)
    assert {EndReason.DONE, EndReason.TURN_LIMIT, EndReason.BAD_ACTION} <= set(played.end_reason)
    assert played.valid.all() and len(set(played.num_turns)) > 2
    lengths = [np.bincount(t[m]) for t, m in zip(played.turn, played.action_mask, strict=True)]
    assert set(np.concatenate(lengths)) >= {1, 4}


def test_rollout_replayed_by_hand_gives_the_same_answers(model):
    """Steps the environment eagerly with what was sampled, row by row, and writes the row as the invariants say."""
    split, key = 'test', jax.random.key(0)
    turns = play(model, split=split)
    reset, step = jax.jit(ENV.reset, static_argnums=1), jax.jit(ENV.step)
    for n in range(0, P * G, 2):
        group_key = jax.random.fold_in(key, n // G)
        member_key = jax.random.fold_in(jax.random.fold_in(group_key, 1 + n % G), 1)
        state, prompt, mask = reset(jax.random.fold_in(group_key, 0), split)
        row, bad, end = list(zip(np.asarray(prompt)[mask], [Role.PROMPT] * 5, [-1] * 5, strict=False)), 0, None
        for t in range(ENV.max_turns):
            said = turns.tokens[n][turns.action_mask[n] & (turns.turn[n] == t)]
            row += [(x, Role.ACTION, t) for x in said]
            action = np.pad(said, (0, ENV.action_len - len(said)))
            state, feedback, mask, reward, done, is_error = step(
                jax.random.fold_in(member_key, t), state, action, np.arange(ENV.action_len) < len(said)
            )
            assert (turns.turn_reward[n, t], turns.turn_error[n, t]) == (reward, is_error)
            bad = bad + 1 if is_error else 0
            end = EndReason.DONE if done else EndReason.BAD_ACTION if bad == 3 else None
            if end is not None or t == ENV.max_turns - 1:
                break
            row += [(x, Role.TEMPLATE, t) for x in ENV.feedback_open]
            row += [(x, Role.FEEDBACK, t) for x in np.asarray(feedback)[mask]]
            row += [(x, Role.TEMPLATE, t) for x in ENV.feedback_close]
        size = len(row)
        for name, wanted in zip(('tokens', 'role', 'turn'), zip(*row, strict=True), strict=True):
            np.testing.assert_array_equal(getattr(turns, name)[n][:size], wanted)
        assert (turns.role[n][size:] == Role.PAD).all()
        outcome, success = ENV.score(state)
        assert turns.end_reason[n] == (end or EndReason.TURN_LIMIT) and turns.num_turns[n] == t + 1
        assert turns.outcome[n] == np.float32(outcome) and turns.success[n] == (success and end == EndReason.DONE)


@pytest.mark.parametrize('temperature', [1.0, 0.7])
def test_sampled_logp_equals_the_scorers(model, temperature):
    turns = play(model, seed=1, temperature=temperature)
    scores = score.score(model, turns, None, temperature=temperature)
    np.testing.assert_allclose(scores.logp, turns.sampled_logp, atol=1e-4)


def test_rollout_members_share_the_prompt_and_nothing_else(played):
    prompt = np.where(played.role == Role.PROMPT, played.tokens, 0).reshape(P, G, -1)
    assert (prompt == prompt[:, :1]).all() and len(np.unique(prompt[:, 0], axis=0)) == P
    first = np.where(played.action_mask & (played.turn == 0), played.tokens, 0).reshape(P, G, -1)
    assert (first != first[:, :1])[:, 1:].any(axis=(1, 2)).sum() >= P // 2, 'members draw their own tokens'
    feedback = np.where(played.feedback_mask, played.tokens, 0).reshape(P, G, -1)
    assert (feedback != feedback[:, :1])[:, 1:].any(axis=(1, 2)).all(), 'and hear their own answers'


def test_rollout_row_depends_on_its_group_and_member_alone(model, played):
    fewer = play(model, num_prompts=2, group_size=2)
    rows = np.array([0, 1, G, G + 1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[rows], atol=1e-5), fewer, played)


def test_rollout_repeats_with_its_key_and_differs_with_another(model, played):
    jax.tree.map(np.testing.assert_array_equal, play(model), played)
    assert (play(model, seed=7).tokens != played.tokens).mean() > 0.5


def test_rollout_greedy_is_the_argmax_of_the_scorer(model):
    turns = play(model, temperature=0.0)
    best = np.asarray(jnp.argmax(nnx.jit(model)(turns.tokens), axis=-1))
    for n, i in np.argwhere(turns.action_mask):
        assert turns.tokens[n, i] == best[n, i - 1]


def test_rollout_ends_after_bad_actions_in_a_row(model):
    turns = play(model, Chatter(end=0.0, error=1.0), bad=2)
    assert (turns.end_reason == EndReason.BAD_ACTION).all() and (turns.num_turns == 2).all()
    assert not turns.success.any() and turns.turn_error[:, :2].all() and (turns.outcome > 0).all()


@pytest.mark.parametrize('horizon', [1, 2, 'all'])
def test_layout_bounds_hold_and_the_branch_bound_is_reached(horizon):
    """An agent that never stops before its cap, full feedback and no early end fill every block."""
    env, talker, lay = FULL, make_model(stop=-9.0), jitted.Layout.of(FULL)
    num_h = packing.num_horizons(horizon, env.max_turns)
    bound = lay.branches(len(env.placeholder), num_h)
    most = 0
    for seed, stops in ((0, False), (1, False), (2, True)):
        turns = play(make_model() if stops else talker, env, seed=seed)
        branch, target = packing.bounds(turns, env.placeholder, horizon=horizon, multiple=1)
        assert branch <= bound and target <= lay.targets and turns.tokens.shape[1] == lay.length
        most = max(most, branch)
    assert most > 0.9 * bound
