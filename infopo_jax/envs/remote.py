"""Environments that live in another interpreter, whose packages conflict with ours: JSON lines over a socket.

    env = RemoteEnv('~/venv/other/bin/python', 'other_package.env:Game', {'level': 2})
    env.reset(seed=0, options={'task': 'a'})

One process per interpreter imports the environment and forks a child per ``RemoteEnv``, so that a crash or a hang ends
one episode, not its neighbours. What goes wrong there raises here, and the rollout ends with ENV_ERROR. POSIX only.
"""

import contextlib
import json
import socket
import threading
import weakref
from collections.abc import Mapping
from typing import Any

from infopo_jax.envs.remote_interpreter import (
    Interpreter,
    RemoteError,
    RemoteTimeout,
    close_all,
    interpreter,
    receive_line,
    value_of,
)
from infopo_jax.envs.text import Observation

__all__ = ['Interpreter', 'RemoteEnv', 'RemoteError', 'RemoteTimeout', 'close_all', 'interpreter']


class RemoteEnv:
    """A text environment in another interpreter; implements ``TextEnv`` as far as what lives there does.

    Args:
        python, target, environ: see ``Interpreter``.
        knobs: keywords of what the target names.
        timeout: seconds that a call may take; one that takes longer is killed.
        start_timeout: seconds for the imports, the first time.
    """

    def __init__(
        self,
        python: str,
        target: str,
        knobs: Mapping[str, Any] | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        timeout: float = 120.0,
        start_timeout: float = 120.0,
    ):
        self._where = (python, target)
        self._knobs = dict(knobs or {})
        self._environ, self._timeout, self._start_timeout = environ, timeout, start_timeout
        self._lock = threading.Lock()  # of the two below: ``close`` may come from another thread than a call
        self._socket: socket.socket | None = None
        self._busy = False

    def tasks(self, split: str) -> list[Any]:
        """Returns the task ids of a split."""
        return self.call('tasks', split=split)

    def reset(self, *, seed: int = 0, options: dict | None = None) -> tuple[Observation, dict]:
        """Starts an episode."""
        observation, info = self.call('reset', seed=seed, options=options)
        return observation, info

    def step(self, text: str) -> tuple[Observation, float, bool, bool, dict]:
        """Answers the agent's text."""
        observation, reward, terminated, truncated, info = self.call('step', text=text)
        return observation, reward, terminated, truncated, info

    def call(self, method: str, **arguments: Any) -> Any:
        """Calls a method there; the process is started if there is none.

        Raises:
            ValueError: the method raised a ValueError, or the interpreter does not exist.
            UserFailed: the method raised an exception of that name.
            RemoteError: it raised anything else, crashed, or (RemoteTimeout) gave no answer in time; the process is
                gone in the latter two cases, and the next call starts another.
        """
        if self._socket is None:
            self._start()
        return self._ask(method, arguments)

    def close(self) -> None:
        """Kills the process and all that it has started, also during a call; the next call starts another."""
        self._abandon()

    def _start(self) -> None:
        self._interpreter = interpreter(*self._where, environ=self._environ, timeout=self._start_timeout)
        self._number, self._socket = self._interpreter.fork()
        self._finalizer = weakref.finalize(self, _drop, self._interpreter, self._number, self._socket)
        try:
            self._ask('make', self._knobs)
        except BaseException:
            self.close()
            raise

    def _ask(self, method: str, arguments: dict[str, Any]) -> Any:
        what = f'{self._where[1]}.{method}'
        text = json.dumps({'method': method, 'arguments': arguments}).encode() + b'\n'
        with self._lock:
            connection, self._busy = self._socket, True
        try:
            connection.settimeout(self._timeout)
            connection.sendall(text)
            line = receive_line(connection, self._timeout, what)
        except (RemoteError, OSError) as error:
            told = error if isinstance(error, RemoteError) else f'{what} crashed'
            kind = RemoteTimeout if isinstance(error, RemoteTimeout) else RemoteError
            raise kind(f'{told} (its process {self._abandon()}){self._interpreter.last_words()}') from error
        except BaseException:  # Ctrl-C: an answer may still come, to a question that nobody remembers
            self._abandon()
            raise
        finally:
            with self._lock:
                self._busy = False
                given_up = self._socket is not connection
            if given_up:
                connection.close()
        return value_of(line, what)

    def _abandon(self) -> str:
        """Kills the process; returns how it ended, in words."""
        with self._lock:
            connection, self._socket, busy = self._socket, None, self._busy
        if connection is None:
            return 'was closed'
        self._finalizer.detach()
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)  # wakes a call, which then closes it
        if not busy:
            connection.close()
        return self._interpreter.kill(self._number)


def _drop(owner: Interpreter, number: int, connection: socket.socket) -> None:
    """Lets a child go that nobody holds any more; takes no lock, for the garbage collector runs anywhere."""
    connection.close()
    owner.dropped.append(number)
