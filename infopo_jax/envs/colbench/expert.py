"""A scripted expert, which sees only the messages: every generated task can be solved from what an agent is shown."""

import itertools
import re

from infopo_jax.envs.colbench.functions import ASKS, POOLS, by_name
from infopo_jax.envs.text import Message


def act(messages: list[Message], level: int) -> str:
    """Returns the expert's next action: asks for what the function lacks, slot by slot, then hands it in."""
    opening = next(message['content'] for message in messages if message['role'] == 'user')
    function = next(function for name, function in by_name(level).items() if f'{name}(' in opening)
    values = {}
    for slot in function.slots:
        found = re.search('|'.join(POOLS[slot]), ' '.join(_replies(messages, ASKS[slot])))
        if found is None:
            return ASKS[slot]
        values[slot] = found[0]
    return function.answer(values)


def _replies(messages: list[Message], action: str) -> list[str]:
    """Returns what was said in reply to an action, as often as it was taken."""
    pairs = itertools.pairwise(messages)
    return [reply['content'] for said, reply in pairs if said['role'] == 'assistant' and said['content'] == action]
