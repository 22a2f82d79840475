"""Formats the comparison of transductive rules over pools."""

from collections.abc import Sequence

from lgclip.evaluation.pools import NO_RULE, PoolResult
from lgclip.reporting.result_schema import PoolRecord
from lgclip.reporting.text_tables import text_table


def pool_table(results: Sequence[PoolResult | PoolRecord]) -> str:
    """Returns a table with a row for each kind of pools and start, and a column for each rule.

    The cells are differences to no transduction in points, with half of their 95% intervals. A last line names the
    largest loss of each rule.
    """
    rules = list(dict.fromkeys(result.rule for result in results if result.rule != NO_RULE))
    rows: dict[tuple[str, str], dict[str, PoolResult | PoolRecord]] = {}
    for result in results:
        rows.setdefault((result.kind, result.start), {})[result.rule] = result
    header = ("pool", "start", "pools", "images", "top-1", *rules)
    table = text_table(header, [_cells(row, rules) for row in rows.values()], left_columns=2)
    worst = [f"{rule} {100 * min(row[rule].difference for row in rows.values()):+.1f}" for rule in rules]
    return f"transduction in pools: points more than none, with half of the 95% interval\n{table}\nlargest loss: " + (
        ", ".join(worst)
    )


def _cells(row: dict[str, PoolResult | PoolRecord], rules: Sequence[str]) -> list[str]:
    start = row[NO_RULE]
    cells = [start.kind, start.start, str(start.pools), f"{start.images:.0f}", f"{100 * start.top1:.1f}%"]
    for rule in rules:
        low, high = row[rule].difference_ci95
        cells.append(f"{100 * row[rule].difference:+.1f} ± {50 * (high - low):.1f}")
    return cells
