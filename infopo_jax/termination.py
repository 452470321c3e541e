"""SIGTERM, which clusters send before they kill: a run saves what it has and ends."""

import signal
from collections.abc import Callable
from typing import Self


class Terminated:
    """Notes SIGTERM while it is entered, and has the rollouts in flight break off; an update in flight ends.

    Args:
        stop: called from the signal handler.
    """

    asked = False

    def __init__(self, stop: Callable[[], None]):
        self._stop = stop

    def __enter__(self) -> Self:
        try:
            self._before = signal.signal(signal.SIGTERM, self._note)
        except ValueError:  # not the main thread
            self._before = None
        return self

    def _note(self, *_):
        self.asked = True
        self._stop()

    def __exit__(self, *_):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
