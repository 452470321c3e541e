"""An export writes over nothing that runs live on; what it writes is tested with real checkpoints."""

import json
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'launch'))

import export as export_launch  # noqa: E402

from infopo_jax import config as config_lib, export, runtime, train  # noqa: E402


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Returns the folder of a run that goes on from a local checkpoint, tmp_path/base; nothing of it may be opened."""
    monkeypatch.setattr(train, 'open_run', lambda *_, **__: pytest.fail('opened the run first'))
    config = config_lib.base_config()
    config.env.kind, config.env.name, config.model.path = 'hosted', 'retail', str(tmp_path / 'base')
    for name in ('base', 'run', 'other/checkpoints', 'begun'):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / 'run' / 'config.json').write_text(json.dumps(config_lib.to_dict(config)))
    (tmp_path / 'begun' / 'metrics.jsonl').write_text('')
    (tmp_path / 'link').symlink_to(tmp_path / 'run')
    return config, tmp_path / 'run'


@pytest.mark.parametrize(
    ('out', 'words'),
    [
        ('run', r"is the folder of a run, whose config\.json would be .*: name another one, such as '.*run/exported'"),
        ('link', 'is the folder of a run'),
        ('base/../run', 'is the folder of a run'),
        ('other', 'is the folder of a run'),
        ('begun', 'is the folder of a run'),
        ('base', r'is config\.model\.path, .*: name another folder'),
    ],
)
def test_export_refuses_a_folder_that_runs_live_on(run, out, words):
    config, workdir = run
    with pytest.raises(ValueError, match=words):
        export.export(config, str(workdir), str(workdir.parent / out))


@pytest.mark.parametrize('out', ['run/exported', 'new'])
def test_export_takes_any_other_folder(run, monkeypatch, out):
    config, workdir = run
    monkeypatch.setattr(train, 'open_run', lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export.export(config, str(workdir), str(workdir.parent / out))


def test_launch_export_says_so_with_code_2(run, monkeypatch, capsys):
    monkeypatch.setattr(runtime, 'silence', lambda: None)
    monkeypatch.setattr(runtime, 'enable_compilation_cache', lambda: None)
    before = (run[1] / 'config.json').read_text()
    assert export_launch.run(['export.py', f'--workdir={run[1]}', f'--out={run[1]}']) == 2
    assert 'is the folder of a run' in capsys.readouterr().err
    assert (run[1] / 'config.json').read_text() == before
