"""Arranges results in rows and columns, each cell a mean over seeds."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from lgclip.evaluation.metrics import over_seeds
from lgclip.reporting.comparison.axes import (
    OF_TRAINING,
    axis_value,
    brief_settings,
    brief_value,
    distinguishing_settings,
    keys_of,
    settings_by_key,
)
from lgclip.reporting.comparison.metrics import TOP1, MetricReader, lower_is_better
from lgclip.reporting.comparison.results import SEEDS, ComparisonError, MethodResult, check_comparable
from lgclip.reporting.run_folder import Run

Values = tuple[Any, ...]
"""A value per axis."""
Repetition = tuple[Hashable, ...]
"""A value per seed."""


@dataclass(frozen=True)
class Cell:
    """Holds results that differ only in their seeds.

    Attributes:
        repetitions: The results by the values of `SEEDS`; those of one repetition are equal.
        reader: Reads their metrics.
        seed: The seed whose values are the sample; other repetitions are averaged within it, because they share its
            images.
    """

    repetitions: Mapping[Repetition, Sequence[MethodResult]]
    reader: MetricReader
    seed: str

    @property
    def results(self) -> list[MethodResult]:
        """Returns one result of each repetition."""
        return [members[0] for members in self.repetitions.values()]

    def seed_of(self, repetition: Repetition) -> Hashable:
        """Returns the value of the seed in a repetition."""
        return repetition[SEEDS.index(self.seed)]

    def by_seed(self) -> dict[Hashable, list[MethodResult]]:
        """Returns one result of each repetition, by the value of the seed."""
        groups: dict[Hashable, list[MethodResult]] = {}
        for repetition, results in self.repetitions.items():
            groups.setdefault(self.seed_of(repetition), []).append(results[0])
        return groups

    def values(self, metric: str) -> dict[Hashable, float]:
        """Returns the mean of a metric by the value of the seed; without results that lack it."""
        groups: dict[Hashable, list[float]] = {}
        for repetition, results in self.repetitions.items():
            values = [self.reader.value(result, metric) for result in results]
            available = [value for value in values if value is not None]
            # Results of one repetition are equal, but one of them may lack a field, so the first that has it counts.
            if available:
                groups.setdefault(self.seed_of(repetition), []).append(available[0])
        return {seed: float(np.mean(values)) for seed, values in groups.items()}

    def summary(self, metric: str) -> dict[str, Any] | None:
        """Returns `n`, `mean`, `std` and `ci95` of `over_seeds`; None where no run has the metric."""
        values = list(self.values(metric).values())
        if not values:
            return None
        return over_seeds(values)

    def restricted(self, repetitions: Sequence[Repetition], seed: str) -> "Cell":
        """Returns the cell with some of its repetitions, and one seed as the sample."""
        return Cell({key: self.repetitions[key] for key in repetitions}, self.reader, seed)


@dataclass(frozen=True)
class Row:
    """Holds a row of the table.

    Attributes:
        values: Its values on the axes of the rows.
        settings: The settings that distinguish it from other rows with the same values.
        cells: Its cells, by the values of the column.
        is_baseline: Whether it holds only baselines.
    """

    values: Values
    settings: Mapping[str, Any]
    cells: Mapping[Values, Cell]
    is_baseline: bool

    @cached_property
    def name(self) -> str:
        """Returns its abbreviated values."""
        return ", ".join(brief_value(value) for value in self.values)

    @cached_property
    def label(self) -> str:
        """Returns its name, with the settings that distinguish it from others."""
        settings = brief_settings(self.settings)
        if not self.name:  # a table without axes of its rows, as the groups of the dashboard
            return settings
        if not settings:
            return self.name
        return f"{self.name} ({settings})"

    @property
    def results(self) -> list[MethodResult]:
        """Returns one result of each repetition in its cells."""
        return list(chain.from_iterable(cell.results for cell in self.cells.values()))

    @cached_property
    def seen(self) -> str:
        """Returns which kinds of data of the evaluated domain its results have seen."""
        return " / ".join(dict.fromkeys(result.seen for result in self.results))

    def contains(self, run: MethodResult) -> bool:
        """Returns whether a result is in one of its cells."""
        # Not by `results`, which has only the first of several equal runs.
        repetitions = chain.from_iterable(cell.repetitions.values() for cell in self.cells.values())
        return any(result.identity == run.identity for result in chain.from_iterable(repetitions))


@dataclass(frozen=True)
class ComparisonTable:
    """Holds rows and columns of results.

    Attributes:
        by: The axes of the rows.
        columns: The axes of the columns.
        rows: The rows.
        column_values: The values of each column.
    """

    by: Sequence[str]
    columns: Sequence[str]
    rows: Sequence[Row]
    column_values: Sequence[Values]


def build_table(
    results: Sequence[MethodResult],
    by: Sequence[str],
    columns: Sequence[str] = (),
    over: Sequence[str] = (),
) -> ComparisonTable:
    """Sorts results into cells.

    Results that differ in more than the axes and the seeds become separate rows, so that no mean is over two settings.

    Args:
        results: The results.
        by: Axes of the rows.
        columns: Axes of the columns.
        over: Settings that are averaged over.

    Raises:
        ComparisonError: If runs of one data set did not evaluate the same images, or two runs of one setting have the
            same seeds but other predictions.
    """
    # Being comparable is transitive, so it suffices to compare each run with the first of its data set.
    first_runs: dict[str, Run] = {}
    for result in results:
        check_comparable(first_runs.setdefault(result.run.result.dataset.name, result.run), result.run)
    # An axis of the training hides the settings of the training, of which it is the sum. A baseline has no value on
    # such an axis, so for baselines these settings still count.
    axes = [*by, *columns, *over]
    learned = keys_of(axes, results)
    baselines = keys_of([axis for axis in axes if axis not in OF_TRAINING], results)
    parts: list[tuple[Values, dict[str, Any], list[MethodResult]]] = []
    for values, members in _grouped(results, by).items():
        # Apart, because a baseline does not vary with the settings of the training: mixed with learned methods, each
        # of its equal copies would become a row.
        for is_baseline, ignored in ((False, learned), (True, baselines)):
            kind = [result for result in members if (result.baseline is not None) == is_baseline]
            parts += [(values, *part) for part in _split(kind, columns, ignored)]
    reader = MetricReader.of(results)
    by_column = _grouped(results, columns)
    # The sample is chosen for a whole column, so that all rows of it average over the same seed.
    seeds: dict[Values, str | None] = {}
    for column, members in by_column.items():
        seeds[column] = _first_varying([result.repetition for result in members])
    rows = []
    for values, settings, members in parts:
        cells = {}
        for column, results_of_cell in _grouped(members, columns).items():
            cells[column] = _cell(results_of_cell, reader, seeds[column] or "seed", over)
        rows.append(Row(values, settings, cells, members[0].baseline is not None))
    # Baselines last; the sort is stable, so otherwise the order of the runs stays.
    rows.sort(key=lambda row: row.is_baseline)
    rows = [row for place, row in enumerate(rows) if not _is_contained(place, rows)]
    return ComparisonTable(by, columns, _join_baselines(rows), list(by_column))


def _join_baselines(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows, those of baselines joined to the row of the same name and settings that has other columns.

    With an axis of methods in the columns, a row then shows a method and the baselines of the same runs.
    """
    joined: list[Row] = []
    for row in rows:
        place = None
        if row.is_baseline:
            place = next((place for place, candidate in enumerate(joined) if _continues(row, candidate)), None)
        if place is None:
            joined.append(row)
        else:
            joined[place] = replace(joined[place], cells={**joined[place].cells, **row.cells})
    return joined


