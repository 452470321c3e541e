"""Draws a report's figures: as SVG without any library, and as PNG with matplotlib."""

import html
import json
import math
import pathlib

import numpy as np

from infopo_jax.report_figures import Figure, short

WIDTH, HEIGHT = 560, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 32  # margins, px
MAX_COLUMNS = 72  # of a heat map; more steps are averaged
COLORS = ('#0f766e', '#d97706', '#6d5bd0', '#be3455', '#64748b', '#2f7fd1')  # of the PNGs; report.css has the page's


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


def _x_range(figure: Figure) -> tuple[float, float]:
    low = min(float(one.steps[0]) for one in figure.curves)
    high = max(float(one.steps[-1]) for one in figure.curves)
    return low, high if high > low else low + 1.0


def _y_range(figure: Figure) -> tuple[float, float]:
    values = np.concatenate([one.values[np.isfinite(one.values)] for one in figure.curves])
    low = float(values.min()) if figure.low is None else figure.low
    high = float(values.max()) if figure.high is None else figure.high
    if figure.high is None:
        high = max(low, high)  # a KL of 0 may be rounded to just below its bound
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
            axes.plot(
                one.steps, one.smooth, color=color, linewidth=2, marker='o' if one.dots else None, label=one.label
            )
        axes.grid(alpha=0.25)
        axes.set_ylim(figure.low, figure.high)
    if figure.kind != 'heat' and (len(figure.curves) > 1 or figure.kind == 'stack'):
        axes.legend(frameon=False, fontsize=9)
    canvas.savefig(path)
