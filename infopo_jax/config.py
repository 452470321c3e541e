"""A run's config as a tree, as plain values, and against another one; files under configs/ edit ``base_config()``.

    config = base_config()
    config.optim.lr = 1e-4      # a typo raises: the tree is locked
    validate(config)            # a wrong value raises: field, value, constraint
    to_dict(config)             # plain JSON, and back: from_dict
    env_knobs(config)           # the environment's knobs that the config sets

Importing this file does not import JAX, so that errors on a command line come at once.
"""

import difflib
import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import config_dict

from infopo_jax import config_rules
from infopo_jax.config_fields import base_config

ABSENT = '(absent)'  # stands in ``diff`` for a field that one side lacks

# Sections and fields that may change when a run resumes: no step already taken, nor what is sampled, depends on them.
FREE_ON_RESUME = (
    'steps', 'profile', 'mesh', 'eval', 'log', 'checkpoint', 'rollout.workers', 'rollout.call_seconds',
    'user.base_url', 'user.api_key_env', 'user.timeout', 'user.patience', 'user.concurrency',
    'user.requests_per_minute', 'user.cache_dir', 'user.prompt_price', 'user.completion_price',
)  # fmt: skip
# And where its weights are only looked at: which episodes, who answers in how many words, and what runs side by side.
FREE_IN_EVALUATION = (
    *FREE_ON_RESUME,
    'batch', 'seed', 'user', 'env.user_style', 'chat.keep_thinking', 'rollout.slots', 'rollout.aside', 'rollout.chunk',
    'rollout.retries', 'rollout.max_failed_fraction', 'rollout.max_prompt_tokens', 'rollout.max_feedback_tokens',
    'rollout.max_tokens',
)  # fmt: skip


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns the one of ``names`` that is spelled most like ``name``.

    In dotted names the last part counts twice, and initials count: 'optim.learning_rate' is nearest to 'optim.lr'.
    """
    leaf = name.rpartition('.')[2]
    initials = ''.join(word[:1] for word in leaf.split('_'))

    def likeness(candidate: str) -> float:
        end = candidate.rpartition('.')[2]
        whole = difflib.SequenceMatcher(None, name, candidate).ratio()
        return whole + difflib.SequenceMatcher(None, leaf, end).ratio() + (end == initials)

    return max(names, key=likeness)


def to_dict(config: config_dict.ConfigDict) -> dict[str, Any]:
    """Returns the tree as plain nested dicts of JSON values; ``from_dict`` undoes it exactly."""
    return config.to_dict()


def from_dict(values: Mapping[str, Any]) -> config_dict.ConfigDict:
    """Builds a locked config from ``to_dict``'s output; a field that it lacks keeps its default.

    Raises:
        ValueError: an unknown field (with the nearest valid one) or a value of the wrong type.
    """
    config = base_config()
    types = field_types()
    for field, value in flatten(values).items():
        _check_field(field, value, types)
        section, _, leaf = field.rpartition('.')
        node = config[section] if section else config
        node[leaf] = value
    return config


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {'optim.lr': 3e-4, ...} of a config or of nested dicts."""
    flat = {}
    for name, value in values.items():
        if isinstance(value, Mapping | config_dict.ConfigDict):
            flat.update({f'{name}.{field}': inner for field, inner in flatten(value).items()})
        else:
            flat[name] = value
    return flat


def field_types() -> dict[str, type]:
    """Returns the type of every field; a placeholder's is the type of the value that it waits for."""
    base = base_config()
    types = {}
    for field in flatten(base):
        section, _, leaf = field.rpartition('.')
        types[field] = (base[section] if section else base).get_type(leaf)
    return types


def describe() -> list[tuple[str, Any, str]]:
    """Returns (field, default, comment) of every field in order of declaration; the text of ``--help``."""
    source = inspect.getsource(base_config)
    comments = dict(re.findall(r'^    c\.([\w.]+) = [^#\n]*(?:# (.*))?$', source, re.MULTILINE))
    defaults = flatten(base_config())
    return [(field, defaults[field], comment) for field, comment in comments.items() if field in defaults]


