"""The report: right numbers, nothing from outside, no text that becomes markup."""

import html.parser
import json
import re
import struct
import subprocess
import sys

import numpy as np
import pytest

from infopo_jax import report, report_draw, report_figures, report_rollouts
from infopo_jax.logger import Logger

EVIL = '</pre></script><script>alert(1)</script><img src=x onerror="alert(2)">&amp;\u2028'


def sample(**fields):
    turns = [
        {
            'action': 'ask size',
            'tokens': ['ask', 'size'],
            'ids': [4, 5],
            'log_ratio': None,
            'feedback': 'it is v3',
            'is_error': False,
            'gain': 0.75,
            'advantage': -1.5,
            'reward': 0.0,
        },
        {
            'action': 'book v3',
            'tokens': ['book', 'v3'],
            'ids': [6, 9],
            'log_ratio': [-0.5, 2.0],
            'feedback': '',
            'is_error': False,
            'gain': None,
            'advantage': 2.0,
            'reward': 1.0,
        },
    ]
    row = {'phase': 'eval', 'index': 0, 'group': 2, 'prompt': 'book it', 'turns': turns}
    return row | {'outcome': 1.0, 'success': True, 'end': 'DONE'} | fields


def train_row(step, steps=50):
    rise = step / steps
    row = {'reward': rise, 'success': rise, 'tied_groups': 1 - rise, 'gate': 0.5 - 0.3 * rise, 'gain_mean': 0.1 + rise}
    row |= {'gain_outcome_corr': 0.4, 'info_share': 0.5, 'kl': 0.1 * rise, 'entropy': 2 - rise, 'turns': 2 + rise}
    row |= {'clip_fraction': 0.0, 'grad_norm': 1.0, 'sampler_gap': 0.0, 'gain_error': 0.0}
    row |= {'end_done': rise, 'end_turn_limit': 1 - rise, 'end_env_error': 0.0}
    return row | {f'gain_turn_{t}': rise - 0.2 * t for t in range(3)}


@pytest.fixture
def workdir(tmp_path):
    with Logger(tmp_path, interval=100, total_steps=50, tensorboard=False, stream=open('/dev/null', 'w')) as logger:
        logger.log(0, {'success': 0.02, 'reward': 0.1, 'turns': 2.0}, phase='eval')
        for step in range(1, 51):
            logger.log(step, train_row(step))
        logger.log(50, {'success': 0.93, 'reward': 0.95, 'turns': 3.5}, phase='eval')
        logger.rollouts(50, [sample()])
    (tmp_path / 'config.json').write_text('{"env": {"name": "intent"}, "advantage": {"estimator": "infopo"}}')
    return tmp_path


class Page(html.parser.HTMLParser):
    """Collects tags and checks that they nest."""

    VOID = frozenset({'meta', 'br', 'img', 'input', 'link', 'hr'})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_write_report_is_one_page_that_asks_for_nothing(workdir):
    text = report.write_report(workdir).read_text(encoding='utf-8')
    page = Page(text)
    names = {name for name, _ in page.attributes}
    assert not names & {'src', 'href', 'srcset', 'action', 'data'} and not any(name.startswith('on') for name in names)
    assert not {'link', 'iframe', 'object', 'img'} & set(page.tags) and page.tags.count('script') == 1
    assert not re.search(r'https?://|@import|url\(', text)
    assert "default-src 'none'" in text and 'prefers-color-scheme: dark' in text
    assert not re.search(r'\$\w+\b', re.sub(r'<script>.*?</script>', '', text, flags=re.DOTALL))


def test_write_report_tells_what_the_run_did(workdir):
    words = ' '.join(' '.join(Page(report.write_report(workdir).read_text(encoding='utf-8')).words).split())
    assert 'Held-out success rose from 2% to 93% in 50 training steps.' in words
    assert 'intent · infopo · 50 steps' in words
    assert 'At the start 94% of the groups tied' in words  # steps 1 to 5: mean of 1 - step / 50
    assert 'to 0.96 at turn 0 of the end' in words  # steps 46 to 50
    assert 'correlation with the outcome is +0.40' in words
    for figure in report_figures.figures([{'step': 1, 'phase': 'train', **train_row(1)}]):
        assert figure.title in words and figure.reading in words
    assert all(
        name in {f for section in report.SECTIONS.values() for f in section} for name, *_ in report_figures.FIGURES
    )


def test_write_report_draws_a_png_per_figure(workdir, pictures):
    report.write_report(workdir)
    names = {path.stem for path in workdir.glob('*.png')}
    assert names == {name for section in report.SECTIONS.values() for name in section}
    for path in workdir.glob('*.png'):
        data = path.read_bytes()
        assert data[:8] == b'\x89PNG\r\n\x1a\n' and struct.unpack('>II', data[16:24])[0] > 600


def test_write_report_escapes_every_text(workdir):
    evil = sample(prompt=EVIL, end=EVIL, group=EVIL, phase=EVIL, step=EVIL)
    for turn in evil['turns']:
        turn |= {'action': EVIL, 'tokens': [EVIL, EVIL], 'ids': [EVIL, EVIL], 'feedback': EVIL}
    bare = sample()
    bare['turns'] = [{'action': EVIL}]
    with open(workdir / 'rollouts.jsonl', 'a') as file:
        file.writelines(json.dumps(row) + '\n' for row in (evil, bare))
    (workdir / 'config.json').write_text(json.dumps({'env': {'name': EVIL}}))
    text = report.write_report(workdir).read_text(encoding='utf-8')
    page = Page(text)
    assert page.tags.count('script') == 1 and 'img' not in page.tags
    assert '<script>alert' not in text and text.count('&lt;script&gt;alert(1)') > 10
    assert EVIL in ''.join(page.words)


