"""Hosted rollouts whose environments fail, hang or break the contract, and what becomes of the others."""

import dataclasses
import threading
from typing import ClassVar

import jax
import numpy as np
import pytest
from flax import nnx
from hosted_play import CHAT, Echo, engine_maker, make_model, play

from infopo_jax.loops import HostedLoop, Sizes
from infopo_jax.rollout.hosted import RolloutsFailed, RolloutsStopped
from infopo_jax.types import EndReason
from infopo_jax.users import UserFailed


@pytest.fixture(scope='module')
def model():
    return make_model()


@pytest.fixture(scope='module')
def engines(model):
    return engine_maker(model)


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


def test_a_failure_after_an_action_that_was_too_long_counts_as_others_do(engines, model, monkeypatch):
    class Unscored(Echo):
        def score(self, num_turns):
            raise OSError('no ledger')

    engine = engines()
    monkeypatch.setattr(engine, 'make_env', Unscored)
    dialogues, turns, clock = play(engine, model)
    failed = (~turns.valid).sum()
    assert failed and clock.masked == failed and clock.retried >= failed
    assert all('no ledger' in d.error_text for d in dialogues if not d.valid)
    assert len(clock.failures) == clock.masked + clock.retried


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


def test_a_batch_that_is_asked_to_stop_breaks_off_and_closes_its_environments(engines, model, monkeypatch):
    engine, release, closed = engines(), threading.Event(), []

    class Slow(Echo):
        def step(self, text):
            engine.stop()  # as a signal handler does, while answers are still to come
            release.wait(20)
            return super().step(text)

        def close(self):
            closed.append(self)

    monkeypatch.setattr(engine, 'make_env', Slow)
    monkeypatch.setattr(engine, 'stopped', False)
    threading.Timer(1.0, release.set).start()
    with pytest.raises(RolloutsStopped):
        play(engine, model, tasks=['red', 'blue'])
    assert closed


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
