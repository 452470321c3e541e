"""The retail environment: an agent serves one customer by talking and by calling the shop's tools."""

import random

from infopo_jax.envs.retail import teach
from infopo_jax.envs.retail.policy import policy
from infopo_jax.envs.retail.tasks import LEVELS, goals, make
from infopo_jax.envs.retail.tools import SCHEMAS, execute
from infopo_jax.envs.retail.user import User
from infopo_jax.envs.text import Message
from infopo_jax.envs.tools import parse

_MAX_TURNS = {1: 6, 2: 8, 3: 12}


class Retail:
    """Customer support in a small shop; implements ``TextEnv`` and ``Teachable``.

    The customer opens with an underspecified request. The agent asks, looks up, and makes a change, of which the
    customer hears: the right one ends the talk (or brings the next request), a wrong one ends it too. Outcome 1 when
    the database then equals the gold one and what had to be told was told, else 0; a talk that runs into the turn limit
    scores 0.

    Level 1: two facts to ask for, then one change. Level 2: three facts, one of which only the database knows. Level 3:
    the customer has to be asked what he wants, has two requests, and wants to be told the refund of the second.

    Args:
        level: 1, 2 or 3.
        brief: a system prompt of a few lines, for tiny models; else a full policy.
        max_turns: turns of the agent; None takes the level's default (6, 8, 12).

    Raises:
        ValueError: a level or a turn limit that does not exist.
    """

    outcome_range = 1.0
    placeholder = 'No information found.'

    def __init__(self, level: int = 1, *, brief: bool = True, max_turns: int | None = None):
        if level not in LEVELS:
            raise ValueError(f'level must be one of {LEVELS}, got {level!r}')
        if max_turns is not None and max_turns < 1:
            raise ValueError(f'max_turns must be at least 1 or None, got {max_turns!r}')
        self.level = level
        self.brief = brief
        self.max_turns = _MAX_TURNS[level] if max_turns is None else max_turns
        self._user: User | None = None

    def tasks(self, split: str) -> list[str]:
        """Returns the task ids of split 'train' or 'test'; no hidden goal is in both."""
        splits = goals(self.level)
        if split not in splits:
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        return list(splits[split])

    def reset(self, *, seed: int = 0, options: dict | None = None) -> tuple[list[Message], dict]:
        """Starts ``options['task']``, by default a training task drawn by the seed, which drives the user's wording.

        Raises:
            ValueError: the task is none of this level.
        """
        task_id = (options or {}).get('task')
        if task_id is None:
            task_id = random.Random(seed).choice(goals(self.level)['train'])
        task = make(self.level, str(task_id))
        self._db, self._gold = task.db.copy(), task.gold
        self._user = User(task.requests, random.Random(f'{seed} {task_id}'), states_intent=task.states_intent)
        self._num_turns = 0
        system = {'role': 'system', 'content': policy(brief=self.brief)}
        return [system, {'role': 'user', 'content': self._user.open()}], {'tools': SCHEMAS, 'task': task_id}

    def step(self, text: str) -> tuple[list[Message], float, bool, bool, dict]:
        """Answers the agent's text: a message of the user, or a tool's answer and perhaps the user's reaction to it.

        Raises:
            ValueError: there is no episode to go on with.
        """
        if self._user is None:
            raise ValueError('no episode is running: call reset first')
        self._num_turns += 1
        messages, is_error = self._answer(text)
        terminated = self._user.done
        truncated = not terminated and self._num_turns >= self.max_turns
        info = {'is_error': is_error}
        reward = 0.0
        if terminated or truncated:
            success = terminated and self._user.content and self._db == self._gold
            reward = float(success)
            info |= {'success': success, 'outcome': reward}
            self._user = None
        return messages, reward, terminated, truncated, info

    def _answer(self, text: str) -> tuple[list[Message], bool]:
        """Returns the messages that answer a text, and whether they are an error message."""
        action = parse(text, SCHEMAS)
        if action.error:
            return [{'role': 'tool', 'content': f'Error: {action.error}.'}], True
        if action.name is None:
            return [{'role': 'user', 'content': self._user.hear(action.text)}], False
        result = execute(self._db, action.name, action.arguments)
        messages = [{'role': 'tool', 'content': result.text}]
        reaction = self._user.notice(action.name, action.arguments) if result.changed else None
        if reaction is not None:
            messages.append({'role': 'user', 'content': reaction})
        return messages, result.is_error

    def corpus(self) -> list[str]:
        """Returns texts on which a tokenizer is trained, from training tasks only."""
        return teach.corpus(self._clone())

    def special_tokens(self) -> list[str]:
        """Returns ids, values and the fixed parts of calls, each to be one token."""
        return teach.special_tokens()

    def example(self, rng: random.Random) -> tuple[list[Message], str]:
        """Draws one warm-start transition; see ``teach.example``."""
        return teach.example(self._clone(), rng)

    def _clone(self) -> 'Retail':
        """Returns a fresh environment with the same knobs, so that drawing examples leaves a running episode alone."""
        return Retail(self.level, brief=self.brief, max_turns=self.max_turns)
