"""Tables of rows over seeds, and of how they differ: for the terminal and for a page."""

from collections.abc import Callable, Sequence

from lgclip.seed_rows import Difference, Figure

MISSING = "-"
"""What a cell says that has nothing to say."""


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the first starts at the left.

    Args:
        lines: Cells of each line, the heads first.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            f"{cell:{'<' if not i else '>'}{width}}" for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """A table of a page.

    Args:
        lines: Cells of each line, the heads first.
    """
    rows = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines]
    return "\n".join([rows[0], "|---|" + "---:|" * (len(lines[0]) - 1), *rows[1:]])


def paired(pairs: Sequence[Difference], one: str, on: str, head: Callable[[Figure], str]) -> list[list[str]]:
    """The lines of differences, in points.

    Args:
        pairs: How rows differ.
        one: Head of the column of the rows.
        on: Head of the column of the figures.
        head: What a figure is called.
    """
    lines = [[one, on, "seeds", "difference", "95% interval", "p", "Holm", "over images", "p"]]
    for pair in pairs:
        tests = ((None, None) if t is None else (t["ci95"], t["p"]) for t in (pair.over_seeds, pair.over_images))
        (interval, p), (interval_images, p_images) = tests
        lines.append([
            f"{pair.one} - {pair.other}", head(pair.figure), str(pair.n), f"{100 * pair.mean:+.1f}",
            _interval(interval), _p(p), _p(pair.p_holm), _interval(interval_images), _p(p_images),
        ])  # fmt: skip
    return lines


def about_pairs(pairs: Sequence[Difference]) -> str:
    """How the lines of `paired` are read.

    Args:
        pairs: How rows differ.
    """
    n = sum(one.over_seeds is not None for one in pairs)
    if not n:
        return "over seeds no difference is tested: that needs two seeds at least that both have"
    return (
        f"p: paired t test, the seeds are the sample; Holm: p for a family of {n}; over images: the seeds as they are"
    )


def _interval(ci95: Sequence[float] | None) -> str:
    return MISSING if ci95 is None else " to ".join(f"{100 * bound:+.1f}" for bound in ci95)


def _p(value: float | None) -> str:
    if value is None:
        return MISSING
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"
