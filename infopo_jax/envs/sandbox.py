"""Runs Python that a model wrote, and compares what its functions return with what they should.

    run = sandbox.run('def double(x):\n    return x + x', ['double(3)', 'double(4)'])
    [call.value for call in run.calls]      # [6, 8]
    sandbox.agree(run.calls[0], 6)          # True

The code runs in a process of its own behind the walls of ``sandbox_walls.py``: no network, a read-only root that holds
the standard library alone, another user id, no capability, an empty environment, no second process, and limits on CPU
time, wall time, memory and output. It never runs without them: ``refusal`` tries to break each and names what does not
hold.

No expected value ever enters that process. The code can write into the pipe of its own results, so a result counts as
no more than a claim; claims are plain data, and are compared here, where the code has no hand in the comparison.
"""

import atexit
import dataclasses
import functools
import json
import os
import pathlib
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import Any

MAX_CODE = 100_000  # characters
_GRACE_S = 300.0  # beyond the wall time, before the server is taken for dead; it may have been suspended with us
_ROOT = str(pathlib.Path(__file__).resolve().parents[2])
_START = (
    'import sys; sys.path.append(sys.argv[1]); '
    'from infopo_jax.envs import sandbox_jail; sandbox_jail.main(*sys.argv[1:])'
)
# What is tried from within before the walls are trusted.
_ATTACK = (pathlib.Path(__file__).parent / 'sandbox_attack.py').read_text(encoding='utf-8')
_ATTACK_CALL = f'escapes({__file__!r})'


class SandboxError(RuntimeError):
    """Raised where the sandbox itself failed; the code that it was to run is not to blame."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one run may use. It is one process and one thread, always."""

    cpu_s: int = 3  # seconds of CPU time, all calls together
    call_s: float = 0.5  # seconds of CPU time, one call
    wall_s: float = 10.0  # seconds, those left out in which it waits for a core
    memory_mb: int = 512  # MiB of address space, the interpreter's 100 or so included
    output_bytes: int = 1 << 20  # printed and returned, all calls together
    value_bytes: int = 1 << 16  # of one value as JSON; a larger one is an error

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if value <= 0:  # the kernel takes a negative one for none
                raise ValueError(f'{name} must be above 0, got {value!r}')


@dataclasses.dataclass(frozen=True)
class Other:
    """A value that is no plain data, by name of its type and its repr."""

    type: str
    text: str


@dataclasses.dataclass(frozen=True)
class Call:
    """What came of one call: a value, or why there is none."""

    value: Any = None  # plain data: None, bool, int, float, str, list, tuple, set, dict, Other
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class Run:
    """What came of a run: one ``Call`` per call, and what ended it early, if anything."""

    calls: tuple[Call, ...]
    error: str | None = None


def run(code: str, calls: Sequence[str], limits: Limits | None = None) -> Run:
    """Evaluates calls of functions that the code defines, each in a fresh module.

    Args:
        code: Python source. It may import what the standard library has.
        calls: expressions, such as ``price(3)``.
        limits: what the run may use; None takes the defaults.

    Raises:
        SandboxError: the sandbox is refused here or broke down. Whatever the code does, it ends in ``Run``.
    """
    reason = refusal()
    if reason is not None:
        raise SandboxError(reason)
    return _run(_walls()[0], code, calls, limits or Limits())


def refusal() -> str | None:
    """Returns why model-written code may not run on this machine, with what would help; None if it may."""
    return _walls()[1]


def agree(call: Call, expected: Any) -> bool:
    """Returns whether a call gave the expected value, by Python's == on plain data.

    As in the published grader of ColBench, a call that should give None agrees with nothing.
    """
    return call.error is None and expected is not None and bool(call.value == expected)


@functools.cache
def _walls() -> tuple[str, str | None]:
    """Returns the first kind of walls that holds against the attacks from within, and None or why none does."""
    if sys.platform != 'linux':
        return '', f'model-written code runs only on Linux, this is {sys.platform}: use a Linux machine or container'
    if not sys.executable:
        return '', 'model-written code runs in an interpreter of its own, and sys.executable is empty: set it'
    kinds = ('namespaces', 'uid') if os.geteuid() == 0 else ('user_namespace',)
    reasons = []
    for kind in kinds:
        try:
            call = _run(kind, _ATTACK, [_ATTACK_CALL], Limits()).calls[0]
        except SandboxError as error:
            reasons.append(f'{kind}: {error}')
            continue
        if call == Call([]):
            return kind, None
        reasons.append(f'{kind}: {call.error or "code can " + ", ".join(map(str, call.value))}')
    return '', (
        f'model-written code is not run here, as no walls hold it ({"; ".join(reasons)}): allow user namespaces '
        '(sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone=1, '
        'kernel.apparmor_restrict_unprivileged_userns=0), or run as root in a container that lets it change its user '
        'id and its root (capabilities SETUID, SETGID, SYS_CHROOT)'
    )