def _continues(row: Row, other: Row) -> bool:
    has_same_label = (row.values, row.settings) == (other.values, other.settings)
    return has_same_label and not other.is_baseline and not set(row.cells) & set(other.cells)


def _grouped(results: Sequence[MethodResult], axes: Sequence[str]) -> dict[Values, list[MethodResult]]:
    """Groups results by their values on some axes."""
    groups: dict[Values, list[MethodResult]] = {}
    for result in results:
        values = tuple(_hashable(axis_value(result, axis)) for axis in axes)
        groups.setdefault(values, []).append(result)
    return groups


def _hashable(value: Any) -> Any:
    # A list of the config, such as the fractions of `scales`, becomes a tuple: the values are keys of groups.
    if not isinstance(value, list):
        return value
    return tuple(_hashable(item) for item in value)


def _split(
    members: Sequence[MethodResult], columns: Sequence[str], ignored: set[str]
) -> list[tuple[dict[str, Any], list[MethodResult]]]:
    """Splits the results of a row by the settings in which those of a column differ."""
    # Settings are compared within a column: across columns, such as data sets, they may differ of necessity.
    keys: dict[str, None] = {}
    for results in _grouped(members, columns).values():
        for settings in distinguishing_settings(results, ignored):
            keys |= dict.fromkeys(settings)
    names = list(keys)
    # A method that learned nothing keeps all of its settings: two prompts that give equal predictions by chance are
    # still two settings of a study of prompts.
    if all(result.baseline is not None or result.learned_key for result in members):
        names = _without_idle(members, columns, names)
    parts: dict[str, tuple[dict[str, Any], list[MethodResult]]] = {}
    for result in members:
        settings = _settings(result, names)
        # A value may be a list, which cannot be hashed; its text can.
        parts.setdefault(repr(settings), (settings, []))[1].append(result)
    return list(parts.values())


