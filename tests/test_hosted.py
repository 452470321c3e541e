"""Hosted rollouts: the row holds what was fed and sampled, and who sits in which slot changes nothing."""

import dataclasses
import time

import builders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from invariants import check_turns
from models import often_stopping, tiny_model
from talk import Colour, tiny_chat

from infopo_jax import packing, score
from infopo_jax.loops import HostedLoop, Sizes
from infopo_jax.rollout.dialogue import Limits, UserFailed
from infopo_jax.rollout.hosted import HostedRollout, Ladder, RolloutsFailed, to_turns
from infopo_jax.types import EndReason, Role

LIMITS = Limits(
    max_turns=4, max_tokens=80, max_prompt_tokens=20, max_action_tokens=7, max_feedback_tokens=20, max_bad_actions=2
)
TASKS = ['red', 'blue', 'red']
CHAT = tiny_chat()


class Echo(Colour):
    """Answers whatever is said, at a length that depends on it, so that slots fall out of step."""

    def step(self, text):
        info = {'is_error': len(text) % 2 == 1, 'success': True}
        return f'it is {self.goal} ' * (len(text) % 4), float(len(text)), len(text) % 5 == 2, False, info


@pytest.fixture(scope='module')
def model():
    model = tiny_model(CHAT.vocab_size, num_layers=2, num_heads=2, num_kv_heads=1, tie_embeddings=False, head=2.0)
    return often_stopping(model, CHAT.stop_id, 4.0)


@pytest.fixture(scope='module')
def engines(model):
    """Returns a function that builds an engine, once per setting."""
    made, graphdef = {}, nnx.split(model)[0]

    def engine(num_slots=6, chunk=2, extend_chunk=5):
        setting = num_slots, chunk, extend_chunk
        if setting not in made:
            made[setting] = HostedRollout(
                Echo, CHAT, graphdef, LIMITS, num_slots=num_slots, chunk=chunk, extend_chunk=extend_chunk
            )
        return made[setting]

    return engine


def play(engine, model, *, tasks=TASKS, group_size=2, seed=0, temperature=1.0):
    params = nnx.split(model)[1]
    key = jax.random.key(seed)
    dialogues, clock = engine.rollout(params, key, tasks, group_size=group_size, seed=1, temperature=temperature)
    return dialogues, to_turns(dialogues, LIMITS.max_tokens, LIMITS.max_turns), clock


@pytest.fixture(scope='module')
def played(engines, model):
    return play(engines(), model, tasks=TASKS * 2)


@pytest.mark.parametrize('temperature', [1.0, 0.7])
def test_sampled_logp_equals_the_scorers(engines, model, temperature):
    """Six slots out of step, twelve rollouts: caches are extended, sampled from, emptied and taken over."""
    _, turns, _ = play(engines(), model, tasks=TASKS * 2, temperature=temperature)
    scores = score.score(model, turns, None, temperature=temperature)
    np.testing.assert_allclose(scores.logp, turns.sampled_logp, atol=1e-4)
    assert len(set(turns.num_turns)) > 1 and len(np.unique(turns.action_mask.sum(1))) > 3


@pytest.mark.parametrize(('num_slots', 'chunk', 'extend_chunk'), [(1, 2, 5), (4, 2, 5), (12, 1, 7), (12, 16, 80)])
def test_rollout_is_the_same_for_any_slots_and_chunks(engines, model, played, num_slots, chunk, extend_chunk):
    other = play(engines(num_slots, chunk, extend_chunk), model, tasks=TASKS * 2)[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), other, played[1])


def test_rollout_of_a_group_does_not_depend_on_later_groups(engines, model, played):
    few = play(engines(), model)[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[:6], atol=1e-4), few, played[1])


def test_rollout_members_share_the_prompt_and_say_different_things(engines, model, played):
    turns = played[1]
    prompt = np.where(turns.role == Role.PROMPT, turns.tokens, 0)
    said = np.where(turns.action_mask, turns.tokens, 0)
    for g in range(0, len(prompt), 2):
        np.testing.assert_array_equal(prompt[g], prompt[g + 1])
        assert (said[g] != said[g + 1]).any()
    assert (said != play(engines(), model, tasks=TASKS * 2, seed=1)[1].tokens).any()


def test_rollout_greedy_is_the_argmax_of_the_scorer(engines, model):
    _, turns, _ = play(engines(), model, temperature=0.0)
    best = np.asarray(jnp.argmax(nnx.jit(model)(turns.tokens), axis=-1))
    for n, i in np.argwhere(turns.action_mask):
        assert turns.tokens[n, i] == best[n, i - 1]
    np.testing.assert_array_equal(turns.tokens[0], turns.tokens[1])


def test_rollout_keeps_the_invariants_of_turns(played):
    dialogues, turns, clock = played
    check_turns(turns, stop_id=CHAT.stop_id, max_action=LIMITS.max_action_tokens)
    assert clock.sampled == turns.action_mask.sum() and min(clock.decode, clock.extend, clock.env) > 0
    assert (turns.end_reason == [d.end_reason for d in dialogues]).all()
    assert {EndReason.DONE, EndReason.TURN_LIMIT, EndReason.BAD_ACTION} <= set(turns.end_reason)


def test_rollout_rows_are_what_was_said_rendered_by_the_chat(played):
    """Token in, token out: a row is prompt, sampled ids and replies, and nothing is tokenized again."""
    for d in played[0]:
        env = Echo()
        ids = CHAT.prompt(env.reset(options={'task': d.task})[0])
        actions = np.split(np.array(d.ids)[np.array(d.roles) == Role.ACTION], np.cumsum(_lengths(d))[:-1])
        for t, action in enumerate(actions):
            ids += action.tolist()
            if t == len(actions) - 1:
                break
            stopped = action[-1] == CHAT.stop_id
            if stopped:
                content = env.step(CHAT.action_text(action))[0]
                answer = [{'role': 'user', 'content': content}]
            else:
                answer = [{'role': 'tool', 'content': 'Error: that was too long. Say it in fewer words.'}]
            ids += CHAT.reply(d._cut(answer), stopped=stopped)[0]
        assert ids == d.ids


