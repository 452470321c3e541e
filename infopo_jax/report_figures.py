"""The figures of a report: what each shows and how to read it, and their data from rows of metrics.

``report_draw`` draws each twice: as SVG in the page and as PNG beside it.
"""

import dataclasses
import re
from typing import Any

import numpy as np

DASH = '\u2013'  # stands for no number


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
        'The share of dialogues that reach their goal. Dots are held-out tasks, never trained on; they count. The '
        'first dot is the agent before any reinforcement.',
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
        [
            ('train', 'tied_groups', 'tied groups'),
            ('train', 'gate', 'gate'),
            ('train', 'info_share', 'share from info'),
        ],
        0.0,
        1.0,
    ),
    (
        'gain',
        'Information gain',
        'How much likelier, in nats per token, replies made the action that followed. Replies that are error messages '
        'are drawn apart: they surprise, but that earns nothing.',
        [('train', 'gain_mean', 'all turns'), ('train', 'gain_error', 'error replies')],
        None,
        None,
    ),
    (
        'correlation',
        'Does information pay?',
        "The correlation of a rollout's gain with its outcome. Above 0: dialogues that learn more end better, so the "
        'gain points where the outcome does.',
        [('train', 'gain_outcome_corr', 'gain and outcome')],
        -1.0,
        1.0,
    ),
    (
        'turns',
        'Turns per dialogue',
        'How many actions a dialogue takes. An agent that learns to ask takes more at first; one that only prolongs '
        'the talk takes ever more without more success.',
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
        "The share of tokens whose update was clipped, and how far the scorer's log-probabilities lie from the "
        "sampler's. Both should stay near 0.",
        [('train', 'clip_fraction', 'clipped'), ('train', 'sampler_gap', 'sampler gap')],
        0.0,
        None,
    ),
)


def curve(rows: list[dict], phase: str, metric: str, label: str) -> Curve | None:
    """Returns a metric of the rows of a phase, or None where no row has a number for it."""
    having = [row for row in rows if row.get('phase') == phase and metric in row]
    if not having:
        return None
    columns = [np.atleast_1d(numbers(row[metric])) for row in having]
    seeds = max(map(len, columns))
    values = np.array([np.resize(column, seeds) for column in columns], np.float64)
    steps = np.array([row['step'] for row in having])
    return Curve(label, steps, values, dots=phase == 'eval') if np.isfinite(values).any() else None


def numbers(value: Any) -> np.ndarray:
    """Reads what the logger wrote: numbers, the strings 'NaN' and 'Infinity', None (NaN), and lists of them."""
    if isinstance(value, list):
        return np.array([float(numbers(one)) for one in value])
    try:
        return np.float64('nan' if value is None else value)
    except (TypeError, ValueError):
        return np.float64('nan')


def short(value: float) -> str:
    """Returns three significant digits; a dash for NaN."""
    if not np.isfinite(value):
        return DASH
    return f'{value:.3g}' if abs(value) < 1e4 else f'{value:,.0f}'


def figures(rows: list[dict]) -> list[Figure]:
    """Returns the figures whose metrics the rows have, in the order of the page."""
    found = []
    for name, title, reading, wanted, low, high in FIGURES:
        curves = [curve(rows, *one) for one in wanted]
        curves = tuple(one for one in curves if one is not None)
        if curves:
            found.append(Figure(name, title, reading, curves, 'lines', low, high))
    extra = [heat_map(rows), end_reasons(rows)]
    return found + [figure for figure in extra if figure is not None]


def heat_map(rows: list[dict]) -> Figure | None:
    """Returns gain by turn over training, one row of the map per turn."""
    turns = sorted({int(m[1]) for row in rows for m in map(re.compile(r'gain_turn_(\d+)$').match, row) if m})
    curves = tuple(c for t in turns if (c := curve(rows, 'train', f'gain_turn_{t}', f'turn {t}')) is not None)
    reading = (
        "Each row is a turn, each column a moment of training; the greener, the more the reply to that turn's action "
        'informed the next one (nats per token). Green spreading downwards: the agent keeps asking useful things.'
    )
    return Figure('gain_by_turn', 'Which turn earns what', reading, curves, 'heat') if curves else None


def end_reasons(rows: list[dict]) -> Figure | None:
    """Returns how rollouts ended over training, as stacked shares."""
    names = list(dict.fromkeys(n for row in rows if row.get('phase') == 'train' for n in row if n.startswith('end_')))
    curves = [curve(rows, 'train', name, name.removeprefix('end_').replace('_', ' ')) for name in names]
    curves = tuple(c for c in curves if c is not None and np.nanmax(np.nan_to_num(c.values)) > 0)
    reading = (
        'What ended the dialogues. Done: the agent finished, rightly or not; limits and bad actions are dialogues that '
        'it did not bring to an end.'
    )
    return Figure('endings', 'How dialogues end', reading, curves, 'stack', 0.0, 1.0) if curves else None
