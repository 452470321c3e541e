"""Tasks from a local copy of ColBench's data, which is CC-BY-NC and not shipped.

Layout: JSON lines with ``problem_description`` (what the collaborator begins with), ``ground_truth`` (the source of the
reference) and ``test_cases`` (name -> call, such as {"test1": "area(2)"}; null entries are padding). As published, a
folder ``backend_tasks`` holds ``train.jsonl`` and ``test.jsonl``.
Source: https://huggingface.co/datasets/facebook/collaborative_agent_bench
"""

import functools
import json
import pathlib
import zlib
from typing import Any

from infopo_jax.envs.colbench.tasks import TEST_SHARE, Task

FIELDS = ('problem_description', 'ground_truth', 'test_cases')
_HELP = 'data must be a folder with train.jsonl and test.jsonl, or one .jsonl file, in the layout of ColBench'


@functools.lru_cache(maxsize=2)
def load(path: str) -> dict[str, dict[str, Task]]:
    """Reads the data: split -> task id -> task.

    A single file is split by its problems: one in five is held out. A problem that both splits hold is left out of the
    training split.

    Raises:
        ValueError: there is no such data, a line is not of the layout, or a split is empty.
    """
    place = pathlib.Path(path).expanduser()
    if place.is_dir():
        files = {split: place / f'{split}.jsonl' for split in ('train', 'test')}
        missing = [str(file) for file in files.values() if not file.is_file()]
        if missing:
            raise ValueError(f'{missing[0]} does not exist: {_HELP}')
        splits = {split: dict(_read(file, split)) for split, file in files.items()}
    elif place.is_file():
        splits = {'train': {}, 'test': {}}
        for name, task in _read(place, place.stem):
            held_out = zlib.crc32(_problem(task).encode()) % TEST_SHARE == 0
            splits['test' if held_out else 'train'][name] = task
    else:
        raise ValueError(f'{path} does not exist: {_HELP}')
    held = {_problem(task) for task in splits['test'].values()}
    splits['train'] = {name: task for name, task in splits['train'].items() if _problem(task) not in held}
    for split, tasks in splits.items():
        if not tasks:
            raise ValueError(f'{path} leaves no {split} tasks: {_HELP}')
    return splits


def _problem(task: Task) -> str:
    return ' '.join(task.openings[0].split())


def _read(file: pathlib.Path, prefix: str) -> list[tuple[str, Task]]:
    """Reads one file; ids are the prefix and the line's number, counted from 1."""
    with open(file, encoding='utf-8') as lines:
        return [(f'{prefix}/{n}', _task(line, f'{file}:{n}')) for n, line in enumerate(lines, 1) if line.strip()]


def _task(line: str, where: str) -> Task:
    """Reads one line; ``where`` names it in errors."""
    try:
        record: Any = json.loads(line)
    except ValueError as error:
        raise ValueError(f'{where} is no JSON: {error}') from error
    lacking = [field for field in FIELDS if not isinstance(record, dict) or not record.get(field)]
    if lacking:
        raise ValueError(f'{where} has no {lacking[0]!r}; a line needs {", ".join(FIELDS)}')
    cases = record['test_cases']
    calls = [call for call in (cases.values() if isinstance(cases, dict) else cases) if call is not None]
    texts = [record['problem_description'], record['ground_truth'], *calls]
    if not calls or not all(isinstance(text, str) for text in texts):
        raise ValueError(f'{where}: test_cases must map names to calls, and all fields hold text')
    return Task((record['problem_description'],), record['ground_truth'], tuple(calls))
