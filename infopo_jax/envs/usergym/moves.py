"""The one tool of all gyms, UserRL's ``interact_with_env``: moves, how they are written, what answers them."""

import dataclasses
import re
from collections.abc import Collection, Iterable

from infopo_jax.envs.tools import render

TOOL = 'interact_with_env'
FINISH = 'finish'

Move = tuple[str, str]  # choice, content


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a gym answers.

    ``score`` ends the episode, from 0 (nothing right) to 1. ``notes`` are the facts that move and text together show,
    key to value: what an attentive reader would write down.
    """

    text: str
    score: float | None = None
    is_error: bool = False
    notes: dict[str, str] = dataclasses.field(default_factory=dict)


def refuse(why: str) -> Reply:
    """Returns an error message."""
    return Reply(f'Error: {why}.', is_error=True)


def written(move: Move) -> str:
    """Returns a move as the tool call that an agent writes."""
    return render(TOOL, {'choice': move[0], 'content': move[1]})


def schema(manual: str, choices: Collection[str]) -> dict:
    """Returns the JSON schema of the tool; the manual says what each choice does."""
    properties = {
        'choice': {'type': 'string', 'enum': [*choices, FINISH], 'description': 'The kind of move.'},
        'content': {'type': 'string', 'description': f'What the move says; nothing for "{FINISH}".'},
    }
    parameters = {'type': 'object', 'properties': properties, 'required': ['choice']}
    return {'type': 'function', 'function': {'name': TOOL, 'description': manual, 'parameters': parameters}}


def found(text: str, words: Iterable[str]) -> list[str]:
    """Returns those of ``words`` that stand in a text as whole words, in the text's order; case does not matter."""
    at = {word: re.search(rf'(?<!\w){re.escape(word)}(?!\w)', text, re.IGNORECASE) for word in words}
    return sorted((word for word, match in at.items() if match), key=lambda word: at[word].start())
