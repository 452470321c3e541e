"""Hosted rollouts: the row holds what was fed and sampled, and who sits in which slot changes nothing."""

import dataclasses
import random
import threading
import time
from typing import ClassVar

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
from infopo_jax.rollout import hosted, slot_programs, slots as slots_lib
from infopo_jax.rollout.batches import Ladder, to_turns
from infopo_jax.rollout.dialogue import Limits
from infopo_jax.rollout.hosted import HostedRollout, RolloutsFailed
from infopo_jax.types import EndReason, Role
from infopo_jax.users import UserFailed

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

    def engine(num_slots=6, chunk=2, feed_sizes=(5,), num_aside=0):
        setting = num_slots, chunk, feed_sizes, num_aside
        if setting not in made:
            made[setting] = HostedRollout(
                Echo, CHAT, graphdef, LIMITS,
                num_slots=num_slots, chunk=chunk, feed_sizes=feed_sizes, num_aside=num_aside,
            )  # fmt: skip
        return made[setting]

    return engine


def play(engine, model, *, tasks=TASKS, group_size=2, seed=8, temperature=1.0):
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


@pytest.mark.parametrize(
    ('num_slots', 'chunk', 'feed_sizes'), [(1, 2, (5,)), (4, 2, (3, 9)), (12, 1, (7,)), (12, 16, (80,))]
)
def test_rollout_is_the_same_for_any_slots_and_chunks(engines, model, played, num_slots, chunk, feed_sizes):
    other = play(engines(num_slots, chunk, feed_sizes), model, tasks=TASKS * 2)[1]
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
        turns, _ = loop(0.5)._rollout(params, jax.random.key(0), tasks, 1, temperature=1.0)
        assert turns.valid.sum() == 4
        with pytest.raises(RolloutsFailed, match=r"4 of 8 rollouts failed.*'no start'.*OSError: no database"):
            loop(0.49)._rollout(params, jax.random.key(0), tasks, 1, temperature=1.0)
    finally:
        engine.make_env = Echo


def test_batches_after_the_first_compile_nothing(engines, model, played):
    names = 'publish', 'empty', 'extend', 'decode', 'seat'
    programs = [getattr(slot_programs, name) for name in names]
    play(engines(), model)
    before = [program._cache_size() for program in programs]
    play(engines(), model, seed=3, tasks=TASKS * 2)
    assert [program._cache_size() for program in programs] == before


def test_reading_filled_columns_only_says_the_same(model, played, monkeypatch):
    """As on accelerators, where a program serves a power of two of columns."""
    monkeypatch.setattr(slots_lib, 'LEAST_COLUMNS', 16)
    engine = HostedRollout(Echo, CHAT, nnx.split(model)[0], LIMITS, num_slots=4, num_aside=2, chunk=2)
    seen, decode = set(), slot_programs.decode
    monkeypatch.setattr(slot_programs, 'decode', lambda setting, *rest: seen.add(setting[2]) or decode(setting, *rest))
    engine.slots._fit = True
    other = play(engine, model, tasks=TASKS * 2)[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), other, played[1])
    assert {32, 64} <= seen  # rows are long enough for several sizes


def test_nothing_stays_on_the_device_after_a_batch(engines, model):
    engine = engines()
    play(engine, model)
    assert not [name for name, value in vars(engine.slots).items() if any(map(_on_device, jax.tree.leaves(value)))]


def _on_device(leaf):
    return isinstance(leaf, jax.Array)


@pytest.mark.parametrize(
    ('pending', 'size'), [(1, 16), (16, 16), (17, 16), (32, 16), (33, 64), (64, 64), (129, 256), (128, 64), (999, 256)]
)
def test_a_part_is_not_mostly_padding(pending, size):
    assert slots_lib.fitting(pending, (16, 64, 256)) == size


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


class Slow(Echo):
    """Answers after a while that nobody can foresee."""

    draws = random.Random(0)

    def reset(self, *, seed=0, options=None):
        time.sleep(self.draws.random() * 0.005)
        return super().reset(seed=seed, options=options)

    def step(self, text):
        time.sleep(self.draws.random() * 0.03)
        return super().step(text)


@pytest.mark.parametrize(('num_slots', 'num_aside'), [(6, 0), (3, 3), (2, 5)])
def test_rollout_does_not_depend_on_who_answers_first(engines, model, monkeypatch, num_slots, num_aside):
    """To the bit: late replies change who sits where and when he is fed, not what is said."""
    engine = engines(num_slots, 2, (3, 9), num_aside)
    quick = play(engine, model, tasks=TASKS * 2)[1]
    monkeypatch.setattr(engine, 'make_env', Slow)
    for _ in range(2):
        slow = play(engine, model, tasks=TASKS * 2)[1]
        jax.tree.map(np.testing.assert_array_equal, slow, quick)


def test_rollout_with_rows_aside_says_the_same(engines, model, monkeypatch, played):
    engine = engines(3, 2, (5,), 3)
    monkeypatch.setattr(engine, 'make_env', Slow)
    swaps, swap = [], engine.slots.swap
    monkeypatch.setattr(engine.slots, 'swap', lambda pairs, places: swaps.append(pairs) or swap(pairs, places))
    other = play(engine, model, tasks=TASKS * 2)[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), other, played[1])
    assert sum(map(len, swaps)) >= 6  # they did make room for each other


