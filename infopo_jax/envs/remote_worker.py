"""The far side of ``remote_interpreter.py``: serves an environment in another Python; needs the standard library alone.

    python remote_worker.py FILE.py:NAME|MODULE:NAME CONTROL_FD

The process imports the environment once, which may take seconds, and forks a child per environment, which takes
milliseconds and shares the imported pages. Each child reads calls from its own socket and answers them, a JSON object a
line:

    {"method": "step", "arguments": {"text": "hi"}}  ->  {"value": [...]}, or {"error": "...", "kind": "KeyError", ...}

It runs under Pythons that this package does not support, hence the plain syntax.
"""

import sys

if __name__ == '__main__':
    del sys.path[0]  # this folder: its array.py is not the library's, its tau2.py not the package

import contextlib
import ctypes
import importlib
import importlib.util
import json
import os
import signal
import socket
import traceback

PR_SET_PDEATHSIG = 1  # linux/prctl.h
TRACE = 2000  # characters of a traceback that travel


def load(target):
    """Imports what ``FILE.py:NAME`` or ``MODULE:NAME`` names."""
    place, _, name = target.rpartition(':')
    if place.endswith('.py'):
        spec = importlib.util.spec_from_file_location('remote_target', place)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(place)
    return getattr(module, name)


def failure(error):
    """Returns an exception as a reply."""
    trace = ''.join(traceback.format_exception(type(error), error, error.__traceback__))
    return {'error': str(error), 'kind': type(error).__name__, 'trace': trace[-TRACE:]}


def send(connection, reply):
    """Writes one reply; one that is no JSON becomes an error."""
    try:
        text = json.dumps(reply)
    except (TypeError, ValueError) as error:
        text = json.dumps(failure(error))
    connection.sendall(text.encode() + b'\n')


def serve(connection, make):
    """Answers calls until the other side hangs up; 'make' builds the environment."""
    env = None
    with connection.makefile('rb') as lines:
        for line in lines:
            request = json.loads(line)
            try:
                if request['method'] == 'make':
                    env = make(**request['arguments'])
                    reply = {'value': None}
                else:
                    reply = {'value': getattr(env, request['method'])(**request['arguments'])}
            except (Exception, SystemExit) as error:  # the environment's own business, to be told, not to die of
                reply = failure(error)
            send(connection, reply)


def child(connection, make):
    """Is the whole life of a forked process; never returns."""
    code = 1
    try:
        serve(connection, make)
        code = 0
    except OSError:
        pass  # the other side is gone
    finally:
        os._exit(code)  # threads that an environment has left behind do not keep the process


def supervise(control, make):
    """Forks and kills children as told; when the other side is gone, ends them and itself."""
    processes = {}  # number -> process id
    while True:
        data, fds, _, _ = socket.recv_fds(control, 4096, 1)
        if not data:
            for pid in processes.values():
                end(pid)
            return
        order = json.loads(data)
        if 'fork' in order:
            pid = os.fork()
            if pid == 0:
                os.setpgid(0, 0)  # what the environment starts is killed with it
                die_with_parent()
                control.close()
                child(socket.socket(fileno=fds[0]), make)
            os.close(fds[0])
            processes[order['fork']] = pid
            send(control, {'value': pid})
        else:
            pid = processes.pop(order['kill'], None)
            send(control, {'value': 'is gone' if pid is None else end(pid)})


def end(pid):
    """Kills a child's process group, if it still lives; returns how the child ended, in words."""
    for kill in (os.killpg, os.kill):  # the group does not exist before the child's first step
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)  # only now may the number be given to another process
    if os.WIFSIGNALED(status):
        return 'was killed by ' + signal.Signals(os.WTERMSIG(status)).name
    return f'exited with code {os.WEXITSTATUS(status)}'


def die_with_parent():
    """Asks Linux to kill this process when its parent ends; elsewhere it ends when its socket closes."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main(target, descriptor):
    """Imports the target, reports, and supervises."""
    control = socket.socket(fileno=int(descriptor))
    try:
        make = load(target)
    except (Exception, SystemExit) as error:
        send(control, failure(error))
        return
    send(control, {'value': None})
    supervise(control, make)
    os._exit(0)  # what the imports want to do at exit takes seconds and is of no use


if __name__ == '__main__':
    main(*sys.argv[1:])
