"""The files under configs/: what their heads tell the reader to type, and the devices that their rows fit."""

import inspect
import pathlib
import re
import runpy
import shlex

import pytest
from jax.sharding import AbstractMesh

from infopo_jax import build, build_mesh, config as config_lib, sharding

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / 'configs').glob('*.py'))
COMMAND = re.compile(r'^(?:Run:)?\s+((?:python|pip|git) .*)$', re.MULTILINE)


def load(path, *setting):
    return runpy.run_path(str(path))['get_config'](*setting)


def settings_of(path):
    """Returns the settings that --config=FILE:SETTING may name; the first is the default."""
    if not inspect.signature(runpy.run_path(str(path))['get_config']).parameters:
        return []
    with pytest.raises(ValueError, match='must be one of ') as error:
        load(path, '?')
    return str(error.value).rpartition('one of ')[2].split(', ')


def head(path):
    """Returns a file's head as a reader finds it there; in Python, a backslash has joined lines already."""
    return path.read_text(encoding='utf-8').split('"""')[1]


def override(config, name, text):
    """Sets a field as the command line does."""
    section, _, leaf = name.rpartition('.')
    kind = config_lib.field_types()[name]
    node = config[section] if section else config
    node[leaf] = {'True': True, 'False': False}[text] if kind is bool else kind(text)


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)
def test_commands_of_a_head_make_a_config(path):
    commands = [shlex.split(line) for line in COMMAND.findall(re.sub(r'\\\n\s*', '', head(path)))]
    launches = [words for words in commands if words[:2] == ['python', 'launch/train.py']]
    settings, choose = set(), runpy.run_path(str(path)).get('setting_for', lambda fields: None)
    for words in launches:
        flags = dict(word.removeprefix('--').split('=', 1) for word in words[2:])
        name, _, setting = flags.pop('config').partition(':')
        assert name == f'configs/{path.name}'
        setting = setting or choose({flag.removeprefix('config.'): text for flag, text in flags.items()})
        settings.add(setting)
        config = load(ROOT / name, *[setting] * bool(setting))
        for flag, text in flags.items():
            override(config, flag.removeprefix('config.'), text)
        config_lib.validate(config)
    assert settings >= ({None, 'paper'} if settings_of(path) else {None}), 'a command for the default and the paper'


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)
def test_head_names_fields_that_exist(path):
    named = re.findall(r'--config\.([\w.]+\w)', head(path))
    assert named and set(named) <= set(config_lib.field_types())


@pytest.mark.parametrize('num_devices', [1, 2, 4, 8])
@pytest.mark.parametrize(
    ('path', 'setting'),
    [
        pytest.param(path, setting, id=f'{path.stem}-{setting}')
        for path in FILES
        for setting in settings_of(path)
        if setting != 'small'
    ],
)
def test_rows_of_settings_for_checkpoints_fit_the_devices(path, setting, num_devices):
    config = load(path, setting)
    mesh = AbstractMesh((1, num_devices, 1), sharding.AXES)
    rows = build_mesh.count_rows(config, build.make_sizes(config), mesh)
    assert len(rows) >= 3
    sharding.check_rows(mesh, rows)  # raises what does not fit


@pytest.mark.parametrize(
    ('prompts', 'devices', 'parts'),
    [(4, 1, 2), (4, 4, 3), (16, 16, 3), (16, 12, 4), (4, 5, 2)],  # of 3 rollouts each; 5 divides no part
)
def test_microbatches_left_to_us_are_divided_by_the_mesh(prompts, devices, parts):
    config = config_lib.base_config()
    config.batch.prompts, config.batch.group_size, config.updates.microbatches = prompts, 3, 0
    assert build_mesh.count_microbatches(config, AbstractMesh((1, devices, 1), sharding.AXES)) == parts
    config.updates.microbatches = 1
    assert build_mesh.count_microbatches(config, AbstractMesh((1, devices, 1), sharding.AXES)) == 1
