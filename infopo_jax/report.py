"""The report of a run: one self-contained page, and PNGs of the curves beside it.

    python -m infopo_jax.report runs/quickstart-20250101-120000

Reads metrics.jsonl, rollouts.jsonl and config.json. The page asks the network for nothing and works without JavaScript,
which only adds values under the pointer and the choice of one sample. A row of rollouts.jsonl:

    {"step", "phase", "index", "group", "prompt": text, "outcome", "success", "end": "DONE", "turns": [
        {"action": text, "tokens": [text], "ids": [id], "log_ratio": [number or null], "feedback": text,
         "is_error", "gain": number or null, "advantage": number or null, "reward"}]}

``log_ratio`` of an action's token is what the feedback before it added to its log-probability.
"""

import html
import importlib.resources
import json
import os
import pathlib
import string
import sys

import numpy as np

from infopo_jax.logger import METRICS_FILE, ROLLOUTS_FILE, read_jsonl
from infopo_jax.report_draw import points, svg, write_png
from infopo_jax.report_figures import Curve, Figure, curve, figures, short
from infopo_jax.report_rollouts import inspector

REPORT_FILE = 'report.html'

# heading -> the figures below it, by name
SECTIONS = {
    'Does it learn?': ('success', 'reward'),
    'What does it learn from?': ('gain_by_turn', 'ties', 'gain', 'correlation'),
    'How does it talk?': ('turns', 'endings'),
    'Is the training healthy?': ('entropy', 'kl', 'gradient', 'clipping'),
}


def write_report(workdir: str | os.PathLike) -> pathlib.Path:
    """Writes report.html and a PNG per figure into a run's folder.

    Args:
        workdir: the folder; half-written last lines of its files are skipped, so that a running job can be looked at.

    Returns:
        The path of report.html.

    Raises:
        ValueError: the folder holds no metrics.
    """
    workdir = pathlib.Path(workdir)
    rows = read_jsonl(workdir / METRICS_FILE)
    if not rows:
        raise ValueError(f'{workdir / METRICS_FILE} holds no rows: pass the --workdir of a run that has begun')
    samples = read_jsonl(workdir / ROLLOUTS_FILE)
    config_file = workdir / 'config.json'
    config = json.loads(config_file.read_text()) if config_file.exists() else {}
    drawn = figures(rows)
    for figure in drawn:
        write_png(figure, workdir / f'{figure.name}.png')
    temporary = workdir / (REPORT_FILE + '.tmp')
    temporary.write_text(_page(workdir.resolve().name, rows, samples, config, drawn), encoding='utf-8')
    os.replace(temporary, workdir / REPORT_FILE)
    return workdir / REPORT_FILE


def _page(name: str, rows: list[dict], samples: list[dict], config: dict, drawn: list[Figure]) -> str:
    files = importlib.resources.files('infopo_jax')
    template = string.Template((files / 'report.html').read_text(encoding='utf-8'))
    env, estimator = config.get('env', {}).get('name', ''), config.get('advantage', {}).get('estimator', '')
    seeds = config.get('num_seeds', 1)
    fan = f'{seeds} seeds (thin lines; bold is their mean)' if seeds > 1 else ''
    subtitle = ' · '.join(part for part in (env, estimator, f'{rows[-1]["step"]} steps', fan) if part)
    return template.substitute(
        css=(files / 'report.css').read_text(encoding='utf-8'),
        js=(files / 'report.js').read_text(encoding='utf-8'),
        name=html.escape(name),
        subtitle=html.escape(subtitle),
        verdict=html.escape(verdict(rows)),
        cards=_cards(rows),
        reasons=''.join(f'<li>{html.escape(sentence)}</li>' for sentence in reasons(rows)),
        sections=_sections(drawn),
        inspector=inspector(samples),
        config=html.escape(json.dumps(config, indent=2)) if config else 'config.json is missing',
    )


def verdict(rows: list[dict]) -> str:
    """Returns one sentence: what became of held-out success (of training success where nothing was evaluated)."""
    held_out = curve(rows, 'eval', 'success', '')
    if held_out is None:
        success = curve(rows, 'train', 'success', '')
        if success is None:
            return 'No success has been recorded yet.'
        first, last = _ends(success)
        return f'Success in training went from {first:.0%} to {last:.0%}; nothing has been evaluated on held-out tasks.'
    first, last = float(held_out.mean[0]), float(held_out.mean[-1])
    if len(held_out.steps) == 1:
        return f'At step {held_out.steps[0]} the agent succeeds in {first:.0%} of held-out tasks.'
    change = 'rose' if last > first + 0.02 else 'fell' if last < first - 0.02 else 'stayed'
    return f'Held-out success {change} from {first:.0%} to {last:.0%} in {held_out.steps[-1]} training steps.'


