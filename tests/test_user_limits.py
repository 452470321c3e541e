"""What bounds a user's requests: waits between tries, the rate, room for as many at once, and patience."""

import random
import threading
import time

import pytest

pytest.importorskip('httpx', reason="the openai user needs httpx: pip install 'infopo_jax[users]'")

from endpoint import Endpoint
from openai_user import KEY, TALK, after, ask, hurry

from infopo_jax import build_user, config as config_lib
from infopo_jax.envs.retail import Retail
from infopo_jax.rollout.workers import Workers
from infopo_jax.users import UserFailed, limits


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    hurry(monkeypatch)


def test_retry_after_is_honoured_by_every_thread():
    """All wait for what one was told."""
    with Endpoint(after([(429, {'Retry-After': '0.5'}, '')])) as endpoint:
        user = ask(endpoint)
        first = threading.Thread(target=user.reply, args=(TALK,))
        first.start()
        end = time.monotonic() + 5
        while user.counters()['retries'] < 1 and time.monotonic() < end:  # it has been told, and waits
            time.sleep(0.001)
        user.reply(TALK, nonce='another')
        first.join()
    assert min(endpoint.times[1:]) - endpoint.times[0] >= 0.5


@pytest.mark.parametrize(
    ('value', 'seconds'),
    [(None, None), ('3', 3.0), ('0.5', 0.5), ('-1', 0.0), ('soon', None), ('nan', None), ('1e9', 120.0)],
)
def test_retry_after_reads_seconds(value, seconds):
    assert limits.retry_after(value) == seconds


def test_retry_after_reads_dates():
    from email.utils import formatdate

    assert 28 <= limits.retry_after(formatdate(time.time() + 30, usegmt=True)) <= 30
    assert limits.retry_after(formatdate(time.time() - 30, usegmt=True)) == 0.0


def test_backoff_doubles_up_to_a_limit_with_jitter(monkeypatch):
    monkeypatch.setattr(limits, 'BACKOFF', 1.0)
    monkeypatch.setattr(limits, 'MAX_BACKOFF', 10.0)
    for attempt, most in enumerate([1, 2, 4, 8, 10, 10]):
        waits = [limits.backoff(attempt, random.Random(i)) for i in range(200)]
        assert most / 2 <= min(waits) < 0.6 * most and 0.9 * most < max(waits) <= most


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def test_pace_spaces_requests_evenly():
    clock = Clock()
    pace = limits.Pace(30, clock=clock, sleep=clock.sleep)
    assert [pace.wait() for _ in range(3)] == [0.0, 2.0, 2.0]
    clock.now += 60
    assert [pace.wait() for _ in range(2)] == [0.0, 2.0]  # what was not used does not add up
    pace.close_for(7.0)
    assert pace.wait() == 7.0
    assert limits.Pace(0, clock=clock, sleep=clock.sleep).wait() == 0.0


