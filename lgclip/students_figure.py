"""A picture of a sweep's students: accuracy by training set, and shifted against in distribution."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lgclip.student_rows import TOP1, Figure, Row, Students
from lgclip.whole import write_whole

_SCALE, _FINER = 2, 2
_PAPER, _TEXT, _FAINT, _GRID = (255, 255, 255), (30, 30, 30), (110, 110, 110), (228, 228, 228)
_COLOURS = (
    (40, 40, 40), (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (170, 120, 0), (86, 180, 233)
)  # fmt: skip
"""Told apart without red and green (Okabe and Ito, https://jfly.uni-koeln.de/color)."""
_NAMES, _PANEL, _STEP = 210, 400, 13
_HEAD, _FOOT, _GAP, _EDGE = 66, 66, 76, 24
_DENSE = 10**9  # images of a point on a line that no run stands for


class _Pen:
    """Draws in points, on a canvas that is finer than the picture, because lines of Pillow have rough edges."""

    def __init__(self, width: float, height: float) -> None:
        self.scale = _SCALE * _FINER
        self.canvas = Image.new("RGB", (round(width * self.scale), round(height * self.scale)), _PAPER)
        self.draw = ImageDraw.Draw(self.canvas)

    def line(self, points: Sequence[tuple[float, float]], colour: tuple[int, int, int], width: float = 1) -> None:
        scaled = [(x * self.scale, y * self.scale) for x, y in points]
        self.draw.line(scaled, colour, round(width * self.scale), joint="curve")

    def disc(self, x: float, y: float, radius: float, fill: tuple[int, int, int], rim: bool = False) -> None:
        box = [(at + by) * self.scale for by in (-radius, radius) for at in (x, y)]
        self.draw.ellipse(box, fill, _PAPER if rim else None, self.scale if rim else 0)

    def text(
        self, x: float, y: float, said: str, colour: tuple[int, int, int] = _TEXT, size: float = 13, anchor: str = "lm"
    ) -> None:
        font = ImageFont.load_default(size * self.scale)
        self.draw.text((x * self.scale, y * self.scale), said, colour, font, anchor)

    def picture(self) -> Image.Image:
        return self.canvas.reduce(_FINER)


@dataclass(frozen=True)
class _Axis:
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
    def over(cls, shares: Sequence[float], start: float, end: float) -> "_Axis":
        """An axis with room around some shares."""
        room = max(0.02, 0.06 * (max(shares) - min(shares)))
        return cls(max(0.0, min(shares) - room), min(1.0, max(shares) + room), start, end)

    def at(self, share: float) -> float:
        return self.start + (share - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2) if (self.high - self.low) / step <= 8)
        return [i * step for i in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]


def draw(path: Path, students: Students) -> None:
    """Writes the picture.

    Left, top-1 of each row on each set, with 95% t intervals over seeds. Right, top-1 on each shifted set against
    top-1 in distribution over the same classes: a small dot a run, a lettered one a mean, and the baseline line
    through the runs on real images.

    Args:
        path: PNG file to write.
        students: The rows.

    Raises:
        WriteError: If the system refuses it.
    """
    sets = [TOP1, *(Figure("top1", name) for name in students.shifted)]
    colours = {figure: _COLOURS[i % len(_COLOURS)] for i, figure in enumerate(sets)}
    band = _STEP * len(sets) + 14
    height = max(len(students.rows) * band, 320)
    right = _NAMES + _PANEL + _GAP
    pen = _Pen(right + _PANEL + _EDGE, _HEAD + height + _FOOT)
    _legend(pen, colours)
    _by_training_set(pen, students.rows, colours, height)
    _against(pen, students, colours, _HEAD + height, right)
    with write_whole(path) as temporary:
        pen.picture().save(temporary, format="PNG", optimize=True)


def _legend(pen: _Pen, colours: dict[Figure, tuple[int, int, int]]) -> None:
    x = 16.0
    for figure, colour in colours.items():
        said = figure.shifted or "in distribution"
        pen.disc(x, 18, 5, colour)
        pen.text(x + 10, 18, said)
        x += 30 + ImageFont.load_default(13).getlength(said)


def _letter(row: int) -> str:
    return chr(ord("A") + row % 26)


def _fit(said: str, width: float, size: float = 13) -> str:
    font = ImageFont.load_default(size)
    if font.getlength(said) <= width:
        return said
    while said and font.getlength(said + "…") > width:
        said = said[:-1]
    return said + "…"


