"""Small plots as inline SVG: lines, bars and points with axes; colours come from the page's CSS variables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 520, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 40
MAX_POINTS = 600
"""Lines with more points are thinned: a plot is 520 pixels wide, and the page should stay small."""

Format = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear axis from `low` to `high` (data) with its label and how its ticks are written."""

    label: str
    low: float
    high: float
    write: Format

    def at(self, value: float) -> float:
        """Place of a value, 0 to 1."""
        return (value - self.low) / (self.high - self.low) if self.high > self.low else 0.0

    def ticks(self) -> list[float]:
        """Four to eight round values."""
        span = self.high - self.low
        if span <= 0:
            return [self.low]
        raw = span / 5
        size = 10.0 ** math.floor(math.log10(raw))
        step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw)
        first = math.ceil(self.low / step)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def line_plot(points: Sequence[tuple[float, float]], x: Axis, y: Axis, title: str) -> str:
    """A polyline through the points (sorted by x), thinned to MAX_POINTS."""
    kept = thin(points)
    path = " ".join(f"{_px(x, a):.1f},{_py(y, b):.1f}" for a, b in kept)
    dots = "".join(
        f'<circle class="mark" cx="{_px(x, a):.1f}" cy="{_py(y, b):.1f}" r="3">'
        f"<title>{escape(x.write(a))}: {escape(y.write(b))}</title></circle>"
        for a, b in kept
    )
    return _frame(x, y, title, f'<polyline class="line" points="{path}"/>' + (dots if len(kept) <= 40 else ""))


def scatter(points: Sequence[tuple[float, float, str]], x: Axis, y: Axis, title: str) -> str:
    """Points with a CSS class each ("mark" or "bad")."""
    step = max(1, math.ceil(len(points) / (4 * MAX_POINTS)))
    marks = "".join(
        f'<circle class="{kind}" cx="{_px(x, a):.1f}" cy="{_py(y, b):.1f}" r="2.5" fill-opacity="0.6"/>'
        for a, b, kind in points[::step]
    )
    return _frame(x, y, title, marks)


def bars(values: Sequence[tuple[str, float]], y: Axis, title: str, x_label: str) -> str:
    """One bar a label, from 0; labels are thinned where they would touch."""
    count = max(len(values), 1)
    bottom = HEIGHT - BOTTOM
    room = (WIDTH - LEFT - RIGHT) / count
    width = min(max(room * 0.72, 1.0), 40.0)
    shapes = []
    longest = max((len(name) for name, _ in values), default=1)
    every = max(1, math.ceil((longest * 6.5 + 6) / room))
    for i, (name, value) in enumerate(values):
        middle = LEFT + room * (i + 0.5)
        top = _py(y, value)
        shapes.append(
            f'<rect class="mark" x="{middle - width / 2:.1f}" y="{top:.1f}" width="{width:.1f}" '
            f'height="{max(bottom - top, 0):.1f}" rx="2"><title>{escape(name)}: {escape(y.write(value))}</title></rect>'
        )
        if i % every == 0:
            shapes.append(
                f'<text class="tick" x="{middle:.1f}" y="{bottom + 15}" text-anchor="middle">{escape(name)}</text>'
            )
    return _frame(Axis(x_label, 0, 0, lambda _: ""), y, title, "".join(shapes))


@dataclass(frozen=True, slots=True)
class Bar:
    """A labelled value with the range it was seen in; `first` is drawn in the page's colour, the others grey."""

    label: str
    value: float
    low: float
    high: float
    first: bool = False


def bars_across(values: Sequence[Bar], x: Axis, title: str) -> str:
    """Horizontal bars from 0, one under the other, each with a whisker from low to high and its value written."""
    line, left, room = 20, 190, 54
    width = WIDTH - left - room
    height = line * len(values) + 6
    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">']
    for place, bar in enumerate(values):
        top = place * line + 4
        middle = top + line / 2 - 2
        end, low, high = (left + x.at(value) * width for value in (bar.value, bar.low, bar.high))
        parts.append(
            f'<text class="tick" x="{left - 6}" y="{middle + 4:.1f}" text-anchor="end">{escape(bar.label)}</text>'
            f'<rect class="{"mark" if bar.first else "rest"}" x="{left}" y="{top}" width="{max(end - left, 0):.1f}" '
            f'height="{line - 5}" rx="2"><title>{escape(bar.label)}: {escape(x.write(bar.value))}</title></rect>'
            f'<line class="whisker" x1="{low:.1f}" x2="{high:.1f}" y1="{middle:.1f}" y2="{middle:.1f}"/>'
            f'<text class="tick" x="{max(high, end) + 5:.1f}" y="{middle + 4:.1f}">{escape(x.write(bar.value))}</text>'
        )
    parts.append(f'<line class="axis" x1="{left}" x2="{left}" y1="0" y2="{height}"/></svg>')
    return "".join(parts)


def thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MAX_POINTS + 1 of the points, evenly, always with the last."""
    step = max(1, math.ceil(len(points) / MAX_POINTS))
    kept = list(points[::step])
    if points and kept[-1] != points[-1]:
        kept.append(points[-1])
    return kept


def _px(axis: Axis, value: float) -> float:
    return LEFT + axis.at(value) * (WIDTH - LEFT - RIGHT)


def _py(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.at(value) * (HEIGHT - TOP - BOTTOM)


def _frame(x: Axis, y: Axis, title: str, inside: str) -> str:
    bottom = HEIGHT - BOTTOM
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for value in y.ticks():
        height = _py(y, value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{escape(y.write(value))}</text>'
        )
    if x.high > x.low:
        parts += [
            f'<text class="tick" x="{_px(x, value):.1f}" y="{bottom + 15}" text-anchor="middle">'
            f"{escape(x.write(value))}</text>"
            for value in x.ticks()
        ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<text class="label" x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x.label)}</text>')
    parts.append(inside)
    parts.append("</svg>")
    return "".join(parts)
