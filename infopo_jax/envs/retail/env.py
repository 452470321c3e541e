"""The retail environment: an agent serves one customer by talking and by calling the shop's tools."""

import random

from infopo_jax.envs.retail import expert, teach
from infopo_jax.envs.retail.model_user import ModelUser
from infopo_jax.envs.retail.policy import policy
from infopo_jax.envs.retail.tasks import LEVELS, goals, make
from infopo_jax.envs.retail.tools import SCHEMAS, execute
from infopo_jax.envs.retail.user import User as ScriptedUser
from infopo_jax.envs.text import Message, step_info
from infopo_jax.envs.tools import Action, parse
from infopo_jax.users import User
from infopo_jax.users.styles import check_style

_TURN_LIMIT = {1: 6, 2: 8, 3: 12}


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
        turn_limit: turns of the agent; None takes the level's default (6, 8, 12).
        user_style: how the scripted customer talks; see ``users.styles``.
        user: who answers the agent's questions instead of the script; see ``ModelUser``.

    Raises:
        ValueError: a level, a turn limit or a style that does not exist, or a style for a ``user`` who has his own.
    """

    outcome_range = 1.0
    placeholder = 'No information found.'

    def __init__(
        self,
        level: int = 1,
        *,
        brief: bool = True,
        turn_limit: int | None = None,
        user_style: str = 'plain',
        user: User | None = None,
    ):
        if level not in LEVELS:
            raise ValueError(f'level must be one of {LEVELS}, got {level!r}')
        if turn_limit is not None and turn_limit < 1:
            raise ValueError(f'turn_limit must be at least 1 or None, got {turn_limit!r}')
        check_style(user_style)
        if user is not None and user_style != 'plain':
            raise ValueError(f'user_style={user_style!r} is for the scripted user; leave it away, or config.user')
        self.level = level
        self.brief = brief
        self.user_style = user_style
        self._player = user
        self.max_turns = _TURN_LIMIT[level] if turn_limit is None else turn_limit
        self._user: ScriptedUser | None = None

    def tasks(self, split: str) -> list[str]:
        """Returns the task ids of split 'train' or 'test'; no hidden goal is in both."""
        splits = goals(self.level)
        if split not in splits:
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        return list(splits[split])

    def reset(self, *, seed: int = 0, options: dict | None = None) -> tuple[list[Message], dict]:
        """Starts ``options['task']``, by default a training task drawn by the seed, which drives the user's wording.

        ``options['member']`` tells apart the rollouts of a group, which share the seed, for a ``user`` who draws.

        Raises:
            ValueError: the task is none of this level.
        """
        options = options or {}
        task_id = options.get('task')
        if task_id is None:
            task_id = random.Random(seed).choice(goals(self.level)['train'])
        task = make(self.level, str(task_id))
        self._db, self._gold = task.db.copy(), task.gold
        rng = random.Random(f'{seed} {task_id}')
        if self._player is None:
            self._user = ScriptedUser(task.requests, rng, states_intent=task.states_intent, style=self.user_style)
        else:
            nonce = f'{seed}/{options.get("member", 0)}'
            self._user = ModelUser(
                task.requests, rng, states_intent=task.states_intent, player=self._player, nonce=nonce
            )
        self._num_turns = 0
        system = {'role': 'system', 'content': policy(brief=self.brief)}
        self._messages = [system, {'role': 'user', 'content': self._user.open()}]
        return list(self._messages), {'tools': SCHEMAS, 'task': task_id}

    def step(self, text: str) -> tuple[list[Message], float, bool, bool, dict]:
        """Answers the agent's text: a message of the user, or a tool's answer and perhaps the user's reaction to it.

        Raises:
            ValueError: there is no episode to go on with.
        """
        self._check_running()
        self._num_turns += 1
        action = parse(text, SCHEMAS)
        messages, is_error = self._answer(action)
        self._messages += [{'role': 'assistant', 'content': text}, *messages]
        terminated = self._user.done
        truncated = not terminated and self._num_turns >= self.max_turns
        info = step_info(is_error=is_error, is_malformed=bool(action.error))
        reward = 0.0
        if terminated or truncated:
            success = terminated and self._user.content and self._db == self._gold
            reward = float(success)
            info |= {'success': success, 'outcome': reward}
            self._user = None
        return messages, reward, terminated, truncated, info

    def _answer(self, action: Action) -> tuple[list[Message], bool]:
        """Returns the messages that answer an action, and whether they are an error message."""
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

    def _check_running(self) -> None:
        if self._user is None:
            raise ValueError('no episode is running: call reset first')

    def expert(self) -> str:
        """Returns the next action of a script that sees the messages only.

        Raises:
            ValueError: no episode is running.
        """
        self._check_running()
        return expert.act(self._messages)

    def random_action(self, rng: random.Random) -> str:
        """Draws a legal action uniformly: a question, a call or an answer, of values that the talk holds where it can.

        Raises:
            ValueError: no episode is running.
        """
        self._check_running()
        return teach.random_action(rng, rng.choice(teach.KINDS[self.level]), teach.known_values(self._messages))

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
        """Returns a fresh environment with the same knobs, so that drawing examples leaves a running episode alone.

        Its customer is the script: examples are many, and teach no more than syntax.
        """
        return Retail(self.level, brief=self.brief, turn_limit=self.max_turns, user_style=self.user_style)
