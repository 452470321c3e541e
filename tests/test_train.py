"""Whole runs, tiny ones: what they leave, and that a killed and resumed run is the run that was not killed."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from infopo_jax import config as config_lib, loops, profiling, train
from infopo_jax.logger import read_jsonl

ROOT = pathlib.Path(__file__).resolve().parents[1]
TINY = {
    'batch.prompts': 2, 'batch.group_size': 2, 'model.dim': 16, 'model.num_layers': 1, 'model.num_heads': 2,
    'model.num_kv_heads': 1, 'model.head_dim': 8, 'model.mlp_dim': 16, 'warmstart.steps': 3, 'warmstart.batch': 4,
    'eval.episodes': 4, 'log.rollouts': 2, 'optim.warmup_steps': 2,
}  # fmt: skip
KINDS = {
    'jitted': TINY | {
        'steps': 40, 'env.num_slots': 2, 'env.num_values': 3, 'env.num_hidden': 1, 'env.turn_limit': 3,
        'eval.interval': 16, 'checkpoint.interval': 5,
    },
    'hosted': TINY | {
        'steps': 14, 'env.name': 'retail', 'env.kind': 'hosted', 'env.level': 1, 'rollout.max_prompt_tokens': 100,
        'rollout.max_tokens': 144, 'rollout.max_action_tokens': 6, 'rollout.max_feedback_tokens': 12,
        'rollout.slots': 3, 'eval.interval': 6, 'checkpoint.interval': 2, 'log.tensorboard': False,
    },
}  # fmt: skip


def config_of(kind, **overrides):
    config = config_lib.base_config()
    config.update_from_flattened_dict(KINDS[kind] | overrides)
    config_lib.validate(config)
    return config


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('train')


@pytest.fixture(scope='module')
def launch(folder):
    """Returns a function that starts a run in a process of its own."""

    def start(kind, workdir):
        path = folder / f'{kind}.py'
        lines = [f'    c.{field} = {value!r}\n' for field, value in KINDS[kind].items()]
        text = 'from infopo_jax.config import base_config\n\n\ndef get_config():\n    c = base_config()\n'
        path.write_text(text + ''.join(lines) + '    return c\n')
        command = [sys.executable, str(ROOT / 'launch' / 'train.py'), f'--config={path}', f'--workdir={workdir}']
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    return start


def finish(process):
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return out


def stop_at(process, workdir, num_rows, sign):
    """Sends a signal once metrics.jsonl has so many rows; returns exit code and output."""
    path = workdir / 'metrics.jsonl'
    while not path.exists() or path.read_bytes().count(b'\n') < num_rows:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)
    process.send_signal(sign)
    out, _ = process.communicate(timeout=300)
    return process.returncode, out


def rows_of(workdir, name='metrics.jsonl'):
    """Returns the rows without what depends on the clock."""
    assert (workdir / name).read_bytes().endswith(b'\n')
    return [{field: value for field, value in row.items() if field != 'time'} for row in read_jsonl(workdir / name)]


def config_in(workdir):
    return config_lib.from_dict(json.loads((workdir / 'config.json').read_text()))


@pytest.fixture(scope='module', params=KINDS)
def whole(request, folder, launch):
    """A run that nobody interrupts: its kind, folder and output."""
    workdir = folder / request.param
    return request.param, workdir, finish(launch(request.param, workdir))


def test_main_leaves_metrics_rollouts_checkpoints_and_a_report(whole):
    kind, workdir, out = whole
    steps, interval = KINDS[kind]['steps'], KINDS[kind]['eval.interval']
    rows = rows_of(workdir)
    assert [row['step'] for row in rows if row['phase'] == 'train'] == list(range(1, steps + 1))
    evals = [row for row in rows if row['phase'] == 'eval']
    assert [row['step'] for row in evals] == sorted({*range(0, steps, interval), steps})
    trained = [row for row in rows if row['phase'] == 'train'][-1]
    expected = {
        'loss',
        'grad_norm',
        'kl',
        'entropy',
        'clip_fraction',
        'tied_groups',
        'gate',
        'info_share',
        'gain_turn_0',
    }
    expected |= {'gain_error', 'gain_outcome_corr', 'sampler_gap', 'end_turn_limit', 'turns', 'length', 'bad_updates'}
    assert expected <= set(trained) and all(isinstance(trained[name], int | float) for name in expected)
    assert max(row['sampler_gap'] for row in rows if row['phase'] == 'train') < 1e-4
    assert 'success' in evals[0] and 'pass_2' in evals[0]
    assert all(row['gain_noise'] < 1e-5 for row in evals), 'what tells nothing has no gain'
    assert {'seconds', 'tokens_per_second'} <= set(read_jsonl(workdir / 'metrics.jsonl')[-2]['time'])

    samples = rows_of(workdir, 'rollouts.jsonl')
    assert {row['step'] for row in samples} == {row['step'] for row in evals} and samples[0]['turns'][0]['tokens']
    assert (workdir / 'report.html').stat().st_size > 10_000
    assert (workdir / 'tensorboard').exists() == (kind == 'jitted')
    assert config_in(workdir) == config_of(kind)
    assert str(steps) in os.listdir(workdir / 'checkpoints')
    assert 'parameters' in out and f'{steps}/{steps}' in out and 'warm start' in out and 'Traceback' not in out


def test_a_killed_then_terminated_run_is_the_run_that_was_not(whole, folder, launch):
    """Killed between two checkpoints, resumed, asked to stop, resumed again: the rows are bit for bit the same.

    The jitted kind is not asked to stop: SIGTERM between its steps is in test_train_failures.py.
    """
    kind, wanted, _ = whole
    workdir = folder / f'{kind}-killed'
    code, _ = stop_at(launch(kind, workdir), workdir, 6, signal.SIGKILL)
    assert code == -signal.SIGKILL
    with open(workdir / 'metrics.jsonl', 'a') as file:
        file.write('{"step": 5, "phase": "tra')  # a row that the kill cut short
    if kind == 'hosted':
        code, out = stop_at(launch(kind, workdir), workdir, 10, signal.SIGTERM)
        assert code == 0 and 'terminated: saved step' in out, out
        saved = train.Checkpointer(workdir).steps()[-1]
        assert saved == max(row['step'] for row in rows_of(workdir)) < KINDS[kind]['steps'], 'nothing is lost'
    finish(launch(kind, workdir))
    assert rows_of(workdir) == rows_of(wanted)
    assert rows_of(workdir, 'rollouts.jsonl') == rows_of(wanted, 'rollouts.jsonl')


@pytest.mark.slow
@pytest.mark.parametrize('num_rows', [1, 2, 5, 8, 11, 13])
def test_a_run_killed_at_any_moment_is_the_run_that_was_not(whole, folder, launch, num_rows):
    kind, wanted, _ = whole
    workdir = folder / f'{kind}-{num_rows}'
    for rows in (num_rows, num_rows + 2):
        stop_at(launch(kind, workdir), workdir, rows, signal.SIGKILL)
    finish(launch(kind, workdir))
    assert rows_of(workdir) == rows_of(wanted)
    assert rows_of(workdir, 'rollouts.jsonl') == rows_of(wanted, 'rollouts.jsonl')


def test_main_lists_what_differs_from_the_checkpoint(whole, tmp_path):
    kind, wanted, _ = whole
    workdir = shutil.copytree(wanted, tmp_path / 'run')
    before = (workdir / 'metrics.jsonl').read_bytes()
    own = config_in(workdir)
    with pytest.raises(ValueError, match='does not match the checkpoint') as error:
        train.main(config_of(kind, **{'optim.lr': 0.5, 'model.dim': 32, 'steps': 99}), workdir)
    text = str(error.value)
    assert 'optim.lr: 0.0003 in the checkpoint, 0.5 now' in text and 'model.dim: 16' in text and 'steps' not in text
    assert (workdir / 'metrics.jsonl').read_bytes() == before and config_in(workdir) == own


def test_main_stops_after_bad_updates_in_a_row_and_says_why(whole, tmp_path, monkeypatch):
    kind, wanted, _ = whole
    workdir, steps = shutil.copytree(wanted, tmp_path / 'run'), KINDS[kind]['steps']
    bad = [1, 0, 1, 2, 3, 4]

    def broken(self, state):
        number = int(state.step) - steps
        nan = np.float32('nan')
        metrics = {'loss': nan, 'grad_norm': nan, 'bad_updates': np.int32(bad[number]), 'length': np.float32(1)}
        return train.dataclasses.replace(state, step=state.step + 1), metrics, {'seconds': 0.1}

    monkeypatch.setattr(loops.JittedLoop if kind == 'jitted' else loops.HostedLoop, 'step', broken)
    config = config_of(kind, **{'steps': steps + 9, 'eval.interval': 0, 'checkpoint.interval': 99})
    config.updates.max_bad_updates = 3
    with pytest.raises(ValueError, match='max_bad_updates'):
        train.main(config, workdir)  # it is no free field
    monkeypatch.setattr(config_lib, 'check_resume', lambda saved, config: None)
    with pytest.raises(train.TrainingStopped, match=rf'step {steps + 5}: 3 updates in a row were not finite.*loss nan'):
        train.main(config, workdir)
    assert rows_of(workdir)[-1]['step'] == steps + 5 and rows_of(workdir)[-1]['loss'] == 'NaN'
    assert train.Checkpointer(workdir).steps()[-1] == steps + 5  # the weights are those before the first of them


@pytest.fixture
def traces(monkeypatch):
    """Lists when a trace begins and ends."""
    calls = []
    monkeypatch.setattr(profiling.jax.profiler, 'start_trace', lambda folder: calls.append('start'))
    monkeypatch.setattr(profiling.jax.profiler, 'stop_trace', lambda: calls.append('stop'))
    return calls


@pytest.mark.parametrize(
    ('count', 'steps', 'wanted'),
    [
        (2, 6, [1, 'start', 2, 3, 'stop', 4, 5, 6]),
        (5, 5, [1, 'start', 2, 3, 4, 5, 'stop']),
        (1, 1, [1]),
        (0, 3, [1, 2, 3]),
    ],
)
def test_a_profile_begins_at_the_second_step_and_ends_with_the_run(traces, tmp_path, count, steps, wanted):
    with profiling.Profile(tmp_path, first=2, count=count, last=steps) as profile:
        for step in range(1, steps + 1):
            profile.before(step)
            traces.append(step)
            profile.after(step)
    assert traces == wanted


def test_main_ends_the_profile_of_a_run_that_breaks_off(traces, tmp_path, monkeypatch, capsys):
    def stopped(config, step, metrics):
        if step == 3:
            raise train.TrainingStopped

    monkeypatch.setattr(train, '_stop_if_broken', stopped)
    with pytest.raises(train.TrainingStopped):
        train.main(config_of('jitted', **{'steps': 9, 'profile': 5, 'eval.interval': 0}), tmp_path)
    assert traces == ['start', 'stop'] and 'profile of 2 steps from 2 on' in capsys.readouterr().out


@pytest.mark.parametrize('kind', KINDS)
def test_main_evaluates_where_no_sample_rollouts_are_wanted(kind, tmp_path):
    metrics = train.main(config_of(kind, **{'log.rollouts': 0, 'steps': 0}), tmp_path)
    assert 0 <= metrics['success'] <= 1 and not (tmp_path / 'rollouts.jsonl').exists()
