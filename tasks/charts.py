"""Line charts as inline SVG: they take the page's colours, so they are readable in dark mode and need no script."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 50, 8, 10, 34
COLOURS = 8
"""Classes `line-0` ... of the page's style sheet."""


@dataclass(frozen=True)
class Line:
    """One curve: `x` and `y` `(n,)`; values that a logarithmic axis cannot show are left out."""

    name: str
    x: np.ndarray
    y: np.ndarray


def line_chart(title: str, lines: list[Line], x_label: str, marks: list[tuple[float, str]]) -> str:
    """Draw curves over a common x; the y axis is logarithmic where the values span more than a decade.

    Args:
        title: What is shown, for those who cannot see it.
        lines: The curves; the first is drawn boldly.
        x_label: Text under the x axis.
        marks: Places on the x axis with a dashed line, and what they are.

    Returns:
        An `<svg>` element; empty where no curve has two finite points.
    """
    values = np.concatenate([line.y[np.isfinite(line.y)] for line in lines] or [np.zeros(0)])
    positive = values[values > 0]
    if len(values) < 2:
        return ""
    log = len(positive) > 1 and bool(positive.max() / positive.min() > 10)
    x_low, x_high = min(float(line.x.min()) for line in lines), max(float(line.x.max()) for line in lines)
    low, high = _range(positive if log else values, log)
    ticks = _log_ticks(low, high) if log else _ticks(low, high)

    def place_x(x: np.ndarray | float) -> np.ndarray:
        return LEFT + (np.asarray(x) - x_low) / max(x_high - x_low, 1e-9) * (WIDTH - LEFT - RIGHT)

    def place_y(y: np.ndarray | float) -> np.ndarray:
        value = np.log10(np.asarray(y)) if log else np.asarray(y)
        first, last = (math.log10(low), math.log10(high)) if log else (low, high)
        return TOP + (last - value) / (last - first) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}" class="chart">']
    for tick in ticks:
        y = float(place_y(tick))
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.3g}</text>')
    for tick in _ticks(x_low, x_high):
        parts.append(f'<text x="{float(place_x(tick)):.1f}" y="{HEIGHT - 18}" text-anchor="middle">{tick:g}</text>')
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_label)}</text>'
    )
    for where, what in marks:
        x = float(place_x(where))
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}">')
        parts.append(f"<title>{escape(what)}</title></line>")
    for number, line in reversed(list(enumerate(lines))):  # the first comes last: on top
        shown = np.isfinite(line.y) & ((line.y > 0) if log else True)
        pairs = zip(place_x(line.x[shown]), place_y(line.y[shown]), strict=True)
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in pairs)
        name = f"<title>{escape(line.name)}</title>"
        parts.append(f'<polyline class="line line-{number % COLOURS}" points="{points}">{name}</polyline>')
    return "".join([*parts, "</svg>"])


def _range(values: np.ndarray, log: bool) -> tuple[float, float]:
    """Lower and upper end of the y axis, with a little air."""
    low, high = float(values.min()), float(values.max())
    if log:
        return low / 1.2, high * 1.2
    air = 0.05 * (high - low) or abs(high) or 1.0
    return low - air, high + air


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers in [low, high]."""
    step = 10 ** math.floor(math.log10(max(high - low, 1e-12) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 6)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in [low, high], with 2 and 5 between them where there would be fewer than four."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    few = math.log10(high / low) < 3.5
    ticks = [factor * 10.0**power for power in decades for factor in ((1, 2, 5) if few else (1,))]
    return [tick for tick in ticks if low <= tick <= high]
