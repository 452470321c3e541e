"""Calls run side by side, errors are answers, and a call that hangs costs its time and no more."""

import threading
import time

import pytest

from infopo_jax.rollout.workers import CallTimedOut, Workers


@pytest.fixture
def workers():
    made = []

    def make(num, limit=30.0):
        made.append(Workers(num, limit=limit))
        return made[-1]

    yield make
    for each in made:
        each.close()


def gather(crew, num):
    replies = []
    while len(replies) < num:
        found = crew.collect(wait=30.0)
        assert found, 'nothing came within the time'
        replies += found
    return {reply.owner: reply for reply in replies}


def test_collect_returns_values_and_errors_under_their_owners(workers):
    crew = workers(2)
    crew.submit('a', lambda: 7)
    crew.submit('b', lambda: 1 // 0)
    replies = gather(crew, 2)
    assert replies['a'].value == 7 and replies['a'].error is None and replies['a'].seconds >= 0
    assert isinstance(replies['b'].error, ZeroDivisionError) and replies['b'].value is None
    assert crew.num_open == 0 and crew.collect(wait=30.0) == []  # nothing is on its way: it does not wait


def test_submit_runs_as_many_calls_at_once_as_there_are_workers(workers):
    crew, barrier = workers(3), threading.Barrier(3)
    for name in 'abc':
        crew.submit(name, lambda: barrier.wait(timeout=20))  # each waits for the other two
    assert all(reply.error is None for reply in gather(crew, 3).values())


def test_submit_runs_no_more_calls_at_once_than_there_are_workers(workers):
    crew, lock, now, most = workers(2), threading.Lock(), [0], [0]

    def call():
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.01)
        with lock:
            now[0] -= 1

    for i in range(12):
        crew.submit(i, call)
    gather(crew, 12)
    assert most[0] == 2


def test_collect_without_wait_returns_at_once(workers):
    crew, release = workers(1), threading.Event()
    crew.submit('a', release.wait)
    assert crew.collect() == [] and crew.num_open == 1
    release.set()
    assert gather(crew, 1)['a'].value is True


def test_collect_gives_up_a_call_past_its_limit_and_drops_its_late_answer(workers):
    crew, release, seen = workers(1, limit=0.05), threading.Event(), []
    crew.submit('slow', lambda: seen.append('began') or release.wait(20))
    reply = gather(crew, 1)['slow']
    assert isinstance(reply.error, CallTimedOut) and '0.05 s' in str(reply.error) and seen == ['began']
    crew.submit('next', lambda: 'served')  # by another thread: the first still hangs
    assert gather(crew, 1)['next'].value == 'served'
    release.set()
    time.sleep(0.05)
    assert crew.collect() == [] and crew.num_open == 0


class Holds:
    """Waits, and returns what is to be let go of; remembers what came back to it."""

    def __init__(self, value):
        self.value = value
        self.began, self.release, self.dropped = (threading.Event() for _ in range(3))

    def __call__(self):
        self.thread = threading.current_thread()
        self.began.set()
        self.release.wait(20)
        return self.value

    def drop(self, value):
        assert value is self.value
        self.dropped.set()
        raise OSError('nobody hears of it')


def test_submit_hands_a_value_that_comes_too_late_back_to_be_dropped(workers):
    crew = workers(1, limit=0.05)
    late, quick = Holds('late'), Holds('quick')
    crew.submit('late', late)
    assert isinstance(gather(crew, 1)['late'].error, CallTimedOut) and not late.dropped.is_set()
    quick.release.set()
    crew.submit('quick', quick)
    assert gather(crew, 1)['quick'].value == 'quick' and not quick.dropped.is_set()
    late.release.set()
    assert late.dropped.wait(20)
    crew.submit('next', lambda: 'served')
    assert gather(crew, 1)['next'].value == 'served'


def test_close_drops_what_still_comes(workers):
    crew, last = workers(1), Holds('last')
    crew.submit('last', last)
    assert last.began.wait(20)
    crew.close()
    assert not last.dropped.is_set()
    last.release.set()
    assert last.dropped.wait(20)


def test_limit_does_not_count_the_time_in_the_queue(workers):
    crew = workers(1, limit=0.5)
    for i in range(4):
        crew.submit(i, lambda: time.sleep(0.2))
    assert all(reply.error is None for reply in gather(crew, 4).values())


def test_collect_turns_an_exit_into_an_error(workers):
    crew = workers(1)
    crew.submit('a', lambda: exit(3))
    assert 'SystemExit' in str(gather(crew, 1)['a'].error)
    crew.submit('b', lambda: 1)
    assert gather(crew, 1)['b'].value == 1


def test_close_ends_the_threads(workers):
    before = set(threading.enumerate())
    crew = workers(4)
    mine = set(threading.enumerate()) - before
    assert len(mine) == 4 and all(thread.daemon for thread in mine)
    crew.close()
    for thread in mine:
        thread.join(timeout=20)
    assert not any(thread.is_alive() for thread in mine)


@pytest.mark.parametrize(('num', 'limit'), [(0, 1.0), (1, 0.0), (1, float('nan'))])
def test_workers_refuse_nonsense(num, limit):
    with pytest.raises(ValueError, match='num_workers must be at least 1'):
        Workers(num, limit=limit)


def test_close_still_makes_calls_that_have_no_owner():
    workers, made, closed, busy = Workers(1, limit=9.0), [], threading.Event(), Holds('busy')
    workers.submit('owner', busy)
    assert busy.began.wait(20)
    workers.submit(None, lambda: made.append('closed') or closed.set())
    workers.submit('owner', lambda: made.append('dropped'))
    workers.close()
    busy.release.set()
    assert closed.wait(20) and made == ['closed'] and busy.dropped.is_set()


def test_a_thread_that_was_given_up_does_not_serve_beside_its_successor(workers):
    crew, late = workers(1, limit=0.05), Holds('late')
    crew.submit('late', late)
    gather(crew, 1)
    late.release.set()
    assert late.dropped.wait(20)
    late.thread.join(20)
    assert not late.thread.is_alive()


def test_a_call_that_hangs_is_not_young():
    workers, go = Workers(1, limit=9.0), threading.Event()
    workers.submit('owner', go.wait)
    assert workers.num_young(9.0) == 1
    time.sleep(0.05)
    assert workers.num_young(0.01) == 0 and workers.num_open == 1
    go.set()
    workers.close()
