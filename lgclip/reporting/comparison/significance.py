"""Tests differences: image by image against a run, and seed by seed against a row of the table."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from jaxtyping import Float

from lgclip.evaluation.metrics import holm, paired, welch
from lgclip.reporting.comparison.axes import distinguishing_settings, settings_by_key
from lgclip.reporting.comparison.metrics import TOP1
from lgclip.reporting.comparison.results import SEEDS, ComparisonError, MethodResult, check_comparable
from lgclip.reporting.comparison.table import Cell, ComparisonTable, Row, Values
from lgclip.reporting.run_folder import settings_of


@dataclass(frozen=True)
class RunComparison:
    """Compares a result with another one on the same images.

    Attributes:
        result: The first.
        reference: The second.
        settings: The settings in which the compared results differ, as in `result`.
        reference_settings: The same, as in the reference.
        test: `difference`, `ci95`, `only_this`, `only_other` and `p` of `paired`: McNemar's exact test.
        p_holm: The p value with Holm's correction for all tests of this comparison.
    """

    result: MethodResult
    reference: MethodResult
    settings: Mapping[str, Any]
    reference_settings: Mapping[str, Any]
    test: Mapping[str, Any]
    p_holm: float


@dataclass(frozen=True)
class RowComparison:
    """Holds the difference of two rows in a column.

    Attributes:
        row: The first.
        reference: The second.
        column: Values of the column.
        n: Seeds of the smaller sample.
        difference: Mean of the first minus the second.
        over_seeds: `ci95` and `p` of a t test over the seeds; None for one seed, or where all differences are equal.
        over_images: The same with the images as the sample and fixed seeds; None if it is undefined.
        p_holm: The p value over seeds with Holm's correction for all tests of the table; None where there is none.
    """

    row: Row
    reference: Row
    column: Values
    n: int
    difference: float
    over_seeds: Mapping[str, Any] | None
    over_images: Mapping[str, Any] | None
    p_holm: float | None = None


def compare_with_run(results: Sequence[MethodResult], reference: MethodResult) -> list[RunComparison]:
    """Tests each result against one of them on the same images.

    Args:
        results: The results; duplicates count once.
        reference: The result that they are compared with.

    Raises:
        ComparisonError: If there is nothing to compare, or the images are not the same.
    """
    # A duplicate would enlarge the family and so raise every corrected p value. Shifted sets have no predictions.
    unique = {result.identity: result for result in results if result.shifted_set is None}
    others = [result for identity, result in unique.items() if identity != reference.identity]
    if not others:
        raise ComparisonError(
            f"{reference.run.folder} cannot be compared alone: name another run, or a baseline of it, RUN:METHOD"
        )
    # McNemar's test is paired: both must have predicted the same images in the same order.
    for result in others:
        check_comparable(reference.run, result.run)
    label = reference.run.predictions.label
    tests = [paired(label, result.prediction, reference.prediction) for result in others]
    base, *settings = _with_seeds([reference, *others])
    # All tests that one command shows are one family: the reader picks the smallest p among them.
    corrected = holm([test["p"] for test in tests])
    return [
        RunComparison(result, reference, differences, base, test, p)
        for result, differences, test, p in zip(others, settings, tests, corrected, strict=True)
    ]


def _with_seeds(results: Sequence[MethodResult]) -> list[dict[str, Any]]:
    """Returns the settings and the seeds in which results differ."""
    settings = distinguishing_settings(results, set())
    configs = [settings_of(result.run) for result in results]
    run_seeds = [config.get("seed") for config in configs]
    seeds = []
    for name in SEEDS:
        column = [config.get(name) for config in configs]
        # `student.seed: ${seed}` is the default: next to `seed` it would be a second column with the same values.
        follows = name != "seed" and name.endswith(".seed") and column == run_seeds
        if len(set(column)) > 1 and not follows:
            seeds.append(name)
    columns = []
    for config, differences in zip(configs, settings, strict=True):
        values = {name: config.get(name) for name in seeds}
        columns.append({**values, **differences})
    return columns


def find_rows(table: ComparisonTable, name: str) -> list[Row]:
    """Returns the rows of a name or label.

    Raises:
        ComparisonError: If there is none.
    """
    rows = [row for row in table.rows if name in (row.name, row.label)]
    if not rows:
        labels = "; ".join(row.label for row in table.rows)
        raise ComparisonError(f"no row is {name!r}, and no run is there: choose one of {labels}")
    return rows


def compare_rows(table: ComparisonTable, reference: str) -> list[RowComparison]:
    """Tests the top-1 of each row against the reference's, column by column and over the seeds that both have.

    Where several rows are the reference, a row is compared with the one whose settings it shares. Baselines are
    compared only where no other row is left, so that they do not raise the corrected p values of the others, or where
    they are columns.

    Args:
        table: The table.
        reference: Name or label of a row.

    Raises:
        ComparisonError: If there is no such row.
    """
    bases = find_rows(table, reference)
    # Several bases share a name and differ in settings, such as the backbone. A row is compared with the base of its
    # own backbone: a difference across backbones would not be due to what the axes show.
    keys = _differing_keys([row.settings for row in bases])
    others = [row for row in table.rows if row not in bases]
    methods = [row for row in others if not row.is_baseline]
    comparisons = []
    for base in bases:
        # Each test raises the corrected p of all others, so tests of baselines are left out unless they are all.
        for row in methods or others:
            if _settings_of_row(row, keys) != _settings_of_row(base, keys):
                continue
            for column in table.column_values:
                if column in row.cells and column in base.cells:
                    comparisons += _paired_differences(row, base, column)
    return _with_holm(comparisons)


def compare_means(table: ComparisonTable, reference: MethodResult) -> list[RowComparison]:
    """Tests the mean of each row against the row of a run by Welch's test: the seeds are independent samples.

    Rows of one repetition are left out, as they give no estimate of the variance.
    """
    comparisons = []
    for column in table.column_values:
        # A variance needs two seeds at least.
        repeated = [row for row in table.rows if column in row.cells and len(row.cells[column].by_seed()) > 1]
        for base in repeated:
            if not base.contains(reference):
                continue
            values = list(base.cells[column].values(TOP1).values())
            for row in repeated:
                if row is not base:
                    comparisons.append(_difference_of_means(row, base, column, values))
    return _with_holm(comparisons)


def _difference_of_means(row: Row, base: Row, column: Values, values_of_base: Sequence[float]) -> RowComparison:
    values = list(row.cells[column].values(TOP1).values())
    test = welch(values, values_of_base)
    over_seeds = None
    if test["p"] is not None:  # None where no seed of either row differs from the others
        over_seeds = {"ci95": test["ci95"], "p": test["p"]}
    n = min(len(values), len(values_of_base))
    return RowComparison(row, base, column, n, test["difference"], over_seeds, None)


def _with_holm(comparisons: Sequence[RowComparison]) -> list[RowComparison]:
    # Differences that could not be tested are no members of the family.
    p_values = iter(holm([comparison.over_seeds["p"] for comparison in comparisons if comparison.over_seeds]))
    corrected = []
    for comparison in comparisons:
        p_holm = None
        if comparison.over_seeds:
            p_holm = next(p_values)
        corrected.append(replace(comparison, p_holm=p_holm))
    return corrected


def _differing_keys(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    differing = []
    for key in dict.fromkeys(chain.from_iterable(settings)):
        # By its text, because a value may be a list, which cannot be hashed.
        texts = {repr(values.get(key)) for values in settings}
        if len(texts) > 1:
            differing.append(key)
    return differing


def _settings_of_row(row: Row, keys: Sequence[str]) -> list[object]:
    # Results of a row differ in their seeds alone, so the first one stands for all.
    settings = settings_by_key(row.results[0])
    return [settings.get(key) for key in keys]


def _paired_differences(row: Row, base: Row, column: Values) -> list[RowComparison]:
    """Returns the differences over the repetitions that both have; empty if they share none."""
    repetitions = row.cells[column].repetitions
    shared = [key for key in repetitions if key in base.cells[column].repetitions]
    if not shared:
        return []
    # Both cells take the seed of the row as the sample, so that the pairs match.
    seed = row.cells[column].seed
    cell = row.cells[column].restricted(shared, seed)
    reference = base.cells[column].restricted(shared, seed)
    top1 = cell.values(TOP1)
    top1_of_reference = reference.values(TOP1)
    values = np.array([top1[key] - top1_of_reference[key] for key in top1])
    over_images = None
    # Of shifted sets no prediction is kept, so nothing can be said image by image.
    if not any(result.shifted_set for result in cell.results):
        # The mean over seeds comes first and the images are the sample: seeds of one image are not independent.
        differences = [_correct(cell, key) - _correct(reference, key) for key in top1]
        over_images = _t_test(np.mean(differences, axis=0))
    return [RowComparison(row, base, column, len(values), float(values.mean()), _t_test(values), over_images)]


def _correct(cell: Cell, seed: Hashable) -> Float[np.ndarray, " n"]:
    """Returns for each image the fraction of the results of a seed that are correct."""
    correct = np.array([result.prediction == result.run.predictions.label for result in cell.by_seed()[seed]])
    return correct.mean(axis=0, dtype=np.float64)


def _t_test(values: Float[np.ndarray, " k"]) -> dict[str, Any] | None:
    """Tests whether paired differences are 0 on average; None for a single one, or where all are equal."""
    # Equal differences have no variance: t is infinite and p 0, which SciPy warns of. The bound is that of rounding.
    if len(values) < 2 or np.ptp(values) < 1e-12:
        return None
    from scipy.stats import ttest_1samp

    test: Any = ttest_1samp(values, 0.0)
    interval = test.confidence_interval(0.95)
    return {"ci95": [float(interval.low), float(interval.high)], "p": float(test.pvalue)}
