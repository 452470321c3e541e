"""Hosted rollouts: the row holds what was fed and sampled, and who sits in which slot changes nothing."""

import dataclasses
import random
import time
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hosted_play import CHAT, LIMITS, TASKS, Echo, engine_maker, make_model, play
from invariants import check_turns

from infopo_jax import score
from infopo_jax.rollout import hosted, slot_programs, slots as slots_lib
from infopo_jax.rollout.batches import to_turns
from infopo_jax.rollout.dialogue import PromptTooLong
from infopo_jax.rollout.hosted import HostedRollout
from infopo_jax.types import EndReason, Role


@pytest.fixture(scope='module')
def model():
    return make_model()


@pytest.fixture(scope='module')
def engines(model):
    return engine_maker(model)


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


@pytest.mark.parametrize('num_aside', [0, 3])
def test_batches_after_the_first_compile_nothing(engines, model, monkeypatch, num_aside):
    engine = engines(3, 2, (5,), num_aside)
    monkeypatch.setattr(engine, 'make_env', Slow)
    names = 'publish', 'empty', 'extend', 'decode', 'seat', 'swap'
    programs = [getattr(slot_programs, name) for name in names]
    play(engine, model)
    before = [program._cache_size() for program in programs]
    play(engine, model, seed=3, tasks=TASKS * 2)
    assert [program._cache_size() for program in programs] == before


def test_reading_filled_columns_only_says_the_same(model, played, monkeypatch):
    """As on accelerators, where a program serves a power of two of columns."""
    monkeypatch.setattr(slots_lib, 'LEAST_COLUMNS', 16)
    engine = HostedRollout(Echo, CHAT, nnx.split(model)[0], LIMITS, num_slots=4, num_aside=2, chunk=2)
    seen, decode = set(), slot_programs.decode
    monkeypatch.setattr(slot_programs, 'decode', lambda *args: seen.add(args[0].columns) or decode(*args))
    engine.slots._fit = True
    other = play(engine, model, tasks=TASKS * 2)[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), other, played[1])
    assert {32, 64} <= seen  # rows are long enough for several sizes


class Wordy(Echo):
    """Opens with as many words as the task says, so that prompts are of very different length; may answer late."""

    delay, draws = 0.0, random.Random(1)

    def reset(self, *, seed=0, options=None):
        time.sleep(self.delay * self.draws.random())
        self.goal = 'red'
        return [{'role': 'user', 'content': 'which colour ' * options['task'] + 'is it'}], {}

    def step(self, text):
        time.sleep(self.delay * self.draws.random())
        return super().step(text)


@pytest.fixture(scope='module')
def wordy(model):
    limits = dataclasses.replace(LIMITS, max_tokens=400, max_prompt_tokens=300, max_action_tokens=30)
    return HostedRollout(
        Wordy, CHAT, nnx.split(model)[0], limits, num_slots=2, num_aside=2, chunk=8, feed_sizes=(5,), num_workers=4
    )


@pytest.mark.parametrize('tasks', [[100, 2, 50], [2, 100, 2]])
def test_what_a_longer_prompt_left_behind_is_never_seen(wordy, model, tasks):
    dialogues, _ = wordy.rollout(nnx.split(model)[1], jax.random.key(0), tasks, group_size=2, seed=1, temperature=1.0)
    turns = to_turns(dialogues, 400, LIMITS.max_turns)
    np.testing.assert_allclose(score.score(model, turns, None).logp, turns.sampled_logp, atol=1e-4)


def test_prompts_that_come_in_any_order_change_nothing(wordy, model, monkeypatch):
    """To the bit: which prompt was fed before, and what it left behind, depends on who opened first."""

    def rows():
        dialogues, _ = wordy.rollout(
            nnx.split(model)[1], jax.random.key(0), [2, 30, 7, 50], group_size=2, seed=1, temperature=1.0
        )
        return to_turns(dialogues, 400, LIMITS.max_turns)

    quick = rows()
    monkeypatch.setattr(Wordy, 'delay', 0.05)
    for _ in range(2):
        jax.tree.map(np.testing.assert_array_equal, rows(), quick)


class Closing(Echo):
    """Counts how many are open; closes slowly."""

    left: ClassVar[list] = []

    def reset(self, *, seed=0, options=None):
        self.left.append(self)
        if options['task'] == 'long':
            return [{'role': 'user', 'content': 'which colour ' * 99}], {}
        return super().reset(seed=seed, options=options)

    def close(self):
        time.sleep(0.02)
        self.left.remove(self)


@pytest.mark.parametrize('task', ['red', 'long'])
def test_every_environment_is_closed_also_after_an_error(engines, model, monkeypatch, task):
    engine = engines()
    monkeypatch.setattr(engine, 'make_env', Closing)
    monkeypatch.setattr(engine, 'num_workers', 1)
    monkeypatch.setattr(Closing, 'left', [])
    if task == 'red':
        play(engine, model, tasks=TASKS)
    else:
        with pytest.raises(PromptTooLong):
            play(engine, model, tasks=['red', 'blue', 'long'])
    end = time.monotonic() + 5
    while Closing.left and time.monotonic() < end:
        time.sleep(0.01)
    assert not Closing.left and engine.slots._cache is None


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


def test_rollout_for_evaluation_draws_from_what_truncation_leaves(engines, model):
    engine, params = engines(), nnx.split(model)[1]
    greedy = play(engine, model, temperature=0.0)[1]
    dialogues, _ = engine.rollout(
        params, jax.random.key(8), TASKS, group_size=2, seed=1, temperature=1.0, top_k=1, top_p=1.0, min_p=0.0
    )
    np.testing.assert_array_equal(to_turns(dialogues, LIMITS.max_tokens, LIMITS.max_turns).tokens, greedy.tokens)
