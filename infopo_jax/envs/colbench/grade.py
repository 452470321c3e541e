"""The grader: which share of a task's calls agrees with the reference."""

import functools
import re
from typing import Any

from infopo_jax.envs import sandbox
from infopo_jax.envs.colbench.functions import MARKER
from infopo_jax.envs.colbench.tasks import Task

_FENCE = re.compile(r'```[ \t]*(?:python|py)?[ \t]*\r?\n(.*?)```', re.DOTALL | re.IGNORECASE)


def answer(text: str) -> str | None:
    """Returns the code that a text hands in: what follows the marker, or a fenced block in it; None without marker."""
    _, marker, rest = text.partition(MARKER)
    return code(rest) if marker else None


def code(text: str) -> str:
    """Returns the first fenced block of a text, all of it if there is none."""
    match = _FENCE.search(text)
    return match[1] if match else text.strip()


@functools.lru_cache(maxsize=16384)
def share(task: Task, source: str) -> float:
    """Returns the share of the task's calls on which the code agrees with the reference; runs it in the sandbox.

    As in the published grader, a call on which the reference fails or gives None counts as disagreement. Unlike there,
    recursion, helper functions, imports and printing are as good as any other code.

    Raises:
        sandbox.SandboxError: the sandbox broke down; the code is not to blame.
    """
    expected = expectation(task)
    calls = sandbox.run(source, task.calls).calls
    agreed = [sandbox.agree(call, value) for call, value in zip(calls, expected, strict=True)]
    return sum(agreed) / len(agreed)


@functools.lru_cache(maxsize=4096)
def expectation(task: Task) -> tuple[Any, ...]:
    """Returns the values of the reference, None where it fails; foreign references run in the sandbox, too."""
    if task.expected is not None:
        return task.expected
    return tuple(call.value for call in sandbox.run(task.source, task.calls).calls)
