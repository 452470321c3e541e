"""How the benchmarks measure: interleaved repeats, medians, and the machine in one line."""

import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # runs from a clone, installed or not

import jax


def machine() -> str:
    """Returns the setting that a figure depends on: processor, cores, versions."""
    model = platform.processor() or platform.machine()
    info = pathlib.Path('/proc/cpuinfo')
    if info.exists():
        names = [
            line.split(':', 1)[1].strip() for line in info.read_text().splitlines() if line.startswith('model name')
        ]
        model = names[0] if names else model
    device = jax.devices()[0]
    return (
        f'{device.device_kind} ({jax.default_backend()}), {model}, {os.cpu_count()} cores; '
        f'Python {platform.python_version()}, jax {jax.__version__}; load {os.getloadavg()[0]:.1f}'
    )


def measure(functions: Mapping[str, Callable[[], object]], *, repeats: int) -> dict[str, list[float]]:
    """Times functions in turn, A B C A B C ..., so that a drift of the machine meets all of them.

    Args:
        functions: name -> call whose result JAX can wait for; each is called once before, to compile.
        repeats: timed calls of each.

    Returns:
        name -> seconds of each repeat.
    """
    seconds = {name: [] for name in functions}
    for function in functions.values():
        jax.block_until_ready(function())
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(a: list[float], b: list[float]) -> float:
    """Returns the median of the ratios of paired repeats, steadier than the ratio of medians."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def table(rows: list[Mapping[str, object]]) -> str:
    """Returns rows as a Markdown table; floats with three digits."""

    def text(value):
        return f'{value:.3g}' if isinstance(value, float) else str(value)

    names = list(rows[0])
    lines = ['| ' + ' | '.join(names) + ' |', '|' + '---|' * len(names)]
    return '\n'.join(lines + ['| ' + ' | '.join(text(row[name]) for name in names) + ' |' for row in rows])
