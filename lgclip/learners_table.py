"""What sweeps say of their learners: a table by paradigm, how they differ, and a figure."""

from collections.abc import Sequence
from pathlib import Path

from lgclip.learner_cells import LearnersError, is_setting
from lgclip.learner_rows import Learners, of_both, read_learners
from lgclip.row_table import MISSING, about_pairs, markdown_table, paired
from lgclip.runs import Run, differing, settings_of
from lgclip.seed_rows import TOP1, Difference, Figure, Row, difference, with_holm

REFERENCE = "grip"
"""The learner that the others are compared with, unless another is named."""


def learners(places: Sequence[Path], reference: str | None = None, figure: Path | None = None) -> str:
    """What `lgclip learners` prints: Markdown, to be set into a page.

    Args:
        places: Folders of sweeps, or of runs.
        reference: Row that the others are compared with, by its name or label; None for `grip`.
        figure: PNG file to write; None for none.

    Raises:
        RunError: If there is no finished run.
        ComparisonError: If the runs did not judge the same images.
        LearnersError: If no run learnt a prompt, two of one setting have the same seeds, or there is no such row.
        ValueError: If the figure is no .png.
    """
    if figure is not None and figure.suffix.lower() != ".png":
        raise ValueError(f"{figure}: the figure is a PNG file: name one that ends in .png")
    found = read_learners(places)
    told = table(found, differences(found, reference))
    if figure is None:
        return told
    from lgclip.learners_figure import draw

    draw(figure, found)
    return f"{told}\n\n{figure}"


def differences(found: Learners, reference: str | None = None) -> list[Difference]:
    """Each learner's top-1 against the reference's, by paradigm and over the seeds that both have.

    The methods beside are compared where one of them is the reference, so that they raise no p value of the others.
    Where several rows are the reference, one is compared with that whose settings it shares.

    Args:
        found: The rows.
        reference: Name or label of a row; None for `grip`, if there is one.

    Raises:
        LearnersError: If there is no such row.
    """
    rows = [*found.rows, *found.beside]
    base = [row for row in rows if (reference or REFERENCE) in (row.name, row.label)]
    if reference and not base:
        raise LearnersError(f"no row is {reference!r}: choose one of {', '.join(row.label for row in rows)}")
    keys = [key for key in differing([_first(row) for row in base]) if is_setting(key)] if base else []
    others = [row for row in found.rows if all(row is not one for one in base)]
    pairs = [(a, b) for b in base for a in others if _settings(a, keys) == _settings(b, keys)]
    figures = [Figure(TOP1.kind, paradigm) for paradigm in found.paradigms]
    return with_holm(one for a, b in pairs for figure in figures if (one := difference(*of_both(a, b), figure)))


def _first(row: Row) -> Run:
    return next(iter(row.runs.values()))[0].run


def _settings(row: Row, keys: Sequence[str]) -> list[object]:
    own = settings_of(_first(row))
    return [own.get(key) for key in keys]


def table(found: Learners, pairs: Sequence[Difference] = ()) -> str:
    """The rows as Markdown: shares in percent, differences in points.

    Args:
        found: The rows.
        pairs: How they differ.
    """
    lines = [["learner", "seeds", *map(_head, found.figures)]]
    rows = [(row, _seeds(row, found), False) for row in found.rows] + [(row, MISSING, True) for row in found.beside]
    lines += [[row.label, n, *(_cell(row, one, is_beside) for one in found.figures)] for row, n, is_beside in rows]
    parts = ["Top-1 in percent, mean over seeds (standard deviation).", *found.notes, markdown_table(lines)]
    if pairs:
        parts += ["Differences of top-1, in points, over the seeds that both have.",
                  markdown_table(paired(pairs, "learner", "paradigm", _head)), f"{about_pairs(pairs)}."]  # fmt: skip
    else:
        parts.append(f"No differences: the reference ({REFERENCE}, or that of --with) shares no seed with another row.")
    return "\n\n".join(parts)


def _head(figure: Figure) -> str:
    return figure.on if figure.kind == TOP1.kind else f"{figure.on} {figure.kind}"


def _seeds(row: Row, found: Learners) -> str:
    """How many, from the fewest to the most where the paradigms have not as many."""
    counts = {len(own) for one in found.paradigms if (own := row.of(Figure(TOP1.kind, one)))}
    return " to ".join(str(n) for n in sorted({min(counts), max(counts)})) if counts else "0"


def _cell(row: Row, figure: Figure, is_beside: bool) -> str:
    summary = row.summary(figure)
    if summary is None:
        return MISSING
    mean = f"{100 * summary['mean']:.1f}"
    if summary["std"] is None or (is_beside and summary["std"] < 1e-12):  # no seed of the learners changes it
        return mean
    return f"{mean} ({100 * summary['std']:.1f})"
