"""What a model that knows no English is taught of a gym: the tool's syntax and copying, never what to do when."""

import random
from typing import TYPE_CHECKING

from infopo_jax.envs.text import Message
from infopo_jax.envs.tools import render
from infopo_jax.envs.usergym.moves import TOOL, Move, written

if TYPE_CHECKING:
    from infopo_jax.envs.usergym.base import Gym

_QUESTION_SHARE = 0.3  # of targets; the others use something known, if there is anything
_HIDE = 0.15  # share of answers that show the placeholder, to make it familiar
_MOST_QUESTIONS = 6  # in a history
_REPEATS = 40  # of the texts that stand in every prompt, in the corpus


def example(gym: 'Gym', rng: random.Random) -> tuple[list[Message], str]:
    """Draws one transition: random questions with their real answers, then one random move.

    An answer that would complete what the task needs shows the placeholder, so no example is a solved episode. To hide
    that answer, rather than to leave out the move that would use it, tilts no choice between moves.

    Args:
        gym: a gym of the example's own.
        rng: the source of all randomness.

    Returns:
        history: messages.
        target: a question, or a move that uses what the history shows.
    """
    while True:
        history, notes = _history(gym, rng)
        if not gym.running:
            continue
        move = gym.guess(rng, notes) if rng.random() >= _QUESTION_SHARE else None
        target = written(move or rng.choice(gym.questions()))
        if not gym.step(target)[4].get('success'):  # else a lucky guess
            return history, target


def _history(gym: 'Gym', rng: random.Random) -> tuple[list[Message], dict[str, str]]:
    """Plays random questions; returns the messages, and the notes that one who reads them could take."""
    history, _ = gym.reset(seed=rng.getrandbits(32), options={'task': rng.choice(gym.tasks('train'))})
    asked: set[Move] = set()
    for _ in range(rng.randint(0, min(_MOST_QUESTIONS, gym.max_turns - 1))):
        questions = gym.questions()
        move = rng.choice([question for question in questions if question not in asked] or questions)
        asked.add(move)
        before = dict(gym.notes)
        answer, _, terminated, truncated, _ = gym.step(written(move))
        if terminated or truncated:
            break
        if rng.random() < _HIDE or gym.knows(gym.notes):
            answer = [message | {'content': gym.placeholder} for message in answer]
            gym.notes = before
        history += [{'role': 'assistant', 'content': written(move)}, *answer]
    return history, gym.notes


def corpus(gym: 'Gym', *, num_examples: int = 400) -> list[str]:
    """Returns what an agent meets or writes on training tasks: random talks, error messages, rules, placeholder."""
    rng = random.Random(0)
    texts: list[str] = []
    for _ in range(num_examples):
        history, target = example(gym, rng)
        texts += [message['content'] for message in history[1:]] + [target]
    wrong = [written((choice, 'x')) for choice in gym.choices]
    for text in ('x', '<tool_call>', '<tool_call>{}</tool_call>', render(TOOL, {}), *wrong):
        (system, _), _ = gym.reset()
        texts += [message['content'] for message in gym.step(text)[0]]
    return [*texts, *[system['content'], gym.placeholder] * _REPEATS]
