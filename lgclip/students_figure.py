"""A picture of a sweep's students: accuracy by training set, and shifted against in distribution."""

from collections.abc import Iterator
from pathlib import Path

from lgclip.row_figure import (
    COLOURS,
    EDGE,
    FAINT,
    FOOT,
    GAP,
    HEAD,
    PANEL,
    PAPER,
    Axis,
    Mark,
    Pen,
    grid_across,
    grid_up,
    height_of,
    legend,
    letter,
    panel_of_rows,
)
from lgclip.seed_rows import TOP1, Figure, Row
from lgclip.student_rows import Students

_NAMES = 210  # room for the labels
_DENSE = 10**9  # images of a point on a line that no run stands for


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
    marks = [Mark(COLOURS[i % len(COLOURS)]) for i in range(len(sets))]
    height = height_of(len(students.rows), len(sets))
    right = _NAMES + PANEL + GAP
    pen = Pen(right + PANEL + EDGE, HEAD + height + FOOT)
    legend(pen, [(figure.on or "in distribution", mark) for figure, mark in zip(sets, marks, strict=True)])
    panel_of_rows(pen, students.rows, sets, lambda _, j: marks[j], "by training set", _NAMES, height)
    colours = {figure.on: mark.colour for figure, mark in zip(sets, marks, strict=True)}
    _against(pen, students, colours, HEAD + height, right)
    pen.save(path)


def _points(row: Row, name: str) -> Iterator[tuple[float, float]]:
    """Top-1 in distribution and shifted of each run."""
    inside, shifted = row.of(Figure("inside", name)), row.of(Figure("top1", name))
    yield from ((inside[seed], shifted[seed]) for seed in inside)


def _against(
    pen: Pen, students: Students, colours: dict[str, tuple[int, int, int]], bottom: float, left: float
) -> None:
    points = {(i, name): list(_points(row, name)) for i, row in enumerate(students.rows) for name in students.shifted}
    points = {place: own for place, own in points.items() if own}
    if not points:
        pen.text(left, HEAD - 18, "no shifted set was judged", FAINT)
        return
    across = Axis.over([x for own in points.values() for x, _ in own], left, left + PANEL)
    up = Axis.over([y for own in points.values() for _, y in own], bottom, HEAD)
    pen.text(left, HEAD - 18, "top-1 on shifted sets, in percent; curves: the baseline of real images")
    grid_across(pen, across, HEAD, bottom, "top-1 in distribution, the same classes, in percent")
    grid_up(pen, up, left)
    for name, line in students.lines.items():
        shares = [across.low + i / 200 * (across.high - across.low) for i in range(201)]
        curve = [(x, line.expected(x, _DENSE)) for x in shares]
        inside = [(across.at(x), up.at(y)) for x, y in curve if up.low <= y <= up.high]
        if len(inside) > 1:
            pen.line(inside, colours[name], 1)
    for (_, name), own in points.items():
        for x, y in own:
            pen.disc(across.at(x), up.at(y), 2, colours[name])
    for (i, name), own in points.items():
        x, y = (across.at(sum(p[0] for p in own) / len(own)), up.at(sum(p[1] for p in own) / len(own)))
        pen.disc(x, y, 8, colours[name], rim=True)
        pen.text(x, y, letter(i), PAPER, 10, "mm")
