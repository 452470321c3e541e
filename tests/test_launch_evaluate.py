"""launch/evaluate.py gives the numbers that the run itself found, and says what is wrong in a few lines."""

import json
import pathlib
import shutil
import sys
from unittest import mock

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'launch'))

import evaluate as evaluate_launch  # noqa: E402
import run_folder  # noqa: E402

from infopo_jax import config as config_lib, envs, loops, runtime, train  # noqa: E402
from infopo_jax.logger import read_jsonl  # noqa: E402

RESULT = {
    'step': 3,
    'reward': np.float32(0.5),
    'success': np.array([0.0, 0.5], np.float32),
    'pass_4': 0.125,
    'turns': 3.0,
    'end_done': 0.0,
    'end_turn_limit': 0.75,
}


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A run of one step, so large that it harms; two seeds. Returns its folder."""
    config = config_lib.base_config()
    config.num_seeds, config.steps, config.optim.lr, config.optim.warmup_steps = 2, 1, 0.3, 0
    config.warmstart.steps, config.warmstart.lr = 100, 1e-2
    config.env.num_slots, config.env.num_values, config.env.num_hidden, config.env.turn_limit = 2, 4, 1, 3
    config.batch.prompts, config.batch.group_size, config.warmstart.batch = 2, 2, 16
    config.model.dim, config.model.num_layers, config.model.mlp_dim = 16, 1, 16
    config.eval.episodes, config.log.tensorboard = 64, False
    return train_in(tmp_path_factory.mktemp('runs') / 'tiny', config)


def train_in(folder, config):
    config_lib.validate(config)
    folder.mkdir()
    with mock.patch.object(train.report, 'write_report'):  # a second of figures that nobody looks at
        train.main(config, str(folder))
    return folder


@pytest.fixture(scope='module')
def talker(tmp_path_factory):
    """A run that talks, after its warm start; its words are those of a plain user."""
    config = config_lib.base_config()
    config.update_from_flattened_dict({
        'steps': 0, 'env.name': 'retail', 'env.kind': 'hosted', 'env.level': 1, 'batch.prompts': 2,
        'batch.group_size': 2, 'model.dim': 16, 'model.num_layers': 1, 'model.num_heads': 2, 'model.num_kv_heads': 1,
        'model.head_dim': 8, 'model.mlp_dim': 16, 'warmstart.steps': 30, 'warmstart.batch': 8, 'warmstart.lr': 1e-2,
        'eval.episodes': 8, 'rollout.max_prompt_tokens': 100, 'rollout.max_tokens': 160,
        'rollout.max_action_tokens': 6, 'rollout.max_feedback_tokens': 24, 'log.tensorboard': False,
    })  # fmt: skip
    return train_in(tmp_path_factory.mktemp('runs') / 'talker', config)


@pytest.fixture
def launch(trained, tmp_path, monkeypatch, capsys):
    """Runs the script on a copy of the run; returns code, stdout, stderr and the copy."""
    monkeypatch.setattr(runtime, 'silence', lambda: None)
    monkeypatch.setattr(runtime, 'enable_compilation_cache', lambda: None)
    shutil.copytree(trained, tmp_path / 'run')

    def run(*arguments, workdir=tmp_path / 'run'):
        capsys.readouterr()
        code = evaluate_launch.run(['evaluate.py', f'--workdir={workdir}', *arguments])
        return code, *capsys.readouterr(), workdir

    return run


def eval_rows(folder):
    rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    return {row['step']: row for row in rows if row['phase'] == 'eval'}


@pytest.mark.parametrize('checkpoint', ['last', 'best'])
def test_evaluate_repeats_the_evaluation_of_the_run(launch, checkpoint):
    code, out, err, folder = launch(f'--checkpoint={checkpoint}')
    assert (code, err) == (0, '')
    result, rows = json.loads((folder / 'eval.json').read_text()), eval_rows(folder)
    assert np.mean(rows[0]['success']) > np.mean(rows[1]['success'])
    step = {'best': 0, 'last': 1}[checkpoint]
    assert result['step'] == step and result['checkpoint'] == checkpoint
    for name, value in rows[step].items():
        if name not in ('step', 'phase', 'time'):
            assert result[name] == value, name
    for word in ('reward', 'success', 'pass^2', 'turns', 'ended: ', '2 seeds', f'step {step}'):
        assert word in out


def test_a_run_of_two_seeds_has_a_value_for_each_and_is_taken_up_where_it_ended(trained, tmp_path, pictures):
    workdir = shutil.copytree(trained, tmp_path / 'run')
    rows, text = read_jsonl(workdir / 'metrics.jsonl'), (workdir / 'metrics.jsonl').read_text()
    assert [(row['step'], row['phase']) for row in rows] == [(0, 'eval'), (1, 'train'), (1, 'eval')]
    assert len(rows[1]['entropy']) == len(rows[2]['success']) == 2 and rows[1]['entropy'][0] != rows[1]['entropy'][1]
    assert (workdir / 'rollouts.jsonl').stat().st_size
    other = config_lib.from_dict(json.loads((workdir / 'config.json').read_text()) | {'eval': {'episodes': 8}})
    again = train.main(other, workdir)
    assert again['success'] == rows[-1]['success'] and (workdir / 'metrics.jsonl').read_text() == text
    assert config_lib.from_dict(json.loads((workdir / 'config.json').read_text())) == other, 'for evaluation and chat'
    assert (workdir / 'report.html').exists() and (workdir / 'success.png').stat().st_size > 1000


def test_evaluate_takes_other_episodes_and_groups(launch, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(train, 'evaluate', lambda config, workdir, *, best: asked.append((config, best)) or RESULT)
    where = tmp_path / 'others.json'
    fields = '--config.eval.episodes=32', '--config.batch.group_size=4', '--config.seed=7'
    code, out, _, folder = launch(*fields, f'--out={where}')
    [(config, best)] = asked
    assert code == 0 and best and (config.eval.episodes, config.batch.group_size, config.seed) == (32, 4, 7)
    assert not (folder / 'eval.json').exists()
    result = json.loads(where.read_text())
    assert result['eval']['episodes'] == 32 and result['group_size'] == 4 and result['seed'] == 7
    assert [line.split() for line in out.splitlines()[1:-1]] == [
        ['reward', '0.500'],
        ['success', '0.250', '(2', 'seeds,', '0.000', 'to', '0.500)'],
        ['pass^4', '0.125'],
        ['turns', '3.000'],
        ['ended:', 'turn', 'limit', '0.750'],
    ]


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['--config.model.dim=32'], ['model.dim', '16 in the checkpoint', '32 now']),
        (['--config.eval.episode=4'], ['did you mean --config.eval.episodes?']),
        (['--checkpoint=newest'], ['newest', 'best', 'last']),
        (['--out=nowhere/x.json'], ['--out=nowhere/x.json', 'no folder nowhere']),
        (['--config.eval.episodes=0'], ['config.eval.episodes = 0', 'at least 1']),
    ],
)
def test_evaluate_answers_errors_shortly_with_code_2(launch, arguments, words):
    code, _, err, folder = launch(*arguments)
    assert code == 2 and len(err.splitlines()) <= 12
    assert all(word in err for word in words)
    assert not (folder / 'eval.json').exists()


@pytest.mark.parametrize(
    ('out', 'words'),
    [
        ('', 'is a folder: name a file, such as --out='),
        ('config.json', 'is what the run in '),
        ('../run/metrics.jsonl', 'is what the run in '),
        ('rollouts.jsonl', 'is what the run in '),
        ('report.html', 'is what the run in '),
        ('success.png', 'is what the run in '),
        ('checkpoints/result.json', 'writes itself: name another file, such as --out='),
    ],
)
def test_evaluate_refuses_a_place_for_its_result_before_it_evaluates(launch, monkeypatch, tmp_path, out, words):
    monkeypatch.setattr(train, 'evaluate', lambda *_, **__: pytest.fail('evaluated first'))
    before = {path: path.read_bytes() for path in (tmp_path / 'run').rglob('*') if path.is_file()}
    (tmp_path / 'link').symlink_to(tmp_path / 'run')
    for place in (tmp_path / 'run' / out, tmp_path / 'link' / out):
        code, _, err, _ = launch(f'--out={place}')
        assert code == 2 and words in err and f'--out={place}' in err
    assert {path: path.read_bytes() for path in (tmp_path / 'run').rglob('*') if path.is_file()} == before


def test_evaluate_names_what_a_folder_lacks(launch, tmp_path, capsys):
    assert launch(workdir=tmp_path / 'nothing')[:3:2] == (
        2,
        f'error: --workdir={tmp_path}/nothing holds no config.json; pass a folder that launch/train.py wrote\n',
    )
    assert not (tmp_path / 'nothing').exists()
    shutil.rmtree(tmp_path / 'run' / 'checkpoints')
    code, _, err, _ = launch()
    assert code == 2 and 'holds no checkpoint' in err
    assert evaluate_launch.run(['evaluate.py']) == 2 and 'which run?' in capsys.readouterr().err
    assert evaluate_launch.run(['evaluate.py', '--help']) == 0 and '--checkpoint=' in capsys.readouterr().out


@pytest.mark.parametrize('style', ['terse', 'verbose'])
def test_evaluate_measures_another_style_with_the_words_of_the_run(launch, talker, style):
    fields = {'env.user_style': style, 'chat.keep_thinking': False}
    room = {'rollout.max_prompt_tokens': 160, 'rollout.max_tokens': 260}  # for those who talk more
    given = [f'--config.{field}={value}' for field, value in (fields | room).items()]
    code, _, err, folder = launch(*given, workdir=talker)
    assert (code, err) == (0, '')
    result, config = json.loads((folder / 'eval.json').read_text()), run_folder.get_config(str(talker))
    assert result['changed'] == fields | room

    config.update_from_flattened_dict(room)
    loop, _, state = train.open_run(config, str(talker))  # by hand: the run as it is, but for whom it meets
    loop.engine.make_env = lambda: envs.make('retail', level=1, user_style=style)
    key = train._eval_keys(loop, loops.seed_keys(config.seed, 1))
    metrics, _ = loop.evaluate(state.weights, key, state.step, reference=state.start)
    names = ('reward', 'success', 'turns', 'length', 'failed')
    assert {name: result[name] for name in names} == {name: float(metrics[name]) for name in names}
    assert result['failed'] == 0 and result['length'] != eval_rows(folder)[0]['length']


def test_another_user_begins_with_none_of_the_fields_of_the_runs(launch, tmp_path, monkeypatch):
    configs = []
    monkeypatch.setattr(train, 'evaluate', lambda config, workdir, *, best: configs.append(config) or RESULT)
    own = config_lib.base_config()
    own.user.name, own.user.weights, own.user.max_tokens = 'policy', 'frozen', 8
    (tmp_path / 'config.json').write_text(json.dumps(config_lib.to_dict(own)))
    for argument in ('--config.user.max_tokens=9', '--config.user.name=scripted'):
        assert launch(argument, workdir=tmp_path)[0] == 0
    kept, other = (config.user for config in configs)
    assert (kept.name, kept.weights, kept.max_tokens) == ('policy', 'frozen', 9)
    assert {name: value for name, value in other.items() if value is not None} == {'name': 'scripted'}
