"""The command line: help that suffices, and errors that name the fix in a few lines."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'launch'))

import command_line  # noqa: E402

from infopo_jax import config as config_lib, runtime  # noqa: E402

QUICK, TAUBENCH = (f'--config={ROOT}/configs/{name}.py' for name in ('quickstart', 'taubench'))


@pytest.fixture
def launch(tmp_path, monkeypatch, capsys):
    """Runs the command line in an empty folder; returns code, stdout, stderr and what main was called with."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runtime, 'silence', lambda: None)
    monkeypatch.setattr(runtime, 'enable_compilation_cache', lambda: None)

    def run(*arguments, main=None):
        calls = []
        code = command_line.run(main or (lambda *call: calls.append(call)), ['train.py', *arguments], usage='USAGE')
        out, err = capsys.readouterr()
        return code, out, err, calls

    return run


def write(path, body):
    path.write_text(f'from infopo_jax.config import base_config\n\n\ndef get_config():\n{body}')
    return f'--config={path}'


def test_run_passes_overrides_and_a_fresh_workdir(launch, tmp_path):
    code, _, err, [(config, workdir)] = launch('--config.optim.lr=1e-4', QUICK, '--config.env.num_slots', '5')
    assert (code, err) == (0, '')
    assert config.optim.lr == 1e-4 and config.env.num_slots == 5 and config.is_locked
    assert pathlib.Path(workdir).parts[0] == 'runs' and pathlib.Path(workdir).name.startswith('quickstart-')
    assert (tmp_path / workdir).is_dir()
    second = launch(QUICK)[3][0][1]
    assert second != workdir


def test_run_takes_the_forms_that_absl_takes(launch):
    path = QUICK.partition('=')[2]
    _, _, _, [(config, workdir)] = launch(
        '--noconfig.log.tensorboard', '--config', path, '--workdir', 'here', '--config.seed=-0'
    )
    assert workdir == 'here' and config.log.tensorboard is False
    assert launch(QUICK, '--config.log.tensorboard')[3][0][0].log.tensorboard is True


def test_run_passes_an_argument_to_get_config(launch, tmp_path):
    path = tmp_path / 'sized.py'
    path.write_text(
        'from infopo_jax.config import base_config\n'
        'def get_config(steps="1"):\n    c = base_config()\n    c.steps = int(steps)\n    return c\n'
    )
    assert launch(f'--config={path}:7')[3][0][0].steps == 7


def test_run_takes_fields_without_the_prefix_and_takes_values_back(launch):
    config = launch(TAUBENCH, '--optim.lr=0.5', '--steps', '3', '--config.model.max_vocab=400')[3][0][0]
    assert (config.optim.lr, config.steps, config.model.max_vocab) == (0.5, 3, 400)
    assert launch(TAUBENCH, '--nolog.tensorboard')[3][0][0].log.tensorboard is False
    taken = launch(TAUBENCH, '--config.env.level=2', '--config.env.level', 'None', '--env.user_style=None')[3][0][0]
    assert taken.env.level is None and taken.env.user_style is None
    assert launch(TAUBENCH, '--config.env.level=None', '--env.level', '3')[3][0][0].env.level == 3  # the last holds
    assert launch(TAUBENCH, '--env.brief=None', '--noenv.brief')[3][0][0].env.brief is False
    assert launch(TAUBENCH, '--noconfig.env.brief', '--env.brief=None')[3][0][0].env.brief is None
    assert launch(TAUBENCH, '--config.steps=None')[0] == 2  # only what may be unset


