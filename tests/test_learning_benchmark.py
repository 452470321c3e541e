"""The benchmark of learning: its rows are of runs of one length, and no run is lost over its arguments."""

import json
import pathlib

import pytest

BENCHMARKS = pathlib.Path(__file__).resolve().parents[1] / 'benchmarks'


@pytest.fixture
def learning(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import learning

    return learning


def write(path, *rows):
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def test_rows_of_another_number_of_steps_are_no_rows_of_this_one(learning, tmp_path, monkeypatch):
    monkeypatch.setattr(learning, 'RESULTS', tmp_path / 'rows.jsonl')
    assert learning.read(150) == [] and learning.missing(150, 1) == list(learning.METHODS)
    write(learning.RESULTS, *({'method': method, 'seed': 1, 'steps': 150} for method in learning.METHODS))
    assert learning.missing(150, 1) == [] and len(learning.read(150)) == len(learning.METHODS)
    assert learning.missing(300, 1) == learning.missing(150, 2) == list(learning.METHODS)
    assert learning.read(300) == []


def test_shipped_rows_say_their_steps(learning):
    rows = [json.loads(line) for line in learning.RESULTS.read_text().splitlines()]
    assert all(row['steps'] == learning.POINT * len(row['curve']) for row in rows)
    assert len(learning.read(150)) == len(rows) and not learning.missing(150, 5)


@pytest.mark.parametrize('steps', ['155', '0', '-10'])
def test_steps_that_fill_no_curve_are_refused_before_a_run(learning, steps, capsys):
    with pytest.raises(SystemExit):
        learning.arguments([f'--steps={steps}'])
    assert 'must be a multiple of 10' in capsys.readouterr().err
    assert learning.arguments(['--steps=300']).steps == 300


def test_run_writes_its_steps(learning, tmp_path, monkeypatch):
    """Two methods are there already; the other rows come from runs, which are not what is tested here."""
    monkeypatch.setattr(learning, 'RESULTS', tmp_path / 'rows.jsonl')
    monkeypatch.setattr(learning.build_state, 'make_state', lambda *_: type('State', (), {'params': None}))
    loop = type('Loop', (), {'warm_start': staticmethod(lambda params, key, **_: params)})
    monkeypatch.setattr(learning.build, 'make_loop', lambda config: (loop, None))
    monkeypatch.setattr(learning, 'run', lambda loop, config, *_: {'steps': config.steps, 'seconds': 0.0})
    there = [{'method': method, 'seed': 1, 'steps': 20} for method in ('grpo', 'infopo turn')]
    write(learning.RESULTS, *there)
    learning.run_missing([1, 2], 20)
    assert learning.missing(20, 1) == learning.missing(20, 2) == []
    assert len(learning.read(20)) == 2 * len(learning.METHODS)
