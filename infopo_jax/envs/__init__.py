"""Environments by name.

    env = envs.make('intent', num_slots=3, num_hidden=2)
    envs.knobs('intent')    # {'num_slots': 4, 'num_values': 12, ...}

An own environment is one line in ``ENVIRONMENTS``; its knobs are the keywords of its constructor.
"""

import difflib
import importlib
import inspect
from collections.abc import Callable
from typing import Any

# name -> 'module:constructor', imported on use: an array environment does not pay for the text ones, nor they for it.
ENVIRONMENTS: dict[str, str] = {
    'intent': 'infopo_jax.envs.intent:Intent',
    'probe': 'infopo_jax.envs.probe:Probe',
    'sokoban': 'infopo_jax.envs.sokoban:Sokoban',
    'retail': 'infopo_jax.envs.retail:Retail',
    'usergym': 'infopo_jax.envs.usergym:UserGym',
    'colbench': 'infopo_jax.envs.colbench:ColBench',
    'webshop': 'infopo_jax.envs.webshop:WebShop',
    'sokoban_text': 'infopo_jax.envs.sokoban:SokobanText',
    'webshop_server': 'infopo_jax.envs.webshop:WebShopServer',
    'tau2': 'infopo_jax.envs.tau2:Tau2',
    'gymnasium': 'infopo_jax.envs.gymnasium:Gymnasium',
}


def nearest(name: str, names: list[str]) -> str:
    """Returns the one of ``names`` that is spelled most like ``name``."""
    return difflib.get_close_matches(str(name), names, n=1, cutoff=0.0)[0]


def constructor(name: str) -> Callable[..., Any]:
    """Imports and returns the constructor of an environment.

    Raises:
        ValueError: the name is unknown; the message gives the nearest one and all of them.
    """
    if name not in ENVIRONMENTS:
        names = list(ENVIRONMENTS)
        raise ValueError(f'unknown environment {name!r}, did you mean {nearest(name, names)!r}? Known: {names}')
    module, attribute = ENVIRONMENTS[name].split(':')
    return getattr(importlib.import_module(module), attribute)


def knobs(name: str) -> dict[str, Any]:
    """Returns the knobs of an environment: keyword of its constructor -> default."""
    parameters = inspect.signature(constructor(name)).parameters.values()
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {p.name: p.default for p in parameters if p.kind in named}


def make(name: str, **values: Any) -> Any:
    """Builds an environment.

    Args:
        name: a key of ``ENVIRONMENTS``.
        **values: its knobs. None keeps the environment's own default, so that a config may hold the knobs of all.

    Returns:
        An ``array.ArrayEnv`` or a ``text.TextEnv``.

    Raises:
        ValueError: unknown name or knob, or a value that the environment refuses.
    """
    valid = knobs(name)
    values = {knob: value for knob, value in values.items() if value is not None}
    unknown = [knob for knob in values if knob not in valid]
    if unknown:
        hint = f', did you mean {nearest(unknown[0], list(valid))!r}?' if valid else '.'
        raise ValueError(f'environment {name!r} has no knob {unknown[0]!r}{hint} Its knobs: {valid}')
    return constructor(name)(**values)