@pytest.mark.parametrize(
    ('name', 'arguments', 'setting'),
    [
        ('taubench', ['--config.env.name=tau2', '--config.env.domain=telecom', '--config.env.solo=True'], 'paper'),
        ('taubench', ['--config.env.name', 'tau2', '--config.user.model=gpt-4o-mini'], 'paper'),
        ('taubench', ['--model.path=somewhere'], 'pretrained'),
        ('taubench', [], 'small'),
        ('taubench', ['--config.env.level=2', '--model.path=x', '--config.model.path=None'], 'small'),
        ('taubench', ['--model.path', 'somewhere', '--noconfig.log.tensorboard'], 'pretrained'),
        ('usergym', ['--config.env.gym=FunctionGym'], 'paper'),
        ('usergym', ['--config.env.gym=travel', '--config.model.path=somewhere'], 'pretrained'),
        ('colbench', ['--config.env.data=x', '--config.user.model=gpt-4o-mini'], 'paper'),
        ('webshop', ['--config.env.name=webshop_server', '--config.env.data=http://localhost:3000'], 'paper'),
        ('sokoban', ['--config.model.path=somewhere'], 'paper'),
    ],
)
def test_fields_call_for_the_setting_that_has_room_for_them(launch, name, arguments, setting):
    code, _, err, calls = launch(f'--config={ROOT}/configs/{name}.py', *arguments)
    named = launch(f'--config={ROOT}/configs/{name}.py:{setting}', *arguments)[3][0][0]
    assert code == 0 and calls[0][0] == named
    assert (f'{name}.py:{setting}, for the fields' in err) == (setting != 'small')


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ([], ['--config=FILE', 'configs/']),
        (['--config='], ['--config=FILE']),
        (['--config=configs/quickstrat.py'], ['quickstrat.py', 'does not exist', 'did you mean configs/quickstart.py']),
        ([QUICK, '--config.optim.lrr=1'], ['config.optim.lrr=1', 'did you mean --config.optim.lr?']),
        ([QUICK, '--config.group_size=4'], ['did you mean --config.batch.group_size?']),
        ([QUICK, '--config.optim=1'], ['group of fields', '--config.optim.lr']),
        ([QUICK, '--nolog.tensorbord'], ['did you mean --noconfig.log.tensorboard?']),
        ([QUICK, '--noconfig.log.tensorbord'], ['did you mean --noconfig.log.tensorboard?']),
        ([QUICK, '--lr=1'], ['--lr=1', 'did you mean --config.optim.lr?']),
        ([QUICK, '--workdri=x'], ['did you mean --workdir?']),
        ([QUICK, 'stray'], ["'stray'"]),
        ([TAUBENCH, '--model.path'], ['--config.model.path: a value is missing']),  # of a variable that is not set
        ([QUICK, '--steps', '--optim.lr', '1e-4'], ['--config.steps: a value is missing']),
        ([QUICK, '--workdir', '--steps', '4'], ['--workdir: a value is missing']),
        ([QUICK, '--workdir', ''], ['--workdir: the value is empty']),
        ([QUICK, '--workdir='], ['--workdir: the value is empty']),
        ([TAUBENCH, '--model.path='], ['--config.model.path: the value is empty']),
        ([QUICK, '--steps='], ['--config.steps: the value is empty']),
        ([TAUBENCH, '--env.user_style'], ['--config.env.user_style: a value is missing']),
        (['--config', '--workdir', 'x'], ['--config=FILE']),
        ([QUICK, '--config.workdir'], ['did you mean --workdir?']),
        ([QUICK, '--noconfig.steps'], ['only true or false can be refused', '--steps=VALUE']),
        ([QUICK, '--config.steps=many'], ["config.steps = 'many'", 'an integer']),
        ([QUICK, '--config.steps=1.5'], ["config.steps = '1.5'", 'an integer']),
        ([QUICK, '--config.optim.lr=fast'], ["config.optim.lr = 'fast'", 'a number']),
        ([QUICK, '--config.log.tensorboard=maybe'], ["config.log.tensorboard = 'maybe'", 'true or false']),
        ([QUICK, '--config.optim.lr=-1'], ['config.optim.lr = -1.0', 'above 0']),
        ([QUICK, '--config.info.baseline=trun'], ["config.info.baseline = 'trun'", "did you mean 'turn'"]),
        ([QUICK, '--config.env.level=1'], ['config.env.level = 1', "'intent' has no such knob"]),
        ([QUICK, '--config.env.name=x'], ["config.env.name = 'x'", 'One of']),
        ([QUICK, '--workdir=/dev/null/x'], ['--workdir=/dev/null/x', 'cannot be written']),
    ],
)
def test_run_answers_errors_shortly_with_code_2(launch, arguments, words):
    code, out, err, calls = launch(*arguments)
    assert (code, out, calls) == (2, '', [])
    assert len(err.splitlines()) <= 12 and 'Traceback' not in err
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ('body', 'words'),
    [
        (
            '    c = base_config()\n    c.optim.learing_rate = 1\n',
            ['line 6', 'learing_rate', 'did you mean config.optim.lr'],
        ),
        ('    c = base_config()\n    c.steps = "x"\n', ['line 6', 'TypeError', 'steps']),
        ('    return 1 +\n', ['line 5', 'SyntaxError']),
        ('    import nowhere\n', ['line 5', "'nowhere'"]),
        ('    return 3\n', ['must return', 'base_config']),
        ('    pass\ndel get_config\n', ['no get_config()']),
    ],
)
def test_run_tells_the_line_that_is_wrong_in_a_config_file(launch, tmp_path, body, words):
    code, _, err, _ = launch(write(tmp_path / 'mine.py', body))
    assert code == 2 and len(err.splitlines()) <= 12 and 'Traceback' not in err
    for word in ['mine.py', *words]:
        assert word in err


def test_run_shows_errors_that_the_package_raises_on_purpose(launch):
    def main(config, workdir):
        config_lib.from_dict({'optim': {'lrr': 1.0}})

    code, _, err, _ = launch(QUICK, main=main)
    assert code == 2 and 'did you mean config.optim.lr?' in err and 'Traceback' not in err


@pytest.mark.parametrize(
    'defect',
    [
        lambda: config_lib.nearest('x', []),  # max() fails in a line of the package that raises nothing
        lambda: json.loads('x'),  # raised on purpose, but by a library
        lambda: [][0],
    ],
)
def test_run_leaves_defects_their_traceback(launch, defect):
    with pytest.raises((ValueError, IndexError)):
        launch(QUICK, main=lambda config, workdir: defect())


def test_run_ends_quietly_on_ctrl_c(launch):
    def main(config, workdir):
        raise KeyboardInterrupt

    code, _, err, _ = launch(QUICK, '--workdir=mine', main=main)
    assert code == 130 and '--workdir=mine' in err


def test_run_cuts_long_messages(launch):
    text = '\n'.join(['config.optim.lr'] * 40)

    def main(config, workdir):
        config_lib.from_dict({text: 1})

    code, _, err, _ = launch(QUICK, main=main)
    assert code == 2 and len(err.splitlines()) == 12


def test_help_names_every_field_and_imports_no_jax():
    code = (
        'import runpy, sys\n'
        'sys.argv, sys.path[0] = ["train.py", "--help"], "launch"\n'
        'try: runpy.run_path("launch/train.py", run_name="__main__")\n'
        'except SystemExit as end: assert end.code == 0, end.code\n'
        'assert "jax" not in sys.modules'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    for field in config_lib.field_types():
        assert f'--config.{field}=' in done.stdout
    assert done.stdout.startswith('Trains') and 'python launch/train.py --config=' in done.stdout
    assert done.stderr == ''


def test_train_runs_as_a_script_from_anywhere_without_an_installed_package(tmp_path):
    command = [sys.executable, str(ROOT / 'launch' / 'train.py'), '--config=nowhere.py']
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and 'does not exist' in done.stderr and done.stdout == ''
