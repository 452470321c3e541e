"""A process of another Python that has imported an environment and forks a child for each that is asked for.

The near side of ``remote_worker.py``, which see for the protocol.
"""

import atexit
import collections
import contextlib
import json
import os
import pathlib
import select
import socket
import subprocess
import threading
import time
from collections.abc import Mapping
from typing import Any

from infopo_jax.users import UserFailed

_WORKER = pathlib.Path(__file__).with_name('remote_worker.py')
_FOREIGN = ('PYTHONPATH', 'PYTHONHOME', 'PYTHONSAFEPATH', '__PYVENV_LAUNCHER__')  # ours, wrong for another interpreter
_MAX_REPLY = 64 * 2**20  # bytes
_SAME_HERE = {'ValueError': ValueError, 'UserFailed': UserFailed}  # exceptions that mean the same on both sides
_ORDER_SECONDS = 300.0  # for what takes milliseconds: passed only by a process that is broken
_PRINT_SECONDS = 1.0  # that last words may take to be read
_TAIL = 800  # characters of what the other side printed that an error shows


class RemoteError(RuntimeError):
    """The other interpreter raised, crashed, hung or spoke nonsense; ``kind`` is the exception's name there, if any."""

    def __init__(self, message: str, kind: str = ''):
        super().__init__(message)
        self.kind = kind


class RemoteTimeout(RemoteError):
    """The other interpreter gave no answer in time."""


class Interpreter:
    """A process of another Python that has imported an environment, and forks a child for each that is asked for.

    Args:
        python: path of the interpreter.
        target: 'module:name' or '/path/file.py:name' of a class or function that makes an environment.
        environ: variables to set there, beside our own.
        timeout: seconds for its imports.

    Raises:
        ValueError: there is no such interpreter.
        RemoteError: it could not import the target.
    """

    def __init__(self, python: str, target: str, *, environ: Mapping[str, str] | None = None, timeout: float = 120.0):
        path = os.path.expanduser(python)
        variables = {name: value for name, value in os.environ.items() if name not in _FOREIGN} | dict(environ or {})
        self._control, theirs = socket.socketpair()
        command = [path, str(_WORKER), target, str(theirs.fileno())]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=variables,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is ours to handle
            )
        except OSError as error:
            self._control.close()
            raise ValueError(f'cannot start the interpreter {python!r} ({error.strerror}): give its path') from error
        finally:
            theirs.close()
        self.dropped: collections.deque[int] = collections.deque()  # children to kill; filled by the garbage collector
        self._lock = threading.Lock()
        self._number = 0
        self._tail: collections.deque[str] = collections.deque(maxlen=40)
        threading.Thread(target=self._drain, daemon=True).start()
        try:
            _receive(self._control, timeout, f'{python} importing {target}')
        except BaseException as error:
            self._process.kill()  # it may hang in an import
            self.close()
            if isinstance(error, RemoteError):
                last = '' if error.kind else self.last_words()
                raise RemoteError(f'{python} cannot serve {target}: {error}{last}', error.kind) from None
            raise

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def fork(self) -> tuple[int, socket.socket]:
        """Starts a child; returns its number and the socket to talk to it."""
        ours, theirs = socket.socketpair()
        with self._lock, theirs:
            try:
                while self.dropped:
                    self._order({'kill': self.dropped.popleft()})
                self._number += 1
                self._order({'fork': self._number}, [theirs.fileno()])
            except RemoteError:
                ours.close()
                raise
            return self._number, ours

    def kill(self, number: int) -> str:
        """Ends a child and all that it has started; returns how it had ended, in words."""
        with self._lock:
            try:
                return self._order({'kill': number})
            except RemoteError:
                return 'is gone with its interpreter'

    def close(self) -> None:
        """Ends the process and its children."""
        with self._lock:
            self._control.close()  # upon which it kills its children
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def last_words(self) -> str:
        """Returns the end of what the process and its children printed; '' if they wrote nothing.

        What was printed before this call is waited for: on a busy machine it may not have been read yet.
        """
        end = time.monotonic() + _PRINT_SECONDS
        with contextlib.suppress(ValueError, OSError):  # the output is closed once all of it is read
            while time.monotonic() < end and select.select([self._process.stdout], [], [], 0)[0]:
                time.sleep(0.005)
        time.sleep(0.01)  # between reading and keeping
        text = ''.join(self._tail).strip()[-_TAIL:]
        return f'\n{text}' if text else ''

    def _order(self, order: dict, fds: list[int] | None = None) -> Any:
        """Has an order carried out; a process that does not answer is given up."""
        try:
            socket.send_fds(self._control, [json.dumps(order).encode()], fds or [])
            return _receive(self._control, _ORDER_SECONDS, 'the interpreter')
        except (RemoteError, OSError) as error:
            self._process.kill()
            raise RemoteError(f'the interpreter has ended: {error}{self.last_words()}') from error

    def _drain(self) -> None:
        """Reads what is printed, so that nobody there waits for it to be read."""
        with contextlib.suppress(ValueError, OSError), self._process.stdout as lines:
            while chunk := lines.read1(4096):
                self._tail.append(chunk.decode(errors='replace'))


