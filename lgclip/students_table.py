"""What a sweep says of its students, for the terminal, for a page and for other programs."""

from collections.abc import Sequence
from csv import writer
from pathlib import Path
from typing import Any

from lgclip.robustness import Line
from lgclip.row_table import MISSING, about_pairs, aligned, markdown_table, paired
from lgclip.seed_rows import TOP1, Difference, Figure, Row
from lgclip.student_differences import differences
from lgclip.student_rows import REAL, Students, read_students
from lgclip.whole import write_whole

_HEADS = {"auroc": "AUROC", "balanced_accuracy": "best bal. acc.", "held_out_balanced_accuracy": "held out"}
CSV_HEADER = ("trained_on", "settings", "figure", "shifted_set", "seeds", "mean", "std", "ci95_low", "ci95_high")


def students(folder: Path, out: Path | None = None, csv: Path | None = None, markdown: bool = False) -> str:
    """What `lgclip students` prints.

    Args:
        folder: A sweep, or any folder with runs of students in it.
        out: PNG figure to write; None for none.
        csv: File to write the figures to, unrounded; None for none.
        markdown: Whether the tables are Markdown's.

    Raises:
        ValueError: If there is no student, if the runs are not comparable, or if a file is no .png.
    """
    if out is not None and out.suffix.lower() != ".png":
        raise ValueError(f"{out}: the figure is a PNG file: name one that ends in .png")
    found = read_students(folder)
    written = []
    if csv is not None:
        _write_csv(csv, found)
        written.append(str(csv))
    if out is not None:
        from lgclip.students_figure import draw

        draw(out, found)
        written.append(str(out))
    told = table(found, differences(found), markdown)
    return f"{told}\n{'' if not written else chr(10)}{', '.join(written)}".rstrip()


def table(found: Students, pairs: Sequence[Difference] = (), markdown: bool = False) -> str:
    """The students for the eye: accuracies in percent, effective robustness and differences in points.

    Args:
        found: The rows.
        pairs: How training sets differ.
        markdown: Whether the tables are Markdown's.
    """
    laid = markdown_table if markdown else aligned
    accuracy = [TOP1, *(Figure("top1", name) for name in found.shifted)]
    more = [figure for figure in found.figures if figure.kind not in ("top1", "inside")]
    parts = [
        "\n".join(["top-1, mean over seeds ± half its 95% t interval (standard deviation)", *_notes(found)]),
        laid(
            [["trained on", "seeds", *map(_head, accuracy)], *([*_named(r), *_cells(r, accuracy)] for r in found.rows)]
        ),
        "\n".join(_about_more(found)),
        laid([["trained on", "seeds", *map(_head, more)], *([*_named(r), *_cells(r, more)] for r in found.rows)]),
    ]
    if pairs:
        lines = paired(pairs, "trained on", "judged on", _head)
        parts += ["differences of top-1, in points, over the seeds that both have", laid(lines), about_pairs(pairs)]
    return "\n\n".join(parts)


def _head(figure: Figure) -> str:
    if figure.kind == "rho":
        return f"rho {figure.on}"
    return figure.on or _HEADS.get(figure.kind, "in distribution")


def _named(row: Row) -> tuple[str, str]:
    return row.label, str(len(row.values)) if row.runs or len(row.values) > 1 else MISSING


def _cells(row: Row, figures: Sequence[Figure]) -> list[str]:
    return [_cell(row.summary(figure), figure) for figure in figures]


def _cell(summary: dict[str, Any] | None, figure: Figure) -> str:
    if summary is None:
        return MISSING
    scale, mark, digits = (1, "", 3) if figure.kind in _HEADS else (100, "+" if figure.kind == "rho" else "", 1)
    mean = f"{round(scale * summary['mean'], digits) + 0.0:{mark}.{digits}f}"  # no -0.0
    if summary["ci95"] is None:
        return mean
    half = scale * (summary["ci95"][1] - summary["mean"])
    return f"{mean} ± {half:.{digits}f} ({scale * summary['std']:.{digits}f})"


def _notes(found: Students) -> list[str]:
    """What is not in the table, or is of fewer seeds."""
    notes = [f"left out: {found.left_out} without a student"] if found.left_out else []
    for row in found.rows:
        fewer: dict[int, list[str]] = {}
        for figure in found.figures:
            if row.runs and 0 < (n := len(row.of(figure))) < len(row.values):
                fewer.setdefault(n, []).append(" ".join(filter(None, figure)))
        notes += [f"{row.label}: {', '.join(names)} in {n} of {len(row.values)} seeds" for n, names in fewer.items()]
    return notes


def _about_more(found: Students) -> list[str]:
    """How the second table is read, and what it lacks."""
    told = []
    if not found.shifted:
        told.append("no run judged a shifted set: ood=NAME")
    elif not found.lines:
        told.append(f"no effective robustness: it needs a student of {REAL} images as the baseline (student.mix=1)")
    else:
        told.append("rho: effective robustness, in points: top-1 above what the baseline foretells")
        told += [_baseline(name, line) for name, line in found.lines.items()]
        if not all(line.fitted for line in found.lines.values()):
            told.append("slope 1: in distribution those runs differ by no more than chance, which fits no slope")
    if any(row.of(Figure("auroc")) for row in found.rows):
        told.append("membership: AUROC, balanced accuracy of the best threshold, and of one chosen on other images")
    else:
        told.append("no run was attacked: membership=true")
    return told


def _baseline(name: str, line: Line) -> str:
    slope = f"{line.slope:.2f}" if line.fitted else "1"
    runs = "1 run" if line.n == 1 else f"{line.n} runs"
    return f"{name}: logit = {slope} x logit in distribution {line.intercept:+.2f}, through {runs} on {REAL} images"


def _write_csv(path: Path, found: Students) -> None:
    """A line a training set and figure; what no run tells has no line."""
    with write_whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        rows = writer(file, lineterminator="\n")
        rows.writerow(CSV_HEADER)
        for row in found.rows:
            for figure in found.figures:
                if summary := row.summary(figure):
                    spread = [summary["std"], *(summary["ci95"] or (None, None))]
                    rows.writerow([row.name, row.apart, *figure, summary["n"], summary["mean"], *spread])