def test_rate_and_concurrency_are_bounded():
    with Endpoint(lambda *_: ('SLOW', 0.05, 'tea')) as endpoint:
        user = ask(endpoint, concurrency=3, requests_per_minute=60 * 50)
        threads = [threading.Thread(target=user.reply, args=(TALK,), kwargs={'nonce': str(i)}) for i in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert endpoint.most_busy <= 3 and len(endpoint.requests) == 12
    assert endpoint.times[-1] - endpoint.times[0] >= 11 * 0.02 - 0.01


def test_waiting_for_a_place_is_no_timeout():
    with Endpoint(lambda *_: ('SLOW', 0.2, 'tea')) as endpoint:
        user = ask(endpoint, concurrency=1, timeout=0.6)
        threads = [threading.Thread(target=user.reply, args=(TALK,), kwargs={'nonce': str(i)}) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(endpoint.requests) == 6 and user.counters()['retries'] == 0


# Patience


@pytest.mark.parametrize(
    ('plan', 'words'),
    [
        (lambda *_: ('SLOW', 3.0, 'too late'), 'no whole answer'),
        (lambda *_: ('DRIP', 0.05, 'far too long'), 'no whole answer'),
        (lambda *_: (500, {}, 'oops'), '(status 500|no whole answer)'),  # the deadline may come while one is under way
        (lambda *_: (429, {'Retry-After': '60'}, 'slow down'), 'status 429: slow down'),
    ],
    ids=['slow', 'drip', '500', '429'],
)
def test_patience_ends_a_call_that_could_go_on(plan, words):
    """Whatever is slow: one request of many seconds, many that fail, or an endpoint that wants to be left alone."""
    with Endpoint(plan) as endpoint:
        user = ask(endpoint, timeout=60.0, retries=10_000, patience=0.4)
        start = time.monotonic()
        with pytest.raises(UserFailed, match=f'within 0.4 s .*config.rollout.call_seconds.*{words}') as failure:
            user.reply(TALK)
        assert 0.4 <= time.monotonic() - start < 1.5  # not before: a rollout that is begun again asks at once
        counts = user.counters()
        cut_off = counts['requests'] - len(endpoint.requests)  # the last may never have arrived
        assert counts['failed_calls'] == 1 and 0 <= cut_off <= 1
        assert KEY not in str(failure.value) and failure.value.__suppress_context__


@pytest.mark.parametrize('knobs', [{'concurrency': 1}, {'requests_per_minute': 6.0}], ids=str)
def test_patience_counts_the_wait_for_room_and_for_the_rate(knobs):
    with Endpoint(lambda number, _: 'tea' if number else ('SLOW', 1.0, 'tea')) as endpoint:
        user = ask(endpoint, patience=3.0, **knobs)
        first = threading.Thread(target=user.reply, args=(TALK,))
        first.start()
        end = time.monotonic() + 5
        while not endpoint.requests and time.monotonic() < end:
            time.sleep(0.001)
        user.patience = 0.3
        with pytest.raises(UserFailed, match=r'within 0.3 s .*no room, or no start by the rate limit'):
            user.reply(TALK, nonce='another')
        first.join()
        assert len(endpoint.requests) == 1 and user.counters()['waited_seconds'] >= 0.3


def test_room_is_not_held_while_a_start_is_waited_for(monkeypatch):
    """Else requests that may start would wait behind those that may not."""
    with Endpoint() as endpoint:
        user, free = ask(endpoint, concurrency=1), []

        def wait(deadline):
            free.append(user._room.acquire(blocking=False))
            user._room.release()

        monkeypatch.setattr(user._pace, 'wait', wait)
        user.reply(TALK)
    assert free == [True]


def test_pace_leaves_a_start_behind_the_deadline_to_others():
    clock = Clock()
    pace = limits.Pace(30, clock=clock, sleep=clock.sleep)
    pace.wait()
    with pytest.raises(TimeoutError):
        pace.wait(clock.now + 1.5)
    assert clock.now == 101.5 and pace.wait(clock.now + 0.5) == 0.5
    pace.close_for(7.0)
    with pytest.raises(TimeoutError):
        pace.wait_open(clock.now + 3.0)
    pace.wait_open(clock.now + 5.0)
    assert clock.now == 109.0


def test_a_slow_endpoint_is_a_failed_user_before_the_environment_is_given_up(monkeypatch):
    """As a config builds them: the user's patience is shorter than what an environment's call may take."""
    config = config_lib.base_config()
    config.env.name, config.env.kind, config.env.level = 'retail', 'hosted', 1
    config.user.model, config.rollout.call_seconds = 'tiny', 1.0
    with Endpoint(lambda *_: ('SLOW', 5.0, 'too late')) as endpoint:
        config.user.base_url, config.user.api_key_env = endpoint.url, 'TEST_KEY'
        config_lib.validate(config)
        user = build_user.make_user(config)['user']
        env = Retail(user=user)
        env.reset(options={'task': 'cancel_order order_17 delay'})
        crew = Workers(1, limit=config.rollout.call_seconds)
        try:
            crew.submit('row', lambda: env.step('Which order?'))
            (reply,) = crew.collect(wait=20)
        finally:
            crew.close()
    assert user.patience == 0.9 and isinstance(reply.error, UserFailed)
    config.user.patience = 0.5
    assert build_user.make_user(config)['user'].patience == 0.5
