"""Plots a comparison with matplotlib: lines over a numeric axis or rows with intervals, rounds, and shifted sets."""

from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lgclip.reporting.comparison.axes import brief_value
from lgclip.reporting.comparison.formats import Comparison, column_name
from lgclip.reporting.comparison.metrics import PERCENT, ROBUSTNESS, MetricReader, accuracies_of
from lgclip.reporting.comparison.results import MethodResult
from lgclip.reporting.comparison.table import Cell, ComparisonTable, Row, Values
from lgclip.store.atomic import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#282828", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#aa7800", "#56b4e9", "#6e46a0")
"""Colors that color-blind readers can distinguish (Okabe and Ito, https://jfly.uni-koeln.de/color)."""
MARKERS = ("o", "s", "^", "D", "v", "P")
_CURVES = {
    "precision": "precision of the pseudo-labels",
    "accuracy": "accuracy on the unlabelled images",
}
_CHANCE = ("top1", "mean_per_class")
"""Metrics whose value for random predictions is 1 / number of classes."""
_CHANCE_LINE: dict[str, Any] = {"color": "#6e6e6e", "linestyle": "--", "linewidth": 1}
# A point on a line is no run, so it has no number of images. `Accuracy.logit` bounds accuracies by half an image;
# with this many images no point of the line is moved.
_DENSE = 10**9
_PANEL = 4.6  # inches
_ROW = 0.32  # inches of a row and column

Panel = Callable[["Axes"], None]


def draw_plot(path: Path, comparison: Comparison) -> None:
    """Writes the plot: one panel per metric, then one per curve of the rounds, then one of the shifted sets.

    Args:
        path: PNG, PDF or SVG file to write.
        comparison: The comparison.

    Raises:
        WriteError: If the system refuses it.
    """
    from matplotlib.figure import Figure

    table = comparison.table
    numeric = is_numeric(table)
    panels: list[Panel] = []
    # The default arguments bind the values of this turn; a plain closure would see those of the last one.
    for metric in comparison.metrics:
        if numeric:
            panels.append(lambda axes, metric=metric: _lines(axes, table, metric))
        else:
            panels.append(lambda axes, metric=metric: _intervals(axes, comparison, metric))
    for name in _CURVES:
        # Of the first column only: a line per row and column would be too many to distinguish.
        curves = [curve(row, table.column_values[0], name) for row in table.rows]
        if any(curves):
            panels.append(lambda axes, name=name, curves=curves: _rounds(axes, table, name, curves))
    results = list(chain.from_iterable(row.results for row in table.rows))
    if any(result.shifted_set is not None for result in results):
        panels.append(lambda axes: _shifted(axes, table, results))
    # Lines need no more height with more rows, but rows with intervals do, or their labels would overlap.
    bands_height = 0.0
    if not numeric:
        bands_height = len(table.rows) * len(table.column_values) * _ROW
    height = max(3.8, 1.4 + bands_height)
    # `Figure` without pyplot: no global state, no window, and no backend that needs a display.
    figure = Figure(figsize=(_PANEL * len(panels) + 1.6, height), layout="constrained")
    # `subplots` returns a single object for one panel and an array for several.
    for axes, panel in zip(np.ravel(figure.subplots(1, len(panels))), panels, strict=True):
        axes.grid(color="#e4e4e4", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        panel(axes)
    with atomic_write(path) as temporary:
        # The format explicitly, because the temporary file ends in something else.
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=160)


def is_numeric(table: ComparisonTable) -> bool:
    """Returns whether the columns are numbers of one axis, so that lines can be plotted over them."""
    values = [column[0] for column in table.column_values if len(column) == 1]
    if len(values) < 2 or len(table.columns) != 1:
        return False
    # A column without a value, such as that of untrained methods over `real_fraction`, takes no part in the lines.
    present = [value for value in values if value is not None]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in present)


