"""Draws cost against size as an SVG: one panel for each task, a line for each contender, both axes logarithmic. Pure.

Begin at `draw`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from bench.figures import Figures

TASKS = ("full load", "1 % changed", "nothing changed, four tables")
# Lines differ in dashes as well as in colour; the colours are those of Okabe and Ito, safe for colour blindness.
STYLES = {
    "tidemark": ("#0072b2", ""),
    "psql binary": ("#000000", "6 3"),
    "psql text": ("#009e73", "2 3"),
    "tutorial": ("#d55e00", "10 3 2 3"),
}
OTHER_STYLE = ("#777777", "4 4")
WIDTH, HEIGHT = 300, 260  # of the plot in a panel
LEFT, TOP, GAP, BELOW = 60, 40, 70, 90
MARK_RADIUS = 3


@dataclass(frozen=True)
class Axis:
    """A range of whole powers of ten, mapped to a range of coordinates."""

    low: int  # exponents of ten
    high: int
    begin: float  # coordinates
    end: float

    def place(self, value: float) -> float:
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return self.begin + share * (self.end - self.begin)

    @property
    def ticks(self) -> list[int]:
        return list(range(self.low, self.high + 1))


Point = tuple[float, float]  # rows of orders, seconds


def draw(found: Sequence[Figures], tasks: Sequence[str] = TASKS) -> str:
    """Return an SVG of the median seconds at each size. Raises ValueError if there is nothing to draw."""
    panels = {task: lines for task in tasks if (lines := collect(found, task))}
    values = [point for lines in panels.values() for line in lines.values() for point in line]
    if not values:
        raise ValueError(f"expected figures of one of these tasks: {', '.join(tasks)}; found none")
    sizes, seconds = powers_around([rows for rows, _ in values]), powers_around([value for _, value in values])
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    parts = []
    for number, (task, lines) in enumerate(panels.items()):
        left = LEFT + number * (WIDTH + GAP)
        across, up = Axis(*sizes, left, left + WIDTH), Axis(*seconds, TOP + HEIGHT, TOP)
        parts += _draw_axes(task, across, up)
        for name, points in lines.items():
            parts += _draw_line(name, points, across, up)
    parts += _draw_legend(names)
    width, height = LEFT + len(panels) * (WIDTH + GAP), TOP + HEIGHT + BELOW
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">'
    )
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>"]) + "\n"


def collect(found: Sequence[Figures], task: str) -> dict[str, list[Point]]:
    """Return the points of each contender, ordered by size, without wrong figures."""
    lines: dict[str, list[Point]] = {}
    for figures in sorted(found, key=lambda each: each.rows):
        for contender in figures.contenders:
            seconds = figures.median(task, contender)
            if seconds:
                lines.setdefault(contender, []).append((figures.rows, seconds))
    return lines


def powers_around(values: Sequence[float]) -> tuple[int, int]:
    """Return the exponents of the two powers of ten that enclose all values."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _draw_axes(task: str, across: Axis, up: Axis) -> list[str]:
    middle = (across.begin + across.end) / 2
    parts = [_text(middle, TOP - 15, task, bold=True), _text(middle, up.begin + 38, "rows of orders")]
    for exponent in across.ticks:
        place = across.place(10.0**exponent)
        parts += [_grid(place, up.begin, place, up.end), _text(place, up.begin + 18, _number(exponent))]
    for exponent in up.ticks:
        place = up.place(10.0**exponent)
        parts.append(_grid(across.begin, place, across.end, place))
        parts.append(_text(across.begin - 6, place + 4, _number(exponent), anchor="end"))
    x, y = across.begin - 42, (up.begin + up.end) / 2
    turned = f' transform="rotate(-90 {x:.1f} {y:.1f})"'
    return [*parts, _text(x, y, "seconds", more=turned)]


def _draw_line(name: str, points: Sequence[Point], across: Axis, up: Axis) -> list[str]:
    colour, dashes = STYLES.get(name, OTHER_STYLE)
    places = [(across.place(rows), up.place(seconds)) for rows, seconds in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    line = f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"/>'
    marks = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{MARK_RADIUS}" fill="{colour}"/>' for x, y in places]
    return [line, *marks]


def _draw_legend(names: Sequence[str]) -> list[str]:
    parts, y = [], TOP + HEIGHT + 70
    for number, name in enumerate(names):
        colour, dashes = STYLES.get(name, OTHER_STYLE)
        x = LEFT + number * 140
        parts.append(
            f'<line x1="{x}" y1="{y}" x2="{x + 30}" y2="{y}" stroke="{colour}" stroke-width="2" '
            f'stroke-dasharray="{dashes}"/>'
        )
        parts.append(_text(x + 38, y + 4, name, anchor="start"))
    return parts


def _text(x: float, y: float, text: str, *, anchor: str = "middle", bold: bool = False, more: str = "") -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{weight}{more}>{escape(text)}</text>'


def _grid(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#dddddd"/>'


def _number(exponent: int) -> str:
    """Format a power of ten: 0.01, 10, 10,000, 10 million."""
    if exponent < 0:
        return f"{10.0**exponent:.{-exponent}f}"
    return f"{10 ** (exponent - 6):,} million" if exponent >= 6 else f"{10**exponent:,}"
