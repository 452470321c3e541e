"""The inspector of a report: sample rollouts as HTML, each turn with its text, gain, advantage and shaded tokens.

All text was written by a model or an environment: every piece passes ``html.escape``.
"""

import html
from typing import Any

import numpy as np

from infopo_jax.report_figures import DASH, numbers, short

MAX_SAMPLES = 120  # in one page; of more, evenly spaced ones are shown


def inspector(samples: list[dict]) -> str:
    """Returns the list of samples and their panels.

    Args:
        samples: rows of rollouts.jsonl.
    """
    if not samples:
        return '<p class="empty">No sample rollouts yet: they are written at each evaluation.</p>'
    shown = [samples[k] for k in np.unique(np.linspace(0, len(samples) - 1, MAX_SAMPLES).astype(int))]
    scale = _scale(shown)
    chosen = max(range(len(shown)), key=lambda k: (bool(shown[k].get('success')), k))  # the last success, else the last
    entries = ''.join(_entry(sample, k, k == chosen) for k, sample in enumerate(shown))
    panels = ''.join(_panel(sample, k, k == chosen, scale) for k, sample in enumerate(shown))
    left = f'<p class="note">{len(shown)} of {len(samples)} samples are shown.</p>' if len(samples) > len(shown) else ''
    return f'<div class="inspector"><nav aria-label="sample rollouts">{entries}{left}</nav><div>{panels}</div></div>'


def _scale(samples: list[dict]) -> float:
    """Returns the log-ratio that is shaded in full: the 95th percentile of their sizes, at least 0.5 nats."""
    ratios = [x for s in samples for t in s.get('turns', []) for x in t.get('log_ratio') or [] if x is not None]
    sizes = np.abs(numbers(ratios)) if ratios else np.zeros(1)
    sizes = sizes[np.isfinite(sizes)]
    return max(0.5, float(np.percentile(sizes, 95))) if len(sizes) else 0.5


def _entry(sample: dict, index: int, chosen: bool) -> str:
    mood = 'good' if sample.get('success') else 'bad'
    words = f'{sample.get("phase", "")} · {_count(sample)} · {_end(sample)}'
    return (
        f'<button type="button" data-sample="{index}" aria-pressed="{str(chosen).lower()}">'
        f'<i class="mark {mood}"></i><b>step {_text(sample.get("step"))}</b><span>{_text(words)}</span></button>'
    )


def _count(sample: dict) -> str:
    turns = len(sample.get('turns', []))
    return f'{turns} turn' + ('' if turns == 1 else 's')


def _end(sample: dict) -> str:
    return str(sample.get('end', '')).lower().replace('_', ' ')


def _panel(sample: dict, index: int, chosen: bool, scale: float) -> str:
    success = bool(sample.get('success'))
    seed = f' · seed {_text(sample["seed"])}' if 'seed' in sample else ''
    facts = (
        f'<span class="badge {"good" if success else "bad"}">{"success" if success else "no success"}</span>'
        f'<span class="badge">outcome {_number(sample.get("outcome"))}</span>'
        f'<span class="badge">ended: {_text(_end(sample))}</span>'
        f'<span class="badge">step {_text(sample.get("step"))} · {_text(sample.get("phase", ""))} · group '
        f'{_text(sample.get("group", DASH))}{seed}</span>'
    )
    turns = sample.get('turns', [])
    body = ''.join(_turn(turn, t, turns[t - 1] if t else None, scale) for t, turn in enumerate(turns))
    prompt = f'<div class="bubble prompt"><h4>The request</h4><pre>{_text(sample.get("prompt", ""))}</pre></div>'
    return (
        f'<article class="rollout{" chosen" if chosen else ""}" id="sample-{index}"><header>{facts}</header>'
        f'{_bars(turns)}{prompt}{body}</article>'
    )


def _bars(turns: list[dict]) -> str:
    """Returns a row of small bars, one per turn: which turn earned what."""
    gains = [float(numbers(turn.get('gain'))) for turn in turns]
    finite = [abs(gain) for gain in gains if np.isfinite(gain)]
    if not finite:
        return ''
    top = max(*finite, 0.1)
    bars = ''.join(
        f'<li><span class="bar {"negative" if gain < 0 else "positive"}" '
        f'style="height:{0 if np.isnan(gain) else 4 + 40 * abs(gain) / top:.0f}px"></span>'
        f'<b>{short(gain)}</b><small>turn {t}</small></li>'
        for t, gain in enumerate(gains)
    )
    return f'<ol class="bars" aria-label="gain by turn, nats per token">{bars}</ol>'


