"""Attacks on the sandbox: the run goes on, and no right value comes of them."""

import os
import pathlib
import shutil
import socket
import tempfile
import time

import pytest
from sandboxed import CALLS, DOUBLE, function, needs_walls, values

from infopo_jax.envs import sandbox, sandbox_walls
from infopo_jax.envs.sandbox import Call, Limits, agree, run
from infopo_jax.envs.sandbox_walls import KINDS

pytestmark = needs_walls


@pytest.fixture(scope='module', autouse=True)
def server():
    """Runs the tests in a server of their own, so that nothing is left of it behind them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sandbox, '_SERVER', sandbox._Server())
        yield
        sandbox._SERVER.close()


@pytest.mark.parametrize(
    ('body', 'limits'),
    [
        ('while True:\n    pass', {'call_s': 0.2}),
        (
            'while True:\n    try:\n        while True: pass\n    except BaseException: pass',
            {'cpu_s': 1, 'call_s': 0.1},
        ),
        ('import signal\nsignal.setitimer(signal.ITIMER_PROF, 0)\nwhile True: pass', {'cpu_s': 1}),
        ('import time\ntime.sleep(60)', {'wall_s': 0.5}),
        (
            'import os\nos.closerange(0, 64)\nwhile True: pass',
            {'cpu_s': 1},
        ),
    ],
    ids=['endless loop', 'catches the limit', 'stops the timer', 'sleeps', 'closes the pipes'],
)
def test_run_ends_what_does_not_end(body, limits):
    start = time.monotonic()
    found = function(body, **limits)
    assert found.value is None and found.error
    assert time.monotonic() - start < 20  # seconds; far less on an idle machine
    assert values(DOUBLE) == [6, 8]


def test_run_goes_on_after_one_endless_call():
    code = 'def f(x):\n    while x == 1: pass\n    return x\n'
    assert values(code, ['f(0)', 'f(1)', 'f(2)'], call_s=0.2) == [0, None, 2]


def test_run_survives_a_fork_bomb():
    found = function('import os\nwhile True:\n    try: os.fork()\n    except OSError as e: return e.errno')
    assert found == Call(1)  # EPERM
    bomb = function('import subprocess, sys\nreturn subprocess.run([sys.executable])')
    assert bomb.value is None and 'Error' in bomb.error
    assert (
        function('import threading\nthreading.Thread(target=int).start()').error
        == "RuntimeError: can't start new thread"
    )


def test_run_limits_memory():
    assert function('return len(bytearray(10 << 30))').error.startswith('MemoryError')
    assert function('x = []\nwhile True: x.append(bytearray(1 << 20))', call_s=3.0).error.startswith('MemoryError')
    assert function('return len(bytearray(64 << 20))') == Call(64 << 20)
    assert function('return len(bytearray(256 << 20))', memory_mb=128).error.startswith('MemoryError')


def test_run_limits_output():
    for body in ('print("x" * (1 << 30))', 'for _ in range(1 << 14): print("x" * (1 << 16))', 'return "x" * (2 << 20)'):
        found = run(f'def f():\n    {body}\n', ['f()', '1'])
        assert found.calls[0].value is None, body
        assert 'bytes' in found.calls[0].error or 'MemoryError' in found.calls[0].error
    code = 'import sys\ndef f():\n    while True: sys.stderr.write("x" * 65536)\n'
    assert 'bytes of output' in run(code, ['f()']).error


def test_run_has_no_secrets(monkeypatch):
    monkeypatch.setenv('OPENAI_API_KEY', 'sk-secret')
    found = function(
        'import os\nfound = list(os.environ)\nfor name in ("self", "1", str(os.getppid())):\n'
        '    try: found.append(open(f"/proc/{name}/environ").read())\n    except OSError: pass\nreturn found'
    )
    assert found == Call([])


def test_run_inherits_no_descriptor():
    ours, theirs = socket.socketpair()
    os.set_inheritable(theirs.fileno(), True)
    body = (
        'import os, stat\nfound = []\nfor fd in range(256):\n    try: found.append(stat.S_IFMT(os.fstat(fd).st_mode))\n'
        '    except OSError: pass\nreturn [f == stat.S_IFCHR for f in found], sum(map(stat.S_ISSOCK, found))'
    )
    with ours, theirs:
        assert function(body) == Call(([True, False, False, False], 0))  # null, two outputs, results


@pytest.mark.parametrize('path', ['/tmp/escape', 'escape', '/dev/shm/escape', 'HERE', 'LIBRARY'])
def test_run_writes_nowhere(path, tmp_path):
    path = {'HERE': str(tmp_path / 'escape'), 'LIBRARY': os.path.dirname(os.__file__) + '/escape'}.get(path, path)
    found = function(f'open({path!r}, "w").write("x")')
    assert found.value is None and 'Error' in found.error
    assert not os.path.exists(path)


def test_run_sees_the_standard_library_alone():
    found = function(
        'import os, sys\nseen = []\nfor folder, folders, files in os.walk("/"):\n'
        '    if not any(folder.startswith(p) for p in sys.path): seen += files\nreturn seen'
    )
    assert found == Call([])
    assert 'ModuleNotFoundError' in function('import numpy').error
    assert 'Error' in function(f'return open({__file__!r}).read()').error


@pytest.mark.parametrize('family', ['AF_INET', 'AF_INET6', 'AF_UNIX', 'AF_VSOCK', 'AF_NETLINK'])
def test_run_opens_no_socket(family):
    found = function(f'import socket\nreturn socket.socket(socket.{family}, socket.SOCK_DGRAM).fileno()')
    assert found.error.startswith('PermissionError')
    assert (
        'Error' in function('import urllib.request\nreturn urllib.request.urlopen("http://127.0.0.1:1").status').error
    )


@pytest.mark.parametrize(
    'body',
    [
        'raise SystemExit(0)',
        'import sys\nsys.exit(0)',
        'import os\nos._exit(0)',
        'import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\nreturn None',
        'import os, signal\nos.kill(-1, signal.SIGKILL)\nreturn None',
        'import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nreturn None',
        'import ctypes\nctypes.string_at(0)',
        'import sys\nsys.setrecursionlimit(10**9)\nf = lambda n: f(n + 1)\nreturn f(0)',
        'try:\n    raise SystemExit\nexcept SystemExit:\n    return None',
    ],
)
def test_run_ends_well_when_code_leaves(body):
    assert function(body, cpu_s=2).value is None
    assert values(DOUBLE) == [6, 8]


FORGERIES = {
    'writes first': "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'[0, null, 6]\\n[1, null, 8]\\n')\n"
    '    except OSError: pass\ndef double(x): return None\n',
    'writes and leaves': 'import os\ndef double(x):\n    for fd in range(3, 64):\n'
    '        try: os.write(fd, b\'[0, null, "x"]\\n[7, null, 8]\\n\')\n        except OSError: pass\n    os._exit(0)\n',
    'writes garbage': 'import os\ndef double(x):\n    for fd in range(3, 64):\n'
    "        try: os.write(fd, b'\\xff{[\\n')\n        except OSError: pass\n    return 6\n",
    'deep': 'import os\ndef double(x):\n    for fd in range(3, 64):\n'
    "        try: os.write(fd, b'[0, null, ' + b'[' * 99999 + b']' * 99999 + b']\\n')\n        except OSError: 0\n",
    'equal to all': 'class E(int):\n    def __eq__(self, other): return True\n    def __hash__(self): return 0\n'
    'def double(x): return E(1)\n',
    'object equal to all': 'class E:\n    def __eq__(self, other): return True\ndef double(x): return E()\n',
    'patches json': 'import json\njson.dumps = lambda *a, **k: "[0, null, true]"\ndef double(x): return 0\n',
    'patches the runner': 'import sys\nfor m in list(sys.modules.values()):\n'
    '    for n in ("agree", "encode", "evaluate"):\n'
    '        if hasattr(m, n): setattr(m, n, lambda *a: True)\ndef double(x): return 0\n',
    'reads the frames': 'import sys\ndef double(x):\n    f, found = sys._getframe(), []\n    while f:\n'
    '        found += [v for v in f.f_locals.values() if v == 70921]\n        f = f.f_back\n    return found[0]\n',
    'reads the memory': 'import gc\ndef double(x):\n'
    '    return [o for o in gc.get_objects() if isinstance(o, dict) and "expected" in o][0]["expected"]\n',
    'exit hook': 'import atexit, os\natexit.register(lambda: [os.write(fd, b"[0, null, 6]\\n") for fd in (3, 4, 5)])\n',
}


@pytest.mark.parametrize('name', FORGERIES)
def test_run_gives_a_forger_nothing(name):
    found = run(FORGERIES[name], CALLS)
    assert len(found.calls) == 2
    # What is right, is not in the process: at best the code claims something else.
    assert not any(agree(call, right) for call, right in zip(found.calls, [70921, 'nobody told'], strict=True))
    assert values(DOUBLE) == [6, 8]


def test_run_voids_claims_out_of_sequence():
    found = run(FORGERIES['writes first'], CALLS)
    assert [call.value for call in found.calls] == [None, None] and 'sequence' in found.error


@pytest.mark.parametrize(
    'claim',
    [b'[0, null, {"list": 1}]', b'[0, null, {"odd": []}]', b'[0, null, {}]', b'[0, null, [1]]', b'{}', b'[0]', b'3'],
)
def test_claims_that_no_worker_writes_void_the_run(claim):
    found = sandbox._claims(claim + b'\n', CALLS, None, 100)
    assert found.error == 'results that cannot be read' and found.calls[0].value is None
    assert sandbox._claims(b'[0, null, "' + b'x' * 100 + b'"]\n', CALLS, None, 100).error


def test_run_limits_the_size_of_a_value():
    found = run('def f(n):\n    return "x" * n\n', ['f(70000)', 'f(7)']).calls
    assert 'bytes' in found[0].error and found[1] == Call('x' * 7)


def test_run_gives_each_worker_a_user_id_of_its_own():
    if os.geteuid() != 0:
        pytest.skip('only root has other user ids to give')
    assert len({function('import os\nreturn os.getuid()').value for _ in range(3)}) == 3


def behind(kind, code, call, limits=None):
    """Runs a call behind walls of a kind; skips the test where there are none."""
    if kind != 'user_namespace' and os.geteuid() != 0:
        pytest.skip(f'walls of kind {kind} are built by root')
    try:
        return sandbox._run(kind, code, [call], limits or Limits()).calls[0]
    except sandbox.SandboxError as error:
        pytest.skip(f'this machine has none of kind {kind}: {error}')


@pytest.mark.parametrize('kind', KINDS)
def test_walls_hold_of_every_kind(kind):
    assert behind(kind, sandbox._ATTACK, sandbox._ATTACK_CALL) == Call([])
    code = 'import math, json.tool, xml.dom.minidom, wave\ndef double(x):\n    return math.ceil(x * 1.9)\n'
    assert [behind(kind, code, call).value for call in CALLS] == [6, 8]


@pytest.mark.parametrize('kind', KINDS)
def test_no_kind_of_walls_shows_installed_packages(kind):
    code = (
        'import os, sys, importlib.metadata\n'
        'def f():\n'
        '    found = [folder for folder, _, _ in os.walk("/") if folder.endswith(("-info", "infopo_jax"))]\n'
        '    sys.path += [f"{path}/site-packages" for path in sys.path]\n'
        '    return found + [d.name for d in importlib.metadata.distributions()]\n'
    )
    assert behind(kind, code, 'f()') == Call([])


@pytest.mark.parametrize('kind', KINDS)
def test_no_kind_of_walls_has_more_of_ours_in_the_process_than_the_jail(kind):
    code = (
        'import sys\n'
        'def f():\n'
        '    try:\n'
        '        import infopo_jax.envs.colbench.tasks\n'
        '    except ModuleNotFoundError:\n'
        '        return {name for name in sys.modules if name.startswith("infopo_jax")}\n'
    )
    ours = {'infopo_jax', *(f'infopo_jax.envs{name}' for name in ('', '.sandbox_jail', '.sandbox_walls'))}
    assert behind(kind, code, 'f()') == Call(ours)


@pytest.mark.parametrize('kind', KINDS)
def test_no_kind_of_walls_lets_a_message_queue_stay_behind(kind):
    code = (
        'import ctypes, os\n'
        'number = {"x86_64": 240, "aarch64": 180}[os.uname().machine]\n'
        'def f():\n'
        '    call = ctypes.CDLL(None, use_errno=True).syscall\n'
        '    return call(number, b"infopo_escape", os.O_CREAT | os.O_RDWR, 0o600, None), ctypes.get_errno()\n'
    )
    assert behind(kind, code, 'f()') == Call((-1, 1))  # EPERM


@pytest.mark.parametrize('killed', [False, True])
def test_server_takes_its_copy_of_the_library_away(killed, monkeypatch):
    monkeypatch.setattr(sandbox, '_SERVER', sandbox._Server())
    code = 'import os\ndef f():\n    return os.stat("/os.py").st_ino, os.stat("/").st_ino\n'
    found = behind('uid', code, 'f()')
    root = pathlib.Path(sandbox._SERVER._root)
    assert found == Call(((root / 'os.py').stat().st_ino, root.stat().st_ino)) == behind('uid', code, 'f()')
    if killed:
        sandbox._SERVER._process.kill()
    sandbox._SERVER.close()
    assert not root.exists()


@pytest.mark.parametrize('links', [True, False])
def test_root_of_kind_uid_is_the_library_without_packages(links, tmp_path, monkeypatch):
    if not links:  # as from another file system
        monkeypatch.setattr(os, 'link', lambda *_: os.stat('/nowhere'))
    root, library = tmp_path / 'root', pathlib.Path(os.__file__).resolve().parent
    sandbox_walls.make_root(str(root))
    assert (root / 'json' / 'decoder.py').read_bytes() == (library / 'json' / 'decoder.py').read_bytes()
    assert root.stat().st_mode & 0o777 == 0o755  # others may look, none may write
    assert not list(root.rglob('*-packages')) and not (root / 'test').exists()
    with pytest.raises(FileExistsError):  # it may be somebody else's
        sandbox_walls.make_root(str(root))
    shutil.rmtree(root)


@pytest.mark.parametrize('place', ['nowhere', 'taken'])
def test_kind_uid_is_refused_where_its_root_cannot_be_made(place, tmp_path, monkeypatch):
    if os.geteuid() != 0:
        pytest.skip('walls of kind uid are built by root')
    server = sandbox._Server()
    monkeypatch.setattr(sandbox, '_SERVER', server)
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'no folder' if place == 'nowhere' else tmp_path))
    values(DOUBLE)
    if place == 'taken':  # by another user who has read the name off the command line
        os.mkdir(server._root)
    with pytest.raises(sandbox.SandboxError, match='no place for links to, or copies of, the standard library'):
        sandbox._run('uid', DOUBLE, CALLS, Limits())
    server.close()