def _settings(result: MethodResult, keys: Sequence[str]) -> dict[str, Any]:
    settings = settings_by_key(result)
    return {key: settings.get(key) for key in keys}


def _without_idle(members: Sequence[MethodResult], columns: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Drops the settings that do not affect any prediction, such as those of the prompts for the text baseline.

    A setting is dropped if results that differ only in it are the same, in repetitions that both have.
    """
    # One key at a time, each against those that are left: of two settings that vary together one has to stay.
    needed = list(keys)
    for key in keys:
        without = [name for name in needed if name != key]
        classes: dict[str, dict[str, dict[object, MethodResult]]] = {}
        for column, results in _grouped(members, columns).items():
            for result in results:
                group = classes.setdefault(repr(_settings(result, without)), {})
                values = group.setdefault(repr(_settings(result, [key])), {})
                values.setdefault((column, result.repetition), result)
        if all(_are_equal(list(group.values())) for group in classes.values()):
            needed = without
    return needed


def _are_equal(values: Sequence[Mapping[object, MethodResult]]) -> bool:
    first, *others = values
    for group in others:
        shared = [place for place in first if place in group]
        # Without a repetition in common nothing shows that they are the same, so the setting stays.
        if not shared or not all(first[place].is_equal_to(group[place]) for place in shared):
            return False
    return True


def _first_varying(repetitions: Sequence[Repetition]) -> str | None:
    for place, name in enumerate(SEEDS):
        if len({repetition[place] for repetition in repetitions}) > 1:
            return name
    return None


def _cell(members: Sequence[MethodResult], reader: MetricReader, seed: str, over: Sequence[str]) -> Cell:
    repetitions: dict[Repetition, list[MethodResult]] = {}
    for result in members:
        # What the user averages over makes repetitions as the seeds do.
        averaged = tuple(repr(axis_value(result, axis)) for axis in over)
        equal_results = repetitions.setdefault((*result.repetition, *averaged), [])
        # Equal runs are a repetition once. Unequal ones mean that something outside the config has changed, and a
        # mean over them would pass that change off as the variation of the seeds.
        if equal_results and not equal_results[0].is_equal_to(result):
            raise ComparisonError(
                f"{equal_results[0].run.folder} and {result.run.folder} have the same config and seeds but different "
                f"predictions, "
                "so the code or the files changed between them: leave one of them out of a mean over seeds"
            )
        equal_results.append(result)
    place = SEEDS.index(seed)
    # A seed that varies in the column may be constant in this row, which then repeats another one.
    if len({repetition[place] for repetition in repetitions}) == 1:
        seed = _first_varying(list(repetitions)) or seed
    return Cell(repetitions, reader, seed)


def _is_contained(place: int, rows: Sequence[Row]) -> bool:
    """Returns whether another row of the same name, which is larger or comes first, includes all results of this one.

    Runs may differ in a setting that does not affect what they learned.
    """
    row = rows[place]
    for other_place, other in enumerate(rows):
        if other_place == place or other.values != row.values or not _has_all(other, row):
            continue
        # Of two rows that contain each other the first one stays; without the order both would go.
        if len(other.results) > len(row.results) or other_place < place:
            return True
    return False


def _has_all(row: Row, smaller: Row) -> bool:
    for column, cell in smaller.cells.items():
        if column not in row.cells:
            return False
        repetitions = row.cells[column].repetitions
        for repetition, results in cell.repetitions.items():
            result = results[0]
            # Only the key of what was learned proves that a setting had no effect; see `_split`.
            if repetition not in repetitions or result.learned_key is None:
                return False
            if not repetitions[repetition][0].is_equal_to(result):
                return False
    return True


def missing_notes(table: ComparisonTable, metrics: Sequence[str] = (TOP1,)) -> list[str]:
    """Returns a line for each repetition or metric that a row lacks and others have."""
    notes = []
    # A baseline that no seed changes is evaluated as often as there are runs; to count that would mislead.
    rows = [row for row in table.rows if not row.is_baseline]
    for column in table.column_values:
        name = ", ".join(brief_value(value) for value in column) or "it"
        # What is to be expected is not in the runs, so a row is measured by what other rows of the column have.
        every: dict[Repetition, None] = {}
        for row in rows:
            if column in row.cells:
                every |= dict.fromkeys(row.cells[column].repetitions)
        for row in rows:
            if column not in row.cells:
                notes.append(f"{row.label}: no run of {name}")
                continue
            cell = row.cells[column]
            if len(cell.repetitions) < len(every):
                seeds = [str(cell.seed_of(key)) for key in every if cell.seed_of(key) not in cell.by_seed()]
                # Empty where each seed has a run but not all of its repetitions by another seed.
                lacking = ""
                if seeds:
                    lacking = f", none of {cell.seed}={','.join(dict.fromkeys(seeds))}"
                notes.append(f"{row.label}: {name} has {len(cell.repetitions)} of {len(every)} repetitions{lacking}")
            for metric in metrics:
                # A metric that no seed has is shown as missing in the table, which needs no note.
                seeds_with_metric = len(cell.values(metric))
                if 0 < seeds_with_metric < len(cell.by_seed()):
                    notes.append(
                        f"{row.label}: {metric} of {name} in {seeds_with_metric} of {len(cell.by_seed())} seeds"
                    )
    return notes


def sorted_rows(table: ComparisonTable, order: str) -> list[Row]:
    """Sorts rows by an axis, or by a metric from the best to the worst, as means over the columns that a row has.

    Args:
        table: The table.
        order: An axis of the rows, or a metric.
    """
    if order in table.by:
        place = table.by.index(order)
        return sorted(table.rows, key=lambda row: _sort_key(row.values[place]))
    sign = 1 if lower_is_better(order) else -1

    def mean(row: Row) -> float:
        summaries = [cell.summary(order) for cell in row.cells.values()]
        means = [summary["mean"] for summary in summaries if summary is not None]
        if not means:
            return float("inf")  # rows without a value come last
        return sign * sum(means) / len(means)

    return sorted(table.rows, key=mean)


def _sort_key(value: object) -> tuple[int, float, str]:
    """Returns a sort key: numbers by size, then words, then missing values."""
    # Values of unlike types cannot be compared, so the type comes first in the key.
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (0, float(value), "")
    if value is None:
        return (2, 0.0, "")
    return (1, 0.0, str(value))
