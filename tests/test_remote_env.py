"""An environment in another interpreter: what it answers, and that what goes wrong there neither spreads nor stays."""

import gc
import os
import pathlib
import re
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from dialogues import exchange
from talk import tiny_chat

from infopo_jax.envs import remote
from infopo_jax.envs.remote import Interpreter, RemoteEnv, RemoteError
from infopo_jax.rollout.dialogue import Dialogue, Limits
from infopo_jax.types import EndReason
from infopo_jax.users import UserFailed

GAME = """
    import os, signal, subprocess, sys, threading, time

    print('imported', flush=True)
    PARENT = os.getpid()

    class UserFailed(Exception):
        pass

    class Game:
        def __init__(self, start=0):
            if start < 0:
                raise ValueError('start must be at least 0')
            self.count = start

        def tasks(self, split):
            return [split, 1]

        def reset(self, *, seed=0, options=None):
            return 'hi', {'pid': os.getpid(), 'parent': PARENT, 'seed': seed, 'options': options}

        def step(self, text):
            print(text)
            if text == 'count':
                self.count += 1
                return str(self.count), 0.0, False, False, {}
            if text == 'say é':
                return 'é' * 100000, 0.5, True, False, {'success': True}
            if text == 'start a helper':
                threading.Thread(target=time.sleep, args=(600,)).start()  # no daemon
                return str(subprocess.Popen(['sleep', '600']).pid), 0.0, False, False, {}
            if text == 'hang':
                time.sleep(600)
            if text == 'die':
                print('my last words', file=sys.stderr, flush=True)
                os._exit(3)
            if text == 'segfault':
                os.kill(os.getpid(), signal.SIGSEGV)
            if text == 'exit':
                sys.exit('leaving')
            if text == 'flood':
                for _ in range(1000):
                    print('x' * 1000)
                return 'dry', 0.0, False, False, {}
            if text == 'not json':
                return object(), 0.0, False, False, {}
            if text == 'user':
                raise UserFailed('the user hung up')
            raise {'value': ValueError, 'key': KeyError}[text]('wrong ' + text)
"""


@pytest.fixture(scope='module')
def target(tmp_path_factory):
    path = tmp_path_factory.mktemp('far') / 'game.py'
    path.write_text(textwrap.dedent(GAME), encoding='utf-8')
    yield f'{path}:Game'
    remote.close_all()


@pytest.fixture
def game(target):
    env = RemoteEnv(sys.executable, target, {'start': 5}, timeout=300.0)
    yield env
    env.close()


def exists(pid):
    """Returns whether a process runs; a zombie, which only waits to be counted, does not."""
    try:
        return pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] not in 'ZX'
    except OSError:
        return False


def gone(*pids, within=5.0):
    end = time.monotonic() + within
    while any(map(exists, pids)) and time.monotonic() < end:
        time.sleep(0.01)
    return not any(map(exists, pids))


def test_remote_env_answers_as_the_environment_does(game):
    assert game.tasks('test') == ['test', 1]
    observation, info = game.reset(seed=7, options={'task': 'a'})
    assert observation == 'hi' and (info['seed'], info['options']) == (7, {'task': 'a'})
    assert info['pid'] not in (os.getpid(), info['parent'])
    assert [game.step('count')[0] for _ in range(2)] == ['6', '7']
    assert game.step('say é') == ('é' * 100000, 0.5, True, False, {'success': True})
    assert game.step('flood')[0] == 'dry'  # nobody waits for the megabyte that it prints to be read


def test_remote_envs_share_an_interpreter_but_not_a_process(target):
    envs = [RemoteEnv(sys.executable, target) for _ in range(3)]
    infos = [env.reset()[1] for env in envs]
    assert len({info['pid'] for info in infos}) == 3 and len({info['parent'] for info in infos}) == 1
    assert envs[0].step('count')[0] == '1' and envs[0].step('count')[0] == '2' and envs[1].step('count')[0] == '1'
    for env in envs:
        env.close()
    assert gone(*(info['pid'] for info in infos)) and exists(infos[0]['parent'])


@pytest.mark.parametrize(
    ('text', 'kind', 'message'),
    [
        ('value', ValueError, '^wrong value$'),
        ('user', UserFailed, '^the user hung up$'),
        ('key', RemoteError, r"step raised KeyError: 'wrong key'\n.*in step"),
        ('exit', RemoteError, 'SystemExit: leaving'),
        ('not json', RemoteError, 'TypeError: Object of type object is not JSON'),
    ],
)
def test_an_exception_there_is_raised_here_and_the_environment_lives_on(game, text, kind, message):
    pid = game.reset()[1]['pid']
    with pytest.raises(kind, match='(?s)' + message):
        game.step(text)
    assert game.step('count')[0] == '6' and game.reset()[1]['pid'] == pid


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('die', 'step crashed .its process exited with code 3.*my last words'),
        ('segfault', 'step crashed .its process was killed by SIGSEGV'),
        ('hang', 'step gave no answer within 3 s .its process was killed by SIGKILL'),
    ],
)
def test_a_crash_or_a_hang_raises_kills_and_spares_the_neighbours(target, game, text, message):
    victim = RemoteEnv(sys.executable, target, timeout=3.0)
    pid = victim.reset()[1]['pid']
    game.reset()
    start = time.monotonic()
    with pytest.raises(RemoteError, match='(?s)' + message):
        victim.step(text)
    assert time.monotonic() - start < 60 and gone(pid)
    assert game.step('count')[0] == '6'
    assert victim.reset()[1]['pid'] != pid  # it can be used again
    victim.close()


