"""The inner side of ``sandbox.py``: a server in an interpreter of its own, which forks a process for each request.

    server      single-threaded, empty environment; forks once per request and reads none of it, so that nothing of one
                request is in the memory of another
    supervisor  outside the walls; reads the request, forks the worker, kills it when time or output are used up
    worker      behind the walls of ``sandbox_walls.py``, one process; runs the code that nobody trusts

Whatever runs in the worker may write to the pipe of the results: what comes out of it is what the code claims that its
function returned. A forged claim is worth no more than a function that returns the same. What the right values are, the
caller knows, and nothing here.
"""

import contextlib
import importlib
import json
import os
import random
import resource
import select
import shutil
import signal
import socket
import sys
import time
import types

from infopo_jax.envs import sandbox_walls

MAX_REQUEST = 4 << 20  # bytes
MAX_DEPTH = 64  # of nested values
LARGE = 1 << 63  # integers above it go as hexadecimal digits: decimal ones end at 4,300
_SLICE_S = 0.2  # in which the wall time is counted
# What needs shared libraries of the system, which the worker does not see, and what answers import most.
PRELOAD = """bisect bz2 cmath collections copy csv ctypes dataclasses datetime decimal enum fractions functools hashlib
    heapq itertools lzma math operator re sqlite3 ssl statistics string typing uuid xml.etree.ElementTree zlib"""


class TimeLimit(BaseException):
    """Ends one call that takes too long; no ``Exception``, so that few answers catch it."""


# --- server and supervisor: trusted


def main(package_root: str, root: str) -> None:
    """Serves the socket that is the standard input; see ``serve``."""
    sys.path.remove(package_root)  # what is left is the standard library
    serve(socket.socket(fileno=0), root)


def serve(control: socket.socket, root: str) -> None:
    """Forks a supervisor for each connection that comes over ``control``, until the other side is gone.

    The message that brings a connection names the kind of walls that its request is for. Those of kind 'uid' share the
    folder ``root``, which is made for the first of them and taken away at the end.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors are reaped by the kernel
    os.environ.clear()
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    for name in PRELOAD.split():
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    made = False
    try:
        while True:
            message, connections, _, _ = socket.recv_fds(control, 32, 1)
            if not message:
                return
            if message == b'uid' and not made:
                with contextlib.suppress(OSError):  # the worker says that there is none
                    sandbox_walls.make_root(root)
                    made = True
            with contextlib.suppress(OSError):  # no process to be had: the connection closes, and the caller learns it
                if os.fork() == 0:
                    _be_supervisor(control, connections[0], root if made else None)
            os.close(connections[0])
    finally:
        if made:
            shutil.rmtree(root, ignore_errors=True)


def _be_supervisor(control: socket.socket, connection: int, root: str | None) -> None:
    """Supervises one request; never returns into the server's loop."""
    try:
        control.close()
        with socket.socket(fileno=connection) as stream:
            _supervise_or_say_why_not(stream, root)
    finally:
        os._exit(0)


def _supervise_or_say_why_not(connection: socket.socket, root: str | None) -> None:
    """Runs one request; a failure of ours is sent: it neither reaches the server's loop nor counts as the code's."""
    try:
        supervise(connection, root)
    except BaseException as error:
        _send(connection, f'{type(error).__name__}: {error}', None, b'')