def test_rollout_feeds_a_prompt_once(engines, model):
    """A group shares its prompt's tokens, and other prompts what they have in common with the one before."""
    _, turns, clock = play(engines(), model, tasks=['red', 'blue'], group_size=3)
    prompt = (turns.role == Role.PROMPT).sum(1)
    answers = ((turns.role != Role.PROMPT) & (turns.role != Role.ACTION) & (turns.role != Role.PAD)).sum()
    stops = 6 * LIMITS.max_turns  # stop tokens and capped actions' last ones go in front of the answers
    assert prompt[0] <= clock.fed - answers <= prompt[0] + stops < prompt.sum()


class LateRed(Echo):
    """Opens the task 'red' late, and answers late."""

    def reset(self, *, seed=0, options=None):
        time.sleep(0.3 * (options['task'] == 'red'))
        return super().reset(seed=seed, options=options)

    def step(self, text):
        time.sleep(0.05)
        return super().step(text)


def test_who_is_ready_does_not_queue_behind_who_is_not(engines, model, monkeypatch):
    engine = engines(2)
    seated, seat = [], engine.slots.seat
    monkeypatch.setattr(engine.slots, 'seat', lambda *args: seated.extend(args[1]) or seat(*args))
    monkeypatch.setattr(engine, 'make_env', LateRed)
    play(engine, model, tasks=['red', 'blue', 'blue'], group_size=1)
    assert seated[0] == (1, 0)


def test_waiting_for_environments_does_not_spin(engines, model, monkeypatch):
    """One slot, whose tenant waits, and others in the queue: nothing can be done but to wait for the reply."""
    rounds, seat = [], hosted._Batch._seat
    monkeypatch.setattr(hosted._Batch, '_seat', lambda self: rounds.append(1) or seat(self))
    engine = engines(1)
    monkeypatch.setattr(engine, 'make_env', LateRed)
    dialogues, _, clock = play(engine, model, tasks=['blue'], group_size=3)
    assert clock.wait > 0.9 * clock.env > 0.1 and len(rounds) < 10 * sum(d.num_turns for d in dialogues)


class Flaky(Echo):
    """Fails the first time that a task is asked anything."""

    seen: ClassVar[set] = set()

    def step(self, text):
        if (self.goal, self.member) not in self.seen:
            self.seen.add((self.goal, self.member))
            raise OSError('connection reset')
        return super().step(text)

    def reset(self, *, seed=0, options=None):
        self.member = options['member']
        return super().reset(seed=seed, options=options)


def test_a_failed_rollout_is_begun_again_and_is_what_it_would_have_been(engines, model, monkeypatch):
    engine = engines(3, 2, (5,), 3)
    whole = play(engine, model, tasks=['red', 'blue'])[1]
    monkeypatch.setattr(engine, 'make_env', Flaky)
    monkeypatch.setattr(Flaky, 'seen', set())
    _, turns, clock = play(engine, model, tasks=['red', 'blue'])
    assert clock.retried == len(Flaky.seen) > 1 and clock.masked == 0 and turns.valid.all()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), turns, whole)
    monkeypatch.setattr(engine, 'retries', 0)
    monkeypatch.setattr(Flaky, 'seen', set())
    _, turns, clock = play(engine, model, tasks=['red', 'blue'])
    assert clock.retried == 0 and clock.masked == len(Flaky.seen) == (~turns.valid).sum() > 1
    assert set(turns.end_reason[~turns.valid]) == {EndReason.ENV_ERROR}


def test_an_environment_that_hangs_is_given_up(engines, model, monkeypatch):
    release = threading.Event()

    class Hangs(Echo):
        def reset(self, *, seed=0, options=None):
            if options['task'] == 'blue':
                release.wait(60)
            return super().reset(seed=seed, options=options)

    engine = engines()
    monkeypatch.setattr(engine, 'make_env', Hangs)
    monkeypatch.setattr(engine, 'call_seconds', 0.3)
    monkeypatch.setattr(engine, 'retries', 0)
    dialogues, turns, clock = play(engine, model, tasks=['red', 'blue', 'red'], group_size=1)
    release.set()
    np.testing.assert_array_equal(turns.valid, [True, False, True])
    assert clock.masked == 1 and 'no answer within 0.3 s' in dialogues[1].error_text


def test_environments_are_closed(engines, model, monkeypatch):
    opened, closed = [], []

    class Closing(Failing):
        def __init__(self):
            super().__init__()
            opened.append(self)

        def close(self):
            closed.append(self)

    engine = engines()
    monkeypatch.setattr(engine, 'make_env', Closing)
    play(engine, model, tasks=['red', 'no start', 'no user', 'blue'])
    assert len(opened) >= 10 and sorted(map(id, closed)) == sorted(map(id, opened))  # those that were tried again, too


@pytest.mark.parametrize('answer', [None, 'just text', ('a', 1.0), (5, 1.0, False, False, {})])
def test_an_environment_that_breaks_the_contract_is_an_error_of_its_own(engines, model, monkeypatch, answer):
    class Broken(Echo):
        def step(self, text):
            return answer

    engine = engines()
    monkeypatch.setattr(engine, 'make_env', Broken)
    dialogues, turns, _ = play(engine, model, tasks=['red'])
    assert not turns.valid.any() and 'contract of envs/text.py' in dialogues[0].error_text


def test_rollout_for_evaluation_draws_from_what_truncation_leaves(engines, model):
    engine, params = engines(), nnx.split(model)[1]
    greedy = play(engine, model, temperature=0.0)[1]
    dialogues, _ = engine.rollout(
        params, jax.random.key(8), TASKS, group_size=2, seed=1, temperature=1.0, top_k=1, top_p=1.0, min_p=0.0
    )
    np.testing.assert_array_equal(to_turns(dialogues, LIMITS.max_tokens, LIMITS.max_turns).tokens, greedy.tokens)
