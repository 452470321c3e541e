"""What a text environment hands over, held against the contract of envs/text.py before a rollout believes it.

Environments are other people's code: a message without a content, or an outcome that is no number, ends the rollout
that it came to and nothing else.
"""

import math
from typing import Any

from infopo_jax.envs.text import Message, Observation


def opening(value: Any) -> tuple[list[Message], list[dict] | None]:
    """Returns the messages and tools of what ``reset`` returned.

    Raises:
        TypeError, ValueError: it breaks the contract; the message says how.
    """
    observation, info = value
    return messages(observation), dict(info).get('tools')


def answer(value: Any) -> tuple[list[Message], float, bool, bool, dict[str, Any]]:
    """Returns messages, reward, terminated, truncated and info of what ``step`` returned.

    Raises:
        TypeError, ValueError: it breaks the contract; the message says how.
    """
    observation, reward, terminated, truncated, info = value
    return messages(observation), number('the reward', reward), bool(terminated), bool(truncated), dict(info)


def messages(observation: Observation) -> list[Message]:
    """Returns an observation as messages; a bare string is the user's.

    Raises:
        TypeError: a message is no dict with a role and a content that are texts.
    """
    found = [{'role': 'user', 'content': observation}] if isinstance(observation, str) else list(observation)
    for message in found:
        fields = message if isinstance(message, dict) else {}
        if not all(isinstance(fields.get(name), str) for name in ('role', 'content')):
            raise TypeError(f"a message must be {{'role': str, 'content': str}}, got {_short(message)}")
    return found


def number(name: str, value: Any) -> float:
    """Returns a finite number.

    Raises:
        TypeError: it is none.
    """
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise TypeError(f'{name} must be a finite number, got {_short(value)}')
    return found


def complaint(error: Exception) -> TypeError:
    """Returns the error that a rollout ends with whose environment broke the contract."""
    told = str(error) if isinstance(error, TypeError | ValueError) else repr(error)
    return TypeError(f'the environment breaks the contract of envs/text.py: {told}')


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f'{text[:200]}...'
