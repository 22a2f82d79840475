"""What pictures of rows are drawn with: a pen, axes, and a panel with a band for each row."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from lgclip.seed_rows import Figure, Row
from lgclip.whole import write_whole

_SCALE, _FINER = 2, 2
PAPER, TEXT, FAINT, GRID = (255, 255, 255), (30, 30, 30), (110, 110, 110), (228, 228, 228)
COLOURS = (
    (40, 40, 40), (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (170, 120, 0), (86, 180, 233),
    (110, 70, 160),
)  # fmt: skip
"""Told apart without red and green (after Okabe and Ito, https://jfly.uni-koeln.de/color)."""
PANEL, HEAD, FOOT, GAP, EDGE = 400, 66, 66, 76, 24
"""Width of a panel, and the room above, below, between and at the edge, in points."""
_STEP, _LEAST = 13, 320


class Mark(NamedTuple):
    """How a point looks.

    Attributes:
        colour: Red, green and blue, 0 to 255.
        sides: Corners of its shape; 0 is a disc.
    """

    colour: tuple[int, int, int]
    sides: int = 0


class Pen:
    """Draws in points, on a canvas that is finer than the picture, because lines of Pillow have rough edges."""

    def __init__(self, width: float, height: float) -> None:
        self.scale = _SCALE * _FINER
        self.canvas = Image.new("RGB", (round(width * self.scale), round(height * self.scale)), PAPER)
        self.draw = ImageDraw.Draw(self.canvas)

    def line(self, points: Sequence[tuple[float, float]], colour: tuple[int, int, int], width: float = 1) -> None:
        """A line through points."""
        scaled = [(x * self.scale, y * self.scale) for x, y in points]
        self.draw.line(scaled, colour, round(width * self.scale), joint="curve")

    def disc(self, x: float, y: float, radius: float, fill: tuple[int, int, int], rim: bool = False) -> None:
        """A disc, with a white rim where others may lie below."""
        box = [(at + by) * self.scale for by in (-radius, radius) for at in (x, y)]
        self.draw.ellipse(box, fill, PAPER if rim else None, self.scale if rim else 0)

    def mark(self, x: float, y: float, radius: float, mark: Mark) -> None:
        """A point."""
        if mark.sides:
            circle = (x * self.scale, y * self.scale, 1.25 * radius * self.scale)
            self.draw.regular_polygon(circle, mark.sides, fill=mark.colour)
        else:
            self.disc(x, y, radius, mark.colour)

    def text(
        self, x: float, y: float, said: str, colour: tuple[int, int, int] = TEXT, size: float = 13, anchor: str = "lm"
    ) -> None:
        """A line of text; `anchor` is Pillow's."""
        font = ImageFont.load_default(size * self.scale)
        self.draw.text((x * self.scale, y * self.scale), said, colour, font, anchor)

    def save(self, path: Path) -> None:
        """Writes the picture as PNG.

        Raises:
            WriteError: If the system refuses it.
        """
        with write_whole(path) as temporary:
            self.canvas.reduce(_FINER).save(temporary, format="PNG", optimize=True)


@dataclass(frozen=True)
class Axis:
    """Where shares lie on the paper.

    Attributes:
        low: The least share shown.
        high: The highest.
        start: Where the least lies.
        end: Where the highest lies.
    """

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(cls, shares: Sequence[float], start: float, end: float) -> "Axis":
        """An axis with room around some shares."""
        room = max(0.02, 0.06 * (max(shares) - min(shares)))
        return cls(max(0.0, min(shares) - room), min(1.0, max(shares) + room), start, end)

    def at(self, share: float) -> float:
        """Where a share lies."""
        return self.start + (share - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round shares, eight at most or so."""
        step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2) if (self.high - self.low) / step <= 8)
        return [i * step for i in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]


def length(said: str) -> float:
    """Width of a text in points."""
    return ImageFont.load_default(13).getlength(said)


def fit(said: str, width: float) -> str:
    """A text, cut where it is wider than there is room."""
    if length(said) <= width:
        return said
    while said and length(said + "…") > width:
        said = said[:-1]
    return said + "…"


def letter(row: int) -> str:
    """What stands for a row where there is no room for its label."""
    return chr(ord("A") + row % 26)


def legend(pen: Pen, marks: Sequence[tuple[str, Mark]]) -> None:
    """What marks mean, in a line at the top."""
    x = 16.0
    for said, mark in marks:
        pen.mark(x, 18, 5, mark)
        pen.text(x + 10, 18, said)
        x += 30 + length(said)


def grid_across(pen: Pen, across: Axis, top: float, bottom: float, said: str) -> None:
    """Ticks and name of an axis of shares in percent, with lines upwards."""
    for share in across.ticks():
        pen.line([(across.at(share), top), (across.at(share), bottom)], GRID)
        pen.text(across.at(share), bottom + 14, f"{100 * share:.0f}", FAINT, 12, "mm")
    pen.text((across.start + across.end) / 2, bottom + 36, said, TEXT, 13, "mm")


def grid_up(pen: Pen, up: Axis, left: float) -> None:
    """Ticks of an upright axis of shares in percent, with lines across a panel."""
    for share in up.ticks():
        pen.line([(left, up.at(share)), (left + PANEL, up.at(share))], GRID)
        pen.text(left - 8, up.at(share), f"{100 * share:.0f}", FAINT, 12, "rm")


def height_of(rows: int, figures: int) -> float:
    """Height of a panel with a band for each row, in points."""
    return max(rows * (_STEP * figures + 14), _LEAST)


def panel_of_rows(
    pen: Pen,
    rows: Sequence[Row],
    figures: Sequence[Figure],
    mark: Callable[[int, int], Mark],
    said: str,
    left: float,
    height: float,
) -> None:
    """Each row's figures, means and 95% t intervals over seeds, with the label at the left.

    Args:
        pen: What draws.
        rows: The rows.
        figures: Shares, each in a line of the row's band.
        mark: How the points look, by row and figure.
        said: Heading.
        left: Where the panel begins; the labels lie before.
        height: Of all rows together.
    """
    told = [
        (i, j, summary) for i, row in enumerate(rows) for j, figure in enumerate(figures)
        if (summary := row.summary(figure))
    ]  # fmt: skip
    ends = [end for _, _, summary in told for end in summary["ci95"] or [summary["mean"]]]
    across = Axis.over([min(max(end, 0.0), 1.0) for end in ends], left, left + PANEL)
    pen.text(left, HEAD - 18, said)
    grid_across(pen, across, HEAD, HEAD + height, "top-1 in percent; bars: 95% t intervals over seeds")
    band = height / len(rows)
    for i, row in enumerate(rows):
        middle = HEAD + (i + 0.5) * band
        pen.line([(16, HEAD + i * band), (left + PANEL, HEAD + i * band)], GRID)
        pen.text(16, middle, letter(i), FAINT)
        pen.text(36, middle, fit(row.label, left - 48))
    for i, j, summary in told:
        y = HEAD + (i + 0.5) * band + (j - (len(figures) - 1) / 2) * _STEP
        if interval := summary["ci95"]:
            low, high = (across.at(min(max(end, across.low), across.high)) for end in interval)
            pen.line([(low, y), (high, y)], mark(i, j).colour, 1.5)
        pen.mark(across.at(summary["mean"]), y, 4, mark(i, j))
