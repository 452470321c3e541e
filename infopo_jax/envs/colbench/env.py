"""The ColBench environment: an agent talks with a collaborator, then hands in a Python function."""

import random
import warnings

from infopo_jax.envs import sandbox
from infopo_jax.envs.colbench import expert, grade, published, tasks, teach
from infopo_jax.envs.colbench.functions import LEVELS, MARKER
from infopo_jax.envs.colbench.tasks import Task
from infopo_jax.envs.colbench.user import THANKS, ModelUser, ScriptedUser
from infopo_jax.envs.text import Message
from infopo_jax.envs.tools import parse
from infopo_jax.users import User
from infopo_jax.users.styles import check_style

BRIEF = f'Ask what is missing, then say {MARKER} and the code.'
FULL = f"""You write Python functions for people who tell you only part of what they want.

- The rest is settled in their minds: conditions, amounts, units, special cases. Ask for it before you write code.
- Ask short, simple questions, one or two in a message. People answer in one or two sentences.
- When you know enough, begin your message with "{MARKER}" and let nothing but the complete Python code follow.
- You have {{turns}} messages in all, the answer included. There is one answer, and no talk about it."""
_ERROR = f'Error: say something, or answer after {MARKER}'


class ColBench:
    """Collaborative backend programming (arXiv 2503.15478); implements ``TextEnv``, ``Scored``, ``Teachable``.

    The collaborator describes a function and leaves out what matters. The agent asks; its answer follows
    "I WANT TO ANSWER:" and is called about ten times in the sandbox. Outcome: the share of calls that agree with the
    reference. Success: all of them do. What is said in the last turn counts as the answer, if it earns anything and all
    turns before were heard: one that ran into the cap on tokens never comes here and is not counted here, so that after
    it the rollout reaches the limit before this environment does, and only what follows the marker is an answer.

    Without ``data``, tasks come from templates (``functions.py``) and a script plays the collaborator. Level 1: two
    hidden values; level 2: three, one of which may be how to round; level 3: four, and a helper function.

    Args:
        level: 1, 2 or 3 of the generated tasks.
        data: path to the published data (see ``published.py``), instead of the generated tasks. Without a ``user``, the
            collaborator describes the function and knows no more, of which a warning tells.
        user: who plays the collaborator instead of the script.
        user_style: how the scripted collaborator talks; see ``users.styles``.
        turn_limit: turns of the agent; the benchmark has 10.
        reward: 'share' of the calls that agree, or 'sparse': 1 if all do.
        turn_cost: taken off the outcome for each turn.
        brief: a system prompt of one line, for tiny models; None: on generated tasks only.

    Raises:
        ValueError: a knob's value, the data, or the machine (which must be able to hold model-written code) is no good.
    """

    placeholder = 'No information found.'

    def __init__(
        self,
        level: int = 1,
        *,
        data: str | None = None,
        user: User | None = None,
        user_style: str = 'plain',
        turn_limit: int = 10,
        reward: str = 'share',
        turn_cost: float = 0.0,
        brief: bool | None = None,
    ):
        rules = {
            'level': (level, level in LEVELS, f'one of {LEVELS}'),
            'turn_limit': (turn_limit, turn_limit >= 1, 'at least 1'),
            'reward': (reward, reward in ('share', 'sparse'), "'share' or 'sparse'"),
            'turn_cost': (turn_cost, turn_cost >= 0, 'at least 0'),
        }
        for knob, (value, fits, wanted) in rules.items():
            if not fits:
                raise ValueError(f'{knob} must be {wanted}, got {value!r}')
        check_style(user_style)
        if user is not None and user_style != 'plain':
            raise ValueError(f'user_style={user_style!r} is for the scripted user; leave it away, or config.user')
        if sandbox.refusal() is not None:
            raise ValueError(sandbox.refusal())
        self.level, self.reward, self.turn_cost, self.max_turns = level, reward, turn_cost, turn_limit
        self.outcome_range = 1.0 + turn_cost * (turn_limit - 1)
        self._published = published.load(data) if data is not None else None
        if data is not None and user is None:
            warnings.warn(
                'no script knows the functions of the published data of colbench, so nothing can be learnt by asking: '
                'pass a user, which in a config is config.user.name=openai and config.user.model',
                stacklevel=2,
            )
        self._player, self.user_style = user, user_style
        is_brief = data is None if brief is None else brief
        self._system = BRIEF if is_brief else FULL.format(turns=turn_limit)
        self._user: ScriptedUser | ModelUser | None = None

    def tasks(self, split: str) -> list[str]:
        """Returns the task ids of split 'train' or 'test'; no problem is in both."""
        splits = tasks.goals(self.level) if self._published is None else self._published
        if split not in splits:
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        return list(splits[split])

    def reset(self, *, seed: int = 0, options: dict | None = None) -> tuple[list[Message], dict]:
        """Starts ``options['task']``, by default a training task drawn by the seed, which drives the user's wording.

        ``options['member']`` tells apart the rollouts of a group, which share the seed, for a ``user`` who draws.

        Raises:
            ValueError: there is no such task.
        """
        options = options or {}
        name = options.get('task')
        if name is None:
            name = random.Random(seed).choice(self.tasks('train'))
        self._task = self._make(str(name))
        if self._player is None:
            self._user = ScriptedUser(self._task, random.Random(f'{seed} {name}'), style=self.user_style)
        else:
            self._user = ModelUser(self._task, self._player, nonce=f'{seed}/{options.get("member", 0)}')
        self._num_turns = 0
        opening = {'role': 'user', 'content': self._user.open()}
        self._messages = [{'role': 'system', 'content': self._system}, opening]
        return list(self._messages), {'task': name}

    def step(self, text: str) -> tuple[list[Message], float, bool, bool, dict]:
        """Answers the agent's text: the user's reply, or his thanks for an answer, whatever it is worth.

        Raises:
            ValueError: there is no episode to go on with.
            infopo_jax.users.UserFailed: the user gave no answer.
            sandbox.SandboxError: the sandbox broke down.
        """
        self._check_running()
        self._num_turns += 1
        action = parse(text, (), 'text')
        source = None if action.error else grade.answer(action.text)
        is_last = self._num_turns >= self.max_turns
        if source is not None or is_last:
            return self._end(text, source, action.text)
        if action.error or not action.text:
            reply = {'role': 'tool', 'content': f'Error: {action.error}.' if action.error else _ERROR}
        else:
            reply = {'role': 'user', 'content': self._user.hear(action.text)}
        self._messages += [{'role': 'assistant', 'content': text}, reply]
        return [reply], 0.0, False, False, {'is_error': reply['role'] == 'tool'}

    def _end(self, text: str, source: str | None, said: str) -> tuple[list[Message], float, bool, bool, dict]:
        """Grades the answer, or what was said in a last turn without the marker, which then may end in truncation."""
        share = grade.share(self._task, grade.code(said) if source is None else source)
        terminated = source is not None or share > 0
        success = terminated and share == 1.0
        gained = share if self.reward == 'share' else float(success)
        outcome = gained - self.turn_cost * self._num_turns
        reply = {'role': 'user', 'content': THANKS}
        self._messages += [{'role': 'assistant', 'content': text}, reply]
        self._user = None
        info = {'is_error': False, 'success': success, 'outcome': outcome, 'share': share}
        return [reply], outcome, terminated, not terminated, info

    def score(self, num_turns: int) -> float:
        """Returns the outcome of the episode if it is cut unanswered after so many turns; see ``envs.text.Scored``."""
        return -self.turn_cost * num_turns

    def _make(self, name: str) -> Task:
        if self._published is None:
            return tasks.make(self.level, name)
        for split in self._published.values():
            if name in split:
                return split[name]
        raise ValueError(f'unknown task {name!r}; take one of env.tasks("train") or env.tasks("test")')

    def _check_running(self) -> None:
        if self._user is None:
            raise ValueError('no episode is running: call reset first')

    def expert(self) -> str:
        """Returns the next action of a script that sees the messages only.

        Raises:
            ValueError: no episode is running, or the tasks are published ones.
        """
        self._check_running()
        self._need_generated('has an expert')
        return expert.act(self._messages, self.level)

    def random_action(self, rng: random.Random) -> str:
        """Draws a legal action uniformly: a question, or a function of the level with random values."""
        self._need_generated('has a list of actions')
        return teach.random_action(rng, self.level)

    def corpus(self) -> list[str]:
        """Returns texts on which a tokenizer is trained: of generated training tasks, or the published problems."""
        if self._published is not None:
            return [text for task in self._published['train'].values() for text in (*task.openings, task.source)]
        errors = [_ERROR, f'Error: {parse("<think>", ()).error}.']
        return teach.corpus(self.level, **self._prompting(), errors=errors)

    def special_tokens(self) -> list[str]:
        """Returns values and the fixed parts of answers, each to be one token."""
        return teach.special_tokens(self.level) if self._published is None else [MARKER]

    def example(self, rng: random.Random) -> tuple[list[Message], str]:
        """Draws one warm-start transition; see ``teach.example``.

        Raises:
            ValueError: the tasks are published ones.
        """
        self._need_generated('has a warm start from scratch (else config.warmstart.steps=0)')
        return teach.example(self.level, rng, **self._prompting())

    def _prompting(self) -> dict:
        return {'system': self._system, 'placeholder': self.placeholder}

    def _need_generated(self, what: str) -> None:
        if self._published is not None:
            raise ValueError(f'only the generated set of colbench {what}: leave data away')
