"""UserRL's own gyms (github.com/SalesforceAIResearch/UserRL, Apache-2.0) as text environments."""

import collections
import contextlib
import importlib
import os
import random
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

from infopo_jax.envs.gymnasium import Gymnasium, text_of
from infopo_jax.envs.text import Message
from infopo_jax.envs.tools import parse
from infopo_jax.envs.usergym import moves, tasks as tasks_lib
from infopo_jax.envs.usergym.eight import EIGHT, ERRORS
from infopo_jax.users import UserFailed

_SOURCE = 'https://github.com/SalesforceAIResearch/UserRL'
_NO_KEY = 'none'  # what a gym is given for an endpoint that wants none
_lock = threading.Lock()


class UserRL(Gymnasium):
    """One of UserRL's gyms; implements ``TextEnv``, and ``Teachable`` as far as syntax goes.

    The outcome is the sum of rewards, as in InfoPO (UserRL itself takes a mean over turns). A gym's language model is
    that of ``user``, else what the gym takes from OPENAI_API_KEY and OPENAI_BASE_URL. Where it fails, the gym answers
    with canned text and reward 0: here the episode ends in ``UserFailed``, so that it is tried again or masked;
    ``num_failures`` counts them by gym. What a gym raises comes out as RuntimeError, and no message repeats an API key.

    Args:
        gym: a key of ``EIGHT``.
        data: the tasks; see ``tasks.load``.
        turn_limit: moves per episode; UserRL's and InfoPO's 16.
        reward_line: ends every reply with the reward of its turn, as UserRL does in training and not in evaluation.
        user: an ``OpenAIUser``, whose endpoint and model the gym is given; it asks by itself.

    Raises:
        ValueError: the package is missing or cannot be used (the message says how to install it), the gym needs a
            language model behind an endpoint and has none, or there are no tasks.
    """

    num_failures: ClassVar[collections.Counter] = collections.Counter()

    def __init__(
        self, gym: str, *, data: str | None = None, turn_limit: int = 16, reward_line: bool = False, user: Any = None
    ):
        self.spec = EIGHT[gym]
        if user is not None and not hasattr(user, 'endpoint'):
            raise ValueError(f"gym {gym!r} asks its language model by itself, at an endpoint: config.user.name must be "
                             "'openai', with config.user.model and base_url")  # fmt: skip
        try:
            self._package = importlib.import_module(self.spec.module)
        except Exception as error:  # SearchGym reads a key at import, and raises whatever comes
            raise ValueError(
                f'gym {gym!r} needs the package {self.spec.module} ({type(error).__name__}: {error}): '
                f'git clone {_SOURCE} && pip install -e ./UserRL/gyms/{gym}'
            ) from error
        if self.spec.needs_model and user is None and not os.environ.get('OPENAI_API_KEY'):
            raise ValueError(f"gym {gym!r} asks a language model: set config.user.name='openai' and config.user.model, "
                             'or the variable OPENAI_API_KEY')  # fmt: skip
        super().__init__(
            f'{self.spec.module}:{self.spec.env}', turn_limit=turn_limit, outcome_range=self.spec.outcome_range
        )
        self.gym, self._user, self._reward_line, self._key = gym, user, reward_line, ''
        self._tasks = tasks_lib.load(gym, data)
        self._tools = [
            moves.schema('; '.join(('Makes one move in the environment', self.spec.rules)), self.spec.choices)
        ]

    def tasks(self, split: str) -> list[str]:
        """Returns the task names of split 'train' or 'test'.

        Raises:
            ValueError: another split, or one of which the data has nothing.
        """
        if split not in ('train', 'test'):
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        names = [name for name, task in self._tasks.items() if task.split == split]
        if not names:
            raise ValueError(
                f'the data of {self.gym} has no {split} tasks; point data to a folder that has both splits'
            )
        return names

    def _start(self, task: str) -> tuple[Any, list[Message]]:
        if task not in self._tasks:
            raise ValueError(f'unknown task {task!r} of {self.gym}; take one of env.tasks(split)')
        with self._censored():
            env = self._make(config=self._config(task))
            observation, _ = env.reset()
        prompt = self._tasks[task].prompt
        if prompt:
            return env, [dict(message) for message in prompt]
        intro = '\n'.join(str(observation[field]) for field in self.spec.intro if observation.get(field))
        rules = {'role': 'system', 'content': self.spec.rules}
        return env, [rules, {'role': 'user', 'content': intro or text_of(observation)}]

    def _config(self, task: str) -> Any:
        """Returns the gym's own config for one task, as UserRL sets it up for training."""
        config = self._package.get_default_config()
        settings = {'max_steps': self.max_turns, 'data_mode': 'single', 'data_source': task} | self.spec.settings
        if self.gym == 'TauGym':
            settings['task_category'] = 'retail' if 'retail' in task else 'airline'
            settings['task_split'] = 'train' if 'train' in task else 'test'
        if self._user is not None and self.spec.needs_model:
            endpoint = self._user.endpoint()
            settings['user_model' if self.gym == 'TauGym' else 'model_name'] = endpoint['model']
            settings['base_url'] = endpoint['base_url']
            settings['api_key'] = os.environ.get(endpoint['api_key_env'] or '', '').strip() or _NO_KEY
        for name, value in settings.items():
            setattr(config, name, value)
        if self.gym == 'TauGym' and 'base_url' in settings:
            config.__post_init__()  # sets the variables OPENAI_API_KEY and OPENAI_BASE_URL, all that its client reads
        self._key = str(getattr(config, 'api_key', None) or '')
        return config

    @contextlib.contextmanager
    def _censored(self) -> Iterator[None]:
        """Raises what a gym raises again without API keys, which clients of endpoints and headers quote."""
        try:
            yield
        except Exception as error:
            told = self._redact(f'{self.gym}: {type(error).__name__}: {error}')
            raise RuntimeError(told).with_traceback(error.__traceback__) from None

    def _redact(self, text: str) -> str:
        """Returns a text without the gym's key, and without those that environment variables hold."""
        found = {self._key, *(value.strip() for name, value in os.environ.items() if name.endswith('API_KEY'))}
        for key in sorted(found - {'', _NO_KEY}, key=len, reverse=True):  # one may begin as another does
            text = text.replace(key, '***')
        return text

    def _action(self, text: str) -> tuple[str, str | None]:
        call = parse(text, self._tools)
        if call.error or call.name is None:
            return '', call.error or f'call the tool {moves.TOOL}'
        choice, content = call.arguments['choice'], call.arguments.get('content', '')
        if choice == moves.FINISH:
            return '[finish]', None
        return (content if content.startswith(f'[{choice}]') else f'[{choice}] {content}'), None

    def _play(self, action: str) -> tuple[Any, Any, Any, Any, dict]:
        with self._censored():
            return super()._play(action)

    def _content(self, text: str, reward: float, info: dict) -> str:
        if self.spec.failed(self._env, text, info):
            with _lock:
                self.num_failures[self.gym] += 1
            self.close()
            count, told = self.num_failures[self.gym], self._redact(text)
            raise UserFailed(f'{self.gym}: its language model failed {count} times; it said {told!r}')
        return f'{text}\nReward: {reward}' if self._reward_line else text

    def _is_error(self, text: str, info: dict) -> bool:
        return super()._is_error(text, info) or text.startswith(ERRORS)

    def _verdict(self, terminated: bool, truncated: bool, info: dict) -> tuple[bool, bool]:
        """The gyms set both flags at their limit, also where the last move has won."""
        won = bool(self.spec.won(self._env))
        return won or (terminated and not truncated), won

    def special_tokens(self) -> list[str]:
        """Returns the fixed parts of calls, each to be one token."""
        return list(dict.fromkeys(part for c in self.spec.choices for part in moves.written((c, '|')).split('|')))

    def _random_call(self, rng: random.Random, words: list[str]) -> str:
        if self.gym != 'FunctionGym':
            return moves.written((rng.choice(self.spec.choices), ' '.join(rng.choices(words, k=3))))
        numbers = ' '.join(str(rng.randint(0, 9)) for _ in range(4))
        return moves.written(rng.choice((('action', numbers), ('search', 'test'), ('answer', numbers[0]))))
