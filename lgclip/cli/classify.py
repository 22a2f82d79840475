"""Classifies images from the command line, into a table."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lgclip.classifier.model import ImagePrediction
from lgclip.reporting.csv_cells import write_rows
from lgclip.reporting.run_classifier import load
from lgclip.store.atomic import atomic_write

COLUMNS = ("path", "label", "score", "runner_up", "margin", "error")


def classify_command(classifier: Path, images: Sequence[str], out: Path | None, top: int) -> Iterator[str]:
    """Classifies images and yields the lines to print.

    Args:
        classifier: Folder of a saved classifier, or of a run.
        images: Files, folders or patterns.
        out: The table to write; None prints one line per image.
        top: Number of most probable classes; above 1 there are two columns for each.

    Raises:
        ValueError: If there is no classifier, a source does not exist, or `top` is below 1.
    """
    predictions = load(classifier).classify(images, top=top)
    if out is None:
        for prediction in predictions:
            yield _line(prediction)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    counts = {"classified": 0, "unreadable": 0}
    with atomic_write(out) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        write_rows(file, _rows(predictions, top, counts))
    unreadable = f", {counts['unreadable']} could not be read (column error)" if counts["unreadable"] else ""
    yield f"{out}: {counts['classified']} images classified{unreadable}"


def _rows(predictions: Iterable[ImagePrediction], top: int, counts: dict[str, int]) -> Iterator[list[str]]:
    """Yields the header and one row per image, and counts the rows."""
    ranks = range(1, top + 1) if top > 1 else range(0)
    header = [*COLUMNS]
    for rank in ranks:
        header += [f"label_{rank}", f"score_{rank}"]
    yield header
    for prediction in predictions:
        counts["classified" if prediction.error is None else "unreadable"] += 1
        yield _row(prediction, 2 * len(ranks))


def _row(prediction: ImagePrediction, extra: int) -> list[str]:
    if prediction.error is not None:
        return [prediction.path, "", "", "", "", prediction.error, *[""] * extra]
    row = [
        prediction.path, str(prediction.label), f"{prediction.score:.6f}", str(prediction.runner_up),
        f"{prediction.margin:.6f}", "",
    ]  # fmt: skip
    ranked: list[str] = []
    for name, score in prediction.top:
        ranked += [name, f"{score:.6f}"]
    return [*row, *(ranked + [""] * extra)[:extra]]


def _line(prediction: ImagePrediction) -> str:
    if prediction.error is not None:
        return f"{prediction.path}: cannot be read as an image ({prediction.error})"
    ranked = ", ".join(f"{name} {score:.3f}" for name, score in prediction.top)
    return f"{prediction.path}: {ranked}"
