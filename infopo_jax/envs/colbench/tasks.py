"""Tasks of the generated set: a function with its slots filled, the calls that test it, and what they should return.

A task id is the hidden goal: the function and the values of its slots, such as ``discount 150 15``.
"""

import dataclasses
import functools
import random
from typing import Any

from infopo_jax.envs.colbench.functions import POOLS, Function, by_name

GOALS_PER_FUNCTION = 160
TEST_SHARE = 5  # one goal in so many is held out
NUM_CALLS = 10


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A task, ready to be played; compared and hashed as the object that it is."""

    openings: tuple[str, ...]  # what the collaborator may begin with
    source: str  # the reference
    calls: tuple[str, ...]
    expected: tuple[Any, ...] | None = None  # values of the calls; None: the reference is to be run
    answers: dict[str, str] = dataclasses.field(default_factory=dict)  # slot -> value, for the scripted collaborator


@functools.cache
def goals(level: int) -> dict[str, tuple[str, ...]]:
    """Returns the task ids of a level: {'train': ..., 'test': ...}; no goal is in both, all functions are."""
    splits: dict[str, list[str]] = {'train': [], 'test': []}
    for function in by_name(level).values():
        rng, drawn = random.Random(f'{level} {function.name}'), {}
        most = 1
        for slot in function.slots:
            most *= len(POOLS[slot])
        while len(drawn) < min(GOALS_PER_FUNCTION, most):
            drawn[' '.join((function.name, *(rng.choice(POOLS[slot]) for slot in function.slots)))] = None
        for i, goal in enumerate(drawn):
            splits['test' if i % TEST_SHARE == 0 else 'train'].append(goal)
    return {split: tuple(part) for split, part in splits.items()}


def read(level: int, goal: str) -> tuple[Function, dict[str, str]]:
    """Returns the function of a task id and the values of its slots.

    Raises:
        ValueError: the id is no goal of this level.
    """
    name, *values = str(goal).split() or ['']
    function = by_name(level).get(name)
    if function is not None and len(values) == len(function.slots):
        filled = dict(zip(function.slots, values, strict=True))
        if all(value in POOLS[slot] for slot, value in filled.items()):
            return function, filled
    raise ValueError(f'unknown task {goal!r} at level {level}; take one of env.tasks("train") or env.tasks("test")')


@functools.lru_cache(maxsize=4096)
def make(level: int, goal: str) -> Task:
    """Makes a task: calls that tell its function from every one with another value in a slot.

    Raises:
        ValueError: the id is no goal of this level.
    """
    function, values = read(level, goal)
    rng = random.Random(f'{level} {goal}')  # a string seeds alike in every process
    rivals = [values | {slot: other} for slot in function.slots for other in POOLS[slot] if other != values[slot]]
    wanted = compiled(function, values)
    others = [compiled(function, rival) for rival in rivals]
    for _ in range(1000):
        arguments = _arguments(rng, function, values)
        expected = [wanted(*call) for call in arguments]
        if all([other(*call) for call in arguments] != expected for other in others):
            break
    else:
        raise AssertionError(f'no calls tell {goal!r} from its rivals')
    calls = tuple(f'{function.name}({", ".join(map(repr, call))})' for call in arguments)
    return Task(function.openings, function.source(values), calls, tuple(expected), values)


def compiled(function: Function, values: dict[str, str]) -> Any:
    """Returns the function itself; its source is ours, template and values, and so needs no sandbox."""
    namespace: dict[str, Any] = {}
    exec(function.source(values), namespace)
    return namespace[function.name]


def _arguments(rng: random.Random, function: Function, values: dict[str, str]) -> list[tuple]:
    """Draws arguments on both sides of limit and cap, and of the group and of others."""
    numbers = [
        rng.randrange(low, high) for low, high in ((20, 110), (110, 310), (310, 900), (3000, 9000)) for _ in 'ab'
    ]
    limit = int(values.get('limit', 200))
    numbers = [limit - 5, limit + 5, *numbers]
    if not function.has_group:
        arguments = [(number,) for number in numbers]
    else:
        group = values['group']
        others = rng.sample([other for other in POOLS['group'] if other != group], NUM_CALLS // 2 - 1)
        groups = [group, group, *rng.sample([*others, *[group] * (NUM_CALLS - 2 - len(others))], NUM_CALLS - 2)]
        arguments = list(zip(numbers, groups, strict=True))
    return rng.sample(arguments, NUM_CALLS)
