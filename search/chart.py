"""A curve in characters, for a terminal: fine dots (Braille) where it can show them, plain ASCII elsewhere.

Used by `dialin show`. Pure: numbers in, lines of text out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

# The dots of a Braille character, by column and row, as bits above U+2800 (Unicode's own numbering).
BRAILLE = 0x2800
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
# A positive curve whose ends are so far apart is drawn on a log scale: a loss that falls by decades is a line then.
LOG_FROM = 20.0
# Wider than that a curve is not easier to read.
WIDEST = 100
NARROWEST = 20
# Room for most numbers, so that the axes of two charts stand in one line.
MARGIN = 8


@dataclass(frozen=True)
class _Style:
    """What a chart is drawn with: dots in a character (columns, rows), and the axes."""

    dots: tuple[int, int]
    corner: str
    across: str
    tick: str
    down: str
    mark: str


FINE = _Style((2, 4), "└", "─", "┤", "│", "▲")
PLAIN = _Style((1, 1), "+", "-", "+", "|", "^")


def chart(
    title: str,
    values: Sequence[float | None],
    *,
    width: int,
    height: int,
    ascii_only: bool = False,
    mark: int = 0,
    ends: tuple[int, int] | None = None,
) -> list[str]:
    """Lines of at most `width` characters: a title, `height` rows with the curve, an axis with first and last number.

    Args:
        title: stands above it; " (log scale)" is added where that is so.
        values: one an epoch, from 1; None and what is not finite leave a gap.
        width: columns of the terminal.
        height: rows of the curve.
        ascii_only: the terminal can show nothing else.
        mark: which value to point at, from 1; 0 for none.
        ends: the numbers of the first and the last epoch, by default 1 and how many there are.
    """
    style = PLAIN if ascii_only else FINE
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if not finite:
        return [title, "  no finite value"]
    low, high = min(finite), max(finite)
    log = low > 0 and high / low >= LOG_FROM
    labels = _labels(low, high, height, log)
    margin = max(MARGIN, *(len(label) + 1 for label in labels))
    columns = max(NARROWEST, min(width, WIDEST) - margin - 1)
    heights = [_height(value, low, high, log) for value in values]
    rows = _draw(heights, columns, height, style)
    lines = [f"{title} (log scale)" if log else title]
    for label, row in zip(labels, rows, strict=True):
        lines.append(f"{label:>{margin}}{style.tick if label else style.down}{row}".rstrip())
    return lines + _axis(len(values), columns, margin, style, mark, ends or (1, len(values)))


def _height(value: float | None, low: float, high: float, log: bool) -> float | None:
    """From 0 at the bottom to 1 at the top."""
    if value is None or not math.isfinite(value):
        return None
    if low == high:
        return 0.5
    if log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def _labels(low: float, high: float, height: int, log: bool) -> list[str]:
    """The highest value at the first row, the lowest at the last, one between; no two alike."""
    labels = [""] * height
    share = 1 - ((height - 1) // 2) / max(1, height - 1)
    between = low * (high / low) ** share if log else low + share * (high - low)
    places = [(0, high), (height - 1, low), ((height - 1) // 2, between)]
    if low == high:
        places = [((height - 1) // 2, low)]
    digits = _digits(low, high)
    for row, value in places:
        if not labels[row]:
            labels[row] = f"{value:.3g}" if log else f"{value:.{digits}f}" if abs(value) < 1e5 else f"{value:.3g}"
    return labels


def _digits(low: float, high: float) -> int:
    """Digits after the point, so that the ends of the range differ by a hundred of the last one."""
    span = (high - low) or abs(high) or 1.0
    return min(8, max(0, 2 - math.floor(math.log10(span))))


def _draw(heights: Sequence[float | None], columns: int, rows: int, style: _Style) -> list[str]:
    wide, high = style.dots
    across, up = columns * wide, rows * high
    canvas = [[0] * columns for _ in range(rows)]

    def dot(x: float, y: float, strong: bool) -> None:
        column, row = round(x), round((1 - y) * (up - 1))
        if style is FINE:
            canvas[row // high][column // wide] |= DOTS[column % wide][row % high]
        else:
            canvas[row][column] = max(canvas[row][column], 2 if strong else 1)

    last = len(heights) - 1
    points = [(x / last * (across - 1) if last else 0.0, y) for x, y in enumerate(heights)]
    for x, y in points:
        if y is not None:
            dot(x, y, strong=True)
    for (x, y), (next_x, next_y) in itertools.pairwise(points):
        if y is None or next_y is None:
            continue
        steps = max(1, math.ceil(max(next_x - x, abs(next_y - y) * (up - 1))))
        for step in range(1, steps):
            share = step / steps
            dot(x + share * (next_x - x), y + share * (next_y - y), strong=False)
    return ["".join(_character(cell, style) for cell in row).rstrip() for row in canvas]


def _character(cell: int, style: _Style) -> str:
    if style is FINE:
        return chr(BRAILLE | cell) if cell else " "
    return " .*"[cell]


def _axis(count: int, columns: int, margin: int, style: _Style, mark: int, ends: tuple[int, int]) -> list[str]:
    line = [style.across] * columns
    if 1 <= mark <= count:
        line[round((mark - 1) / max(1, count - 1) * (columns - 1))] = style.mark
    first, last = str(ends[0]), f"epoch {ends[1]}"
    numbers = first + " " * max(1, columns - len(first) - len(last)) + last if count > 1 else last
    return [" " * margin + style.corner + "".join(line), " " * (margin + 1) + numbers]
