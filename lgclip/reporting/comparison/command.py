"""Implements `lgclip compare`: runs and sweeps in one table over any axes, with tests and a plot."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from rich.table import Table

from lgclip.reporting.comparison import formats
from lgclip.reporting.comparison.axes import WITH_BASELINES, check_axes, distinguishing_settings, keys_of
from lgclip.reporting.comparison.metrics import TOP1, MetricReader, check_metrics, robustness_notes
from lgclip.reporting.comparison.results import (
    ComparisonError,
    MethodResult,
    read_result,
    read_results,
    split_place,
    with_baselines,
    with_shifted_sets,
)
from lgclip.reporting.comparison.significance import compare_means, compare_rows, compare_with_run
from lgclip.reporting.comparison.table import ComparisonTable, build_table, missing_notes, sorted_rows
from lgclip.reporting.run_folder import RESULT, Run
from lgclip.reporting.sweep_summary import cost_lines, read_jobs
from lgclip.runtime.sweep_job import SWEEP
from lgclip.store.atomic import atomic_write

PLOTS = (".png", ".pdf", ".svg")
_NEEDS_PANDAS = ("latex", "csv")


@dataclass(frozen=True)
class CompareOptions:
    """Holds the options of `lgclip compare`.

    Attributes:
        places: Folders of runs and sweeps, each with `:METHOD` for a baseline.
        by: Axes of the rows; empty for the settings in which the runs differ.
        columns: Axes of the columns; empty for the data set if there are several.
        over: Settings that are averaged over, besides the seeds.
        metrics: Metrics of the cells.
        methods: Methods to show; empty for the runs' own, and for all where an axis distinguishes them.
        reference: A run or a row that the others are tested against; None for no test.
        order: An axis or a metric by which rows are sorted; None for the order of the runs.
        format: One of `formats.FORMATS`.
        has_intervals: Whether cells show 95% intervals instead of the standard deviation.
        out: File to write the comparison to; None for the terminal.
        plot: Plot to write; None for none.
    """

    places: Sequence[str]
    by: Sequence[str] = ()
    columns: Sequence[str] = ()
    over: Sequence[str] = ()
    metrics: Sequence[str] = (TOP1,)
    methods: Sequence[str] = ()
    reference: str | None = None
    order: str | None = None
    format: str = "table"
    has_intervals: bool = False
    out: Path | None = None
    plot: Path | None = None


def compare(options: CompareOptions) -> Iterator[str | Table]:
    """Compares runs and yields the output for the terminal.

    Raises:
        RunError: If a folder has no finished run.
        ComparisonError: If the runs cannot be compared, or an option names something that does not exist.
        ValueError: If a package of the extra `report` is missing, or the plot's format is unknown.
    """
    _check_packages(options)
    results = select_results(options)
    comparison = build_comparison(options, results)
    if options.plot is not None:
        # Imported only now: a table in the terminal needs no plotting library.
        from lgclip.reporting.comparison.plots import draw_plot

        draw_plot(options.plot, comparison)
    # Named at the end, after the table, so that the terminal's last line says where the files are.
    written = [str(path) for path in (options.out, options.plot) if path is not None]
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(options.out) as temporary:
            temporary.write_text(_text(comparison, options.format) + "\n", encoding="utf-8")
    elif options.format == "table":
        yield from formats.terminal_parts(comparison)
        yield from cost_lines([run.result for run in _runs(results)])
    else:
        yield _text(comparison, options.format)
    if written:
        yield ", ".join(written)


def _check_packages(options: CompareOptions) -> None:
    """Checks that the packages for the output formats are installed, before anything is read.

    Raises:
        ValueError: If one is not, or the plot's format is unknown.
    """
    needed = {"pandas": options.format in _NEEDS_PANDAS, "jinja2": options.format == "latex"}
    needed["matplotlib"] = options.plot is not None
    for name, is_needed in needed.items():
        if not is_needed:
            continue
        # Imported, not only located: an installed package with a broken dependency would fail after the reading.
        try:
            __import__(name)
        except ModuleNotFoundError as error:
            raise ValueError(f"package {error.name} is missing: pip install 'lgclip[report]'") from error
    if options.plot is not None and options.plot.suffix.lower() not in PLOTS:
        raise ValueError(f"{options.plot}: a plot is a file that ends in {', '.join(PLOTS)}")


def select_results(options: CompareOptions) -> list[MethodResult]:
    """Reads the runs, and adds the baselines and the shifted sets that the axes distinguish."""
    results = read_results(options.places)
    axes = (*options.by, *options.columns)
    if options.methods:
        results = with_baselines(results, options.methods)
    # On an axis of methods the baselines are rows of their own; otherwise they would only repeat each other.
    elif any(axis in WITH_BASELINES for axis in axes):
        results = with_baselines(results, None)
    # Only an axis of data sets distinguishes a shifted set from the run's own; a mean over both would be meaningless.
    if "dataset" in axes:
        results = list(with_shifted_sets(results))
    return results


def build_comparison(options: CompareOptions, results: Sequence[MethodResult]) -> formats.Comparison:
    """Groups results into a table, with its notes and tests.

    Raises:
        ComparisonError: If the runs cannot be compared, or an option names something that does not exist.
    """
    # Accuracies on different data sets have different scales, so they never share a column.
    columns = list(options.columns)
    if not columns and "dataset" not in options.by and len({result.dataset for result in results}) > 1:
        columns = ["dataset"]
    by = list(options.by) or _default_axes(results, columns)
    reader = MetricReader.of(results)
    check_axes([*by, *columns, *options.over], results)
    metrics = list(options.metrics)
    if options.order is not None and options.order not in by:
        metrics.append(options.order)  # it is no axis, so it has to be a metric, whether or not it is shown
    check_metrics(metrics, results, reader)
    table = build_table(results, by, columns, options.over)
    if options.order is not None:
        table = replace(table, rows=sorted_rows(table, options.order))
    notes = _job_notes(options.places)
    notes += missing_notes(table, options.metrics)
    notes += _idle_note(table, options.over, results)
    notes += robustness_notes(reader, options.metrics)
    comparison = formats.Comparison(table, options.metrics, notes, options.has_intervals)
    if options.reference is None:
        return comparison
    return _with_tests(comparison, options.reference, results)


def _default_axes(results: Sequence[MethodResult], columns: Sequence[str]) -> list[str]:
    """Returns the settings in which results differ, without those that follow from a differing choice."""
    differences = distinguishing_settings(results, keys_of(columns, results))
    axes = list(dict.fromkeys(chain.from_iterable(differences)))
    # Where a choice is an axis, the values below it become settings of a row: as axes they would be empty in rows of
    # another choice.
    axes = [axis for axis in axes if "." not in axis or axis.partition(".")[0] not in axes]
    if len({result.method for result in results}) > 1 and "method" not in [*axes, *columns]:
        axes.append("method")
    if axes:
        return axes
    # Nothing differs, as for a single run: a table still needs an axis of its rows.
    return ["dataset"] if "method" in columns else ["method"]


def _with_tests(comparison: formats.Comparison, reference: str, results: Sequence[MethodResult]) -> formats.Comparison:
    """Adds the tests against a run, or against a row if there is no such run."""
    # A reference may name a run or a row. A folder with a result is unambiguous, so it is tried first.
    if not (split_place(reference)[0] / RESULT).is_file():
        rows = compare_rows(comparison.table, reference)
        if rows:
            return replace(comparison, rows=rows)
        return replace(comparison, notes=[*comparison.notes, f"no test: {reference} shares no seed with another row"])
    base = read_result(reference)
    # Runs of other data sets stay in the table but cannot be paired image by image.
    tested = [result for result in results if result.run.result.dataset.name == base.run.result.dataset.name]
    notes = list(comparison.notes)
    if len(tested) < len(results):
        notes.append(f"not tested: {len(results) - len(tested)} results on other data sets than {base.dataset}")
    runs = compare_with_run(tested, base)
    return replace(comparison, notes=notes, runs=runs, rows=compare_means(comparison.table, base), is_welch=True)


def _runs(results: Sequence[MethodResult]) -> list[Run]:
    return list({result.run.folder.resolve(): result.run for result in results}.values())


def _job_notes(places: Sequence[str]) -> list[str]:
    """Returns a line for each job of a sweep that has no result."""
    notes = []
    for place in places:
        folder, _ = split_place(place)
        for sweep in sorted({path.parent for path in folder.rglob(SWEEP)}):
            for job in read_jobs(sweep):
                # A failed job leaves a gap in a mean that the table alone would not show.
                if job.result is None:
                    values = ", ".join(f"{key}={value}" for key, value in job.values.items())
                    note = f"job {job.name} of {sweep} is {job.state} ({values})"
                    if job.error:
                        note += f": {job.error}"
                    notes.append(note)
    return notes


def _idle_note(table: ComparisonTable, over: Sequence[str], results: Sequence[MethodResult]) -> list[str]:
    """Returns a line on the settings in which rows differ but which are on no axis."""
    axes = (*table.by, *table.columns, *over)
    displayed = keys_of(axes, results)
    for row in table.rows:
        displayed |= set(row.settings)
    methods = [result for result in results if result.baseline is None]
    # Such a setting varies along with an axis, so its effect cannot be separated from that of the axis.
    settings: dict[str, None] = {}
    if methods:
        for differences in distinguishing_settings(methods, displayed):
            settings |= dict.fromkeys(key for key in differences if key.partition(".")[0] not in axes)
    if not settings:
        return []
    return [f"rows or columns differ in {formats.name_settings(settings)} too"]


def _text(comparison: formats.Comparison, name: str) -> str:
    """Returns a comparison in one of `formats.FORMATS`.

    Raises:
        ComparisonError: If the format is unknown.
    """
    writers = {
        "table": formats.plain_text,
        "markdown": formats.markdown_text,
        "latex": formats.latex_text,
        "csv": formats.csv_text,
        "json": formats.json_text,
    }
    if name not in writers:
        raise ComparisonError(f"--format {name}: choose {', '.join(formats.FORMATS)}")
    return writers[name](comparison)
