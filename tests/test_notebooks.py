"""The notebooks run from the first cell to the last, and are committed without outputs."""

import json
import pathlib

import matplotlib
import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).resolve().parents[1] / 'notebooks').glob('*.ipynb'))
SHORTER = {'STEPS, PHASES = 60, 6': 'STEPS, PHASES = 2, 1'}


def cells(path):
    """Returns the sources of a notebook's code cells, with less work to do."""
    sources = [c for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']
    for source in sources:
        text = ''.join(source['source'])
        for old, new in SHORTER.items():
            text = text.replace(old, new)
        yield text, source['outputs']


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_holds_no_output(path, tmp_path, monkeypatch, capsys):
    matplotlib.use('Agg')
    run = tmp_path / 'runs' / 'some-run'
    run.mkdir(parents=True)
    rows = [{'step': s, 'phase': 'train', 'tied_groups': 0.5, 'gain_turn_0': [0.1, 0.2]} for s in (1, 2)]
    rows += [{'step': 2, 'phase': 'eval', 'success': 0.25}]
    (run / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for source, outputs in cells(path):
        assert not outputs
        exec(compile(source, path.name, 'exec'), namespace)
        matplotlib.pyplot.close('all')
    assert sorted(tmp_path.rglob('*.*')) == [run / 'metrics.jsonl']
    if path.stem == 'information_gain':
        assert namespace['folder'].name == 'some-run' and 'by hand' in capsys.readouterr().out
        assert namespace['seen'].sum() == 13 * 14 // 2 + 5 * 3 + 15 + 4 * 9 + 10
