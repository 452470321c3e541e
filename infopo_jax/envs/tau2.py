"""tau2-bench (arXiv 2506.07982, github.com/sierra-research/tau2-bench), the real package, in an interpreter of its own.

    git clone https://github.com/sierra-research/tau2-bench
    python3.12 -m venv tau2-venv && tau2-venv/bin/pip install './tau2-bench[gym]'
    export TAU2_PYTHON=$PWD/tau2-venv/bin/python TAU2_DATA_DIR=$PWD/tau2-bench/data

The package on the Python index that is named tau2 is another one. Results are not comparable across versions: the
version stands in the info of ``reset``.
"""

import hashlib
import os
import pathlib
import sys
from typing import Any

from infopo_jax.envs.remote import RemoteEnv, RemoteError, RemoteTimeout
from infopo_jax.envs.text import Message, step_info
from infopo_jax.envs.tools import Action, parse
from infopo_jax.users import UserFailed

DOMAINS = ('airline', 'retail', 'telecom', 'telecom-solo')
_WORKER = pathlib.Path(__file__).with_name('tau2_worker.py')
_HOW = (
    '\nInstall: git clone https://github.com/sierra-research/tau2-bench && python3.12 -m venv tau2-venv && '
    "tau2-venv/bin/pip install './tau2-bench[gym]' (not the package tau2 of the Python index, which is another one);\n"
    'then set config.env.python (or TAU2_PYTHON) to tau2-venv/bin/python and config.env.data_dir (or TAU2_DATA_DIR) to '
    'tau2-bench/data'
)
_NO_USER = 'there is no user to talk to; call a tool, and done once the ticket is solved'
_SUCCESS = 1.0 - 1e-6  # the package's own bound


