"""Tests of playing in the terminal."""

import itertools
import shlex
import subprocess
import sys

import pytest

from infopo_jax import envs
from infopo_jax.envs.__main__ import main
from infopo_jax.envs.remote import RemoteError
from infopo_jax.envs.tools import render
from infopo_jax.users import UserFailed

CANCEL = 'cancel_order order_17 delay'


@pytest.fixture
def play(capsys):
    """Plays with these lines typed; returns the exit status, what was printed, and the errors."""

    def run(*argv, typed=()):
        lines = iter(typed)

        def ask(prompt):
            print(prompt, end='')
            try:
                return next(lines)
            except StopIteration:
                raise EOFError from None

        return main(list(argv), ask), *capsys.readouterr()

    return run


def test_main_plays_a_text_environment_to_its_end(play):
    typed = ('Which order?', '/get_order order=order_17', 'Why?', '/cancel order=order_17 reason=delay')
    status, out, err = play('retail', f'--task={CANCEL}', '--level=1', '--seed=3', typed=typed)
    assert (status, err) == (0, '')
    assert out.startswith(f'task {CANCEL}\n') and '[user] ' in out and '[tools] /get_customer customer=...' in out
    call = render('get_order', {'order': 'order_17'})
    assert f'[you, 2 of 6] {call}\n[tool] pending, ' in out and '[tool] Cancelled order_17.' in out
    assert out.rstrip().endswith('[reward] 1\n\n[end: over] outcome 1, success, 4 turns')


def test_main_shows_a_drawn_task_when_the_game_is_over(play):
    _, out, _ = play('retail', '--turn_limit=2', '--seed=5', typed=['Hello', ':quit'])
    assert 'task' not in out
    _, out, _ = play('retail', '--turn_limit=2', '--seed=5', typed=['Which order?', 'Hello'])
    talk, _, line = out.rstrip().rpartition('\n')
    task, _, command = line.removeprefix('task ').partition('; again: python -m infopo_jax.envs ')
    assert task in envs.make('retail').tasks('train') and 'task' not in talk
    _, out, _ = play(*shlex.split(command), typed=['Which order?', 'Hello'])
    assert out == f'task {task}\n{talk}\n'


@pytest.mark.parametrize('name', ['retail', 'webshop', 'usergym'])
def test_main_lets_the_expert_move(play, name):
    status, out, err = play(name, typed=[':expert'] * 20)
    assert (status, err) == (0, '') and ', success, ' in out


def test_main_takes_a_whole_call_as_an_agent_writes_it(play):
    call = render('cancel_order', {'order': 'order_17', 'reason': 'price'})
    _, out, _ = play('retail', f'--task={CANCEL}', typed=[call])
    assert '[end: over] outcome 0, no success, 1 turns' in out


def test_main_ends_at_the_turn_limit(play):
    _, out, _ = play('retail', f'--task={CANCEL}', '--turn_limit=2', typed=['Hello', 'Hello', 'Hello'])
    assert '[end: turn limit] outcome 0, no success, 2 turns' in out


@pytest.mark.parametrize(
    ('line', 'words'),
    [
        ('/cancel order_17', "'order_17' must be key=value"),
        ('/get order=order_17', '/get is not one tool; the tools: /get_customer customer=..., /get_order order=...'),
        ('/get_order order="x', 'No closing quotation'),
        (':tools', '"name": "cancel_order"'),
        (':expert', 'this environment has no expert'),
    ],
)
def test_main_answers_what_is_no_turn_itself(play, monkeypatch, line, words):
    monkeypatch.delattr(envs.constructor('retail'), 'expert', raising=False)
    status, out, _ = play('retail', f'--task={CANCEL}', typed=[line, ':quit'])
    assert status == 0 and words in out
    assert out.count('[you, 1 of 6]') == 2 and '[you, 2' not in out and 'left before the end' in out


def test_main_plays_an_array_environment(play):
    status, out, err = play(
        'intent', '--num_slots=2', '--num_hidden=1', '--seed=1', typed=['ask s0 s1', 'zebra', ':words']
    )
    assert (status, err) == (0, '')
    assert 'book s0' in out and "'zebra' is no word here; words: <pad>" in out
    assert out.count('[you, 2 of 6]') == 3


