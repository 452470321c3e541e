"""Who answers the agent, by name.

    user = users.make('openai', model='gpt-4o-mini')
    user.reply([{'role': 'system', 'content': 'You want ...'}, {'role': 'user', 'content': 'Hi, how can I help?'}])

A user sees the talk from his own side: what the agent said has role 'user', what he said himself 'assistant'. An
environment whose constructor takes ``user`` lets him play; with None ('scripted') its own script does.
"""

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

# name -> 'module:constructor', imported on use; None: the environment's own script
USERS: dict[str, str | None] = {
    'scripted': None,
    'openai': 'infopo_jax.users.openai:OpenAIUser',
    'policy': 'infopo_jax.users.policy:PolicyUser',
}
_THOUGHT = re.compile(r'<think>.*?(?:</think>|$)', re.DOTALL)


class UserFailed(RuntimeError):
    """The user (a person, an endpoint, a model) gave no answer; the rollout ends with USER_ERROR and is masked."""


class User(Protocol):
    """Somebody who answers; one instance serves all rollouts, from several threads."""

    def reply(self, messages: Sequence[dict[str, Any]], *, nonce: str = '') -> str:
        """Answers a talk.

        Args:
            messages: the talk from the user's side; a system message says who he is and what he wants.
            nonce: names the rollout, such as 'seed/group/member'; the same talk in another rollout is another draw.

        Raises:
            UserFailed: there is no answer.
        """

    def counters(self) -> dict[str, float]:
        """Returns what has been counted since the start: calls, retries, tokens, cost."""


def without_thoughts(text: str) -> str:
    """Returns what a model says aloud: its thoughts would tell the agent what it is to find out."""
    return _THOUGHT.sub('', text).rpartition('</think>')[2].strip()


def make(name: str, **knobs: Any) -> User | None:
    """Builds a user; None for 'scripted', which is each environment's own.

    Args:
        name: a key of ``USERS``.
        **knobs: keywords of its constructor ('scripted' has none). None keeps its default; those that it does not have
            must be None.

    Raises:
        ValueError: unknown name (with the nearest one) or knob, a knob without a default that is not given, or a value
            that the user refuses.
    """
    constructor = _constructor(name)
    knobs = {knob: value for knob, value in knobs.items() if value is not None}
    valid = _parameters(constructor)
    unknown = [knob for knob in knobs if knob not in valid]
    if unknown:
        nearest = difflib.get_close_matches(unknown[0], valid, n=1, cutoff=0.0)
        hint = f', did you mean {nearest[0]!r}? Its knobs: {[*valid]}' if nearest else '; it has none: leave that away'
        raise ValueError(f'user {name!r} has no knob {unknown[0]!r}{hint}')
    missing = [knob for knob, parameter in valid.items() if parameter.default is parameter.empty and knob not in knobs]
    if missing:
        raise ValueError(f'user {name!r} needs the knob {missing[0]!r}: set config.user.{missing[0]}')
    return None if constructor is None else constructor(**knobs)


def knobs(name: str) -> list[str]:
    """Returns the keywords of a user's constructor; 'scripted' has none.

    Raises:
        ValueError: unknown name, with the nearest one.
    """
    return list(_parameters(_constructor(name)))


def _parameters(constructor: Callable[..., User] | None) -> Mapping[str, inspect.Parameter]:
    return {} if constructor is None else inspect.signature(constructor).parameters


def _constructor(name: str) -> Callable[..., User] | None:
    if name not in USERS:
        nearest = difflib.get_close_matches(str(name), USERS, n=1, cutoff=0.0)[0]
        raise ValueError(f'unknown user {name!r}, did you mean {nearest!r}? Known: {list(USERS)}')
    if USERS[name] is None:
        return None
    module, attribute = USERS[name].split(':')
    return getattr(importlib.import_module(module), attribute)
