"""The real WebShop, in its text mode: the package ``web_agent_site`` in this process, or a server at an address."""

import functools
import importlib
import random
import uuid
from typing import Any

from infopo_jax.envs.text import Message, step_info
from infopo_jax.envs.webshop import pages
from infopo_jax.envs.webshop.env import RULES
from infopo_jax.envs.webshop.site import Site

# The published split: goals 0-499 test, 500-1499 development, the rest training.
NUM_TEST, FIRST_TRAIN = 500, 1500
NUM_GOALS = 12_087  # human instructions with all products
_INSTALL = (
    'WebShop is not importable ({}).\nInstall it (Java, Python 3.8-3.10 pins, and its data): git clone '
    'https://github.com/princeton-nlp/WebShop && cd WebShop && ./setup.sh -d all, then put that folder on PYTHONPATH;\n'
    'or run its server and name it: --config.env.data=http://127.0.0.1:3000; or take the shop that needs nothing: '
    '--config.env.name=webshop'
)


class WebShopServer:
    """WebShop with its own products, goals and rewards; implements ``TextEnv``, for models that can read.

    A task is the index of a goal, in the published order and split. Available actions are listed under each page; an
    action that does nothing is answered with an error, where the real one shows the page again.

    Args:
        data: address of a running server, such as 'http://127.0.0.1:3000'; None takes the installed package, which
            loads its products once per process.
        turn_limit: turns of the agent.
        num_products: products that the package loads (100, 1000, 100000; None: all); a server has its own number.
        num_goals: goals of a server; the package counts its own.

    Raises:
        ValueError: a knob outside its range; at ``tasks`` and ``reset``, the package is missing.
    """

    outcome_range = 1.0
    placeholder = 'No information found.'

    def __init__(
        self,
        *,
        data: str | None = None,
        turn_limit: int = 9,
        num_products: int | None = None,
        num_goals: int = NUM_GOALS,
    ):
        if data is not None and not data.startswith(('http://', 'https://')):
            raise ValueError(f"data must be the address of a server, such as 'http://127.0.0.1:3000', got {data!r}")
        if turn_limit < 1 or num_goals < 2:
            raise ValueError(
                f'turn_limit must be at least 1 and num_goals at least 2, got {turn_limit!r}, {num_goals!r}'
            )
        self.max_turns = turn_limit
        self._data, self._num_products, self._num_goals = data, num_products, num_goals
        self._shop: _Package | _Server | None = None
        self._running = False

    def tasks(self, split: str) -> list[int]:
        """Returns the goals of split 'train' or 'test'; a shop of 1500 goals or fewer keeps one in five for testing."""
        if split not in ('train', 'test'):
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        count = self._num_goals if self._data else len(_package(self._num_products).server.goals)
        num_test, first_train = (NUM_TEST, FIRST_TRAIN) if count > FIRST_TRAIN else (count // 5, count // 5)
        return list(range(num_test) if split == 'test' else range(first_train, count))

    def reset(self, *, seed: int = 0, options: dict | None = None) -> tuple[list[Message], dict]:
        """Starts ``options['task']``, by default a training goal drawn by the seed.

        Raises:
            ConnectionError: no server answers.
        """
        task = (options or {}).get('task')
        task = random.Random(seed).choice(self.tasks('train')) if task is None else int(task)
        self._shop = self._shop or (_Server(self._data) if self._data else _Package(self._num_products))
        text = self._shop.open(task)
        self._num_turns, self._running = 0, True
        return [{'role': 'system', 'content': RULES}, {'role': 'user', 'content': self._view(text)}], {'task': task}

    def step(self, text: str) -> tuple[list[Message], float, bool, bool, dict]:
        """Does what the text says.

        Raises:
            ValueError: there is no episode to go on with.
            ConnectionError: the server does not answer.
        """
        if not self._running:
            raise ValueError('no episode is running: call reset first')
        self._num_turns += 1
        action = pages.parse(text)
        verb, argument = action or ('', '')
        can_search, clickables = self._shop.actions()
        is_error = not (verb == 'search' and argument and can_search) and not (
            verb == 'click' and argument in clickables
        )
        earned = None
        if is_error:
            content = self._view('Error: that is not among the available actions.')
        else:
            page, earned = self._shop.act(verb, argument)
            content = self._view(page)
        terminated = earned is not None
        truncated = not terminated and self._num_turns >= self.max_turns
        outcome, info = float(earned or 0.0), step_info(is_error=is_error, is_malformed=action is None)
        if terminated or truncated:
            info |= {'success': outcome == 1.0, 'outcome': outcome}
            self._running = False
        return [{'role': 'user', 'content': content}], outcome, terminated, truncated, info

    def _view(self, text: str) -> str:
        can_search, clickables = self._shop.actions()
        actions = ['search[keywords]'] * can_search + [f'click[{name}]' for name in clickables]
        return f'{text}\nAvailable actions: {", ".join(actions)}'


class _Server:
    """The shop behind an address; each episode is a session of its own."""

    def __init__(self, address: str):
        self._site = Site(address)

    def open(self, task: int) -> str:
        return self._site.open(f'fixed_{uuid.uuid4().hex}_{task}').text

    def actions(self) -> tuple[bool, list[str]]:
        return self._site.page.search is not None, list(self._site.page.clickables)

    def act(self, verb: str, argument: str) -> tuple[str, float | None]:
        """Returns the page and, once something is bought, the reward."""
        page = self._site.search(argument) if verb == 'search' else self._site.click(argument)
        return page.text, page.reward


class _Package:
    """The shop in this process: one product store for all episodes, a browser for each."""

    def __init__(self, num_products: int | None):
        server = _package(num_products).server
        prefix = f'{uuid.uuid4().hex}_'  # sessions of two episodes on one goal must not meet
        self._env = _text_env()(**_OPTIONS, num_products=num_products, server=server, session_prefix=prefix)

    def open(self, task: int) -> str:
        return self._env.reset(session=task)[0]

    def actions(self) -> tuple[bool, list[str]]:
        found = self._env.get_available_actions()
        return found['has_search_bar'], [name for name in found['clickables'] if name != 'search']

    def act(self, verb: str, argument: str) -> tuple[str, float | None]:
        """Returns the page and, once something is bought, the reward."""
        page, reward, done, _ = self._env.step(f'{verb}[{argument}]')
        return page, reward if done else None


_OPTIONS: dict[str, Any] = {'observation_mode': 'text', 'human_goals': True}


def _text_env() -> type:
    """Returns WebShop's own environment class.

    Raises:
        ValueError: it cannot be imported; the message says how to install it.
    """
    try:
        return importlib.import_module('web_agent_site.envs.web_agent_text_env').WebAgentTextEnv
    except Exception as error:  # it imports Java's bindings and reads files as it is imported
        raise ValueError(_INSTALL.format(f'{type(error).__name__}: {error}')) from error


@functools.cache
def _package(num_products: int | None) -> Any:
    """Returns an environment whose ``server`` holds products, goals and search index."""
    return _text_env()(**_OPTIONS, num_products=num_products)
