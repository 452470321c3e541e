"""How fast and how many at once: the pace of requests to an endpoint."""

import math
import random
import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime

BACKOFF = 0.5  # seconds before the first retry; doubled for every further one
MAX_BACKOFF = 30.0  # seconds
MAX_RETRY_AFTER = 120.0  # seconds; an endpoint that asks for more is waited for so long and asked again


class Pace:
    """Lets requests start at most so often, and none before an endpoint wants them; safe for threads.

    Args:
        per_minute: requests a minute, evenly spaced; 0 is no limit.
        clock, sleep: replaced in tests.
    """

    def __init__(
        self,
        per_minute: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self._gap = 60.0 / per_minute if per_minute else 0.0
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._next = 0.0  # when the next request may start
        self._closed_until = 0.0

    def wait(self, deadline: float = math.inf) -> float:
        """Waits for the next start; returns the seconds waited.

        Args:
            deadline: of the clock; a start behind it is left to others.

        Raises:
            TimeoutError: at the deadline, and not before: who asks again at once would be no better off.
        """
        began = self._clock()
        with self._lock:
            start = max(began, self._next, self._closed_until)
            if start <= deadline:
                self._next = start + self._gap
        self._sleep_until(start, deadline)
        return self._clock() - began

    def wait_open(self, deadline: float = math.inf) -> None:
        """Waits as long as an endpoint wants nobody; for those whose turn has come. Raises as ``wait`` does."""
        self._sleep_until(self._clock(), deadline)

    def _sleep_until(self, start: float, deadline: float) -> None:
        while (opens := max(start, self._closed_until)) > (now := self._clock()):  # it may be closed meanwhile
            if now >= deadline:
                raise TimeoutError
            self._sleep(min(opens, deadline) - now)

    def close_for(self, seconds: float) -> None:
        """Lets nobody start for so long."""
        with self._lock:
            self._closed_until = max(self._closed_until, self._clock() + seconds)


def backoff(attempt: int, rng: random.Random) -> float:
    """Returns the seconds before retry ``attempt`` (0 is the first): doubling, and at random between half and all.

    The jitter spreads those that failed together (https://aws.amazon.com/builders-library/timeouts-retries-and-backoff
    -with-jitter).
    """
    return rng.uniform(0.5, 1.0) * min(MAX_BACKOFF, BACKOFF * 2**attempt)


def retry_after(value: str | None) -> float | None:
    """Reads a Retry-After header (RFC 9110, 10.2.3): seconds or a date; None if there is none that can be read."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError):
            return None
    return min(max(0.0, seconds), MAX_RETRY_AFTER) if seconds == seconds else None
