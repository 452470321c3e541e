"""What a run prints: one line per logging interval, with a progress bar, the time left and the main numbers."""

import collections
import shutil
import time
from collections.abc import Mapping
from typing import Any, TextIO

import numpy as np

# console label <- metric, in the order of the line
COLUMNS = {
    'reward': 'reward',
    'success': 'success',
    'tied': 'tied_groups',
    'gain': 'gain_mean',
    'kl': 'kl',
}

FAILURES = ('retried', 'masked')  # rollouts that failed since the line before, shown where there were any


class Console:
    """Console lines with a progress bar; on a terminal the last line is rewritten in place between intervals."""

    def __init__(self, interval: int, total_steps: int, stream: TextIO):
        self._interval = interval
        self._total = total_steps
        self._stream = stream
        self._live = stream.isatty()
        unicode = (getattr(stream, 'encoding', None) or '').lower().startswith('utf')
        self._bar_signs = '█░' if unicode else '#.'
        self._failures: collections.Counter[str] = collections.Counter()  # of steps that no permanent line has told
        self._started: tuple[int, float] | None = None  # (step, seconds) from which the time left is estimated

    def start(self, step: int) -> None:
        """Forgets the clock: steps done before a resume took no time of this process."""
        self._started = None

    def write(self, line: str) -> None:
        """Prints a permanent line."""
        self._stream.write(('\r\x1b[K' if self._live else '') + line + '\n')
        self._stream.flush()

    def row(self, step: int, values: Mapping[str, Any], clock: Mapping[str, Any], phase: str) -> None:
        """Prints a row: training rows at the interval (on a terminal each, in place), others always."""
        failures = {name: int(np.sum(values.get(name, 0))) for name in FAILURES}
        if phase != 'train':
            columns = _columns(values, clock, failures)
            return self.write(f'{phase:>{2 * len(str(self._total)) + 1}}  step {step}  {columns}')
        self._failures.update(failures)
        # The first step compiles; the time left is estimated from those after it.
        left = ''
        if self._started is None:
            self._started = (step, time.monotonic())
        elif step > self._started[0]:
            pace = (time.monotonic() - self._started[1]) / (step - self._started[0])
            left = f'  eta {_duration(pace * max(self._total - step, 0))}'
        line = f'{self._bar(step)}{left}  {_columns(values, clock, self._failures)}'
        if step % self._interval == 0 or step >= self._total:
            self.write(line)
            self._failures.clear()
        elif self._live:
            self._stream.write('\r\x1b[K' + line[: shutil.get_terminal_size().columns - 1])
            self._stream.flush()
        return None

    def end(self) -> None:
        """Clears what was to be rewritten."""
        if self._live:
            self._stream.write('\r\x1b[K')
            self._stream.flush()

    def _bar(self, step: int, width: int = 16) -> str:
        share = min(step / self._total, 1.0) if self._total else 1.0
        full = int(share * width)
        digits = len(str(self._total))
        bar = self._bar_signs[0] * full + self._bar_signs[1] * (width - full)
        return f'{step:>{digits}}/{self._total} {bar} {share:4.0%}'


def _columns(values: Mapping[str, Any], clock: Mapping[str, Any], failures: Mapping[str, int]) -> str:
    """Returns 'reward 0.43  success 0.31  ...  masked 2' of the metrics that are there; seeds are averaged."""
    shown = [f'{label} {np.mean(values[name]):6.3f}' for label, name in COLUMNS.items() if name in values]
    speeds = [value for name, value in clock.items() if name.startswith('tokens_per_second')]
    if speeds:
        shown.append(f'{_thousands(float(np.mean(speeds[0])))} tok/s')
    shown += [f'{name} {count}' for name, count in failures.items() if count]
    return '  '.join(shown)


def _thousands(value: float) -> str:
    return f'{value / 1000:.1f}k' if value >= 1000 else f'{value:.0f}'


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{rest:02}' if hours else f'{minutes}:{rest:02}'
