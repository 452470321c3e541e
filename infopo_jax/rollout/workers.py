"""Calls to environments in threads of their own, each with a time limit, so that nobody waits for a slow one.

A thread cannot be stopped from outside: a call past its limit is given up, its late answer is dropped, and another
thread takes over. Threads are daemons, so a call that hangs for ever does not keep a run from ending.
"""

import collections
import contextlib
import dataclasses
import math
import threading
import time
from collections.abc import Callable
from typing import Any


class CallTimedOut(RuntimeError):
    """A call to an environment took longer than its limit."""


@dataclasses.dataclass(eq=False)
class Reply:
    """What came of a call: a value, or the error that it raised."""

    owner: Any  # who asked
    value: Any = None
    error: Exception | None = None
    seconds: float = 0.0  # that the call ran
    function: Callable[[], Any] | None = None  # that was called

    def drop(self) -> None:
        """Lets go of a value that nobody wants, where the function knows how."""
        if self.error is None and hasattr(self.function, 'drop'):
            with contextlib.suppress(Exception):  # nobody is left to hear of it
                self.function.drop(self.value)


@dataclasses.dataclass(eq=False)
class _Call:
    owner: Any
    function: Callable[[], Any]
    started: float | None = None
    given_up: bool = False  # another thread has the seat of the one that makes it


class Workers:
    """Runs at most ``num_workers`` calls at once.

        workers = Workers(8, limit=60.0)
        workers.submit(owner, lambda: env.step(text))
        for reply in workers.collect(wait=0.1):
            ...
        workers.close()

    Args:
        num_workers: threads.
        limit: seconds that a call may take from when it starts.

    Raises:
        ValueError: there is no worker, or no time.
    """

    def __init__(self, num_workers: int, *, limit: float):
        if num_workers < 1 or not limit > 0:
            raise ValueError(f'num_workers must be at least 1 and limit above 0, got {num_workers} and {limit}')
        self.limit = limit
        self._lock = threading.Lock()
        self._work, self._done = threading.Condition(self._lock), threading.Condition(self._lock)
        self._waiting: collections.deque[_Call] = collections.deque()
        self._running: set[_Call] = set()
        self._replies: list[Reply] = []
        self._closed = False
        for _ in range(num_workers):
            self._hire()

    @property
    def num_open(self) -> int:
        """Calls whose reply has not been collected yet."""
        with self._lock:
            return len(self._waiting) + len(self._running) + len(self._replies)

    def num_young(self, seconds: float) -> int:
        """Returns how many calls wait for a thread or have run no longer than so many seconds."""
        now = time.monotonic()
        with self._lock:
            return len(self._waiting) + sum(now - call.started <= seconds for call in self._running)

    def submit(self, owner: Any, function: Callable[[], Any]) -> None:
        """Queues a call; its reply comes out of ``collect`` under ``owner``.

        A function that has a method ``drop`` gets what it returned back there if that came too late, to let go of it.
        """
        with self._lock:
            assert not self._closed
            self._waiting.append(_Call(owner, function))
            self._work.notify()

    def collect(self, wait: float = 0.0) -> list[Reply]:
        """Returns the replies that are there; if there are none, waits up to ``wait`` seconds for the first."""
        end = time.monotonic() + wait
        with self._lock:
            while True:
                self._give_up()
                if self._replies or not (self._waiting or self._running):
                    break
                left = min(end, self._next_limit()) - time.monotonic()
                if end <= time.monotonic():
                    break
                self._done.wait(None if math.isinf(left) else max(left, 0.0))
            replies, self._replies = self._replies, []
            return replies

    def close(self) -> None:
        """Sends the threads home; calls that still run are left to themselves.

        Calls that wait and have an owner are dropped: nobody hears the reply. Those that have none (an environment that
        is to close) are still made.
        """
        with self._lock:
            self._closed = True
            self._waiting = collections.deque(call for call in self._waiting if call.owner is None)
            self._running.clear()
            self._work.notify_all()

    def _hire(self):
        threading.Thread(target=self._serve, name='environment', daemon=True).start()

    def _next_limit(self) -> float:
        """Returns when the next running call has used up its time."""
        return min((call.started + self.limit for call in self._running), default=float('inf'))

    def _give_up(self):
        now = time.monotonic()
        for call in [call for call in self._running if now - call.started > self.limit]:
            self._running.remove(call)
            call.given_up = True
            error = CallTimedOut(f'no answer within {self.limit:g} s (config.rollout.call_seconds)')
            self._replies.append(Reply(call.owner, error=error, seconds=now - call.started))
            self._hire()  # in place of the thread that hangs

    def _serve(self):
        while True:
            with self._lock:
                while not self._waiting and not self._closed:
                    self._work.wait()
                if not self._waiting:
                    return
                call = self._waiting.popleft()
                call.started = time.monotonic()
                self._running.add(call)
                self._done.notify()  # the collector has a new limit to watch
            reply = Reply(call.owner, function=call.function)
            try:
                reply.value = call.function()
            except Exception as error:  # whatever a foreign environment raises is an answer
                reply.error = error
            except BaseException as error:  # SystemExit from a game's own code must not empty a seat silently
                reply.error = RuntimeError(f'{type(error).__name__}: {error}')
            with self._lock:
                heard = call in self._running  # neither given up nor closed
                if heard:
                    self._running.remove(call)
                    reply.seconds = time.monotonic() - call.started
                    self._replies.append(reply)
                    self._done.notify()
            if not heard:
                reply.drop()
            if call.given_up:
                return