def _turn(turn: dict, index: int, before: dict | None, scale: float) -> str:
    chips = (
        _chip('gain', turn.get('gain'), 'nats per token that the reply below added to the next action')
        + _chip(
            'advantage',
            turn.get('advantage'),
            'how strongly the update pushes towards (+) or away from (-) this action',
        )
        + _chip('reward', turn.get('reward'), 'what the environment paid for this turn')
    )
    feedback = turn.get('feedback') or ''
    error = bool(turn.get('is_error'))
    reply = (
        f'<div class="bubble reply{" error" if error else ""}"><h4>{"Error reply" if error else "Reply"}</h4>'
        f'<pre>{_text(feedback)}</pre></div>'
    )
    heading = f'<h4>Agent, turn {index}{chips}</h4>'
    return (
        f'{_effect(turn, before, index)}<section class="turn"><div class="bubble agent">{heading}'
        f'<pre>{_tokens(turn, scale)}</pre></div>{reply if feedback else ""}</section>'
    )


def _effect(turn: dict, before: dict | None, index: int) -> str:
    """Says what the reply before an action did to it, and that this is the gain of the turn before."""
    ratios = numbers([ratio for ratio in turn.get('log_ratio') or [] if ratio is not None])
    ratios = ratios[np.isfinite(ratios)]
    if before is None or not len(ratios):
        return ''
    mean, gain = float(ratios.mean()), float(numbers(before.get('gain')))
    if before.get('is_error'):
        coda = 'an error message earns no gain'
    elif np.isclose(mean, gain, atol=0.01):
        coda = f'that is the gain of turn {index - 1}'
    else:
        coda = f'the gain of turn {index - 1} is {_number(gain)}'
    return (
        f'<p class="link">The reply above made the tokens of this action {_factor(mean)} '
        f'(<b>{mean:+.2f}</b> nats on average); {coda}.</p>'
    )


def _factor(gain: float) -> str:
    ratio = float(np.exp(min(abs(gain), 50.0)))
    word = 'likelier' if gain >= 0 else 'less likely'
    return f'{short(ratio)} times {word}' if ratio >= 1.05 else f'hardly {word}'


def _tokens(turn: dict, scale: float) -> str:
    """Returns the action's tokens, each shaded by its log-ratio; the bare text where there are no tokens."""
    texts = [str(text) for text in turn.get('tokens') or []]
    if not texts:
        return _text(turn.get('action', ''))
    ratios = turn.get('log_ratio') or [None] * len(texts)
    ids = turn.get('ids') or ['?'] * len(texts)
    action = str(turn.get('action', ''))
    glue = '' if ''.join(texts).strip() == action.strip() else ' '  # words of a small vocabulary carry no spaces
    return glue.join(_token(text, ratio, one, scale) for text, ratio, one in zip(texts, ratios, ids, strict=False))


def _token(text: str, ratio: Any, token_id: Any, scale: float) -> str:
    value = float(numbers(ratio))
    if not np.isfinite(value):
        return f'<span class="token" title="id {_text(token_id)}">{_text(text)}</span>'
    shade = 0.85 * min(abs(value) / scale, 1.0)
    kind = 'negative' if value < 0 else 'positive'
    title = f'{value:+.2f} nats: {_factor(value)} with the reply than with the placeholder (id {_text(token_id)})'
    return f'<span class="token {kind}" style="--shade:{shade:.2f}" title="{title}">{_text(text)}</span>'


def _chip(name: str, value: Any, title: str) -> str:
    number = float(numbers(value))
    kind = '' if not np.isfinite(number) or number == 0 else ('negative' if number < 0 else 'positive')
    shown = f'{number:+.2f}' if np.isfinite(number) else DASH
    return f'<span class="chip {kind}" title="{title}">{name} <b>{shown}</b></span>'


def _number(value: Any) -> str:
    return short(float(numbers(value)))


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)
