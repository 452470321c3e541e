"""Questions of threads: who shares a batch, what becomes of errors, and who is turned away."""

import threading
import time

import pytest

from infopo_jax.users.batcher import Batcher, Closed


class Asker(threading.Thread):
    """Asks one question and notes what came of it."""

    def __init__(self, batcher, kind, content):
        super().__init__(daemon=True)
        self.batcher, self.kind, self.content, self.result = batcher, kind, content, None
        self.start()

    def run(self):
        try:
            self.result = self.batcher.ask(self.kind, self.content)
        except Exception as error:
            self.result = error


class Slow:
    """Doubles numbers; holds the first batch back until it is let go, and keeps all batches."""

    def __init__(self):
        self.batches, self.busy, self.go = [], threading.Event(), threading.Event()

    def __call__(self, numbers):
        self.batches.append(numbers)
        self.busy.set()
        assert self.go.wait(10)
        if 13 in numbers:
            raise KeyError('thirteen')
        return [2 * number for number in numbers]


def ask_behind(batcher, slow, questions):
    """Asks while a first question is being answered, in order; returns the askers once all have what they get."""
    askers = [Asker(batcher, 'first', 0)]
    assert slow.busy.wait(10)
    for place, (kind, content) in enumerate(questions, 1):
        askers.append(Asker(batcher, kind, content))
        while len(batcher._waiting) < place:
            time.sleep(0.001)
    return askers


def finish(askers):
    for asker in askers:
        asker.join(10)
    return [asker.result for asker in askers]


def test_ask_answers_one_kind_at_a_time_the_oldest_first():
    slow = Slow()
    batcher = Batcher(slow, size=3, patience=0.0)
    askers = ask_behind(batcher, slow, [('a', 1), ('b', 2), ('a', 3), ('a', 4), ('a', 5), ('b', 6)])
    slow.go.set()
    assert finish(askers) == [0, 2, 4, 6, 8, 10, 12]
    assert slow.batches == [[0], [1, 3, 4], [2, 6], [5]]
    batcher.close()


def test_ask_waits_a_little_for_others_but_not_where_there_is_no_room():
    slow = Slow()
    slow.go.set()
    batcher = Batcher(slow, size=2, patience=30.0)
    assert finish([Asker(batcher, 'a', n) for n in (1, 2)]) == [2, 4]
    assert sorted(slow.batches[0]) == [1, 2]
    batcher.close()


def test_ask_hands_an_error_to_those_who_asked_and_goes_on():
    slow = Slow()
    batcher = Batcher(slow, size=3, patience=0.0)
    askers = ask_behind(batcher, slow, [('a', 1), ('a', 13), ('b', 2)])
    slow.go.set()
    first, *failed, last = finish(askers)
    assert (first, last) == (0, 4) and all(isinstance(error, KeyError) for error in failed)
    batcher.close()


def test_close_finishes_the_batch_and_turns_the_others_away():
    slow = Slow()
    batcher = Batcher(slow, size=3, patience=0.0)
    askers = ask_behind(batcher, slow, [('a', 1), ('b', 2)])
    closing = threading.Thread(target=batcher.close)
    closing.start()
    assert all(isinstance(result, Closed) for result in finish(askers[1:])) and askers[0].result is None
    slow.go.set()
    closing.join(10)
    assert finish(askers[:1]) == [0] and slow.batches == [[0]] and not batcher._thread.is_alive()
    with pytest.raises(Closed):
        batcher.ask('a', 1)


def test_a_question_that_is_not_taken_up_in_time_is_taken_back():
    go, asked = threading.Event(), []
    batcher = Batcher(lambda questions: asked.extend(questions) or (go.wait(5) and questions), size=1, patience=0.0)
    first = threading.Thread(target=batcher.ask, args=('kind', 1))
    first.start()
    with pytest.raises(TimeoutError):
        batcher.ask('kind', 2, timeout=0.05)
    go.set()
    first.join()
    assert batcher.ask('kind', 3, timeout=5.0) == 3 and asked == [1, 3]
    batcher.close()


def test_a_lone_question_that_is_taken_back_while_others_are_waited_for_leaves_the_thread_alive():
    batcher = Batcher(lambda questions: questions, size=2, patience=0.3)
    with pytest.raises(TimeoutError):
        batcher.ask('kind', 1, timeout=0.05)
    time.sleep(0.4)
    assert batcher.ask('kind', 2, timeout=20.0) == 2
    batcher.close()
