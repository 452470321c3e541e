"""docs/environments.md is true: its example runs, and its table holds what is measured elsewhere."""

import pathlib
import random
import re
import sys
import types

import pytest
from test_usergym import RANDOM

from infopo_jax import config as config_lib, envs, train
from infopo_jax.envs.__main__ import main
from infopo_jax.envs.tools import parse, render
from infopo_jax.envs.usergym.eight import EIGHT
from infopo_jax.envs.usergym.env import OWN

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = (ROOT / 'docs' / 'environments.md').read_text(encoding='utf-8')
ENVIRONMENT, TAUGHT, CONFIG, GYMNASIUM = re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL)


@pytest.fixture(scope='module')
def rooms():
    """Makes the page's environment known as a reader would; yields its module."""
    module = types.ModuleType('doc_rooms')
    exec(compile(f'{ENVIRONMENT}\n{TAUGHT}', 'environments.md', 'exec'), module.__dict__)
    sys.modules['doc_rooms'] = module
    envs.ENVIRONMENTS['rooms'] = 'doc_rooms:Rooms'
    yield module
    del sys.modules['doc_rooms'], envs.ENVIRONMENTS['rooms']


def test_environment_has_thirty_lines():
    assert len([line for line in ENVIRONMENT.splitlines() if line.strip()]) <= 30
    assert all(len(line) <= 120 for line in PAGE.splitlines() if not line.startswith('|'))


def test_environment_keeps_the_contract(rooms):
    env = envs.make('rooms')
    train_tasks, test_tasks = env.tasks('train'), env.tasks('test')
    assert train_tasks and test_tasks and not set(train_tasks) & set(test_tasks)
    for task in [*train_tasks, *test_tasks]:
        messages, info = env.reset(options={'task': task})
        assert messages == rooms.OPENING and info['tools'] == [rooms.BOOK]
        room, time = (env.step(question)[0] for question in rooms.ASKS)
        assert f'{room} {time}' == task
        call = render('book', {'room': room, 'time': time})
        assert env.step(call) == ('Thanks.', 1.0, True, False, {'success': True, 'outcome': 1.0})
        assert env.step(render('book', {'room': time, 'time': room}))[4] == {'success': False, 'outcome': 0.0}
    for text in ('', 'which day?', render('book', {'room': 'attic'}), render('look', {}), '<tool_call>'):
        observation, *rest, info = env.step(text)
        assert observation.startswith('Error: ') and rest == [0.0, False, False] and info == {'is_error': True}


def test_environment_teaches_no_solved_episode(rooms):
    env, rng, calls = envs.make('rooms'), random.Random(0), 0
    for _ in range(300):
        history, target = env.example(rng)
        heard = ' '.join(message['content'] for message in history)
        known = [word for word in (*rooms.ROOMS, *rooms.TIMES) if re.search(rf'\b{word}\b', heard)]
        call = parse(target, [rooms.BOOK])
        calls += call.name == 'book'
        assert len(known) <= 1 and call.error is None
        assert target in rooms.ASKS or set(known) <= set(call.arguments.values())
    assert calls > 50


def test_environment_is_played_in_the_terminal(rooms, capsys):
    assert main(['rooms', '--task=attic dawn'], lambda _: 'which room?') == 0
    assert capsys.readouterr().out.endswith('[user] attic\n\n[end: turn limit] outcome 0, no success, 4 turns\n')


def test_environment_trains(rooms, tmp_path):
    namespace = {}
    exec(compile(CONFIG, 'environments.md', 'exec'), namespace)
    config = namespace['get_config']()
    config_lib.validate(config)
    config.steps, config.batch.prompts, config.batch.group_size = 3, 2, 2
    config.warmstart.steps, config.warmstart.batch = 2, 4
    config.eval.interval, config.eval.episodes, config.log.tensorboard = 0, 4, False
    config.model.dim, config.model.num_layers, config.model.mlp_dim = 16, 1, 16
    assert 0 <= float(train.main(config, str(tmp_path))['success']) <= 1


def test_gymnasium_example_makes_an_environment(monkeypatch):
    class Maze:
        def reset(self, *, seed=None, options=None):
            return 'A maze.', {}

        def step(self, action):
            return action, 1.0, True, False, {}

    games = types.ModuleType('my_package.games')
    games.Maze = Maze
    monkeypatch.setitem(sys.modules, 'my_package', types.ModuleType('my_package'))
    monkeypatch.setitem(sys.modules, 'my_package.games', games)
    namespace = {}
    exec(compile(GYMNASIUM, 'environments.md', 'exec'), namespace)
    env = namespace['env']
    assert env.reset()[0][0] == {'role': 'system', 'content': 'Find the way out.'}
    assert env.step(render('move', {'direction': 'north'}))[0][0]['content'] == 'go north'


def test_table_has_every_gym_with_its_random_score():
    rows = re.findall(r'^\| `(\w+)` \| [^|]+ \| 0 \| ([\d./ ]+) \| 1 \|$', PAGE, re.MULTILINE)
    assert {gym: tuple(float(score) for score in scores.split('/')) for gym, scores in rows} == RANDOM
    assert list(dict(rows)) == list(OWN)
    assert all(gym in PAGE for gym in EIGHT)


def test_page_links_and_names_only_what_exists():
    files = re.findall(r'`((?:configs|docs|infopo_jax)/[\w./]+)`', PAGE)
    own = {'infopo_jax/envs/rooms.py', 'configs/rooms.py'}  # the reader is to write these
    assert not [name for name in files if name not in own and not (ROOT / name).exists()]
    for line in re.findall(r'python -m infopo_jax\.envs (\w+)((?: --\w+=?\S*)*)', PAGE):
        knobs = set(re.findall(r'--(\w+)', line[1])) - {'help'}
        assert line[0] == 'rooms' or knobs <= set(envs.knobs(line[0]))