def supervise(connection: socket.socket, root: str | None) -> None:
    """Runs one request: reads it, forks the worker, watches it, and sends what came of it.

    Sends a line of JSON, {'refused': why the walls could not be built or None, 'error': what ended the worker or None},
    then what the worker wrote, which is to be trusted as little as the worker.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with connection.makefile('rb') as stream:
        request = json.loads(stream.read(MAX_REQUEST))
    results, printed, ready = os.pipe(), os.pipe(), os.pipe()
    sandbox_walls.enter(request['walls'])
    number = os.getpid()  # the worker's own may be 1
    worker = os.fork()
    if worker == 0:
        _be_worker(request, root, number, results[1], printed[1], ready[1])
    for pipe in (results, printed, ready):
        os.close(pipe[1])
    with open(ready[0], 'rb') as stream:  # closed before the first line of foreign code runs: it cannot be forged
        built = stream.read()
    if built == b'ok':
        data, error = _watch(connection, results[0], printed[0], worker, request)
    os.kill(worker, signal.SIGKILL)  # with it, what is in its process namespace
    status = os.waitpid(worker, 0)[1]
    if built != b'ok':
        _send(connection, built.decode() or 'the worker died while its walls were built', None, b'')
        return
    if error is None and os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL:
        error = f'killed by {signal.Signals(os.WTERMSIG(status)).name}'
    _send(connection, None, error, data)


def _send(connection: socket.socket, refused: str | None, error: str | None, data: bytes) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        connection.sendall(json.dumps({'refused': refused, 'error': error}).encode() + b'\n' + data)


def _watch(
    connection: socket.socket, results: int, printed: int, worker: int, request: dict
) -> tuple[bytes, str | None]:
    """Reads until the worker has closed its pipes, reached a limit, or nobody waits; returns results and error.

    Time in which the worker waits for a core does not count: many runs at once, or a busy machine, fail nobody.
    """
    left, starved = request['wall_s'], _starved(worker)
    poller = select.poll()
    for fd, events in ((results, select.POLLIN), (printed, select.POLLIN), (connection.fileno(), 0)):
        poller.register(fd, events)
    data, total, is_open = bytearray(), 0, {results, printed}
    while is_open:
        if left <= 0:
            before, starved = starved, _starved(worker)
            left += starved - before
            if left <= 0:
                return bytes(data), f'stopped after {request["wall_s"]} s'
        start, events = time.monotonic(), poller.poll(_SLICE_S * 1000)
        left -= min(time.monotonic() - start, _SLICE_S)  # no more: the time while all was suspended is nobody's fault
        for fd, _ in events:
            if fd not in is_open:
                return b'', 'the caller is gone'
            chunk = os.read(fd, 65536)
            total += len(chunk)
            if not chunk:
                poller.unregister(fd)
                is_open.discard(fd)
            elif fd == results:
                data += chunk
        if total > request['output_bytes']:
            return bytes(data), f'more than {request["output_bytes"]} bytes of output'
    return bytes(data), None


def _starved(worker: int) -> float:
    """Returns how many seconds a process could have run, had there been a core; 0 where the kernel does not tell."""
    try:
        with open(f'/proc/{worker}/schedstat', encoding='ascii') as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def _be_worker(request: dict, root: str | None, number: int, results: int, printed: int, ready: int) -> None:
    """Builds the walls, says so, and runs the request; never returns."""
    try:
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        limits = {name: request[name] for name in ('cpu_s', 'memory_mb')}
        sandbox_walls.confine(request['walls'], [results, ready], root=root, number=number, **limits)
        os.write(ready, b'ok')
    except BaseException as error:
        os.write(ready, f'{type(error).__name__}: {error}'.encode())
        os._exit(1)
    try:
        os.close(ready)
        work(request, results)
    finally:
        os._exit(0)  # no exit hooks, and never back into the supervisor's code


# --- worker: behind the walls, trusted by nobody once the code has run


def work(request: dict, results: int) -> None:
    """Evaluates each call in a fresh module made of the code; writes a line of JSON each: [number, error, value]."""
    signal.signal(signal.SIGPROF, _on_time)
    code, broken = None, None
    try:
        code = compile(request['code'], '<answer>', 'exec')
    except BaseException as error:
        broken = _describe(error)
    for number, call in enumerate(request['calls']):
        line = [number, broken, None] if broken else [number, *evaluate(code, call, request['call_s'])]
        try:
            text = json.dumps(line)
        except BaseException as error:  # a value too large for the memory that is left, or a str that raises
            text = json.dumps([number, _describe(error), None])
        if len(text) > request['value_bytes']:
            text = json.dumps([number, f'a value of more than {request["value_bytes"]} bytes', None])
        data = memoryview(text.encode() + b'\n')
        while data:
            data = data[os.write(results, data) :]


def evaluate(code: types.CodeType, call: str, seconds: float) -> tuple[str | None, object]:
    """Returns (error, encoded value) of one call; its time is CPU time, so that a busy machine fails nobody."""
    try:
        module = types.ModuleType('answer')
        sys.modules['answer'] = module  # dataclasses look their module up
        random.seed(0)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        exec(code, module.__dict__)
        value = encode(eval(call, module.__dict__))
        signal.setitimer(signal.ITIMER_PROF, 0)
    except BaseException as error:
        signal.setitimer(signal.ITIMER_PROF, 0)
        return _describe(error), None
    return None, value


def _on_time(*_) -> None:
    raise TimeLimit('the call took too long')


def _describe(error: BaseException) -> str:
    """Names an error; whatever its own text does, it ends here."""
    try:
        return f'{type(error).__name__}: {error}'[:200]
    except BaseException:
        return type(error).__name__[:200]


def encode(value: object, depth: int = 0) -> object:
    """Writes a value as JSON that keeps apart what == keeps apart; what is no plain data goes by type and repr."""
    if depth > MAX_DEPTH:
        raise ValueError('the value is nested too deeply')
    if isinstance(value, int) and abs(value) > LARGE:
        return {'int': hex(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    for name, kind in (('list', list), ('tuple', tuple), ('set', set | frozenset)):
        if isinstance(value, kind):
            return {name: [encode(item, depth + 1) for item in value]}
    if isinstance(value, dict):
        return {'dict': [[encode(key, depth + 1), encode(item, depth + 1)] for key, item in value.items()]}
    return {'other': [type(value).__name__, repr(value)]}
