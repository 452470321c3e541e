"""Runs that something ends before their time: what is kept, and that they go on as if nothing had been."""

import shutil
import signal

import numpy as np
import pytest
from test_train import config_of, rows_of

from infopo_jax import build, train
from infopo_jax.rollout.hosted import RolloutsFailed

SETTING = {'steps': 6, 'eval.interval': 3, 'checkpoint.interval': 99, 'log.tensorboard': False}


@pytest.fixture(scope='module')
def config():
    return config_of('jitted', **SETTING)


@pytest.fixture(scope='module')
def loop(config):
    """One loop for all runs, so that its programs are compiled once."""
    return build.make_loop(config)


@pytest.fixture(autouse=True)
def share_the_loop(loop, monkeypatch):
    monkeypatch.setattr(build, 'make_loop', lambda config: loop)


@pytest.fixture(scope='module')
def whole(config, loop, tmp_path_factory):
    """A run that nothing ends."""
    workdir = tmp_path_factory.mktemp('whole')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, 'make_loop', lambda config: loop)
        train.main(config, workdir)
    return workdir


def breaks(monkeypatch, loop, name, *, at, error):
    """Has a method of the loop raise where the run stands at step ``at``."""
    method = getattr(loop[0], name)

    def broken(*args, **kwargs):
        state_step = args[0].step if name == 'step' else args[2]
        if int(state_step) == at:
            raise error
        return method(*args, **kwargs)

    monkeypatch.setattr(loop[0], name, broken)


@pytest.mark.parametrize(
    'error', [RolloutsFailed('3 of 4 rollouts failed'), KeyboardInterrupt()], ids=['failed', 'Ctrl-C']
)
def test_a_step_that_fails_costs_no_step_before_it(config, loop, whole, tmp_path, monkeypatch, capsys, error):
    with monkeypatch.context() as patch:
        breaks(patch, loop, 'step', at=5, error=error)
        with pytest.raises(type(error)):
            train.main(config, tmp_path)
    assert train.Checkpointer(tmp_path).steps()[-1] == 5 and (tmp_path / 'report.html').exists()
    assert f'saved step 5; the same command with --workdir={tmp_path} goes on' in capsys.readouterr().err
    train.main(config, tmp_path)
    assert rows_of(tmp_path) == rows_of(whole) and rows_of(tmp_path, 'rollouts.jsonl') == rows_of(
        whole, 'rollouts.jsonl'
    )


def ranks_of(workdir):
    checkpointer = train.Checkpointer(workdir)
    return {step: checkpointer._about(step)['metric'] for step in checkpointer.steps()}


@pytest.mark.parametrize('at', [0, 3, 6])
def test_an_evaluation_that_fails_is_made_up_for(config, loop, whole, tmp_path, monkeypatch, at):
    with monkeypatch.context() as patch:
        breaks(patch, loop, 'evaluate', at=at, error=RolloutsFailed('the endpoint is down'))
        with pytest.raises(RolloutsFailed):
            train.main(config, tmp_path)
    assert train.Checkpointer(tmp_path).steps()[-1] == at
    assert ranks_of(tmp_path)[at] == -np.inf
    metrics = train.main(config, tmp_path)
    assert rows_of(tmp_path) == rows_of(whole)
    assert ranks_of(tmp_path).items() >= ranks_of(whole).items()  # a step that ties with the last may still be there
    assert metrics['success'] == rows_of(whole)[-1]['success']


