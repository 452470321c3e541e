"""What code may do in the sandbox, and what happens where there are no walls."""

import ast
import itertools
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sandboxed import CALLS, DOUBLE, function, needs_walls, value, values

from infopo_jax.envs import sandbox, sandbox_jail
from infopo_jax.envs.sandbox import Call, Limits, Other, agree, run

pytestmark = needs_walls


# What has to work


def test_run_returns_values_and_their_types():
    code = 'def f(i):\n    return [1, 2.5, True, None, "é\\n", (1, (2,)), {1, 2}, {(1, 2): [3]}, float("inf")][i]\n'
    assert values(code, [f'f({i})' for i in range(9)]) == (
        [1, 2.5, True, None, 'é\n', (1, (2,)), {1, 2}, {(1, 2): [3]}, float('inf')]
    )
    assert type(values(code, ['f(2)'])[0]) is bool and type(values(code, ['f(5)'])[0]) is tuple


def test_run_returns_integers_of_any_size():
    code = 'def f(x):\n    return [10**5000, -(2**64), {1 << 70: True}, 3][x]\n'
    assert values(code, [f'f({x})' for x in range(4)]) == [10**5000, -(2**64), {1 << 70: True}, 3]


def test_run_goes_on_after_a_value_that_cannot_be_written():
    code = 'def f(x):\n    return [1, "\\0" * 30_000_000, 3][x]\n'  # six times as long in JSON
    first, second, third = run(code, ['f(0)', 'f(1)', 'f(2)'], Limits(memory_mb=256)).calls
    assert (first, third) == (Call(1), Call(3)) and 'MemoryError' in second.error


def test_time_in_which_code_waits_for_a_core_does_not_count(monkeypatch):
    """Of 0.2 s that it may take, it could not run for 0.5 s."""
    pipes, (ours, theirs) = [os.pipe(), os.pipe()], socket.socketpair()
    starved = itertools.chain([0.0, 0.5], itertools.repeat(0.5))
    monkeypatch.setattr(sandbox_jail, '_starved', lambda worker: next(starved))
    start = time.monotonic()
    with ours, theirs:
        request = {'wall_s': 0.2, 'output_bytes': 9}
        data, error = sandbox_jail._watch(ours, pipes[0][0], pipes[1][0], os.getpid(), request)
    assert (data, error) == (b'', 'stopped after 0.2 s') and time.monotonic() - start >= 0.7
    for fd in itertools.chain(*pipes):
        os.close(fd)


def test_waiting_for_a_core_is_what_the_kernel_counts():
    assert 0 <= sandbox_jail._starved(os.getpid()) < 1e6 and sandbox_jail._starved(-1) == 0.0


def test_run_names_values_that_are_no_plain_data():
    code = 'import decimal\ndef f():\n    return [decimal.Decimal("1.10"), 1j]\n'
    assert value(code) == Call([Other('Decimal', "Decimal('1.10')"), Other('complex', '1j')])


@pytest.mark.parametrize(
    'code',
    [
        'def f():\n    return g(5)\ndef g(n):\n    return 1 if n < 2 else n * g(n - 1)\n',  # helper, recursion
        'import math\ndef f():\n    return math.factorial(5)\n',
        'from functools import reduce, lru_cache\n@lru_cache\ndef f():\n    return reduce(int.__mul__, range(1, 6))\n',
        'def f():\n    import tomllib, sqlite3, asyncio.queues, json.scanner, xml.dom.minidom\n    return 120\n',
        'from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\n'
        'def f():\n    return A(120).x\n',
        'print("hello")\ndef f():\n    print("hello" * 100)\n    return 120\n',
        'if __name__ == "__main__":\n    raise SystemExit(1)\nf = lambda: 120\n',
        'import os, sys\ndef f():\n    return 120 if sys.version and os.sep else 0\n',
    ],
)
def test_run_allows_ordinary_code(code):
    assert value(code) == Call(120)