def _grid(pen: _Pen, across: _Axis, top: float, bottom: float, said: str) -> None:
    """Ticks and name of an axis of shares in percent, with lines upwards."""
    for share in across.ticks():
        pen.line([(across.at(share), top), (across.at(share), bottom)], _GRID)
        pen.text(across.at(share), bottom + 14, f"{100 * share:.0f}", _FAINT, 12, "mm")
    pen.text((across.start + across.end) / 2, bottom + 36, said, _TEXT, 13, "mm")


def _by_training_set(
    pen: _Pen, rows: Sequence[Row], colours: dict[Figure, tuple[int, int, int]], height: float
) -> None:
    told = [(row, figure, summary) for row in rows for figure in colours if (summary := row.summary(figure))]
    ends = [end for _, _, summary in told for end in summary["ci95"] or [summary["mean"]]]
    across = _Axis.over([min(max(end, 0.0), 1.0) for end in ends], _NAMES, _NAMES + _PANEL)
    pen.text(_NAMES, _HEAD - 18, "by training set")
    _grid(pen, across, _HEAD, _HEAD + height, "top-1 in percent; bars: 95% t intervals over seeds")
    band = height / len(rows)
    places = {figure: i for i, figure in enumerate(colours)}
    for i, row in enumerate(rows):
        middle = _HEAD + (i + 0.5) * band
        pen.line([(16, _HEAD + i * band), (_NAMES + _PANEL, _HEAD + i * band)], _GRID)
        pen.text(16, middle, _letter(i), _FAINT)
        pen.text(36, middle, _fit(row.label, _NAMES - 48))
    for row, figure, summary in told:
        y = _HEAD + (rows.index(row) + 0.5) * band + (places[figure] - (len(colours) - 1) / 2) * _STEP
        if interval := summary["ci95"]:
            low, high = (across.at(min(max(end, across.low), across.high)) for end in interval)
            pen.line([(low, y), (high, y)], colours[figure], 1.5)
        pen.disc(across.at(summary["mean"]), y, 4, colours[figure])


def _points(row: Row, name: str) -> Iterator[tuple[float, float]]:
    """Top-1 in distribution and shifted of each run."""
    inside, shifted = row.of(Figure("inside", name)), row.of(Figure("top1", name))
    yield from ((inside[seed], shifted[seed]) for seed in inside)


def _against(
    pen: _Pen, students: Students, colours: dict[Figure, tuple[int, int, int]], bottom: float, left: float
) -> None:
    points = {(i, name): list(_points(row, name)) for i, row in enumerate(students.rows) for name in students.shifted}
    points = {place: own for place, own in points.items() if own}
    if not points:
        pen.text(left, _HEAD - 18, "no shifted set was judged", _FAINT)
        return
    across = _Axis.over([x for own in points.values() for x, _ in own], left, left + _PANEL)
    up = _Axis.over([y for own in points.values() for _, y in own], bottom, _HEAD)
    pen.text(left, _HEAD - 18, "top-1 on shifted sets, in percent; curves: the baseline of real images")
    _grid(pen, across, _HEAD, bottom, "top-1 in distribution, the same classes, in percent")
    for share in up.ticks():
        pen.line([(left, up.at(share)), (left + _PANEL, up.at(share))], _GRID)
        pen.text(left - 8, up.at(share), f"{100 * share:.0f}", _FAINT, 12, "rm")
    for name, line in students.lines.items():
        shares = [across.low + i / 200 * (across.high - across.low) for i in range(201)]
        curve = [(x, line.expected(x, _DENSE)) for x in shares]
        inside = [(across.at(x), up.at(y)) for x, y in curve if up.low <= y <= up.high]
        if len(inside) > 1:
            pen.line(inside, colours[Figure("top1", name)], 1)
    for (_, name), own in points.items():
        for x, y in own:
            pen.disc(across.at(x), up.at(y), 2, colours[Figure("top1", name)])
    for (i, name), own in points.items():
        x, y = (across.at(sum(p[0] for p in own) / len(own)), up.at(sum(p[1] for p in own) / len(own)))
        pen.disc(x, y, 8, colours[Figure("top1", name)], rim=True)
        pen.text(x, y, _letter(i), _PAPER, 10, "mm")
