"""The contract of text environments, which follow Gymnasium's reset and step."""

import random
from typing import Any, Protocol

Message = dict[str, Any]  # {'role': 'system' | 'user' | 'assistant' | 'tool', 'content': str}
Observation = str | list[Message]  # a bare string is one user message


class TextEnv(Protocol):
    """An environment that talks text; one instance plays one episode at a time.

    ``info`` of ``reset`` may hold 'tools': a list of JSON schemas. ``info`` of ``step`` holds 'is_error' (bool: the
    observation is an error message), 'malformed' (bool: the text was no action that could be tried, several of which in
    a row end a rollout; without it, as 'is_error'), and once the episode has ended 'success' (bool) and 'outcome'
    (float; without it, the sum of rewards).

    An exception, or an answer that is not as said here, ends the rollout with ENV_ERROR (``users.UserFailed``: with
    USER_ERROR), and no other.
    """

    outcome_range: float  # largest minus smallest outcome
    placeholder: str  # what the counterfactual shows in place of feedback
    max_turns: int

    def tasks(self, split: str) -> list[Any]:
        """Returns the task ids of split 'train' or 'test'; the two are disjoint."""

    def reset(self, *, seed: int = 0, options: dict | None = None) -> tuple[Observation, dict]:
        """Starts the task ``options['task']``; ``seed`` drives the wording of its user."""

    def step(self, text: str) -> tuple[Observation, float, bool, bool, dict]:
        """Answers the agent's text: observation, reward, terminated, truncated, info."""


class Scored(Protocol):
    """A text environment whose outcome is not the sum of its rewards where an episode is ended from outside.

    That happens to an agent that says nothing sensible for too long, at the limit of tokens, or at that of turns: turns
    too long to be heard count there, and the environment knows nothing of them.
    """

    def score(self, num_turns: int) -> float:
        """Returns the outcome of the running episode if it ends now, after so many turns; asks nobody else for it."""


class Teachable(Protocol):
    """A text environment from which a model can be warm-started from scratch; its tasks have the same tools."""

    def corpus(self) -> list[str]:
        """Returns texts on which a tokenizer is trained."""

    def special_tokens(self) -> list[str]:
        """Returns words that the tokenizer keeps whole (ids, values)."""

    def example(self, rng: random.Random) -> tuple[list[Message], str]:
        """Draws one supervised transition: a history of messages, then one action's text.

        Calls are written as by ``tools.render``, whatever the layout of the model that is taught.
        The action shows syntax and copying of known values; it follows no strategy, and no example is a solved episode.
        """


def step_info(*, is_error: bool, is_malformed: bool) -> dict[str, Any]:
    """Returns how the info of a step begins; 'malformed' stands there where it is not as 'is_error'."""
    return {'is_error': is_error} | ({'malformed': is_malformed} if is_malformed != is_error else {})