def test_run_keeps_calls_apart():
    code = 'seen = []\ndef f(x):\n    seen.append(x)\n    if x == 1:\n        raise KeyError(x)\n    return seen\n'
    first, second, third = run(code, ['f(0)', 'f(1)', 'f(2)']).calls
    assert first == Call([0]) and second.error == 'KeyError: 1' and third == Call([2])


def test_run_is_the_same_every_time():
    code = 'import random\ndef f():\n    return list({"a", "b", "c", "d", "e"}), random.random()\n'
    assert value(code) == value(code)
    other = 'from infopo_jax.envs import sandbox\nprint(sandbox.run(' + repr(code) + ", ['f()']).calls[0].value)"
    root = pathlib.Path(sandbox.__file__).parents[2]
    printed = subprocess.run([sys.executable, '-c', other], capture_output=True, text=True, cwd=root, check=True).stdout
    assert ast.literal_eval(printed) == value(code).value


@pytest.mark.parametrize('code', ['def f(:', 'f = 1', '', '(' * 3000, 'x' * 200_000, '\0'])
def test_run_reports_broken_code(code):
    found = value(code)
    assert found.value is None and found.error


def test_run_serves_threads_at_once():
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: values(DOUBLE, [f'double({i})']), range(40)))
    assert found == [[2 * i] for i in range(40)]


# Refusal and failure


def test_refusal_is_none_where_walls_hold():
    assert sandbox.refusal() is None


def test_refusal_names_what_the_code_could_do(monkeypatch):
    monkeypatch.setattr(sandbox, '_ATTACK', "def escapes(outside):\n    return ['open a socket']\n")
    kind, reason = sandbox._walls.__wrapped__()
    assert kind == '' and 'code can open a socket' in reason and 'user namespaces' in reason


def test_refusal_is_for_other_systems_too(monkeypatch):
    monkeypatch.setattr(sys, 'platform', 'darwin')
    assert 'only on Linux, this is darwin' in sandbox._walls.__wrapped__()[1]


def test_run_refuses_rather_than_run_plainly(monkeypatch):
    monkeypatch.setattr(sandbox, '_walls', lambda: ('', 'no walls here'))
    with pytest.raises(sandbox.SandboxError, match='no walls here'):
        run(DOUBLE, CALLS)


def test_run_refuses_where_walls_cannot_be_built():
    with pytest.raises(sandbox.SandboxError, match='no walls of kind'):
        sandbox._run('paper', DOUBLE, CALLS, Limits())
    with pytest.raises(ValueError, match='cpu_s must be above 0'):
        Limits(cpu_s=-1)


def test_run_starts_the_server_again():
    assert values(DOUBLE) == [6, 8]
    os.kill(sandbox._SERVER._process.pid, signal.SIGKILL)
    sandbox._SERVER._process.wait()
    assert values(DOUBLE) == [6, 8]


def test_run_leaves_no_process_behind():
    server = sandbox._SERVER._process.pid
    function('import time\ntime.sleep(60)', wall_s=0.3)

    def children():
        found = []
        for name in filter(str.isdigit, os.listdir('/proc')):
            try:
                stat = pathlib.Path(f'/proc/{name}/stat').read_text().rpartition(')')[2].split()
            except OSError:
                continue
            if int(stat[1]) == server and stat[0] != 'Z':
                found.append(name)
        return found

    for _ in range(100):
        if not children():
            break
        time.sleep(0.05)
    assert children() == []


@pytest.mark.parametrize(
    ('given', 'expected', 'same'),
    [
        (Call(1), 1, True),
        (Call(1.0), 1, True),
        (Call((1, 2)), [1, 2], False),
        (Call(None), None, False),  # as published
        (Call(error='x'), 0, False),
        (Call({'a': [1]}), {'a': [1]}, True),
        (Call(float('nan')), float('nan'), False),
    ],
)
def test_agree_is_equality_of_plain_data(given, expected, same):
    assert agree(given, expected) is same