def test_the_best_step_stays_best_whose_evaluation_was_made_up_for(config, loop, tmp_path, monkeypatch):
    evaluate, scores = loop[0].evaluate, {0: 0.1, 3: 0.9, 6: 0.2}

    def scored(params, key, step, **others):
        metrics, look = evaluate(params, key, step, **others)
        return metrics | {'success': np.float32(scores[int(step)])}, look

    monkeypatch.setattr(loop[0], 'evaluate', scored)
    with monkeypatch.context() as patch:
        breaks(patch, loop, 'evaluate', at=3, error=KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            train.main(config, tmp_path)
    train.main(config, tmp_path)
    assert [(step, round(rank, 6)) for step, rank in ranks_of(tmp_path).items()] == [(3, 0.9), (6, 0.2)]


def test_termination_in_the_warm_start_keeps_nothing_and_says_so(config, loop, tmp_path, monkeypatch, capsys):
    def asked(params, key, *, progress, **settings):
        signal.raise_signal(signal.SIGTERM)
        progress(1, 0.5)
        raise AssertionError('it goes on')

    monkeypatch.setattr(loop[0], 'warm_start', asked)
    assert train.main(config, tmp_path) == {} and train.Checkpointer(tmp_path).steps() == []
    assert 'terminated in the warm start' in capsys.readouterr().out


def test_termination_at_the_end_of_the_warm_start_keeps_it_alone(config, loop, whole, tmp_path, monkeypatch):
    warm_start = loop[0].warm_start

    def asked(params, key, *, steps, progress, **settings):
        params = warm_start(params, key, steps=steps, progress=lambda done, loss: None, **settings)
        signal.raise_signal(signal.SIGTERM)
        progress(steps, 0.5)
        return params

    with monkeypatch.context() as patch:
        patch.setattr(loop[0], 'warm_start', asked)
        breaks(patch, loop, 'evaluate', at=0, error=AssertionError('it goes on'))
        train.main(config, tmp_path)
    assert train.Checkpointer(tmp_path).steps() == [0]
    train.main(config, tmp_path)
    assert rows_of(tmp_path) == rows_of(whole)


def test_termination_in_the_first_evaluation_keeps_the_warm_start(config, loop, whole, tmp_path, monkeypatch):
    def asked(*args, **kwargs):
        signal.raise_signal(signal.SIGTERM)
        raise train.loops.Stopped

    with monkeypatch.context() as patch:
        patch.setattr(loop[0], 'evaluate', asked)
        train.main(config, tmp_path)
    assert train.Checkpointer(tmp_path).steps() == [0]
    train.main(config, tmp_path)
    assert rows_of(tmp_path) == rows_of(whole)


def test_an_update_that_takes_the_state_apart_is_not_saved(config, loop, tmp_path, monkeypatch, capsys):
    def broken(state):
        for leaf in train.jax.tree.leaves(state.params):
            leaf.delete()
        raise MemoryError('out of memory')

    monkeypatch.setattr(loop[0], 'step', broken)
    with pytest.raises(MemoryError):
        train.main(config, tmp_path)
    assert train.Checkpointer(tmp_path).steps() == [0] and 'saved' not in capsys.readouterr().err


def test_a_run_whose_checkpoints_are_lost_is_left_alone(config, whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / 'run')
    for about in run.glob('checkpoints/*/about/about.json'):
        about.unlink()
    for _ in range(2):
        before = sorted((path, path.stat().st_size) for path in run.rglob('*') if path.is_file())
        with pytest.raises(ValueError, match='no whole checkpoint of it: bring its folder checkpoints back'):
            train.main(config, run)
        assert sorted((path, path.stat().st_size) for path in run.rglob('*') if path.is_file()) == before
        shutil.rmtree(run / 'checkpoints', ignore_errors=True)  # and once more without any


def test_a_run_that_died_before_its_first_checkpoint_begins_anew(config, whole, tmp_path):
    (tmp_path / 'metrics.jsonl').write_text('{"step": 0, "phase": "eval", "success": 0.5, "time": {}}\n')
    train.main(config, tmp_path)
    assert rows_of(tmp_path) == rows_of(whole)


def test_a_warm_start_that_diverges_is_named_and_not_saved(config, tmp_path):
    other = config.copy_and_resolve_references()
    other.warmstart.lr = 1e30
    with pytest.raises(train.TrainingStopped, match=r'the warm start diverged.*config\.warmstart\.lr'):
        train.main(other, tmp_path)
    assert train.Checkpointer(tmp_path).steps() == []


def test_nothing_left_to_do_gives_the_last_evaluation(config, whole):
    before = rows_of(whole)
    metrics = train.main(config, whole)
    assert metrics['success'] == before[-1]['success'] and rows_of(whole) == before
    assert np.isfinite(metrics['reward'])
