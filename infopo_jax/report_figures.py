"""The figures of a report: what each shows, from rows of metrics; drawn as SVG for the page and as PNG beside it.

A figure is declared once, in ``FIGURES`` or by ``heat_map`` and ``end_reasons``, and drawn twice.
"""

import dataclasses
import html
import json
import math
import pathlib
import re
from typing import Any

import numpy as np

WIDTH, HEIGHT = 560, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 32  # margins, px
MAX_COLUMNS = 72  # of a heat map; more steps are averaged
COLORS = ('#0f766e', '#d97706', '#6d5bd0', '#be3455', '#64748b', '#2f7fd1')  # of the PNGs; report.css has the page's


@dataclasses.dataclass(frozen=True)
class Curve:
    """One metric over training."""

    label: str
    steps: np.ndarray  # [K]
    values: np.ndarray  # [K, S] one column per seed; NaN where a row has no number
    dots: bool = False  # few points (evaluations): marked, and not smoothed

    @property
    def mean(self) -> np.ndarray:
        """[K] mean over seeds; NaN where no seed has a number."""
        finite = np.isfinite(self.values)
        total = np.where(finite, self.values, 0.0).sum(axis=1)
        return np.where(finite.any(axis=1), total / np.maximum(finite.sum(axis=1), 1), np.nan)

    @property
    def smooth(self) -> np.ndarray:
        """[K] centred running mean over about a twentieth of the run."""
        half = 0 if self.dots else len(self.steps) // 40
        mean = self.mean
        windows = [mean[max(0, k - half) : k + half + 1] for k in range(len(mean))]
        return np.array([np.nan if np.isnan(w).all() else np.nanmean(w) for w in windows])


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure and the sentence that tells how to read it."""

    name: str  # of its PNG
    title: str
    reading: str
    curves: tuple[Curve, ...]
    kind: str = 'lines'  # 'lines' | 'heat': a row per curve | 'stack': shares on top of each other
    low: float | None = None  # bounds of the axis; None: from the data
    high: float | None = None


# name, title, how to read it, [(phase, metric, label)], low, high
FIGURES: tuple[tuple, ...] = (
    (
        'success',
        'Success',
        'The share of dialogues that reach their goal. Dots are held-out tasks, never trained on; they count. The first '
        'dot is the agent before any reinforcement.',
        [('eval', 'success', 'held out'), ('train', 'success', 'training')],
        0.0,
        1.0,
    ),
    (
        'reward',
        'Reward',
        'The mean outcome with partial credit. It can rise before success does, and it is what the outcome part of the '
        'advantage compares inside a group.',
        [('eval', 'reward', 'held out'), ('train', 'reward', 'training')],
        None,
        None,
    ),
    (
        'ties',
        'Ties and gate',
        'The share of groups whose rollouts all score the same: there the outcome teaches nothing. The gate lets the '
        'information gain in where outcomes tie (up to 1/2) and shuts it out where they differ.',
        [('train', 'tied_groups', 'tied groups'), ('train', 'gate', 'gate'), ('train', 'info_share', 'share from info')],
        0.0,
        1.0,
    ),
    (
        'gain',
        'Information gain',
        'How much likelier, in nats per token, replies made the action that followed. Replies that are error messages are '
        'drawn apart: they surprise, but that earns nothing.',
        [('train', 'gain_mean', 'all turns'), ('train', 'gain_error', 'error replies')],
        None,
        None,
    ),
    (
        'correlation',
        'Does information pay?',
        'The correlation of a rollout\'s gain with its outcome. Above 0: dialogues that learn more end better, so the '
        'gain points where the outcome does.',
        [('train', 'gain_outcome_corr', 'gain and outcome')],
        -1.0,
        1.0,
    ),
    (
        'turns',
        'Turns per dialogue',
        'How many actions a dialogue takes. An agent that learns to ask takes more at first; one that only prolongs the '
        'talk takes ever more without more success.',
        [('eval', 'turns', 'held out'), ('train', 'turns', 'training')],
        0.0,
        None,
    ),
    (
        'entropy',
        'Entropy',
        'How undecided the agent is per token, in nats. A slow fall is learning; a sudden fall to 0 means it stopped '
        'exploring.',
        [('train', 'entropy', 'entropy')],
        0.0,
        None,
    ),
    (
        'kl',
        'Distance from the start',
        'KL divergence per token from the agent before reinforcement. It grows with learning; a jump is a warning.',
        [('train', 'kl', 'KL')],
        0.0,
        None,
    ),
    (
        'gradient',
        'Gradient norm',
        'The size of an update before clipping. Spikes that repeat ask for a smaller learning rate.',
        [('train', 'grad_norm', 'norm')],
        0.0,
        None,
    ),
    (
        'clipping',
        'Clipping and sampler gap',
        'The share of tokens whose update was clipped, and how far the scorer\'s log-probabilities lie from the '
        'sampler\'s. Both should stay near 0.',
        [('train', 'clip_fraction', 'clipped'), ('train', 'sampler_gap', 'sampler gap')],
        0.0,
        None,
    ),
)


def curve(rows: list[dict], phase: str, metric: str, label: str) -> Curve | None:
    """Returns a metric of the rows of a phase, or None where no row has it."""
    having = [row for row in rows if row.get('phase') == phase and metric in row]
    if not having:
        return None
    columns = [np.atleast_1d(numbers(row[metric])) for row in having]
    seeds = max(map(len, columns))
    values = np.array([np.resize(column, seeds) for column in columns], np.float64)
    return Curve(label, np.array([row['step'] for row in having]), values, dots=phase == 'eval')


def numbers(value: Any) -> np.ndarray:
    """Reads what the logger wrote: numbers, the strings 'NaN' and 'Infinity', None (NaN), and lists of them."""
    if isinstance(value, list):
        return np.array([float(numbers(one)) for one in value])
    try:
        return np.float64('nan' if value is None else value)
    except (TypeError, ValueError):
        return np.float64('nan')


def figures(rows: list[dict]) -> list[Figure]:
    """Returns the figures whose metrics the rows have, in the order of the page."""
    found = []
    for name, title, reading, wanted, low, high in FIGURES:
        curves = [curve(rows, *one) for one in wanted]
        curves = tuple(one for one in curves if one is not None and np.isfinite(one.values).any())
        if curves:
            found.append(Figure(name, title, reading, curves, 'lines', low, high))
    extra = [heat_map(rows), end_reasons(rows)]
    return found + [figure for figure in extra if figure is not None]


def heat_map(rows: list[dict]) -> Figure | None:
    """Returns gain by turn over training, one row of the map per turn."""
    turns = sorted({int(m[1]) for row in rows for m in map(re.compile(r'gain_turn_(\d+)$').match, row) if m})
    curves = tuple(c for t in turns if (c := curve(rows, 'train', f'gain_turn_{t}', f'turn {t}')) is not None)
    reading = (
        'Each row is a turn, each column a moment of training; the greener, the more the reply to that turn\'s action '
        'informed the next one (nats per token). Green spreading downwards: the agent keeps asking useful things.'
    )
    return Figure('gain_by_turn', 'Which turn earns what', reading, curves, 'heat') if curves else None


def end_reasons(rows: list[dict]) -> Figure | None:
    """Returns how rollouts ended over training, as stacked shares."""
    names = list(dict.fromkeys(n for row in rows if row.get('phase') == 'train' for n in row if n.startswith('end_')))
    curves = [curve(rows, 'train', name, name.removeprefix('end_').replace('_', ' ')) for name in names]
    curves = tuple(c for c in curves if c is not None and np.nanmax(np.nan_to_num(c.values)) > 0)
    reading = (
        'What ended the dialogues. Done: the agent finished, rightly or not; limits and bad actions are dialogues that it '
        'did not bring to an end.'
    )
    return Figure('endings', 'How dialogues end', reading, curves, 'stack', 0.0, 1.0) if curves else None


# ---- SVG -------------------------------------------------------------------------------------------------------------


def svg(figure: Figure) -> str:
    """Returns the figure as one <svg>; colours are classes of report.css, so that it follows the theme."""
    body = {'lines': _svg_lines, 'heat': _svg_heat, 'stack': _svg_stack}[figure.kind](figure)
    label = html.escape(f'{figure.title}. {figure.reading}', quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{body}</svg>'


def points(figure: Figure) -> str:
    """Returns the data under a figure's pointer, as JSON for report.js: x in pixels, and a line of text per moment."""
    low, high = _x_range(figure)
    moments: dict[int, list[str]] = {}
    for one in figure.curves:
        for step, value in zip(one.steps, one.mean, strict=True):
            moments.setdefault(int(step), []).append(f'{one.label} {short(value)}')
    rows = [[round(_x(step, low, high), 1), f'step {step}', *texts] for step, texts in sorted(moments.items())]
    return json.dumps(rows[:: max(1, len(rows) // 400)])


def short(value: float) -> str:
    """Returns three significant digits; a dash for NaN."""
    if not np.isfinite(value):
        return '–'
    return f'{value:.3g}' if abs(value) < 1e4 else f'{value:,.0f}'


def _x_range(figure: Figure) -> tuple[float, float]:
    low = min(float(one.steps[0]) for one in figure.curves)
    high = max(float(one.steps[-1]) for one in figure.curves)
    return low, high if high > low else low + 1.0


def _y_range(figure: Figure) -> tuple[float, float]:
    values = np.concatenate([one.values[np.isfinite(one.values)] for one in figure.curves])
    low = float(values.min()) if figure.low is None else figure.low
    high = float(values.max()) if figure.high is None else figure.high
    pad = 0.06 * (high - low) or 0.5
    return low if figure.low is not None else low - pad, high if figure.high is not None else high + pad


def _x(step: float, low: float, high: float) -> float:
    return LEFT + (step - low) / (high - low) * (WIDTH - LEFT - RIGHT)


def _y(value: float, low: float, high: float) -> float:
    share = min(max((value - low) / (high - low), -0.02), 1.02)
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns round numbers inside [low, high], about ``count`` of them."""
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = min((unit * factor for factor in (1, 2, 2.5, 5, 10)), key=lambda size: abs(size - rough))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def _axes(x_range: tuple[float, float], y_range: tuple[float, float] | None) -> str:
    parts = []
    for value in ticks(*y_range, 4) if y_range else ():
        y = _y(value, *y_range)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{value:g}</text>')
    for value in ticks(*x_range, 6):
        if value == int(value):
            x = _x(value, *x_range)
            parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 14}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 1}" text-anchor="end">training step</text>')
    return ''.join(parts)


def _path(xs: list[float], ys: list[float]) -> str:
    """Returns path data; NaN breaks the line."""
    words, pen = [], 'M'
    for x, y in zip(xs, ys, strict=True):
        if np.isfinite(y):
            words.append(f'{pen}{x:.1f} {y:.1f}')
            pen = 'L'
        else:
            pen = 'M'
    return ''.join(words)


def _svg_lines(figure: Figure) -> str:
    x_range, y_range = _x_range(figure), _y_range(figure)
    parts = [_axes(x_range, y_range)]
    for index, one in reversed(list(enumerate(figure.curves))):  # the first, the most important, on top
        xs = [_x(step, *x_range) for step in one.steps]

        def line(values: np.ndarray, kind: str, xs: list[float] = xs, index: int = index) -> str:
            ys = [_y(value, *y_range) for value in values]
            return f'<path class="{kind} c{index}" d="{_path(xs, ys)}"/>'

        if one.values.shape[1] > 1:
            parts += [line(column, 'seed') for column in one.values.T]
        elif not one.dots:
            parts.append(line(one.mean, 'raw'))
        parts.append(line(one.smooth, 'line'))
        if one.dots:
            dots = [(x, _y(v, *y_range)) for x, v in zip(xs, one.mean, strict=True) if np.isfinite(v)]
            parts += [f'<circle class="dot c{index}" cx="{x:.1f}" cy="{y:.1f}" r="3.6"/>' for x, y in dots]
    return ''.join(parts)


def binned(figure: Figure) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first step of each column [C] and the mean values [rows, C] of a heat map."""
    steps = np.unique(np.concatenate([one.steps for one in figure.curves]))
    groups = np.array_split(steps, min(len(steps), MAX_COLUMNS))
    cells = np.full((len(figure.curves), len(groups)), np.nan)
    for row, one in enumerate(figure.curves):
        for column, group in enumerate(groups):
            inside = one.mean[np.isin(one.steps, group)]
            if np.isfinite(inside).any():
                cells[row, column] = np.nanmean(inside)
    return np.array([group[0] for group in groups]), cells


def _svg_heat(figure: Figure) -> str:
    steps, cells = binned(figure)
    rows, columns = cells.shape
    height, width = (HEIGHT - TOP - BOTTOM) / rows, (WIDTH - LEFT - RIGHT) / columns
    scale = np.nanmax(np.abs(cells)) if np.isfinite(cells).any() else 1.0
    parts = []
    for row in range(rows):
        y = TOP + row * height
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{y + height / 2 + 3.5:.1f}" text-anchor="end">{row}</text>')
        for column in range(columns):
            value = cells[row, column]
            shown = 0.0 if np.isnan(value) else abs(value) / (scale or 1.0)
            title = f'turn {row}, step {steps[column]}: {short(value)} nats per token'
            parts.append(
                f'<rect class="{"negative" if value < 0 else "positive"}" x="{LEFT + column * width:.2f}" y="{y:.2f}" '
                f'width="{width + 0.3:.2f}" height="{height - 1.5:.2f}" fill-opacity="{0.04 + 0.96 * shown:.3f}">'
                f'<title>{title}</title></rect>'
            )
    for column in range(0, columns, max(1, columns // 6)):
        x = LEFT + (column + 0.5) * width
        parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 14}" text-anchor="middle">{steps[column]}</text>')
    parts.append(f'<text class="tick" x="{LEFT}" y="{HEIGHT - 1}">row: turn, full green: {short(scale)} nats</text>')
    parts.append(f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 1}" text-anchor="end">training step</text>')
    return ''.join(parts)


def _svg_stack(figure: Figure) -> str:
    x_range, y_range = _x_range(figure), _y_range(figure)
    xs = [_x(step, *x_range) for step in figure.curves[0].steps]
    floor, parts = np.zeros(len(xs)), []
    for index, one in enumerate(figure.curves):
        steps = figure.curves[0].steps
        ceiling = floor + np.nan_to_num(np.interp(steps, one.steps, np.nan_to_num(one.smooth)))
        upper = [f'{x:.1f} {_y(v, *y_range):.1f}' for x, v in zip(xs, ceiling, strict=True)]
        lower = [f'{x:.1f} {_y(v, *y_range):.1f}' for x, v in zip(xs, floor, strict=True)]
        parts.append(f'<path class="area c{index}" d="M{"L".join(upper + lower[::-1])}Z"/>')
        floor = ceiling
    return ''.join(parts) + _axes(x_range, y_range)


# ---- PNG -------------------------------------------------------------------------------------------------------------


def write_png(figure: Figure, path: pathlib.Path) -> None:
    """Draws the figure with matplotlib's Agg, without its global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(6.4, 3.4), dpi=130, layout='constrained')
    FigureCanvasAgg(canvas)
    axes = canvas.add_subplot()
    axes.set_title(figure.title, loc='left', fontsize=11, fontweight='bold')
    axes.set_xlabel('training step')
    axes.spines[['top', 'right']].set_visible(False)
    if figure.kind == 'heat':
        steps, cells = binned(figure)
        scale = np.nanmax(np.abs(cells)) if np.isfinite(cells).any() else 1.0
        edge = steps[-1] + (steps[-1] - steps[0]) / max(len(steps) - 1, 1)
        extent = (steps[0], max(edge, steps[0] + 1), len(cells) - 0.5, -0.5)
        image = axes.imshow(cells, aspect='auto', cmap='BrBG', vmin=-scale, vmax=scale, extent=extent)
        axes.set_yticks(range(len(cells)))
        axes.set_ylabel('turn')
        canvas.colorbar(image, label='nats per token')
    elif figure.kind == 'stack':
        steps = figure.curves[0].steps
        shares = [np.interp(steps, one.steps, np.nan_to_num(one.smooth)) for one in figure.curves]
        axes.stackplot(steps, shares, labels=[one.label for one in figure.curves], colors=COLORS, alpha=0.85)
    else:
        for one, color in zip(figure.curves, COLORS, strict=False):
            thin = one.values if one.values.shape[1] > 1 else one.mean[:, None]
            axes.plot(one.steps, thin, color=color, alpha=0.25, linewidth=0.8)
            axes.plot(one.steps, one.smooth, color=color, linewidth=2, marker='o' if one.dots else None, label=one.label)
        axes.grid(alpha=0.25)
        axes.set_ylim(figure.low, figure.high)
    if figure.kind != 'heat' and (len(figure.curves) > 1 or figure.kind == 'stack'):
        axes.legend(frameon=False, fontsize=9)
    canvas.savefig(path)
