"""How handed-in code is graded."""

import pytest
from colbench_play import GOAL, RIGHT, needs_sandbox, start

from infopo_jax.envs.colbench import grade
from infopo_jax.envs.colbench.functions import MARKER
from infopo_jax.envs.colbench.tasks import Task

pytestmark = needs_sandbox


@pytest.mark.parametrize(
    ('text', 'code'),
    [
        ('I WANT TO ANSWER: x = 1', 'x = 1'),
        ('So. I WANT TO ANSWER:\n```python\nx = 1\n```\nDone.', 'x = 1\n'),
        ('I WANT TO ANSWER:\n```\nx = 1\n```', 'x = 1\n'),
        ('I WANT TO ANSWER:\n\ndef f():\n    return 1\n', 'def f():\n    return 1'),
        ('I want more.', None),
        ('I WANT TO ANSWER:', ''),
    ],
)
def test_answer_takes_what_follows_the_marker(text, code):
    assert grade.answer(text) == code


def test_share_counts_calls_that_agree():
    task = Task(('f',), '', ('f(1)', 'f(2)', 'f(3)', 'f(4)'), (1, 2, None, 5))
    assert grade.share(task, 'def f(x):\n    return x') == 0.5  # a call that should give None agrees with nothing
    assert grade.share(task, 'def f(x):\n    return x if x < 2 else 1 / 0') == 0.25
    assert grade.share(task, 'f = None') == 0.0


def test_share_runs_a_foreign_reference_in_the_sandbox():
    task = Task(('f',), 'import os\ndef f(x):\n    return [x, len(os.environ)][x == 2]', ('f(1)', 'f(2)', 'f("a")'))
    assert grade.expectation(task) == (1, 0, 'a')
    assert grade.share(task, 'def f(x):\n    return x if x != 2 else 0') == 1.0


@pytest.mark.parametrize(
    'attack',
    [
        'while True: pass',
        'import os\nwhile True: os.fork()',
        'x = bytearray(10 << 30)',
        'import os\nos.environ["PATH"]',
        'open("/tmp/escape", "w")',
        'import socket\nsocket.socket()',
        'while True: print("x" * 65536)',
        'try:\n    raise SystemExit\nexcept SystemExit:\n    raise SystemExit',
        'import os\nfor fd in range(3, 64):\n    try: os.write(fd, b"[0, null, true]\\n")\n    except OSError: pass',
    ],
)
def test_an_attack_earns_nothing_and_the_run_goes_on(attack):
    env, _ = start()
    right = RIGHT.removeprefix(f'{MARKER}\n')
    _, reward, terminated, truncated, info = env.step(f'{MARKER}\n{attack}\n{right}')
    assert (reward, terminated, truncated, info['success']) == (0.0, True, False, False)
    env.reset(options={'task': GOAL})
    assert env.step(RIGHT)[1] == 1.0
