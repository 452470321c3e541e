"""The files under configs/: what their heads tell the reader to type, and the devices that their rows fit."""

import inspect
import pathlib
import re
import runpy
import shlex

import pytest
from jax.sharding import AbstractMesh

from infopo_jax import build, config as config_lib, sharding

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / 'configs').glob('*.py'))
COMMAND = re.compile(r'^(?:Run:)?\s+((?:python|pip|git) .*)$', re.MULTILINE)


def load(path, *setting):
    return runpy.run_path(str(path))['get_config'](*setting)


def settings_of(path):
    """Returns the settings that a file names as --config=FILE:SETTING; () is its default."""
    return [(), ('paper',)] if inspect.signature(runpy.run_path(str(path))['get_config']).parameters else [()]


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
    settings = set()
    for words in launches:
        flags = dict(word.removeprefix('--').split('=', 1) for word in words[2:])
        name, _, setting = flags.pop('config').partition(':')
        assert name == f'configs/{path.name}'
        settings.add((setting,) if setting else ())
        config = load(ROOT / name, *[setting] * bool(setting))
        for flag, text in flags.items():
            override(config, flag.removeprefix('config.'), text)
        config_lib.validate(config)
    assert settings == set(settings_of(path)), 'a command for each setting'


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)
def test_head_names_fields_that_exist(path):
    named = re.findall(r'--config\.([\w.]+\w)', head(path))
    assert named and set(named) <= set(config_lib.field_types())


@pytest.mark.parametrize('num_devices', [1, 2, 4, 8])
@pytest.mark.parametrize(
    'path', [path for path in FILES if ('paper',) in settings_of(path)], ids=lambda path: path.name
)
def test_rows_of_the_papers_settings_fit_the_devices(path, num_devices):
    config = load(path, 'paper')
    rows = build.count_rows(config, build.make_sizes(config))
    assert len(rows) >= 3
    sharding.check_rows(AbstractMesh((1, num_devices, 1), sharding.AXES), rows)  # raises what does not fit