def test_close_leaves_no_process_and_no_helper_behind(game):
    pid, helper = game.reset()[1]['pid'], int(game.step('start a helper')[0])
    assert exists(pid) and exists(helper)
    game.close()
    assert gone(pid, helper)


def test_close_during_a_call_ends_it(target):
    """An engine that has given up a call closes its environment from another thread."""
    env, errors = RemoteEnv(sys.executable, target, timeout=60.0), []
    pid = env.reset()[1]['pid']

    def hang():
        with pytest.raises(RemoteError, match=r'crashed .its process was closed') as error:
            env.step('hang')
        errors.append(error)

    thread = threading.Thread(target=hang)
    thread.start()
    time.sleep(0.2)
    env.close()
    thread.join(5)
    assert len(errors) == 1 and gone(pid)
    assert env.reset()[1]['pid'] != pid
    env.close()


def test_an_environment_that_nobody_holds_is_let_go(target):
    env = RemoteEnv(sys.executable, target)
    pid = env.reset()[1]['pid']
    del env
    gc.collect()
    assert gone(pid)


def test_the_end_of_our_process_ends_theirs(target):
    code = f"""
        import os, sys
        from infopo_jax.envs.remote import RemoteEnv
        env = RemoteEnv(sys.executable, {target!r})
        info = env.reset()[1]
        print(info['pid'], info['parent'], env.step('start a helper')[0], flush=True)
        os.kill(os.getpid(), 9)
    """
    out = subprocess.run([sys.executable, '-c', textwrap.dedent(code)], capture_output=True, text=True).stdout
    assert len(out.split()) == 3
    assert gone(*map(int, out.split()))


def test_an_interpreter_that_has_died_is_replaced(target):
    env = RemoteEnv(sys.executable, target)
    info = env.reset()[1]
    os.kill(info['parent'], 9)
    assert gone(info['pid'], info['parent'])
    with pytest.raises(RemoteError, match='crashed'):
        env.step('count')
    assert env.reset()[1]['parent'] != info['parent']
    env.close()


@pytest.mark.parametrize(
    ('code', 'message'),
    [
        ('import a_package_that_is_not_there', 'ModuleNotFoundError'),
        ('import os, sys; print("farewell", file=sys.stderr, flush=True); os._exit(1)', '(?s)crashed.*farewell'),
        ('import time; time.sleep(600)', 'no answer within 1 s'),
    ],
)
def test_interpreter_that_cannot_import_says_why(tmp_path, code, message):
    path = tmp_path / 'broken.py'
    path.write_text(code)
    with pytest.raises(RemoteError, match=message):
        Interpreter(sys.executable, f'{path}:Game', timeout=1.0)


def test_interpreter_refuses_what_is_none():
    with pytest.raises(ValueError, match=r'cannot start the interpreter .*give its path'):
        RemoteEnv('/no/such/python', 'json:loads').reset()


def test_make_refusals_are_the_callers(target):
    with pytest.raises(ValueError, match='start must be at least 0'):
        RemoteEnv(sys.executable, target, {'start': -1}).tasks('train')


def test_interpreter_gets_its_variables_and_not_our_import_path(tmp_path, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', '/ours')
    path = tmp_path / 'look.py'
    path.write_text('import os, sys\nclass Look:\n    def see(self):\n        return [os.environ["MINE"], sys.path]\n')
    env = RemoteEnv(sys.executable, f'{path}:Look', environ={'MINE': 'yes'})
    mine, paths = env.call('see')
    env.close()
    assert mine == 'yes' and '/ours' not in paths
    assert not any(place.endswith(os.path.join('infopo_jax', 'envs')) for place in paths)  # our tau2.py is not tau2


def test_many_threads_each_with_an_environment(target):
    results = {}

    def play(number):
        env = RemoteEnv(sys.executable, target, {'start': number})
        env.reset()
        results[number] = [int(env.step('count')[0]) for _ in range(20)]
        env.close()

    threads = [threading.Thread(target=play, args=(100 * i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {100 * i: list(range(100 * i + 1, 100 * i + 21)) for i in range(12)}


@pytest.mark.parametrize(('text', 'end'), [('die', EndReason.ENV_ERROR), ('hang', EndReason.ENV_ERROR)])
def test_a_dialogue_ends_with_env_error(target, text, end):
    chat = tiny_chat()
    limits = Limits(4, 200, 40, 12, 60, 2)
    dialogue = Dialogue(chat, limits, 'a', group=0, member=0, seed=0)
    exchange(dialogue, RemoteEnv(sys.executable, target, timeout=3.0))
    dialogue.take(99)
    dialogue.hear([*chat.encode(text), chat.stop_id], [0.0] * (len(chat.encode(text)) + 1))
    exchange(dialogue)
    assert (dialogue.end_reason, dialogue.valid) == (end, False)
    assert re.match('Remote(Error|Timeout): .*Game.step (crashed|gave no answer)', dialogue.error_text)