_INTERPRETERS: dict[tuple, Interpreter] = {}
_STARTING = threading.Lock()


def interpreter(
    python: str, target: str, *, environ: Mapping[str, str] | None = None, timeout: float = 120.0
) -> Interpreter:
    """Returns the running interpreter for these arguments, and starts it if there is none; see ``Interpreter``."""
    key = (python, target, tuple(sorted((environ or {}).items())))
    with _STARTING:
        if key in _INTERPRETERS and not _INTERPRETERS[key].alive:
            _INTERPRETERS.pop(key).close()
        if key not in _INTERPRETERS:
            _INTERPRETERS[key] = Interpreter(python, target, environ=environ, timeout=timeout)
        return _INTERPRETERS[key]


@atexit.register
def close_all() -> None:
    """Ends every interpreter that ``interpreter`` has started."""
    with _STARTING:
        while _INTERPRETERS:
            _INTERPRETERS.popitem()[1].close()


def receive_line(connection: socket.socket, timeout: float, what: str) -> bytes:
    """Reads one line.

    Raises:
        RemoteTimeout: it did not come in time.
        RemoteError: it was too long, or the connection has ended.
    """
    deadline, parts, size = time.monotonic() + timeout, [], 0
    while not parts or not parts[-1].endswith(b'\n'):
        connection.settimeout(max(deadline - time.monotonic(), 1e-3))
        try:
            parts.append(connection.recv(1 << 16))
        except TimeoutError:
            raise RemoteTimeout(f'{what} gave no answer within {timeout:g} s') from None
        size += len(parts[-1])
        if not parts[-1]:
            raise RemoteError(f'{what} crashed')
        if size > _MAX_REPLY:
            raise RemoteError(f'{what} answered with more than {_MAX_REPLY} bytes')
    return b''.join(parts)


def _receive(connection: socket.socket, timeout: float, what: str) -> Any:
    """Reads one reply and returns its value; raises as ``receive_line`` and ``value_of`` do."""
    return value_of(receive_line(connection, timeout, what), what)


def value_of(line: bytes, what: str) -> Any:
    """Returns the value that a reply holds.

    Raises:
        ValueError, UserFailed: an error there that means the same here.
        RemoteError: another error there, with its ``kind``; without one, a line that is no reply.
    """
    try:
        reply = json.loads(line)
        if 'error' not in reply:
            return reply['value']
        kind, error, trace = reply['kind'], reply['error'], reply['trace']
    except (ValueError, TypeError, KeyError) as problem:
        raise RemoteError(f'{what} answered with what is no reply: {line[:80]!r}') from problem
    if kind in _SAME_HERE:
        raise _SAME_HERE[kind](error)
    raise RemoteError(f'{what} raised {kind}: {error}\n{trace}', kind)
