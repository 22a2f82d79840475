"""Formats the comparison of transductive rules over pools."""

from collections.abc import Sequence

from lgclip.evaluation.pools import NO_RULE, PoolResult
from lgclip.reporting.text_tables import text_table

HEADER = ("pool", "start", "transduction", "pools", "images", "top-1", "95% interval", "difference", "95% interval")


def pool_table(results: Sequence[PoolResult]) -> str:
    """Returns a table with a row for each result; accuracies in percent, differences in points."""
    return text_table(HEADER, [_cells(result) for result in results], left=3)


def _cells(result: PoolResult) -> list[str]:
    low, high = result.ci95
    cells = [
        result.kind,
        result.start,
        result.rule,
        str(result.pools),
        f"{result.images:.0f}",
        f"{result.top1:.1%}",
        f"{100 * low:.1f} - {100 * high:.1f}",
    ]
    if result.rule == NO_RULE:
        return [*cells, "", ""]
    low, high = result.difference_ci95
    return [*cells, f"{100 * result.difference:+.1f}", f"{100 * low:+.1f} to {100 * high:+.1f}"]
