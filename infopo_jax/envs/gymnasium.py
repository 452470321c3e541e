"""Any installed Gymnasium environment with text in and out (https://gymnasium.farama.org), by id or import path.

    envs.make('gymnasium', gym='FrozenText-v0', actions='move=go {direction}; look=look', prompt='Reach the goal.')
    envs.make('gymnasium', gym='my_package.games:Maze')

The package gymnasium is needed for ids only, and imported then.
"""

import importlib
import inspect
import random
import string
from collections.abc import Callable, Mapping
from typing import Any

from infopo_jax.envs.text import Message, step_info
from infopo_jax.envs.tools import parse, render

_TEST_SHARE = 4  # training seeds for one test seed


class Gymnasium:
    """A Gymnasium environment as a ``TextEnv``; also ``Teachable``, as far as syntax goes.

    Observations are strings, or dicts with a string under 'feedback'. A task is a seed of the environment's own
    ``reset``. The outcome is the sum of rewards; success is info['success'] or info['is_success'] where the environment
    says so, else an outcome of at least ``success_at``, and only if the episode terminated.

    Args:
        gym: an id that Gymnasium knows ('Name-v0', 'module:Name-v0'), or 'module:name' of a class or function.
        actions: how tool calls become action strings, as 'tool=template; tool=template' or a mapping from tool to
            template; each ``{word}`` of a template is a string argument of the tool. None: what the agent says is the
            action.
        prompt: the system message: what the agent is to do. None: none.
        turn_limit: actions per episode.
        num_tasks: training tasks; a quarter as many are for testing.
        success_at: the least sum of rewards that counts as success.
        outcome_range: largest minus smallest sum of rewards.

    Raises:
        ValueError: there is no such environment (the message names what to install), or a knob outside its range.
    """

    placeholder = 'No information found.'

    def __init__(
        self,
        gym: str | None = None,
        *,
        actions: str | Mapping[str, str] | None = None,
        prompt: str | None = None,
        turn_limit: int = 16,
        num_tasks: int = 256,
        success_at: float = 1.0,
        outcome_range: float = 1.0,
    ):
        if not gym:
            raise ValueError("say which environment: gym='Name-v0', or gym='module:name' of a class or function")
        for knob, value in {'turn_limit': turn_limit, 'num_tasks': num_tasks}.items():
            if value < 1:
                raise ValueError(f'{knob} must be at least 1, got {value!r}')
        if outcome_range <= 0:
            raise ValueError(f'outcome_range must be above 0, got {outcome_range!r}')
        self.max_turns, self.num_tasks = turn_limit, num_tasks
        self.success_at, self.outcome_range = success_at, outcome_range
        self._templates = _templates(actions)
        self._tools = [_schema(tool, template) for tool, template in self._templates.items()]
        self._prompt = prompt
        self._name, self._make = gym, maker(gym)
        self._env: Any = None

    def tasks(self, split: str) -> list[int]:
        """Returns the seeds of split 'train' or 'test'; none is in both."""
        if split not in ('train', 'test'):
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        held_out = range(self.num_tasks, self.num_tasks + max(1, self.num_tasks // _TEST_SHARE))
        return list(range(self.num_tasks) if split == 'train' else held_out)

    def reset(self, *, seed: int = 0, options: dict | None = None) -> tuple[list[Message], dict]:
        """Starts the task ``options['task']``, by default a training task drawn by ``seed``."""
        task = (options or {}).get('task')
        if task is None:
            task = random.Random(seed).choice(self.tasks('train'))
        self.close()
        self._env, messages = self._start(task)
        self._total, self._num_turns = 0.0, 0
        return messages, {'tools': self._tools, 'task': task}

    def step(self, text: str) -> tuple[list[Message], float, bool, bool, dict]:
        """Passes the agent's action on; what is no call of a tool is answered here, and the environment hears nothing.

        Raises:
            ValueError: there is no episode to go on with.
        """
        if self._env is None:
            raise ValueError('no episode is running: call reset first')
        self._num_turns += 1
        action, error = self._action(text)
        if error:
            content, reward, terminated, truncated, theirs = f'Error: {error}.', 0.0, False, False, {'is_error': True}
        else:
            observation, reward, terminated, truncated, theirs = self._play(action)
            reward = float(reward)
            content = self._content(text_of(observation), reward, theirs)
        self._total += reward
        terminated, success = self._verdict(bool(terminated), bool(truncated), theirs)
        truncated = not terminated and (bool(truncated) or self._num_turns >= self.max_turns)
        info = step_info(is_error=self._is_error(content, theirs), is_malformed=bool(error))
        if terminated or truncated:
            info |= {'success': terminated and success, 'outcome': self._total}
            self.close()
        return [{'role': 'tool' if self._tools else 'user', 'content': content}], reward, terminated, truncated, info

    def score(self, num_turns: int) -> float:
        """Returns the sum of rewards so far; see ``envs.text.Scored``."""
        return self._total

    def close(self) -> None:
        """Closes the environment of the episode, if there is one."""
        env, self._env = self._env, None
        getattr(env, 'close', lambda: None)()

    def corpus(self) -> list[str]:
        """Returns some openings of training tasks, calls and errors, on which a tokenizer is trained."""
        rng, texts = random.Random(0), []
        for _ in range(20):
            history, target = self.example(rng)
            texts += [*(message['content'] for message in history), target]
        return [*texts, *[self.placeholder, f'Error: {self._action("")[1]}.'] * 20]

    def special_tokens(self) -> list[str]:
        """Returns the fixed parts of calls, each to be one token."""
        calls = [render(tool, dict.fromkeys(_words(text), '|')) for tool, text in self._templates.items()]
        return list(dict.fromkeys('|'.join(calls).split('|') if calls else ()))

    def example(self, rng: random.Random) -> tuple[list[Message], str]:
        """Draws an opening and a random call, whose arguments are words of the opening: syntax and copying."""
        env, history = self._start(rng.choice(self.tasks('train')))
        getattr(env, 'close', lambda: None)()
        return history, self._random_call(rng, history[-1]['content'].split() or ['look'])

    # What a family of environments does its own way.

    def _start(self, task: Any) -> tuple[Any, list[Message]]:
        """Returns a fresh environment at the start of a task, and the opening messages."""
        env = self._made()
        observation, _ = env.reset(seed=int(task))
        system = [{'role': 'system', 'content': self._prompt}] if self._prompt else []
        return env, [*system, {'role': 'user', 'content': text_of(observation)}]

    def _made(self) -> Any:
        """Returns a fresh environment.

        Raises:
            ValueError: what goes by the name makes none, or not without arguments.
        """
        try:
            inspect.signature(self._make).bind()
        except TypeError as error:
            raise ValueError(f'gym {self._name!r} must make an environment without arguments: {error}') from None
        except ValueError:  # some of what is written in C shows no signature
            pass
        env = self._make()
        if not (hasattr(env, 'reset') and hasattr(env, 'step')):
            raise ValueError(f'gym {self._name!r} must make something with reset and step, got {type(env).__name__}')
        return env

    def _action(self, text: str) -> tuple[str, str | None]:
        """Returns the action string for what the agent said, and what is wrong with it, if anything."""
        if not self._tools:
            return text, None
        call = parse(text, self._tools)
        if call.error or call.name is None:
            return '', call.error or f'call one of {", ".join(self._templates)}'
        return self._templates[call.name].format(**call.arguments), None

    def _play(self, action: str) -> tuple[Any, Any, Any, Any, dict]:
        """Returns what the environment's own step returns."""
        return self._env.step(action)

    def _content(self, text: str, reward: float, info: dict) -> str:
        """Returns what the agent is shown of an observation's text."""
        return text

    def _is_error(self, text: str, info: dict) -> bool:
        """Whether a reply is an error message."""
        return bool(info.get('is_error', False))

    def _verdict(self, terminated: bool, truncated: bool, info: dict) -> tuple[bool, bool]:
        """Returns whether the episode has come to its own end, and whether that is a success."""
        return terminated, bool(info.get('success', info.get('is_success', self._total >= self.success_at)))

    def _random_call(self, rng: random.Random, words: list[str]) -> str:
        """Returns a legal action whose arguments are some of ``words``."""
        if not self._templates:
            return rng.choice(words)
        tool = rng.choice(list(self._templates))
        return render(tool, {word: rng.choice(words) for word in _words(self._templates[tool])})


def maker(gym: str) -> Callable[[], Any]:
    """Returns what makes a fresh environment.

    Args:
        gym: 'module:name' of a class or function, or an id of Gymnasium's, which may have its module in front, too.

    Raises:
        ValueError: nothing goes by that name; the message says what to install.
    """
    module, colon, name = gym.partition(':')
    if colon:
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ImportError as error:
            raise ValueError(f'gym {gym!r}: cannot import {module!r} ({error}); install it here') from error
        if found is not None:
            return found
    name = name or gym  # what has just been imported may have registered it
    try:
        import gymnasium
    except ImportError as error:
        raise ValueError(f"gym {gym!r} needs the package gymnasium: pip install 'gymnasium>=1,<2'") from error
    try:
        gymnasium.spec(name)
    except (gymnasium.error.Error, ImportError) as error:
        raise ValueError(f"gym {gym!r}: {error}. Name its package in front: gym='package:Name-v0'") from error
    return lambda: _unwrapped_if_old(gymnasium.make(name, disable_env_checker=True))


def _unwrapped_if_old(env: Any) -> Any:
    """Takes off Gymnasium's wrappers where the environment's reset predates ``options``, which they always pass."""
    parameters = inspect.signature(env.unwrapped.reset).parameters.values()
    modern = any(p.name == 'options' or p.kind == inspect.Parameter.VAR_KEYWORD for p in parameters)
    return env if modern else env.unwrapped


def text_of(observation: Any) -> str:
    """Returns the text of an observation.

    Raises:
        ValueError: it has none.
    """
    text = observation.get('feedback') if isinstance(observation, Mapping) else observation
    if not isinstance(text, str):
        got = f'a dict of {list(observation)}' if isinstance(observation, Mapping) else type(observation).__name__
        raise ValueError(
            f"an observation must be a string or a dict with a string under 'feedback', got {got}; wrap it "
            'in a gymnasium.ObservationWrapper that writes text'
        )
    return text


def _templates(actions: str | Mapping[str, str] | None) -> dict[str, str]:
    """Reads ``actions``; see ``Gymnasium``."""
    if not actions:
        return {}
    if isinstance(actions, str):
        pairs = [part.partition('=') for part in actions.split(';') if part.strip()]
        actions = {tool.strip(): template.strip() for tool, _, template in pairs}
    for tool, template in actions.items():
        if not (template and all(name.isidentifier() for name in (tool, *_words(template)))):
            raise ValueError(f"actions must be like 'move=go {{direction}}; look=look', got {actions!r}")
    return dict(actions)


def _words(template: str) -> list[str]:
    """Returns the names in braces of a template."""
    return list(dict.fromkeys(name for _, name, _, _ in string.Formatter().parse(template) if name is not None))


def _schema(tool: str, template: str) -> dict:
    words = _words(template)
    properties = {word: {'type': 'string'} for word in words}
    parameters = {'type': 'object', 'properties': properties, 'required': words}
    return {'type': 'function', 'function': {'name': tool, 'description': template, 'parameters': parameters}}