def test_main_wins_an_array_environment(play):
    _, out, _ = play('intent', '--num_slots=2', '--num_hidden=1', '--seed=1', typed=['ask s0', 'ask s1'])
    shown = out.splitlines()
    prompt = next(line for line in shown if 'book s0' in line).split()
    told = dict(itertools.pairwise(prompt))
    answers = [line.split('] ')[-1] for line in shown if line.startswith('[you')]
    values = [told[f's{i}'] if told[f's{i}'] != '?' else answers[i].split()[-1] for i in range(2)]
    _, out, _ = play('intent', '--num_slots=2', '--num_hidden=1', '--seed=1', typed=[f'book {" ".join(values)}'])
    assert '[end: over] outcome 1, success, 1 turns' in out


def test_help_lists_environments_and_knobs(play, capsys):
    status, out, _ = play('--help')
    assert status == 0 and all(name in out for name in envs.ENVIRONMENTS)
    assert play()[0] == 2
    with pytest.raises(SystemExit) as stopped:
        main(['retail', '--help'])
    out = capsys.readouterr().out
    assert stopped.value.code == 0 and '--level VALUE' in out and 'default: 1' in out and ':quit' in out


@pytest.mark.parametrize(
    ('argv', 'words'),
    [
        (('retial',), "did you mean 'retail'?"),
        (('retail', '--level=9'), 'level must be one of'),
        (('retail', '--task=nothing'), "no task 'nothing'; there are"),
        (('intent', '--task=3'), 'choose one by --seed'),
        (('retail', '--user=openai'), '--user=openai needs a model: pass --user_model=NAME'),
        (('retail', '--user=policy'), 'is the model of a run, and here is none'),
        (('retail', '--brief=1'), '--brief=1 must be True or False'),
        (('intent', '--turn_cost=a'), '--turn_cost=a must be a number'),
        (('sokoban_text', '--turn_limit=abc'), '--turn_limit=abc must be an integer'),
        (('webshop', '--level=[1]'), '--level=[1] must be an integer'),
        (('webshop', '--level={[]: 1}'), '--level={[]: 1} must be an integer'),
        (('webshop_server', '--data=5'), "address of a server, such as 'http://127.0.0.1:3000', got '5'"),
        (('webshop_server', '--data=http://127.0.0.1:9'), 'no WebShop server answers at http://127.0.0.1:9'),
        (('usergym', '--level=2.0'), '--level=2.0 must be an integer'),
        (('gymnasium', '--gym=json:loads'), "gym 'json:loads' must make an environment without arguments: missing"),
    ],
)
def test_main_says_what_is_wrong(play, argv, words):
    status, _, err = play(*argv)
    assert status == 2 and words in err and len(err.splitlines()) <= 2


@pytest.mark.parametrize('error', [UserFailed, RemoteError])
def test_main_says_who_failed(play, monkeypatch, error):
    def fail(*_):
        raise error('tiny at http://host/v1: no answer')

    monkeypatch.setattr(envs.constructor('retail'), 'step', fail)
    assert play('retail', typed=['Hello'])[::2] == (2, 'tiny at http://host/v1: no answer\n')


def test_main_reads_knobs_by_their_types(play, monkeypatch):
    made = []
    monkeypatch.setattr(envs, 'make', lambda name, **knobs: made.append(knobs) or 1 / 0)
    for argv in (
        ('intent', '--turn_cost=1', '--num_slots=3', '--reward=share'),
        ('gymnasium', '--prompt=3', '--actions={"go": "go"}', '--num_tasks=None'),
    ):
        with pytest.raises(ZeroDivisionError):
            play(*argv)
    assert made == [
        {'num_slots': 3, 'reward': 'share', 'turn_cost': 1},
        {'actions': {'go': 'go'}, 'prompt': '3', 'num_tasks': None},
    ]


def test_unknown_knob_is_an_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(['retail', '--levle=1'])
    assert stopped.value.code == 2 and '--levle=1' in capsys.readouterr().err


def test_module_runs_from_the_command_line():
    command = [sys.executable, '-m', 'infopo_jax.envs', 'retail', f'--task={CANCEL}']
    done = subprocess.run(command, input=':quit\n', capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and 'task cancel_order' in done.stdout and done.stderr == ''