def reasons(rows: list[dict]) -> list[str]:
    """Returns up to four sentences with this run's numbers: where its learning signal came from."""
    found = []
    ties = curve(rows, 'train', 'tied_groups', '')
    if ties is not None:
        first, last = _ends(ties)
        found.append(
            f'At the start {first:.0%} of the groups tied: all rollouts of the prompt scored the same, and the outcome '
            f'could not tell better from worse. At the end {last:.0%} do.'
        )
    turns = [c for t in range(64) if (c := curve(rows, 'train', f'gain_turn_{t}', f'turn {t}')) is not None]
    if turns:
        early = [_ends(one)[0] for one in turns]
        late = [_ends(one)[1] for one in turns]
        best = int(np.nanargmax(np.nan_to_num(late, nan=-np.inf)))
        found.append(
            f'The information gain tells turns apart even there: from {short(max(early))} nats per token at the best '
            f'turn of the start to {short(late[best])} at {turns[best].label} of the end.'
        )
    agreement = curve(rows, 'train', 'gain_outcome_corr', '')
    if agreement is not None:
        value = float(np.nanmean(agreement.mean))
        relation = 'do better' if value > 0.05 else 'do worse' if value < -0.05 else 'do no better and no worse'
        found.append(
            f'Dialogues with more information {relation}: the mean correlation with the outcome is {value:+.2f}.'
        )
    length = curve(rows, 'eval', 'turns', '') or curve(rows, 'train', 'turns', '')
    if length is not None:
        first, last = _ends(length)
        found.append(f'A dialogue took {short(first)} turns at the start and takes {short(last)} at the end.')
    return found


def _ends(one: Curve) -> tuple[float, float]:
    """Returns the means over the first and the last tenth of a curve; evaluations count singly."""
    count = 1 if one.dots else max(1, len(one.steps) // 10)
    finite = one.mean[np.isfinite(one.mean)]
    return float(finite[:count].mean()), float(finite[-count:].mean())


def _cards(rows: list[dict]) -> str:
    wanted = [
        ('eval', 'success', 'held-out success', '{:.0%}'),
        ('eval', 'reward', 'held-out reward', '{:.2f}'),
        ('train', 'tied_groups', 'tied groups', '{:.0%}'),
        ('train', 'gain_mean', 'gain, nats per token', '{:.2f}'),
        ('eval', 'turns', 'turns per dialogue', '{:.1f}'),
    ]
    cards = []
    for phase, metric, label, form in wanted:
        one = curve(rows, phase, metric, label)
        if one is None:
            continue
        first, last = (form.format(value) for value in _ends(one))
        cards.append(f'<div class="card"><span>{label}</span><b>{last}</b><small>from {first}</small></div>')
    return ''.join(cards)


def _sections(drawn: list[Figure]) -> str:
    by_name = {figure.name: figure for figure in drawn}
    parts = []
    for heading, names in SECTIONS.items():
        shown = ''.join(_figure(by_name[name]) for name in names if name in by_name)
        if shown:
            parts.append(f'<section><h2>{heading}</h2><div class="grid">{shown}</div></section>')
    return ''.join(parts)


def _figure(figure: Figure) -> str:
    legend = ''
    if figure.kind != 'heat':
        keys = ''.join(f'<li><i class="c{k}"></i>{html.escape(c.label)}</li>' for k, c in enumerate(figure.curves))
        legend = f'<ul class="legend">{keys}</ul>'
    data = '' if figure.kind == 'heat' else f' data-points="{html.escape(points(figure), quote=True)}"'
    return (
        f'<figure id="{figure.name}"><h3>{figure.title}</h3><figcaption>{figure.reading}</figcaption>'
        f'<div class="plot"{data}>{svg(figure)}</div>{legend}</figure>'
    )


if __name__ == '__main__':
    if len(sys.argv) != 2:
        sys.exit('usage: python -m infopo_jax.report WORKDIR')
    try:
        print(write_report(sys.argv[1]))
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
