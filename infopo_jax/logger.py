"""What a run writes while it runs: metrics.jsonl, rollouts.jsonl, TensorBoard files and the console.

A row of metrics.jsonl is flat: {"step": 5, "phase": "train", "success": 0.25, ..., "time": {"seconds": 0.8}}.
Whatever depends on the clock stands under "time", so that the rest of a resumed run's rows equals the uninterrupted
run's byte for byte. A metric with one value per seed is a list. NaN and infinity are the strings "NaN", "Infinity",
"-Infinity".
"""

import json
import math
import os
import pathlib
import platform
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TextIO

import numpy as np

from infopo_jax.console import Console

METRICS_FILE = 'metrics.jsonl'
ROLLOUTS_FILE = 'rollouts.jsonl'

# Metrics whose name starts so depend on the clock, not on the run; what a user has counted begins anew at a resume.
TIME_PREFIXES = ('seconds', 'tokens_per_second', 'user_')


class Logger:
    """Writes rows as they come; every row is on disk (flushed) when ``log`` returns.

    Log a step before its checkpoint is saved: after a kill, ``truncate`` cuts back to the checkpoint, and no row of a
    step that was saved is missing.

    Args:
        workdir: an existing folder.
        interval: steps between permanent console lines; files get every step.
        total_steps: for the progress bar and the time left.
        tensorboard: whether to write TensorBoard files too, under workdir/tensorboard.
        stream: where console lines go; None is standard output. Plain lines unless it is a terminal.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        interval: int,
        total_steps: int,
        tensorboard: bool,
        stream: TextIO | None = None,
    ):
        self._workdir = pathlib.Path(workdir)
        self._console = Console(interval, total_steps, stream or sys.stdout)
        self._tensorboard = tensorboard
        self._writer = None  # made at the first row: its purge step is known only after ``truncate``
        self._purge_step = None
        self._files: dict[str, TextIO] = {}

    def header(self, *, num_params: int, **facts: Any) -> None:
        """Prints versions, devices, the parameter count and further facts, one line each."""
        import flax
        import jax
        import jaxlib

        kinds = sorted({device.device_kind for device in jax.devices()})
        lines = {
            'versions': f'python {platform.python_version()}, jax {jax.__version__}, jaxlib {jaxlib.__version__}, '
            f'flax {flax.__version__}',
            'devices': f'{jax.device_count()} x {", ".join(kinds)} ({jax.default_backend()})',
            'parameters': f'{num_params:,}',
            'workdir': str(self._workdir),
            **facts,
        }
        width = max(map(len, lines))
        for name, value in lines.items():
            self._console.write(f'{name:<{width}}  {value}')

    def log(self, step: int, metrics: Mapping[str, Any], phase: str = 'train') -> None:
        """Writes one row.

        Args:
            step: training steps done.
            metrics: name -> scalar, or [S] one value per seed.
            phase: 'train' or 'eval'.

        Raises:
            ValueError: a metric that is neither a number nor a list of numbers.
        """
        values = {name: number(name, value) for name, value in metrics.items()}
        clock = {name: values.pop(name) for name in list(values) if name.startswith(TIME_PREFIXES)}
        row = {'step': int(step), 'phase': phase, **values, 'time': clock}
        self._append(METRICS_FILE, [row])
        if self._tensorboard:
            self._write_tensorboard(step, values | clock, phase)
        self._console.row(step, values, clock, phase)

    def rollouts(self, step: int, samples: Iterable[Mapping[str, Any]]) -> None:
        """Appends sample rollouts to rollouts.jsonl; see ``report`` for their fields. Arrays become lists."""
        self._append(ROLLOUTS_FILE, [{'step': int(step), **sample} for sample in samples])

    def last(self, phase: str) -> dict[str, Any]:
        """Returns the last row of a phase in metrics.jsonl, {} if there is none."""
        rows = [row for row in read_jsonl(self._workdir / METRICS_FILE) if row['phase'] == phase]
        return rows[-1] if rows else {}

    def truncate(self, step: int) -> None:
        """Cuts the files back to rows of steps up to ``step``; call it on resume, before the first row."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        for name in (METRICS_FILE, ROLLOUTS_FILE):
            truncate_jsonl(self._workdir / name, lambda row: row['step'] <= step)
        self._purge_step = step + 1
        self._console.start(step)

    def close(self) -> None:
        """Closes the files and ends the console's line."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._console.end()

    def __enter__(self) -> 'Logger':
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def _append(self, name: str, rows: list[dict]) -> None:
        if name not in self._files:
            self._files[name] = open(self._workdir / name, 'a', encoding='utf-8')  # noqa: SIM115
        self._files[name].write(''.join(json.dumps(plain(row), allow_nan=False) + '\n' for row in rows))
        self._files[name].flush()

    def _write_tensorboard(self, step: int, values: Mapping[str, Any], phase: str) -> None:
        if self._writer is None:
            from tensorboardX import SummaryWriter  # slow to import, and optional

            self._writer = SummaryWriter(str(self._workdir / 'tensorboard'), purge_step=self._purge_step)
        for name, value in values.items():
            if isinstance(value, list):
                for seed, one in enumerate(value):
                    self._writer.add_scalar(f'{phase}/{name}/seed_{seed}', one, step)
            else:
                self._writer.add_scalar(f'{phase}/{name}', value, step)


def number(name: str, value: Any) -> float | int | list:
    """Returns a metric as Python numbers: exact, since a float32 is a double too.

    Raises:
        ValueError: neither a scalar nor one value per seed.
    """
    array = np.asarray(value)
    if array.dtype.kind not in 'biuf' and array.dtype.name != 'bfloat16':
        raise ValueError(f'metric {name!r} must be a number, got {value!r}')
    if array.ndim > 1:
        raise ValueError(f'metric {name!r} must be a scalar or one value per seed, got shape {list(array.shape)}')
    if array.dtype.kind == 'b':
        array = array.astype(np.int32)
    return array.tolist() if array.dtype.kind in 'iu' else array.astype(np.float64).tolist()


def plain(value: Any) -> Any:
    """Returns ``value`` as JSON values; arrays become lists, NaN and infinity strings."""
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, str | bool | int | None):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else json.dumps(value)  # 'NaN', 'Infinity', '-Infinity'
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return plain(np.asarray(value).tolist())


def read_jsonl(path: pathlib.Path) -> list[dict]:
    """Returns the rows of a file up to the first broken one: a kill leaves at most the last line half-written."""
    rows = []
    if path.exists():
        for line in path.read_bytes().splitlines(keepends=True):
            try:
                rows.append(json.loads(line if line.endswith(b'\n') else b''))
            except ValueError:
                break
    return rows


def truncate_jsonl(path: pathlib.Path, keep: Callable[[dict], bool]) -> None:
    """Rewrites a file with the whole rows that ``keep`` accepts; atomic: a kill leaves the old or the new file."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    rows = read_jsonl(path)
    kept = b''.join(line for line, row in zip(lines, rows, strict=False) if keep(row))
    temporary = path.with_name(path.name + '.tmp')
    with open(temporary, 'wb') as file:
        file.write(kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
