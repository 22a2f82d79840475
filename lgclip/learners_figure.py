"""A picture of a sweep's learners: accuracy by paradigm, and how guesses and prompt get better round by round."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lgclip.learner_rows import Learners
from lgclip.row_figure import (
    COLOURS,
    EDGE,
    FAINT,
    FOOT,
    GAP,
    GRID,
    HEAD,
    PANEL,
    PAPER,
    TEXT,
    Axis,
    Mark,
    Pen,
    grid_up,
    height_of,
    legend,
    length,
    letter,
    panel_of_rows,
)
from lgclip.seed_rows import TOP1, Figure, Row

_SHAPES = (0, 4, 3, 6)  # corners of a paradigm's mark: a disc, a square, a triangle, a hexagon
_LETTER = 18  # height that a letter at the end of a curve takes
_BETWEEN = 58
_LEAST, _MOST = 120, 560  # room for labels
_CURVES = {
    "precision": "precision of the guessed labels",
    "accuracy": "accuracy of the prompt on the unlabelled images",
}


def draw(path: Path, learners: Learners) -> None:
    """Writes the picture.

    Left, top-1 of each row in each paradigm, with 95% t intervals over seeds. Right, of `ul` if it is there, else of
    the first paradigm, by rounds and as means over the runs: which share of the guessed labels is right, and what
    share of the unlabelled images the prompt judges right.

    Args:
        path: PNG file to write.
        learners: The rows.

    Raises:
        WriteError: If the system refuses it.
    """
    rows = [*learners.rows, *learners.beside]
    colours = [COLOURS[i % len(COLOURS)] if i < len(learners.rows) else FAINT for i in range(len(rows))]
    figures = [Figure(TOP1.kind, paradigm) for paradigm in learners.paradigms]
    names = min(max(_LEAST, 54 + max(length(row.label) for row in rows)), _MOST)
    height = max(height_of(len(rows), len(figures)), 2 * _LETTER * len(learners.rows) + _BETWEEN)
    right = names + PANEL + GAP
    pen = Pen(right + PANEL + _LETTER + EDGE, HEAD + height + FOOT)
    legend(pen, [(figure.on, Mark(TEXT, _shape(j))) for j, figure in enumerate(figures)])
    panel_of_rows(pen, rows, figures, lambda i, j: Mark(colours[i], _shape(j)), "by learner", names, height)
    _rounds(pen, learners, colours, right, height)
    pen.save(path)


def curve(row: Row, paradigm: str, name: str) -> list[tuple[int, float]]:
    """What a row's learners tell of each round, as means over their runs.

    Args:
        row: Of learners.
        paradigm: Its column.
        name: `precision` or `accuracy`.

    Returns:
        Rounds and values; none where no run tells it.
    """
    values: dict[int, list[float]] = {}
    for (of, _), sides in row.runs.items():
        for told in (one for side in sides if of == paradigm for one in side.run.result["learner"]["rounds"]):
            if told.get(name) is not None:
                values.setdefault(told["round"], []).append(told[name])
    return [(number, float(np.mean(values[number]))) for number in sorted(values)]


def _shape(figure: int) -> int:
    return _SHAPES[figure % len(_SHAPES)]


def _rounds(pen: Pen, learners: Learners, colours: Sequence[tuple[int, int, int]], left: float, height: float) -> None:
    """Two plots, one above the other, with the same rounds across."""
    paradigm = next((one for one in learners.paradigms if one == "ul"), learners.paradigms[0])
    told = {name: [curve(row, paradigm, name) for row in learners.rows] for name in _CURVES}
    most = max((number for curves in told.values() for own in curves for number, _ in own), default=0)
    if not most:
        pen.text(left, HEAD - 18, f"{paradigm}: no round was learnt, or nothing is known of one", FAINT)
        return
    tall = (height - _BETWEEN) / 2
    tops = {name: HEAD + i * (tall + _BETWEEN) for i, name in enumerate(_CURVES)}
    for name, curves in told.items():
        top, bottom = tops[name], tops[name] + tall
        pen.text(left, top - 18, f"{paradigm}, {_CURVES[name]}, in percent")
        for number in range(0, most + 1, math.ceil(most / 10)):
            x = left + number / most * PANEL
            pen.line([(x, top), (x, bottom)], GRID)
            pen.text(x, bottom + 14, str(number), FAINT, 12, "mm")
        _curves(pen, curves, colours, most, (left, top, bottom))
    pen.text(left + PANEL / 2, HEAD + height + 36, "round; means over seeds", TEXT, 13, "mm")


def _curves(
    pen: Pen,
    curves: Sequence[Sequence[tuple[int, float]]],
    colours: Sequence[tuple[int, int, int]],
    most: int,
    place: tuple[float, float, float],
) -> None:
    """A row's curve each, in its colour, with its letter at the right."""
    left, top, bottom = place
    shares = [share for own in curves for _, share in own]
    if not shares:
        return
    up = Axis.over(shares, bottom, top)
    grid_up(pen, up, left)
    ends = []
    for row, own in enumerate(curves):
        points = [(left + number / most * PANEL, up.at(share)) for number, share in own]
        if len(points) > 1:
            pen.line(points, colours[row], 1.5)
        for x, y in points:
            pen.disc(x, y, 2.5, colours[row])
        if points:
            ends.append((points[-1], row))
    ends.sort(key=lambda end: end[0][1])
    for ((x, y), row), beside in zip(ends, spread([y for (_, y), _ in ends], _LETTER, bottom), strict=True):
        _leader(pen, (x, y), (left + PANEL + 14, beside), colours[row])
        pen.disc(left + PANEL + 22, beside, 8, colours[row], rim=True)
        pen.text(left + PANEL + 22, beside, letter(row), PAPER, 10, "mm")


def _leader(pen: Pen, start: tuple[float, float], end: tuple[float, float], colour: tuple[int, int, int]) -> None:
    """A thin line of dashes, which is no curve."""
    dashes = max(1, round(math.dist(start, end) / 6))
    for i in range(dashes):
        shares = (i / dashes, (i + 0.5) / dashes)
        points = [(start[0] + t * (end[0] - start[0]), start[1] + t * (end[1] - start[1])) for t in shares]
        pen.line(points, colour, 0.5)


def spread(places: Sequence[float], step: float, end: float) -> list[float]:
    """Places in rising order, moved until no two are nearer than a step, and none is beyond the end.

    Args:
        places: In rising order.
        step: The least distance.
        end: What none may exceed.
    """
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + step) if moved else place)
    for i in reversed(range(len(moved))):
        limit = end if i == len(moved) - 1 else moved[i + 1] - step
        moved[i] = min(moved[i], limit)
    return moved
