"""Traces of training steps, for TensorBoard's profiler and Perfetto."""

import pathlib
from typing import Self

import jax


class Profile:
    """Traces ``count`` steps from ``first`` on, none beyond ``last``, into workdir/profile; what is begun is ended."""

    def __init__(self, workdir: str, *, first: int, count: int, last: int):
        self._folder, self._steps = pathlib.Path(workdir) / 'profile', range(first, min(first + count - 1, last) + 1)
        self._done: int | None = None  # traced steps; None: no trace is under way

    def __enter__(self) -> Self:
        return self

    def before(self, step: int):
        if self._steps and step == self._steps[0]:
            jax.profiler.start_trace(str(self._folder))
            self._done = 0

    def after(self, step: int):
        if step in self._steps:
            self._done += 1
        if self._steps and step == self._steps[-1]:
            self._end()

    def __exit__(self, *_):
        if self._done is not None:  # the run ended before its time
            self._end()

    def _end(self):
        jax.profiler.stop_trace()
        print(f'profile of {self._done} steps from {self._steps[0]} on: {self._folder}')
        self._done = None