def _run(kind: str, code: str, calls: Sequence[str], limits: Limits) -> Run:
    """Sends one request to the server and reads the claims that come back."""
    if len(code) > MAX_CODE:
        return _failed(calls, f'more than {MAX_CODE} characters of code')
    request = {'walls': kind, 'code': code, 'calls': list(calls), **dataclasses.asdict(limits)}
    try:
        with _SERVER.connect(kind) as connection:
            connection.settimeout(limits.wall_s + _GRACE_S)
            connection.sendall(json.dumps(request).encode())
            connection.shutdown(socket.SHUT_WR)
            with connection.makefile('rb') as stream:
                header, data = json.loads(stream.readline()), stream.read()
    except (OSError, ValueError) as error:
        raise SandboxError(f'the sandbox broke down: {error}') from error
    if header['refused'] is not None:
        raise SandboxError(header['refused'])
    return _claims(data, calls, header['error'], limits.value_bytes)


def _failed(calls: Sequence[str], error: str) -> Run:
    return Run((Call(error=error),) * len(calls), error)


def _claims(data: bytes, calls: Sequence[str], error: str | None, value_bytes: int) -> Run:
    """Reads what the worker wrote: [number, error, value] a line, in sequence; anything else voids the run."""
    found = []
    lines = data.split(b'\n')
    for number, line in enumerate(lines[:-1]):  # behind the last newline: nothing, or a line cut off by a limit
        try:
            if len(line) > value_bytes:  # what is read here is small, lest reading it take long
                raise ValueError(line[:20])
            index, failed, value = json.loads(line)
            found.append(Call(error=str(failed)) if failed is not None else Call(_decode(value)))
        except (ValueError, TypeError, LookupError, RecursionError):
            return _failed(calls, 'results that cannot be read')
        if index != number or number >= len(calls):
            return _failed(calls, 'results out of sequence')
    missing = Call(error=error or 'no result: the code ended the process')
    return Run((*found, *[missing] * (len(calls) - len(found))), error)


def _decode(value: Any) -> Any:
    """Undoes ``sandbox_jail.encode``.

    Raises:
        ValueError, TypeError, LookupError: it is none of its output.
    """
    if not isinstance(value, dict):
        if isinstance(value, list):
            raise ValueError('a bare list')
        return value
    ((kind, content),) = value.items()
    if kind == 'other':
        name, text = content
        return Other(str(name), str(text))
    if kind == 'int':
        return int(content, 16)
    if kind == 'dict':
        return {_decode(key): _decode(item) for key, item in content}
    return {'list': list, 'tuple': tuple, 'set': set}[kind](_decode(item) for item in content)


class _Server:
    """The interpreter that forks the workers; started when needed, and anew if it has died or we were forked."""

    def __init__(self):
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._control: socket.socket | None = None
        self._owner = 0
        self._root = ''  # where it makes the root of walls that need a folder for it

    def connect(self, kind: str) -> socket.socket:
        """Returns a connection to a supervisor of its own, for a request that runs behind walls of a kind."""
        ours, theirs = socket.socketpair()
        with theirs, self._lock:
            try:
                self._hand_over(theirs, kind)
            except OSError:  # it died between our look and our call
                self._start()
                self._hand_over(theirs, kind)
        return ours

    def _hand_over(self, connection: socket.socket, kind: str) -> None:
        if self._owner != os.getpid() or self._process.poll() is not None:
            self._start()
        socket.send_fds(self._control, [kind.encode()], [connection.fileno()])

    def _start(self) -> None:
        if self._control is not None:
            self._control.close()
        self._clear()
        self._root = os.path.join(tempfile.gettempdir(), f'infopo_sandbox_{secrets.token_hex(8)}')
        self._control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with (
            control
        ):  # -P, -s, -S: no folder but the standard library's; sets of strings are in the same order each time
            self._process = subprocess.Popen(
                [sys.executable, '-P', '-s', '-S', '-B', '-c', _START, _ROOT, self._root],
                stdin=control,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={'PYTHONHASHSEED': '0'},
                cwd='/',
                start_new_session=True,
            )
        self._owner = os.getpid()

    def close(self) -> None:
        """Ends the server; it also ends by itself with this process."""
        if self._owner == os.getpid():
            self._control.close()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._clear()
            self._owner = 0

    def _clear(self) -> None:
        """Takes away what a server could not, because it was killed."""
        if self._owner == os.getpid():
            shutil.rmtree(self._root, ignore_errors=True)


_SERVER = _Server()
atexit.register(_SERVER.close)