def curve(row: Row, column: Values, name: str) -> list[tuple[int, float]]:
    """Returns a metric of tuned prompts per round, as means over their runs.

    Args:
        row: A row.
        column: Values of the column.
        name: `precision` or `accuracy`.

    Returns:
        Rounds and values; empty where no run has it.
    """
    values: dict[int, list[float]] = {}
    for result in row.cells[column].results if column in row.cells else ():
        prompt_tuning = result.run.result.prompt_tuning
        if prompt_tuning is None or result.baseline is not None:
            continue
        for record in prompt_tuning.rounds:
            # Round 0 has no pseudo-labels, so no precision.
            if record.get(name) is not None:
                values.setdefault(record["round"], []).append(record[name])
    return [(number, float(np.mean(values[number]))) for number in sorted(values)]


def _scale(metric: str) -> float:
    return 100 if metric in PERCENT else 1


def _label(metric: str) -> str:
    return f"{column_name((), metric, (metric,))}{', percent' if metric in PERCENT else ''}"


def _title(axes: "Axes", text: str) -> None:
    axes.set_title(f"{text[0].upper()}{text[1:]}", fontsize=9, loc="left")


def _chance(table: ComparisonTable, metric: str) -> float | None:
    """Returns the accuracy of random predictions in percent; None for other metrics, or different class counts."""
    counts = {result.run.result.num_classes for row in table.rows for result in row.results}
    if metric not in _CHANCE or len(counts) != 1:
        return None
    return 100 / counts.pop()


def _style(place: int) -> dict[str, Any]:
    # The marker changes when the colors are used up, so that 48 rows stay distinct.
    return {
        "color": COLORS[place % len(COLORS)],
        "marker": MARKERS[place // len(COLORS) % len(MARKERS)],
        "markersize": 5,
    }


def _bar(cell: Cell, metric: str) -> tuple[float, float, float] | None:
    """Returns the mean, and the extent of its 95% t interval below and above; None where no run has the metric.

    The interval of an accuracy ends at 0 and at 100%. A single seed has none.
    """
    summary = cell.summary(metric)
    if summary is None:
        return None
    mean = summary["mean"]
    low, high = summary["ci95"] or (mean, mean)
    # A t interval of few seeds may leave the range of an accuracy. Effective robustness may be negative.
    if metric in PERCENT and metric != ROBUSTNESS:
        low = max(low, 0.0)
        high = min(high, 1.0)
    scale = _scale(metric)
    return scale * mean, scale * (mean - low), scale * (high - mean)


def _lines(axes: "Axes", table: ComparisonTable, metric: str) -> None:
    """Plots one line per row over the values of the columns, with 95% t intervals over seeds."""
    columns = sorted((column for column in table.column_values if column[0] is not None), key=lambda column: column[0])
    for place, row in enumerate(table.rows):
        points = []
        for column in columns:
            bar = _bar(row.cells[column], metric) if column in row.cells else None
            if bar is not None:
                points.append((column[0], *bar))
        if points:
            x, mean, down, up = zip(*points, strict=True)
            axes.errorbar(x, mean, (down, up), label=row.label, capsize=2, linewidth=1.4, **_style(place))
    if chance := _chance(table, metric):
        axes.axhline(chance, label="chance", **_CHANCE_LINE)
    _title(axes, f"{_label(metric)} over {table.columns[0]}; bars: 95% t intervals over seeds")
    axes.set_xlabel(table.columns[0])
    axes.set_ylabel(_label(metric))
    axes.legend(frameon=False, fontsize=8)


def _intervals(axes: "Axes", comparison: Comparison, metric: str) -> None:
    """Plots one band per row with one point per column: the mean and its 95% t interval over seeds."""
    table = comparison.table
    count = len(table.column_values)
    for place, column in enumerate(table.column_values):
        points = []
        for band, row in enumerate(table.rows):
            bar = _bar(row.cells[column], metric) if column in row.cells else None
            if bar is not None:
                # The columns of a row use 70% of its band, so that the rows stay apart.
                points.append((band + 0.7 * ((place + 0.5) / count - 0.5), *bar))
        if not points:
            continue
        y, mean, down, up = zip(*points, strict=True)
        name = ", ".join(brief_value(value) for value in column)
        # Without axes of the columns the name is empty, and an empty label must not take a place in the legend.
        axes.errorbar(mean, y, xerr=(down, up), label=name or None, linestyle="none", capsize=2, **_style(place))
    for band in range(1, len(table.rows)):
        axes.axhline(band - 0.5, color="#e4e4e4", linewidth=0.8)
    axes.grid(visible=False, axis="y")
    axes.set_yticks(range(len(table.rows)), [row.label for row in table.rows])
    axes.set_ylim(len(table.rows) - 0.5, -0.5)  # upside down: the first row on top, as in the table
    chance = _chance(table, metric)
    if chance:
        axes.axvline(chance, label="chance", **_CHANCE_LINE)
    by = f" by {' and '.join(table.by)}" if table.by else ""
    name, comma, unit = _label(metric).partition(",")
    axes.set_xlabel(f"{name}{by}{comma}{unit}; bars: 95% t intervals over seeds")
    if table.columns or chance:
        axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=min(count + 1, 4))