def _lengths(d):
    turn = [t for t, role in zip(d.turns, d.roles, strict=True) if role == Role.ACTION]
    return np.bincount(turn)


class Failing(Echo):
    """Fails in ways that depend on the task."""

    def reset(self, *, seed=0, options=None):
        if options['task'] == 'no start':
            raise OSError('no database')
        return super().reset(seed=seed, options=options)

    def step(self, text):
        if self.goal == 'no user':
            raise UserFailed('endpoint is down')
        return super().step(text)


def test_rollout_goes_on_around_failures_and_keeps_them_out(engines, model):
    engine = engines()
    engine.make_env = Failing
    try:
        dialogues, turns, _ = play(engine, model, tasks=['red', 'no start', 'no user', 'blue', 'red', 'red'])
    finally:
        engine.make_env = Echo
    np.testing.assert_array_equal(turns.valid.reshape(-1, 2).all(1), [True, False, False, True, True, True])
    assert set(turns.end_reason[2:4]) == {EndReason.ENV_ERROR} and set(turns.end_reason[4:6]) == {EndReason.USER_ERROR}
    assert dialogues[2].error_text == 'OSError: no database'
    whole = play(engine, model, tasks=['red', 'blue', 'red', 'blue', 'red', 'red'])[1]
    for row in (0, 6, 10):  # the others are what they would have been
        np.testing.assert_array_equal(turns.tokens[row], whole.tokens[row])


def test_loop_stops_where_too_many_rollouts_fail(engines, model):
    engine = engines()
    rule = dataclasses.make_dataclass('Rule', ['placeholder', 'horizon'])((), 1)
    sizes = Sizes(2, 2, 1, 1, temperature=1.0, eval_temperature=1.0, max_bad_actions=3)

    def loop(most):
        return HostedLoop(Echo, CHAT, rule, sizes, engine, seed=0, max_failed_fraction=most)

    params, tasks = nnx.split(model)[1], ['red', 'no start', 'no user', 'blue']
    engine.make_env = Failing
    try:
        turns, _ = loop(0.5)._rollout(params, jax.random.key(0), tasks, 1, 1.0)
        assert turns.valid.sum() == 4
        with pytest.raises(RolloutsFailed, match=r"4 of 8 rollouts failed.*'no start'.*OSError: no database"):
            loop(0.49)._rollout(params, jax.random.key(0), tasks, 1, 1.0)
    finally:
        engine.make_env = Echo


def test_extend_and_decode_compile_once(engines, model, played):
    engine = engines()
    play(engine, model, seed=3)
    assert engine._extend._cache_size() == 1
    assert engine._decode._cache_size() <= 3  # a program per temperature


# --- The ladder of shapes.


@pytest.mark.parametrize('horizon', [1, 2, 'all'])
def test_ladder_has_at_most_four_rungs_and_the_last_holds_anything(horizon):
    ladder = Ladder.of(LIMITS, num_placeholder=3, horizon=horizon)
    assert 1 <= len(ladder.rungs) <= 4 and ladder.rungs == tuple(sorted(ladder.rungs))
    assert ladder.rungs[-1][0] == LIMITS.max_tokens
    rng = np.random.default_rng(0)
    for _ in range(10):
        rows = [builders.random_row(rng, num_turns=t, action=(1, 8), feedback=(1, 8)) for t in (4, 4, 3, 1)]
        rows = [row for row in rows if len(row) <= LIMITS.max_tokens]
        ladder.fit(builders.turns_of(rows, max_turns=4, length=LIMITS.max_tokens), [1, 2, 3], horizon)


def test_ladder_fits_the_lowest_rung_that_holds_the_batch():
    ladder = Ladder(((32, 16, 8), (64, 32, 16), (96, 64, 64)))
    row = [(5, Role.PROMPT, -1), (6, Role.ACTION, 0), (7, Role.FEEDBACK, 0), (8, Role.ACTION, 1)]
    small = builders.turns_of([row], length=96)
    bounds, cut = ladder.fit(small, [1], 1)
    assert bounds == (16, 8) and cut.tokens.shape == (1, 32) and cut.turn_reward.shape == (1, 2)
    long_row = row[:1] * 40 + row[1:]
    assert ladder.fit(builders.turns_of([long_row], length=96), [1], 1)[1].tokens.shape == (1, 64)
    many = row[:1] + row[1:2] * 17 + row[2:]  # few tokens, but more targets than the second rung has
    assert ladder.fit(builders.turns_of([many], length=96), [1], 1)[0] == (64, 64)
    wide = ladder.fit(small, list(range(20)), 1)  # a longer placeholder needs more branch tokens
    assert wide[0] == (32, 16) and packing.bounds(small, range(20), multiple=1)[0] > 16
    with pytest.raises(ValueError, match='fits no rung'):
        ladder.fit(builders.turns_of([row[:1] * 97 + row[1:]], length=120), [1], 1)


def test_rollout_clock_does_not_decide(engines, model, monkeypatch, played):
    """A slow environment delays, and changes nothing."""

    class Slow(Echo):
        def step(self, text):
            time.sleep(0.002 * (len(text) % 5))
            return super().step(text)

    engine = engines()
    monkeypatch.setattr(engine, 'make_env', Slow)
    again = play(engine, model, tasks=TASKS * 2)[1]
    jax.tree.map(np.testing.assert_array_equal, again, played[1])
