"""UserRL's tasks in both of its layouts: the gyms' own JSON, and the parquet files that it trains on.

UserRL/gyms/FunctionGym/functiongym/data/functions.json     what an installed gym carries
UserRL/data/function_multiturn/{train,test}.parquet         with prompts, perhaps of several gyms
"""

import dataclasses
import functools
import importlib
import json
import pathlib
from typing import Any

from infopo_jax.envs.text import Message
from infopo_jax.envs.usergym.eight import EIGHT

_TEST_SHARE = 5  # one entry in so many is held out where the files do not say which


@dataclasses.dataclass(frozen=True)
class Task:
    """A task of UserRL's: its name in the gym's data, its split, and the prompt that comes with it, if any."""

    name: str
    split: str
    prompt: tuple[Message, ...] = dataclasses.field(default=(), hash=False)


@functools.lru_cache(maxsize=64)
def load(gym: str, data: str | None) -> dict[str, Task]:
    """Reads the tasks of a gym, by name.

    Args:
        gym: a key of ``EIGHT``.
        data: a .parquet or .json file, or a folder of such files; None: the installed package's own data.

    Raises:
        ValueError: there is nothing of that gym there; the message says what is expected.
    """
    if data is None:
        folder = pathlib.Path(importlib.import_module(EIGHT[gym].module).__file__).parent / 'data'
    else:
        folder = pathlib.Path(data).expanduser()
    files = [folder] if folder.is_file() else sorted([*folder.glob('*.parquet'), *folder.glob('*.json')])
    tasks = [task for file in files for task in (_parquet if file.suffix == '.parquet' else _gym_json)(file, gym)]
    if not tasks:
        raise ValueError(
            f'no tasks of {gym} at {str(folder)!r}: set data to UserRL/data/<gym>_multiturn, a .parquet file of '
            f'UserRL, or UserRL/gyms/{gym}/{EIGHT[gym].module}/data'
        )
    return {task.name: task for task in tasks}


def _parquet(file: pathlib.Path, gym: str) -> list[Task]:
    """Reads rows with ``prompt`` and, deep in ``extra_info``, gym, task and split; other gyms' rows are left out."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"{file} needs the package pyarrow: pip install 'pyarrow>=16'") from error
    tasks = []
    for row in pyarrow.parquet.read_table(file).to_pylist():
        extra = row['extra_info']
        made_of = extra['tools_kwargs']['interact_with_env']['create_kwargs']
        if made_of['env_name'] == gym:
            prompt = tuple({'role': m['role'], 'content': m['content'].strip()} for m in row['prompt'])
            tasks.append(Task(made_of[EIGHT[gym].key], extra.get('split') or file.stem, prompt))
    return tasks


def _gym_json(file: pathlib.Path, gym: str) -> list[Task]:
    """Reads a gym's own file; the split is in its name, else one entry in ``_TEST_SHARE`` is held out."""
    try:
        entries = json.loads(file.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{file} is not JSON ({error}); fetch it again, perhaps it is a Git LFS pointer') from error
    names = [name for name in (_name(entry, gym) for entry in _listed(entries)) if name]
    known = next((split for split in ('train', 'test') if split in file.stem.split('_')), None)
    splits = ('test' if i % _TEST_SHARE == 0 else 'train' for i in range(len(names)))
    return [Task(name, known or split) for name, split in zip(names, splits, strict=True)]


def _listed(entries: Any) -> list[tuple[str | None, Any]]:
    return list(entries.items()) if isinstance(entries, dict) else [(None, entry) for entry in entries]


def _name(item: tuple[str | None, Any], gym: str) -> str | None:
    """Returns the name by which a gym finds an entry; None for one that it leaves out itself."""
    key, entry = item
    if gym == 'TurtleGym':
        return entry.get('new_title') if entry.get('judgment') == 'Yes' else None
    return key if gym == 'TravelGym' else entry.get(EIGHT[gym].key)
