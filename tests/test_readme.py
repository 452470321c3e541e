"""The README is true: its commands, its links and tables, and the environment that it writes in front of the reader."""

import json
import pathlib
import random
import re
import runpy
import sys
import types

import pytest

from infopo_jax import config as config_lib, envs, train

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / 'README.md').read_text(encoding='utf-8')
_, _, ENVIRONMENT_PART = README.partition('## An environment of your own')
ENVIRONMENT, CONFIG = re.findall(r'```python\n(.*?)```', ENVIRONMENT_PART.partition('\n## ')[0], re.DOTALL)
COMMANDS = (
    'pip install -e . && python launch/train.py --config=configs/taubench.py',
    "pip install -e '.[test]' && pytest",
)


@pytest.fixture(scope='module')
def parcel():
    """Makes the README's environment known as a reader would; yields its class."""
    module = types.ModuleType('readme_parcel')
    exec(compile(ENVIRONMENT, 'README.md', 'exec'), module.__dict__)
    sys.modules['readme_parcel'] = module
    envs.ENVIRONMENTS['parcel'] = 'readme_parcel:Parcel'
    yield module.Parcel
    del sys.modules['readme_parcel'], envs.ENVIRONMENTS['parcel']


def parcel_config():
    namespace = {}
    exec(compile(CONFIG, 'README.md', 'exec'), namespace)
    return namespace['get_config']()


def test_readme_has_the_two_commands_first_and_ci_runs_the_second():
    blocks = re.findall(r'```bash\n(.*?)\n```', README, re.DOTALL)
    assert tuple(blocks[:2]) == COMMANDS
    assert COMMANDS[1] in (ROOT / '.ci' / 'run').read_text()


def test_readme_links_and_names_only_what_exists():
    links = [link for link in re.findall(r'\]\(([^)]+)\)', README) if '://' not in link]
    files = re.findall(r'`((?:configs|launch|benchmarks|docs|notebooks|infopo_jax)/[\w./*]+)`', README)
    own = {'infopo_jax/envs/parcel.py', 'configs/parcel.py'}  # the reader is to write these
    missing = [name for name in (*links, *files) if name not in own and not (ROOT / name).exists()]
    assert not missing


def test_readme_map_names_every_module_of_the_package():
    mapped = README.partition('## The folders')[2].partition('\n## ')[0]
    names = {f'{path.name}/' for path in (ROOT / 'infopo_jax').iterdir() if (path / '__init__.py').exists()}
    names |= {path.name for path in (ROOT / 'infopo_jax').glob('*.py') if not path.name.startswith(('__', 'report_'))}
    names |= {f'{name}/' for name in ('configs', 'launch', 'benchmarks', 'notebooks', 'docs', 'tests')}
    unnamed = {name for name in names if name not in mapped.replace('report*.py', 'report.py')}
    assert unnamed == set()


def test_readme_table_has_every_config_with_its_level():
    rows = dict(re.findall(r'^\| `(configs/\w+\.py)` \| (.*)$', README, re.MULTILINE))
    assert set(rows) == {f'configs/{path.name}' for path in (ROOT / 'configs').glob('*.py')}
    for file, text in rows.items():
        level = runpy.run_path(str(ROOT / file))['get_config']().env.level
        assert level is None or f'level {level} ' in text


def test_readme_fields_exist_with_the_values_named():
    fields = config_lib.field_types()
    for field in re.findall(r'--config\.([\w.]+)=', README):
        assert field in fields
    defaults = config_lib.flatten(config_lib.base_config())
    for field, value in re.findall(r'`(info\.\w+)=([^`]+)`', README):
        assert str(defaults[field]) == value.strip("'")


def test_readme_environment_keeps_the_contract(parcel):
    env = parcel()
    train_tasks, test_tasks = env.tasks('train'), env.tasks('test')
    assert train_tasks and test_tasks and not set(train_tasks) & set(test_tasks)
    messages, info = env.reset(seed=0, options={'task': test_tasks[0]})
    assert messages[0]['role'] == 'user' and info == {}
    assert env.step('gibberish')[4]['is_error']
    city, weight = env.step('where to?')[0], env.step('how heavy?')[0]
    assert f'{city} {weight}' == test_tasks[0]
    assert env.step(f'send {city} {weight}')[1:] == (1.0, True, False, {'success': True, 'outcome': 1.0})
    env.reset(options={'task': test_tasks[0]})
    assert env.step(f'send {weight} {city}')[4] == {'success': False, 'outcome': 0.0}


def test_readme_environment_teaches_no_solved_episode(parcel):
    env, rng = parcel(), random.Random(0)
    for _ in range(300):
        history, target = env.example(rng)
        heard = ' '.join(message['content'] for message in history)
        known = [word for word in env.special_tokens() if re.search(rf'\b{word}\b', heard)]
        assert len(known) <= 1
        assert target in ('where to?', 'how heavy?') or set(known) <= set(target.split()[1:])


def test_readme_environment_trains(parcel, tmp_path):
    config = parcel_config()
    config_lib.validate(config)
    config.steps, config.batch.prompts, config.batch.group_size = 1, 2, 2
    config.warmstart.steps, config.warmstart.batch = 2, 4
    config.eval.episodes, config.log.tensorboard = 4, False
    config.model.dim, config.model.num_layers, config.model.mlp_dim = 16, 1, 16
    metrics = train.main(config, str(tmp_path))
    assert 0 <= float(metrics['success']) <= 1
    rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert [row['phase'] for row in rows] == ['eval', 'train', 'eval'] and rows[1]['skipped'] == 0
    assert (tmp_path / 'report.html').exists()