def diff(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Returns (field, value in a, value in b) where two configs or dicts differ; ABSENT where one lacks the field."""
    a, b = flatten(a), flatten(b)
    rows = [(field, a.get(field, ABSENT), b.get(field, ABSENT)) for field in a | b]
    return [(field, x, y) for field, x, y in rows if (type(x), x) != (type(y), y)]


def check_resume(
    saved: Mapping[str, Any], config: config_dict.ConfigDict, *, free: tuple[str, ...] = FREE_ON_RESUME
) -> None:
    """Checks that a run saved with one config may go on, or be looked at, with another.

    A field that the checkpoint does not know, since it is newer, may have its default.

    Args:
        saved: ``to_dict`` of the config in the checkpoint.
        config: the config now asked for.
        free: sections and fields that may differ.

    Raises:
        ValueError: listing the other fields that differ (``steps`` counts when the learning rate decays over them).
    """
    free = [name for name in free if name != 'steps' or config.optim.decay == 'constant']
    rows = [row for row in diff(saved, config) if row[0] not in free and row[0].partition('.')[0] not in free]
    defaults = flatten(base_config())
    rows = [(field, old, new) for field, old, new in rows if old != ABSENT or new != defaults[field]]
    if rows:
        shown = '\n'.join(f'  {field}: {old!r} in the checkpoint, {new!r} now' for field, old, new in rows[:7])
        more = f'\n  and {len(rows) - 7} more' if len(rows) > 7 else ''
        raise ValueError(f'the config does not match the checkpoint (take another --workdir or undo):\n{shown}{more}')


def env_knobs(config: config_dict.ConfigDict) -> dict[str, Any]:
    """Returns the knobs that the config sets for its environment; None means the environment's own default."""
    return {knob: value for knob, value in config.env.items() if knob not in ('name', 'kind') and value is not None}


def validate(config: config_dict.ConfigDict, *, training: bool = True) -> None:
    """Checks names, types, values and how they fit together, and that the environment has the knobs that are set.

    Args:
        config: the tree.
        training: False where a run is only looked at: what an update needs (whole microbatches, a group to compare
            with) is not asked for.

    Raises:
        ValueError: one line per problem (six at most): field, value, constraint, and the nearest name for a typo.
    """
    fields = flatten(config)
    types = field_types()
    for field, value in fields.items():
        _check_field(field, value, types)
    missing = [field for field in types if field not in fields]
    if missing:
        raise ValueError(f'config.{missing[0]} is missing; start from infopo_jax.config.base_config()')
    problems = config_rules.problems(fields, training=training) or _env_problems(config)
    if problems:
        more = f'\nand {len(problems) - 6} more problems' if len(problems) > 6 else ''
        raise ValueError('\n'.join(problems[:6]) + more)


def _check_field(field: str, value: Any, types: dict[str, type]) -> None:
    """Raises ValueError unless the field exists and the value has its type (None only where a placeholder stands)."""
    if field not in types:
        raise ValueError(f'config.{field} = {value!r}: no such field, did you mean config.{nearest(field, types)}?')
    wanted = types[field]
    may_be_none = value is None and flatten(base_config())[field] is None
    fits = type(value) is wanted or (wanted is float and type(value) is int)
    if not (fits or may_be_none):
        raise ValueError(f'config.{field} = {value!r}: must be {wanted.__name__}, not {type(value).__name__}')


def _env_problems(config: config_dict.ConfigDict) -> list[str]:
    """Asks the chosen environment about its knobs and its kind; imports it, and with it JAX, hence last."""
    from infopo_jax import envs

    name, kind = config.env.name, config.env.kind
    if name not in envs.ENVIRONMENTS:
        known = ', '.join(envs.ENVIRONMENTS)
        return [f'config.env.name = {name!r}: did you mean {nearest(name, envs.ENVIRONMENTS)!r}? One of {known}']
    knobs = envs.knobs(name)
    problems = [
        f'config.env.{knob} = {value!r}: environment {name!r} has no such knob; its knobs: {", ".join(knobs) or "none"}'
        for knob, value in env_knobs(config).items()
        if knob not in knobs
    ]
    is_text = hasattr(envs.constructor(name), 'tasks')  # types of envs/text.py have it, those of envs/array.py do not
    if is_text != (kind == 'hosted'):
        problems.append(f'config.env.kind = {kind!r}: environment {name!r} is {"hosted" if is_text else "jitted"}')
    return problems