def test_write_report_copes_with_a_run_that_has_just_begun(tmp_path):
    with pytest.raises(ValueError, match=r'metrics\.jsonl holds no rows'):
        report.write_report(tmp_path)
    (tmp_path / 'metrics.jsonl').write_text('{"step": 0, "phase": "eval", "success": 0.0}\n{"step": 1, "ph')
    Page(report.write_report(tmp_path).read_text(encoding='utf-8'))
    (tmp_path / 'metrics.jsonl').write_text(
        '{"step": 0, "phase": "train", "success": "NaN", "kl": "Infinity", "gain_turn_0": "NaN", "loss": null}\n'
    )
    (tmp_path / 'rollouts.jsonl').write_text('{"step": 0}\n{"step": 0, "turns": [{}]}\n')
    text = report.write_report(tmp_path).read_text(encoding='utf-8')
    assert not re.search(r'\bnan\b', text, re.IGNORECASE)


def test_inspector_shows_gain_advantage_and_shades(workdir):
    text = report_rollouts.inspector([sample(step=50)])
    assert 'gain <b>+0.75</b>' in text and 'advantage <b>-1.50</b>' in text and 'gain <b>\u2013</b>' in text
    # shades: of the sizes 0.5 and 2.0 the 95th percentile is 1.925; 0.85 * 0.5 / 1.925 = 0.22
    assert (
        'class="token negative" style="--shade:0.22"' in text and 'class="token positive" style="--shade:0.85"' in text
    )
    assert '+2.00 nats: 7.39 times likelier' in text
    assert (
        'made the tokens of this action 2.12 times likelier (<b>+0.75</b> nats on average); that is the gain of turn 0'
        in text
    )


def test_inspector_says_that_errors_earn_nothing_and_bounds_the_page():
    row = sample(step=1)
    row['turns'][0] |= {'is_error': True, 'gain': None}
    assert 'an error message earns no gain' in report_rollouts.inspector([row])
    many = report_rollouts.inspector([sample(step=k) for k in range(1000)])
    assert many.count('<article') == report_rollouts.MAX_SAMPLES and '120 of 1000 samples' in many


def test_curve_averages_seeds_and_ignores_nonfinite_numbers():
    rows = [{'step': k, 'phase': 'train', 'kl': v} for k, v in enumerate([[1.0, 3.0], [2.0, 'NaN'], ['NaN', None]])]
    one = report_figures.curve(rows, 'train', 'kl', 'KL')
    np.testing.assert_array_equal(one.mean, [2.0, 2.0, np.nan])
    assert one.values.shape == (3, 2) and report_figures.curve(rows, 'eval', 'kl', '') is None


def test_curve_smooth_is_a_running_mean_of_training_only():
    rows = [{'step': k, 'phase': p, 'x': float(k % 2)} for k in range(40) for p in ('train', 'eval')]
    smooth = report_figures.curve(rows, 'train', 'x', '').smooth
    np.testing.assert_allclose(smooth[:3], [0.5, 1 / 3, 2 / 3])  # windows of one step to either side
    np.testing.assert_array_equal(report_figures.curve(rows, 'eval', 'x', '').smooth, np.arange(40) % 2)


def test_heat_map_bins_long_runs_and_orders_turns_by_number():
    rows = [{'step': k, 'phase': 'train', **{f'gain_turn_{t}': t + k for t in range(12)}} for k in range(144)]
    figure = report_figures.heat_map(rows)
    assert [one.label for one in figure.curves] == [f'turn {t}' for t in range(12)]
    steps, cells = report_draw.binned(figure)
    assert cells.shape == (12, 72) and list(steps[:2]) == [0, 2]
    np.testing.assert_allclose(cells[11, :2], [11.5, 13.5])


@pytest.mark.parametrize(
    ('low', 'high', 'expected'),
    [
        (0.0, 1.0, [0.0, 0.25, 0.5, 0.75, 1.0]),
        (-1.0, 1.0, [-1.0, -0.5, 0.0, 0.5, 1.0]),
        (0.0, 200.0, [0, 50, 100, 150, 200]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert report_draw.ticks(low, high, 4) == expected


def test_svg_places_points_on_the_axes():
    rows = [{'step': k, 'phase': 'eval', 'success': v} for k, v in ((0, 0.0), (10, 1.0))]
    [figure] = report_figures.figures(rows)
    drawn = report_draw.svg(figure)
    bottom, top = report_draw.HEIGHT - report_draw.BOTTOM, report_draw.TOP
    left, right = report_draw.LEFT, report_draw.WIDTH - report_draw.RIGHT
    assert f'd="M{left:.1f} {bottom:.1f}L{right:.1f} {top:.1f}"' in drawn
    assert json.loads(report_draw.points(figure)) == [[left, 'step 0', 'held out 0'], [right, 'step 10', 'held out 1']]


def test_module_runs_from_the_command_line(workdir, tmp_path_factory):
    command = [sys.executable, '-m', 'infopo_jax.report']
    done = subprocess.run([*command, str(workdir)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip().endswith('report.html')
    done = subprocess.run([*command, str(tmp_path_factory.mktemp('empty'))], capture_output=True, text=True)
    assert done.returncode == 2 and 'holds no rows' in done.stderr and 'Traceback' not in done.stderr
