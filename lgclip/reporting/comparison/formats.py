"""Formats a comparison as text: terminal, Markdown, LaTeX, CSV and JSON."""

import csv
import io
import itertools
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from lgclip.reporting.comparison.axes import brief_settings, brief_value
from lgclip.reporting.comparison.metrics import PERCENT, TOP1, format_value, is_ranked, lower_is_better
from lgclip.reporting.comparison.significance import RowComparison, RunComparison
from lgclip.reporting.comparison.table import ComparisonTable, Row, Values
from lgclip.reporting.text_tables import build_table, markdown_table, to_text
from lgclip.runtime.csv_cells import write_rows

FORMATS = ("table", "markdown", "latex", "csv", "json")
MISSING = "-"
_WIDTH = 24  # characters of a setting in a cell
_COLUMNS = 6  # settings that are shown as columns; more do not fit a terminal


@dataclass(frozen=True)
class Comparison:
    """Holds the content of a comparison.

    Attributes:
        table: The rows and columns.
        metrics: The metrics of each column.
        notes: What is missing, and how to read the values.
        has_intervals: Whether cells show 95% intervals instead of the standard deviation.
        runs: Tests against a run.
        rows: Tests against a row, or of the means.
        is_welch: Whether the tests of rows treat the seeds as independent samples.
    """

    table: ComparisonTable
    metrics: Sequence[str]
    notes: Sequence[str]
    has_intervals: bool
    runs: Sequence[RunComparison] = ()
    rows: Sequence[RowComparison] = ()
    is_welch: bool = False


class Section(NamedTuple):
    """Holds a table with the lines above it.

    Attributes:
        text: The lines.
        head: Names of the columns.
        lines: The cells.
        left_columns: Number of left-aligned columns.
        bold: Rows and columns of the cells in bold.
    """

    text: str
    head: list[str]
    lines: list[list[str]]
    left_columns: int
    bold: Collection[tuple[int, int]] = ()


def sections_of(comparison: Comparison) -> list[Section]:
    """Returns the main table, then the tests against a run and of rows, if there are any."""
    sections = [main_section(comparison)]
    if comparison.runs:
        sections.append(_run_section(comparison.runs))
    if comparison.rows:
        sections.append(_row_section(comparison))
    return sections


def terminal_parts(comparison: Comparison) -> list[str | Table]:
    """Returns the lines and tables for the terminal, with an empty line between two sections."""
    parts: list[str | Table] = []
    for section in sections_of(comparison):
        text = f"\n{section.text}" if parts else section.text
        parts += [text, build_table(section.head, section.lines, left_columns=section.left_columns, bold=section.bold)]
    return parts


def plain_text(comparison: Comparison) -> str:
    """Returns the terminal's text without styles."""
    parts = terminal_parts(comparison)
    return "\n".join(part if isinstance(part, str) else to_text(part) for part in parts)


def markdown_text(comparison: Comparison) -> str:
    """Returns the comparison as Markdown."""
    parts = []
    for section in sections_of(comparison):
        # Sections are built again for each call, so their cells may be changed in place.
        for row, column in section.bold:
            section.lines[row][column] = f"**{section.lines[row][column]}**"
        # Markdown joins adjacent lines into a paragraph, so each line becomes one of its own.
        parts += [
            *section.text.split("\n"),
            markdown_table(section.head, section.lines, left_columns=section.left_columns),
        ]
    return "\n\n".join(parts)


def latex_text(comparison: Comparison) -> str:
    """Returns the main table as LaTeX with booktabs' rules, the best values in bold, by pandas."""
    import pandas as pd

    section = main_section(comparison)
    lines = [_escape_line(line) for line in section.lines]
    # Bold after the escaping, which would escape the braces of \textbf as well.
    for row, column in section.bold:
        lines[row][column] = rf"\textbf{{{lines[row][column]}}}"
    frame = pd.DataFrame(lines, columns=_escape_line(section.head))
    alignment = "l" * section.left_columns + "r" * (len(section.head) - section.left_columns)
    return frame.style.hide(axis="index").to_latex(hrules=True, column_format=alignment).rstrip("\n")