def _rounds(axes: "Axes", table: ComparisonTable, name: str, curves: Sequence[Sequence[tuple[int, float]]]) -> None:
    """Plots one line per row over the rounds, as means over seeds."""
    from matplotlib.ticker import MaxNLocator

    for place, (row, points) in enumerate(zip(table.rows, curves, strict=True)):
        if points:
            rounds, values = zip(*points, strict=True)
            axes.plot(rounds, 100 * np.array(values), label=row.label, linewidth=1.4, **_style(place))
    column = ", ".join(brief_value(value) for value in table.column_values[0])
    _title(axes, f"{_CURVES[name]} by round{f' ({column})' if column else ''}")
    axes.set_xlabel("round; means over seeds")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    last_round = max(number for number, _ in chain.from_iterable(curves))
    axes.set_xlim(-0.2, last_round + 0.2)  # from round 0, even where the first value is of round 1
    axes.set_ylabel(f"{_CURVES[name]}, percent")
    axes.legend(frameon=False, fontsize=8)


def _shifted(axes: "Axes", table: ComparisonTable, results: Sequence[MethodResult]) -> None:
    """Plots top-1 on each shifted set against top-1 in distribution, with the lines of the students of real images."""
    accuracies: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for place, row in enumerate(table.rows):
        for result in row.results:
            if result.shifted_set is not None:
                inside, shifted = accuracies_of(result)
                points = accuracies.setdefault((place, result.shifted_set), [])
                points.append((100 * inside.top1, 100 * shifted.top1))
    sets = list(dict.fromkeys(name for _, name in accuracies))
    # Small points are the runs, the large one is their mean. The color is the row, the marker the shifted set.
    for (place, name), points in accuracies.items():
        x, y = np.mean(points, axis=0)
        color = COLORS[place % len(COLORS)]
        axes.scatter(*zip(*points, strict=True), s=6, color=color)
        axes.scatter([x], [y], s=50, color=color, marker=MARKERS[sets.index(name) % len(MARKERS)])
    low, high = axes.get_xlim()
    # Limits are read before the lines are drawn and lines are cut to them, or they would squeeze the points.
    bottom, top = axes.get_ylim()
    for name, line in MetricReader.of(list(results)).lines.items():
        # A logit is infinite at 0 and at 100%.
        inside = np.linspace(max(low, 0.1), min(high, 99.9), 200)
        expected = np.array([100 * line.expected(value / 100, _DENSE) for value in inside])
        visible = np.flatnonzero((expected >= bottom) & (expected <= top))
        if len(visible):
            axes.plot(inside[visible], expected[visible], color="#6e6e6e", linewidth=1)
            axes.annotate(name, (inside[visible[-1]], expected[visible[-1]]), fontsize=7, color="#6e6e6e")
    for place, name in enumerate(sets):
        # Empty series: entries of the legend for what all points of a set, or of a row, have in common.
        axes.scatter([], [], s=40, color="#6e6e6e", marker=MARKERS[place % len(MARKERS)], label=name)
    for place, row in enumerate(table.rows):
        axes.scatter([], [], s=40, color=COLORS[place % len(COLORS)], label=row.label)
    _title(axes, "accuracy out of distribution against in distribution")
    axes.set_xlabel("top-1 in distribution, the same classes, percent")
    axes.set_ylabel("top-1 on shifted sets, percent; lines: students of real images")
    axes.legend(frameon=False, fontsize=7)
