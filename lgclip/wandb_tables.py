"""What Weights & Biases shows of a run besides figures: a few tables, with pictures."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lgclip.datasets.base import Dataset
from lgclip.diffuser.base import Pictures
from lgclip.runs import Run

if TYPE_CHECKING:
    import wandb

MAX_IMAGES, MAX_MISJUDGED = 200, 50
"""Images in the table of prototypes, and in that of misjudged images."""

MAX_CONFUSION, MAX_PAIRS = 100, 1000
"""Classes of the confusion matrix; with more, so many pairs of classes that are most often confused."""

CELL = "cell"
"""Table of one row a run, over which the charts of a sweep are drawn."""


def tables_of(run: Run, dataset: Dataset, drawing: Pictures | None, axes: Mapping[str, str]) -> dict[str, Any]:
    """Tables and charts, by the key that they are logged under.

    Args:
        run: The finished run.
        dataset: What was judged.
        drawing: The synthetic images; None if the method used none.
        axes: What the run's job of a sweep sets.
    """
    names = dataset.class_names
    return {
        CELL: _cell(run, axes),
        "per_class": _per_class(run),
        **({"prototypes": _prototypes(names, drawing)} if drawing else {}),
        "misjudged": _misjudged(run, dataset),
        **_confusion(run, names),
    }


def column_of(key: str) -> str:
    """A swept key as a column of the table `cell`: Vega takes a dot for a step into an object."""
    return key.replace(".", "_")


def _table(columns: Iterable[str], rows: Iterable[Sequence[Any]]) -> "wandb.Table":
    import wandb

    return wandb.Table(columns=[*columns], data=[list(row) for row in rows])


def _number(text: str) -> int | float | str | None:
    """The number that a text says, None for an empty one, or the text itself."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text or None


def _cell(run: Run, axes: Mapping[str, str]) -> "wandb.Table":
    metrics = run.result["metrics"]
    low, high = metrics["top1_ci95"]
    cell = {column_of(key): _number(value) for key, value in axes.items()}
    cell |= {"top1": metrics["top1"], "top1_low": low, "top1_high": high}
    return _table(cell, [list(cell.values())])


def _per_class(run: Run) -> "wandb.Table":
    """per_class.csv, with what diagnostics.csv adds."""
    words = ("name", "most_taken_for")
    rows = run.per_class
    if run.diagnostics:
        rows = [row | {**more, **row} for row, more in zip(rows, run.diagnostics, strict=True)]
    data = [[value if key in words else _number(value) for key, value in row.items()] for row in rows]
    return _table(rows[0], data)


def _prototypes(names: Sequence[str], drawing: Pictures) -> "wandb.Table":
    """The first synthetic images of every class, as many as go in."""
    import wandb

    each, taken = max(1, MAX_IMAGES // len(names)), [0] * len(names)
    rows: list[list[Any]] = []
    for at, (index, text, _) in enumerate(drawing.prompts):
        taken[index] += 1
        if taken[index] <= each and len(rows) < MAX_IMAGES:
            rows.append([index, names[index], text, wandb.Image(drawing.image(at))])
    return _table(["class", "name", "prompt", "image"], rows)


def _misjudged(run: Run, dataset: Dataset) -> "wandb.Table":
    """Images that were judged wrong, the surest first."""
    import wandb

    said, names = run.predictions, dataset.class_names
    wrong = np.flatnonzero(said.rank > 0)
    wrong = wrong[np.argsort(-said.confidence[wrong], kind="stable")][:MAX_MISJUDGED]
    rows = []
    for i in wrong.tolist():
        sure = None if np.isnan(said.confidence[i]) else float(said.confidence[i])
        image = wandb.Image(dataset.image(i))
        rows.append(
            [dataset.places[i], image, names[said.label[i]], names[said.prediction[i]], int(said.rank[i]), sure]
        )
    return _table(["index", "image", "label", "prediction", "rank", "confidence"], rows)


def _confusion(run: Run, names: Sequence[str]) -> dict[str, Any]:
    """The confusion matrix; of many classes, whose matrix nobody can read, the pairs most often confused."""
    import wandb

    label, prediction = run.predictions.label, run.predictions.prediction
    if len(names) <= MAX_CONFUSION:
        chart = wandb.plot.confusion_matrix(
            y_true=label.tolist(), preds=prediction.tolist(), class_names=list(names), title="Confusion"
        )
        return {"confusion": chart}
    wrong = np.stack([label, prediction], axis=1)[label != prediction]
    pairs, times = np.unique(wrong, axis=0, return_counts=True)
    first = np.argsort(-times, kind="stable")[:MAX_PAIRS]
    rows = [[names[a], names[b], n] for (a, b), n in zip(pairs[first].tolist(), times[first].tolist(), strict=True)]
    return {"confused": _table(["label", "prediction", "times"], rows)}