class Tau2:
    """Customer support in tau2-bench; implements ``TextEnv``. Every episode has a process of its own.

    The system prompt is the package's own, with its policy; its tools are in the info of ``reset``, ``done`` among
    them, which ends the talk. An agent's text is parsed as everywhere (see ``tools.parse``): what is malformed, calls
    an unknown tool or has arguments of a wrong type is answered here, and the package never hears of it. Text is said
    to the user, whatever it looks like; text beside a call is dropped: the package has either. It ends a talk after ten
    errors of its tools. The outcome is the package's own evaluation; a talk that does not end by itself scores 0, as
    there.

    Args:
        domain: one of ``DOMAINS``; 'telecom-solo' is 'telecom' with ``solo``.
        solo: the agent reads a ticket, has the user's tools as well, and talks to nobody (telecom only); None: if there
            is no ``user``.
        user: an ``OpenAIUser``, whose endpoint and model the package's own user simulator is given; it asks by itself,
            through litellm.
        turn_limit: turns of the agent.
        max_steps: messages of all parties after which the package cuts the talk.
        evaluation: 'all' (the package's default; 40 tasks of retail ask a language model to judge) or 'env' (state of
            the world only).
        judge_model: the language model that judges, at the user's endpoint; None: the package's default.
        python: the interpreter that has the package; None: the variable TAU2_PYTHON, else this one.
        data_dir: the package's data; None: the variable TAU2_DATA_DIR, else where the package looks.
        call_timeout: seconds that one answer may take; a run sets nine tenths of config.rollout.call_seconds. It is the
            user who failed where one takes longer, unless there is none.

    Raises:
        ValueError: a value that does not exist, or a domain that needs a user and has none.
    """

    outcome_range = 1.0
    placeholder = 'No information found.'

    def __init__(
        self,
        domain: str = 'telecom',
        *,
        solo: bool | None = None,
        user: Any = None,
        turn_limit: int = 50,
        max_steps: int = 200,
        evaluation: str = 'all',
        judge_model: str | None = None,
        python: str | None = None,
        data_dir: str | None = None,
        call_timeout: float = 120.0,
    ):
        if domain not in DOMAINS:
            raise ValueError(f'domain must be one of {DOMAINS}, got {domain!r}')
        if evaluation not in ('all', 'env'):
            raise ValueError(f"evaluation must be 'all' or 'env', got {evaluation!r}")
        if min(turn_limit, max_steps) < 1:
            raise ValueError(f'turn_limit and max_steps must be at least 1, got {turn_limit!r} and {max_steps!r}')
        if solo is None:
            solo = domain == 'telecom-solo' or (domain == 'telecom' and user is None)
        if solo != (domain == 'telecom-solo') and domain != 'telecom':
            raise ValueError(
                f'domain {domain!r} cannot have solo={solo}: only telecom can be played solo or with a user'
            )
        if not solo and not hasattr(user, 'endpoint'):
            raise ValueError(f"domain {domain!r} needs a language model as its user: set config.user.name='openai' and "
                             'config.user.model, or play telecom with solo=True')  # fmt: skip
        self.domain, self.solo, self.max_turns = domain.removesuffix('-solo'), solo, turn_limit
        self.python = python or os.environ.get('TAU2_PYTHON') or sys.executable
        knobs = {
            'domain': self.domain,
            'solo': solo,
            'evaluation': evaluation,
            'max_steps': max_steps,
            'user': {} if solo else user.endpoint(),
            'judge': judge_model,
        }
        environ = {'TAU2_DATA_DIR': os.path.abspath(os.path.expanduser(data_dir))} if data_dir else {}
        self._remote = RemoteEnv(
            self.python, f'{_WORKER}:Simulation', knobs, environ=environ, timeout=call_timeout, start_timeout=300.0
        )
        self._tools: list[dict] | None = None

    def tasks(self, split: str) -> list[str]:
        """Returns the task ids of the package's own split 'train' or 'test'.

        Raises:
            ValueError: another split; the package or its data is missing (the message says how to install it).
        """
        if split not in ('train', 'test'):
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        try:
            return self._call('tasks', split=split)
        finally:
            self._remote.close()

    def reset(self, *, seed: int = 0, options: dict | None = None) -> tuple[list[Message], dict]:
        """Starts ``options['task']``, by default the first training task.

        A user who is a language model is asked with a seed drawn from ``seed`` and ``options['member']``, if given.

        Raises:
            ValueError: the task is unknown; or see ``tasks``.
            UserFailed: the user's language model gave no answer.
            RemoteError: the package failed.
        """
        options = options or {}
        task = options.get('task')
        task = self.tasks('train')[0] if task is None else str(task)
        self._remote.close()  # the last episode's thread, wherever it waits, ends with its process
        digest = hashlib.sha256(f'{seed}/{options.get("member", 0)}'.encode()).digest()
        opening = self._call('reset', task=task, seed=int.from_bytes(digest[:4], 'big') >> 1)
        self._tools, self._num_turns = opening['tools'], 0
        info = {'tools': self._tools, 'task': task, 'domain': self.domain, 'version': opening['version']}
        return opening['messages'], info

    def step(self, text: str) -> tuple[list[Message], float, bool, bool, dict]:
        """Answers the agent's text: a message of the user or a tool; once the episode has ended, scores it.

        Raises:
            ValueError: there is no episode to go on with.
            UserFailed, RemoteError: see ``reset``.
        """
        if self._tools is None:
            raise ValueError('no episode is running: call reset first')
        self._num_turns += 1
        action = parse(text, self._tools)
        error = self._refusal(action)
        if error:
            answer = {'role': 'tool', 'content': f'Error: {error}.', 'terminated': False}
        else:
            call = {'name': action.name, 'arguments': action.arguments}
            answer = self._call('step', action={'text': action.text} if action.name is None else {'call': call})
        return self._result(answer, is_malformed=error is not None)

    def close(self) -> None:
        """Ends the episode's process."""
        self._tools = None
        self._remote.close()

    def gold(self, task: str) -> dict[str, list]:
        """Returns {'actions': [[requestor, name, arguments], ...], 'say': [text, ...]}, by which a task is solved."""
        return self._call('gold', task=task)

    def _refusal(self, action: Action) -> str | None:
        """Returns why an action is not passed on; None if it is."""
        if action.error or action.name is not None:
            return action.error
        if self.solo:
            return _NO_USER
        return None if action.text else 'say something, or call a tool'

    def _result(self, answer: dict, *, is_malformed: bool) -> tuple[list[Message], float, bool, bool, dict]:
        is_error = answer['role'] == 'tool' and answer['content'].startswith('Error:')
        messages = [{'role': answer['role'], 'content': answer['content']}]
        ended, reason = answer['terminated'], answer.get('reason', 'max_turns')
        truncated = reason in ('max_steps', 'timeout') if ended else self._num_turns >= self.max_turns
        info = step_info(is_error=is_error, is_malformed=is_malformed)
        reward = 0.0
        if ended or truncated:
            reward = float(answer.get('reward', 0.0))
            info |= {'success': reward >= _SUCCESS, 'outcome': reward, 'reason': reason}
            info |= {key: answer[key] for key in ('parts', 'user_cost') if key in answer}
            self.close()
        return messages, reward, ended and not truncated, truncated, info

    def _call(self, method: str, **arguments: Any) -> Any:
        try:
            return self._remote.call(method, **arguments)
        except RemoteTimeout as error:
            if self.solo:
                raise
            raise UserFailed(f'the language model that plays the user may be too slow: {error}') from error
        except RemoteError as error:
            if error.kind in ('ImportError', 'ModuleNotFoundError', 'FileNotFoundError'):
                first = str(error).partition('\n')[0]
                raise ValueError(f'tau2-bench cannot be used: {first}.{_HOW}') from error
            raise
