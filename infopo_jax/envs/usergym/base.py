"""What the language-model-free gyms share: tasks from seeds, scoring, and the contracts of text environments.

A gym is a subclass with a puzzle, replies and a handful of moves; ``UserGym`` makes it by name. Its user is a few lines
of code where UserRL asks a language model, so that every reply is exact, free and the same in every run.
"""

import abc
import functools
import random
from typing import Any, ClassVar

from infopo_jax.envs.text import Message, step_info
from infopo_jax.envs.tools import parse
from infopo_jax.envs.usergym import teach
from infopo_jax.envs.usergym.moves import FINISH, TOOL, Move, Reply, refuse, schema, written
from infopo_jax.users.styles import Manner, check_style

NUM_TASKS = 500  # distinct puzzles per gym and level
TEST_SHARE = 5  # one task in so many is held out
LEVELS = (1, 2, 3)
REWARDS = ('share', 'sparse')


class Gym(abc.ABC):
    """A puzzle with a hidden part; implements ``TextEnv``, ``Scored`` and ``Teachable``.

    A subclass sets the class fields and writes the abstract methods. During an episode it reads ``puzzle`` (its hidden
    part included), ``notes`` (what has been shown), ``rng`` (of the wording) and ``manner`` (in which the user talks).

    Args:
        level: 1, 2 or 3.
        turn_limit: moves per episode; None takes the level's own.
        turn_cost: taken off the outcome for each move.
        reward: 'share', partial credit; 'sparse', 1 if everything is right, else 0.
        user_style: how the user talks; see ``users.styles``.

    Raises:
        ValueError: a knob outside its range, or a style where nobody talks.
    """

    name: ClassVar[str]  # also the start of every task id
    goal: ClassVar[str]  # the system prompt says this, and names the tool
    manual: ClassVar[str]  # description of the tool: what each choice does
    choices: ClassVar[tuple[str, ...]]
    turn_limits: ClassVar[tuple[int, int, int]]  # by level
    words: ClassVar[tuple[str, ...]]  # names and values, each to be one token of a small tokenizer
    talks: ClassVar[bool] = True  # the user answers in words of his own, which a style changes
    placeholder = 'No information found.'

    def __init__(
        self,
        level: int = 1,
        *,
        turn_limit: int | None = None,
        turn_cost: float = 0.0,
        reward: str = 'share',
        user_style: str = 'plain',
    ):
        rules = {
            'level': (level, level in LEVELS, f'one of {LEVELS}'),
            'turn_limit': (turn_limit, turn_limit is None or turn_limit >= 1, 'at least 1 or None'),
            'turn_cost': (turn_cost, turn_cost >= 0, 'at least 0'),
            'reward': (reward, reward in REWARDS, f'one of {REWARDS}'),
        }
        for knob, (value, fits, wanted) in rules.items():
            if not fits:
                raise ValueError(f'{knob} must be {wanted}, got {value!r}')
        check_style(user_style)
        if user_style != 'plain' and not self.talks:
            raise ValueError(f"nobody talks in gym {self.name!r}: user_style must be 'plain', got {user_style!r}")
        self.level, self.turn_cost, self.reward, self.user_style = level, turn_cost, reward, user_style
        self.max_turns = self.turn_limits[level - 1] if turn_limit is None else turn_limit
        self.outcome_range = 1.0 + turn_cost * (self.max_turns - 1)
        self.schema = schema(self.manual, self.choices)
        self.running = False

    # What a subclass writes.

    @abc.abstractmethod
    def deal(self, rng: random.Random) -> Any:
        """Draws a puzzle, hashable, its hidden part included; equal puzzles are one task."""

    @abc.abstractmethod
    def open(self) -> str:
        """Says the first thing: what the agent is shown of the puzzle."""

    @abc.abstractmethod
    def reply(self, choice: str, content: str) -> Reply:
        """Answers a move other than 'finish'."""

    @abc.abstractmethod
    def questions(self) -> list[Move]:
        """Returns the moves that may bring something to light, wise or not, read off what the agent is shown."""

    @abc.abstractmethod
    def guess(self, rng: random.Random, notes: dict[str, str]) -> Move | None:
        """Returns a random move that makes use of what is known; None where nothing is."""

    @abc.abstractmethod
    def knows(self, notes: dict[str, str]) -> bool:
        """Whether someone with these notes could score 1 with the next move."""

    @abc.abstractmethod
    def plan(self) -> Move:
        """Returns the expert's next move, read off what the agent is shown."""

    def partial(self) -> float:
        """Returns the score of an episode that stops now, by 'finish' or at the turn limit."""
        return 0.0

    # The contract of text environments.

    def tasks(self, split: str) -> list[str]:
        """Returns the task ids of split 'train' or 'test'; no puzzle is in both."""
        if split not in ('train', 'test'):
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        held_out = split == 'test'
        return [task for i, task in enumerate(puzzles(type(self), self.level)) if (i % TEST_SHARE == 0) == held_out]

    def reset(self, *, seed: int = 0, options: dict | None = None) -> tuple[list[Message], dict]:
        """Starts ``options['task']``, by default a training task drawn by the seed, which drives the user's wording.

        Raises:
            ValueError: the task is none of this gym and level.
        """
        task = (options or {}).get('task')
        if task is None:
            task = random.Random(seed).choice(self.tasks('train'))
        known = puzzles(type(self), self.level)
        if task not in known:
            raise ValueError(
                f'unknown task {task!r} of {self.name} at level {self.level}; take one of env.tasks(split)'
            )
        self.puzzle, self.rng = known[task], random.Random(f'{seed} {task}')
        self.manner = Manner(self.user_style, self.rng)
        self.notes: dict[str, str] = {}
        self.num_turns, self.running = 0, True
        system = {'role': 'system', 'content': f'{self.goal} Make moves by {TOOL}.'}
        return [system, {'role': 'user', 'content': self.open()}], {'tools': [self.schema], 'task': task}

    def step(self, text: str) -> tuple[list[Message], float, bool, bool, dict]:
        """Answers the agent's text.

        Raises:
            ValueError: there is no episode to go on with.
        """
        if not self.running:
            raise ValueError('no episode is running: call reset first')
        self.num_turns += 1
        reply, is_malformed = self._answer(text)
        self.notes |= reply.notes
        terminated = reply.score is not None
        truncated = not terminated and self.num_turns >= self.max_turns
        info, reward = step_info(is_error=reply.is_error, is_malformed=is_malformed), 0.0
        if terminated or truncated:
            success = terminated and reply.score == 1.0
            gained = reply.score if self.reward == 'share' else float(success)
            reward = gained - self.turn_cost * self.num_turns if terminated else self.score(self.num_turns)
            info |= {'success': success, 'outcome': reward}
            self.running = False
        return [{'role': 'tool', 'content': reply.text}], reward, terminated, truncated, info

    def score(self, num_turns: int) -> float:
        """Returns the outcome of the episode if it is cut after so many turns; see ``envs.text.Scored``."""
        return (self.partial() if self.reward == 'share' else 0.0) - self.turn_cost * num_turns

    def tell(self, text: str, value: str, *, notes: dict[str, str]) -> Reply:
        """Returns the user's answer to a question, a plain ``text`` whose news is ``value``, or how he evades it."""
        evasion = self.manner.evade()
        return Reply(self.manner.say(text, value), notes=notes) if evasion is None else Reply(evasion)

    def _answer(self, text: str) -> tuple[Reply, bool]:
        """Returns the reply, and whether the text was no move at all."""
        action = parse(text, [self.schema])
        if action.error or action.name is None:
            return refuse(action.error or f'call the tool {TOOL}'), True
        if action.arguments['choice'] == FINISH:
            return Reply('The session is over.', score=self.partial()), False
        return self.reply(action.arguments['choice'], action.arguments.get('content', '')), False

    # Reference players, and what a model from random weights is taught.

    def expert(self) -> str:
        """Returns the expert's next action; it reads no more than the agent is shown."""
        return written(self.plan())

    def random_action(self, rng: random.Random) -> str:
        """Returns a random legal action: a question or, as often, a move that uses what is known."""
        move = self.guess(rng, self.notes) if rng.random() < 0.5 else None
        return written(move or rng.choice(self.questions()))

    def corpus(self) -> list[str]:
        """Returns texts on which a tokenizer is trained, from training tasks only."""
        return teach.corpus(self.clone())

    def special_tokens(self) -> list[str]:
        """Returns words and the fixed parts of calls, each to be one token."""
        fixed = [part for choice in self.choices for part in written((choice, '|')).split('|')]
        return list(dict.fromkeys([*self.words, *fixed]))

    def example(self, rng: random.Random) -> tuple[list[Message], str]:
        """Draws one warm-start transition; see ``teach.example``."""
        return teach.example(self.clone(), rng)

    def clone(self) -> 'Gym':
        """Returns a fresh gym with the same knobs, so that drawing examples leaves a running episode alone."""
        knobs = {'turn_limit': self.max_turns, 'turn_cost': self.turn_cost, 'reward': self.reward}
        return type(self)(self.level, **knobs, user_style=self.user_style)


@functools.cache
def puzzles(gym: type[Gym], level: int) -> dict[str, Any]:
    """Returns task id -> puzzle of the first seeds; those whose puzzle has occurred are left out."""
    dealer, dealt, seen = gym(level), {}, set()
    for seed in range(20 * NUM_TASKS):
        puzzle = dealer.deal(random.Random(f'{gym.name} {level} {seed}'))  # a string seeds alike in every process
        if puzzle not in seen:
            seen.add(puzzle)
            dealt[f'{gym.name}-{seed}'] = puzzle
        if len(dealt) == NUM_TASKS:
            break
    return dealt