_LATEX = {"\\": r"\textbackslash{}", "±": r"$\pm$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
# The backslash stands above: `\\` starts a new row of the table.
_LATEX |= {letter: f"\\{letter}" for letter in "&%$#_{}"}


def _escape_line(cells: Sequence[str]) -> list[str]:
    return [_escape_latex(cell) for cell in cells]


def _escape_latex(text: str) -> str:
    # Letter by letter in one pass: successive replacements would escape what an earlier one has put in.
    return "".join(_LATEX.get(letter, letter) for letter in text)


def csv_text(comparison: Comparison) -> str:
    """Returns a line per row, column and metric, unrounded, by pandas."""
    import pandas as pd

    lines = []
    for record in records_of(comparison):
        low, high = record["ci95"] or (None, None)  # one seed has no interval: empty cells
        line = {**record["row"], "settings": brief_settings(record["settings"]), **record["column"]}
        line["data seen"] = record["seen"]
        line |= {"metric": record["metric"], "seeds": record["n"], "mean": record["mean"], "std": record["std"]}
        line |= {"ci95_low": low, "ci95_high": high}
        lines.append(line)
    # pandas lays out the columns; its own text would hold formulas, and carriage returns that end a row.
    table = pd.DataFrame(lines).to_csv(index=False, lineterminator="\r\n")
    text = io.StringIO(newline="")
    write_rows(text, csv.reader(io.StringIO(table, newline="")))
    return text.getvalue().rstrip("\n")


def json_text(comparison: Comparison) -> str:
    """Returns the comparison as JSON, unrounded."""
    values = {
        "cells": records_of(comparison),
        "against_run": [_run_record(test) for test in comparison.runs],
        "against_row": [_row_record(test) for test in comparison.rows],
        "notes": list(comparison.notes),
    }
    # `default`: a setting may be of a type that JSON lacks, such as a path.
    return json.dumps(values, indent=2, ensure_ascii=False, default=str)


def records_of(comparison: Comparison) -> list[dict[str, Any]]:
    """Returns a record per row, column and metric, unrounded."""
    table = comparison.table
    records = []
    for row in table.rows:
        for column, cell in row.cells.items():
            for metric in comparison.metrics:
                summary = cell.summary(metric)
                # No record rather than one of zeros or nulls, which a plot or a mean would take for values.
                if summary is None:
                    continue
                records.append({
                    "row": dict(zip(table.by, row.values, strict=True)),
                    "settings": dict(row.settings),
                    "seen": row.seen,
                    "column": dict(zip(table.columns, column, strict=True)),
                    "metric": metric,
                    **summary,
                    "seed": cell.seed,
                    "values": list(cell.values(metric).values()),
                    "runs": [str(result.run.folder) for result in cell.results],
                })  # fmt: skip
    return records


def _run_record(test: RunComparison) -> dict[str, Any]:
    metrics = test.result.metrics
    reference = {
        "run": str(test.reference.run.folder),
        "method": test.reference.method,
        "settings": dict(test.reference_settings),
        "top1": test.reference.metrics.top1,
    }
    return {
        "run": str(test.result.run.folder),
        "method": test.result.method,
        "settings": dict(test.settings),
        "reference": reference,
        "top1": metrics.top1,
        "top1_ci95": metrics.top1_ci95,
        "mean_per_class": metrics.mean_per_class,
        **test.test,
        "p_holm": test.p_holm,
    }


def _row_record(test: RowComparison) -> dict[str, Any]:
    return {
        "row": test.row.label,
        "reference": test.reference.label,
        "column": list(test.column),
        "seeds": test.n,
        "difference": test.difference,
        "over_seeds": test.over_seeds,
        "over_images": test.over_images,
        "p_holm": test.p_holm,
    }


def main_section(comparison: Comparison) -> Section:
    """Returns the table of the means."""
    table = comparison.table
    has_settings = any(row.settings for row in table.rows)
    head = list(table.by)
    if has_settings:
        head.append("settings")
    # A method that has seen images of the domain is never ranked with one that has not, without a word.
    has_seen = "seen" not in (*table.by, *table.columns) and len({row.seen for row in table.rows}) > 1
    if has_seen:
        head.append("data seen")
    label_columns = len(head)
    head.append("seeds")
    # A metric such as effective robustness has no value in some columns; one without any value is left out.
    places = []
    for column, metric in itertools.product(table.column_values, comparison.metrics):
        if any(_summary(row, column, metric) for row in table.rows):
            places.append((column, metric))
    lines = []
    for row in table.rows:
        names = [MISSING if value is None else brief_value(value) for value in row.values]
        settings = [brief_settings(row.settings)] if has_settings else []
        cells = [_cell(row, column, metric, comparison.has_intervals) for column, metric in places]
        seen = [row.seen] if has_seen else []
        lines.append([*names, *settings, *seen, _seeds(row), *cells])
    # Bold cells are listed by position, not marked in the text: each format marks it in its own way.
    bold = set[tuple[int, int]]()
    for place, (column, metric) in enumerate(places):
        bold |= {(row, len(head) + place) for row in _best_rows(table.rows, column, metric)}
    head += [column_name(column, metric, comparison.metrics) for column, metric in places]
    return Section("\n".join([_heading(comparison), *comparison.notes]), head, lines, label_columns, bold)


def _heading(comparison: Comparison) -> str:
    names = []
    for metric in comparison.metrics:
        name = _metric_name(metric)
        names.append(f"{name} in percent" if metric in PERCENT else name)
    spread = "(95% interval)" if comparison.has_intervals else "± standard deviation"
    return f"{', '.join(names)}, mean {spread} over seeds"


def _metric_name(metric: str) -> str:
    return "top-1" if metric == TOP1 else metric.replace("_", " ")


def column_name(column: Values, metric: str, metrics: Sequence[str]) -> str:
    """Returns the header of a column: its values, and the metric where there are several."""
    values = ", ".join(brief_value(value) for value in column)
    if len(metrics) == 1 and values:
        return values  # the heading of the table names the only metric
    return f"{values} {_metric_name(metric)}".strip()


def _summary(row: Row, column: Values, metric: str) -> dict[str, Any] | None:
    if column not in row.cells:
        return None
    return row.cells[column].summary(metric)


def _seeds(row: Row) -> str:
    """Returns the number of seeds, as a range where the columns differ."""
    # CLIP's text baseline is the same in each of the runs; to say "3 seeds" would claim a spread of 0.
    if all(_is_constant(row, column) for column in row.cells):
        return MISSING
    counts = {len(cell.by_seed()) for cell in row.cells.values()}
    # A set, so that equal bounds are shown once: `3`, but `2 to 5`.
    return " to ".join(str(count) for count in sorted({min(counts), max(counts)}))


def _is_constant(row: Row, column: Values) -> bool:
    """Returns whether the row is a baseline that does not depend on the runs' seeds."""
    summary = _summary(row, column, TOP1)
    # Below any difference that one image could make: rounding of a mean of equal values.
    return row.is_baseline and (summary is None or summary["std"] is None or summary["std"] < 1e-12)


def _cell(row: Row, column: Values, metric: str, has_intervals: bool) -> str:
    summary = _summary(row, column, metric)
    if summary is None:
        return MISSING
    mean = format_value(summary["mean"], metric)
    if not has_intervals:
        if summary["std"] is None or _is_constant(row, column):
            return mean
        # A signed metric gets its sign from `format_value`, but a standard deviation has none.
        return f"{mean} ± {format_value(summary['std'], metric).removeprefix('+')}"
    interval = summary["ci95"]
    # One seed has no interval over seeds, but one over its images: the accuracy is a proportion of n trials.
    if interval is None and metric == TOP1:
        interval = row.cells[column].results[0].metrics.top1_ci95
    if interval is None:
        return mean
    return f"{mean} ({' - '.join(format_value(bound, metric) for bound in interval)})"


def _best_rows(rows: Sequence[Row], column: Values, metric: str) -> list[int]:
    """Returns the indices of the rows with the best displayed mean of those that have seen the same kinds of data.

    A row without another one to compare with is none of them.
    """
    if not is_ranked(metric):
        return []
    groups: dict[str, dict[int, float]] = {}
    for place, row in enumerate(rows):
        summary = _summary(row, column, metric)
        if summary is not None:
            # As shown: two rows that both read 71.3 are both bold, as the reader sees no difference.
            groups.setdefault(row.seen, {})[place] = float(format_value(summary["mean"], metric))
    best_rows: list[int] = []
    for means in groups.values():
        best = min(means.values()) if lower_is_better(metric) else max(means.values())
        if len(means) > 1:
            best_rows += [place for place, mean in means.items() if mean == best]
    return best_rows


def _run_section(tests: Sequence[RunComparison]) -> Section:
    """Returns the tests against a run."""
    reference = tests[0].reference
    name, *names = short_names([reference.run.folder, *(test.result.run.folder for test in tests)])
    # The settings of the reference come first, then what only some of the others have.
    keys: dict[str, None] = {}
    for test in tests:
        keys |= dict.fromkeys([*test.reference_settings, *test.settings])
    displayed = list(keys)[:_COLUMNS]
    settings = [f" {key}={_cut(str(value))}" for key, value in tests[0].reference_settings.items()]
    text = [
        f"{reference.run.result.n} images; the reference is {name}, {reference.method}{''.join(settings)}: "
        f"top-1 {_top1(reference.metrics.top1)} ({_top1_interval(reference.metrics.top1_ci95)})",
        f"difference: in points, minus the reference; p: McNemar's exact test; Holm: p for a family of {len(tests)}",
    ]
    # What is cut is named, or two runs might look like one setting.
    if len(keys) > _COLUMNS:
        text.append(f"they differ in {', '.join(list(keys)[_COLUMNS:])} too")
    head = ["run", *displayed, "method", "top-1", "95% interval", "difference", "95% interval"]
    lines = []
    for name, test in zip(names, tests, strict=True):
        # An empty cell, not "None": a setting may be None.
        settings_of_run = [_cut(str(test.settings[key])) if key in test.settings else "" for key in displayed]
        lines.append([
            name,
            *settings_of_run,
            test.result.method,
            _top1(test.result.metrics.top1),
            _top1_interval(test.result.metrics.top1_ci95),
            f"{100 * test.test['difference']:+.2f}",
            _interval(test.test["ci95"]),
            str(test.test["only_this"]),
            str(test.test["only_other"]),
            format_p(test.test["p"]),
            format_p(test.p_holm),
        ])  # fmt: skip
    return Section("\n".join(text), [*head, "only it", "only ref.", "p", "Holm"], lines, left_columns=1)


def _row_section(comparison: Comparison) -> Section:
    """Returns the tests of rows."""
    tested = sum(test.over_seeds is not None for test in comparison.rows)
    if comparison.is_welch:
        text = "differences of means, in points; p: Welch's test, the seeds are the sample"
    else:
        text = "differences of top-1, in points, over the seeds that both have"
        if tested:
            text += "; p: paired t test, the seeds are the sample; over images: the seeds as they are"
    if tested:
        text += f"; Holm: p for a family of {tested}"
    else:
        text += "; none is tested over seeds: that needs two seeds at least that both have"
    head = ["rows", ", ".join(comparison.table.columns) or "all", "seeds", "difference", "95% interval", "p", "Holm"]
    # Two tests answer two questions: does it hold for other seeds, or for other images with these seeds? Welch's test
    # pairs nothing, so it has no answer to the second.
    if not comparison.is_welch:
        head += ["over images", "p"]
    lines = []
    for test in comparison.rows:
        seeds = test.over_seeds or {"ci95": None, "p": None}
        images = test.over_images or {"ci95": None, "p": None}
        column = ", ".join(brief_value(value) for value in test.column) or "all"
        line = [f"{test.row.label} - {test.reference.label}", column, str(test.n), f"{100 * test.difference:+.2f}"]
        line += [_interval(seeds["ci95"]), format_p(seeds["p"]), format_p(test.p_holm)]
        if not comparison.is_welch:
            line += [_interval(images["ci95"]), format_p(images["p"])]
        lines.append(line)
    return Section(text, head, lines, left_columns=2)


def short_names(folders: Sequence[Path]) -> list[str]:
    """Returns the names of folders without their common part."""
    resolved = [folder.resolve() for folder in folders]
    # Of the parents: the common path of a single folder would be the folder itself, and its name empty.
    root = Path(os.path.commonpath([folder.parent for folder in resolved]))
    return [str(folder.relative_to(root)) for folder in resolved]


def _top1(value: float) -> str:
    return f"{100 * value:.1f}%"


def _top1_interval(interval: Sequence[float]) -> str:
    return " - ".join(f"{100 * bound:.1f}" for bound in interval)


def _interval(ci95: Sequence[float] | None) -> str:
    if ci95 is None:
        return MISSING
    # "to", because a dash before a negative bound reads as a sign.
    return " to ".join(f"{100 * bound:+.2f}" for bound in ci95)


def format_p(value: float | None) -> str:
    """Returns a formatted p value."""
    if value is None:
        return MISSING
    if value < 0.0001:
        return "<0.0001"  # a p value is never 0, which four decimals would say
    return f"{value:.4f}"


def _cut(text: str) -> str:
    if len(text) <= _WIDTH:
        return text
    return f"{text[: _WIDTH - 1]}…"


def name_settings(settings: Mapping[str, Any]) -> str:
    """Returns the names of settings, as many as fit."""
    names = list(settings)
    displayed = ", ".join(names[:_COLUMNS])
    if len(names) <= _COLUMNS:
        return displayed
    return f"{displayed} and {len(names) - _COLUMNS} more"
