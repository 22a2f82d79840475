"""Builds the Weights & Biases tables of a run, with images."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lgclip.datasets.base import Dataset
from lgclip.diffuser.base import SyntheticImages
from lgclip.reporting.run_folder import Run

if TYPE_CHECKING:
    import wandb

MAX_IMAGES = 200
MAX_MISJUDGED = 50
"""Number of images in the table of prototypes, and in that of misclassified images."""

MAX_CONFUSION = 100
MAX_PAIRS = 1000
"""Maximum number of classes of the confusion matrix, or else number of most frequently confused pairs."""

CELL = "cell"
"""Table with one row per run, which the charts of a sweep use."""


def tables_of(
    run: Run, dataset: Dataset, synthetic_images: SyntheticImages | None, axes: Mapping[str, str]
) -> dict[str, Any]:
    """Returns tables and charts, by the key that they are logged under.

    Args:
        run: The finished run.
        dataset: The evaluated data set.
        synthetic_images: The synthetic images; None if the method used none.
        axes: Values that the run's sweep job sets.
    """
    names = dataset.class_names
    tables = {CELL: _cell(run, axes), "per_class": _per_class(run)}
    if synthetic_images:
        tables["prototypes"] = _prototypes(names, synthetic_images)
    tables["misclassified"] = _misjudged(run, dataset)
    return tables | _confusion(run, names)


def column_of(key: str) -> str:
    """Returns a swept key as a column of the table `cell`: Vega interprets a dot as access to a nested object."""
    return key.replace(".", "_")


def _table(columns: Iterable[str], rows: Iterable[Sequence[Any]]) -> "wandb.Table":
    import wandb

    return wandb.Table(columns=[*columns], data=[list(row) for row in rows])


def _number(text: str) -> int | float | str | None:
    """Parses a number from a text; returns None for an empty one, or the text itself."""
    # As int first: a column of 3, 5 and 10 would otherwise read 3.0, 5.0 and 10.0 on the axis of a chart.
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text or None


def _cell(run: Run, axes: Mapping[str, str]) -> "wandb.Table":
    metrics = run.result.metrics
    low, high = metrics.top1_ci95
    cell = {column_of(key): _number(value) for key, value in axes.items()}
    cell |= {"top1": metrics.top1, "top1_low": low, "top1_high": high}
    return _table(cell, [list(cell.values())])


def _per_class(run: Run) -> "wandb.Table":
    """Returns per_class.csv, joined with the columns of diagnostics.csv."""
    words = ("name", "most_confused_with")
    rows = run.per_class
    if run.diagnostics:
        # Both files have a column `accuracy`; that of per_class.csv, of the method, wins and stays in its place.
        rows = [row | {**diagnosis, **row} for row, diagnosis in zip(rows, run.diagnostics, strict=True)]
    data = []
    for row in rows:
        # A class may be named "7" or "nan": names are never turned into numbers.
        data.append([value if key in words else _number(value) for key, value in row.items()])
    return _table(rows[0], data)


def _prototypes(names: Sequence[str], synthetic_images: SyntheticImages) -> "wandb.Table":
    """Returns the first synthetic images of every class, as many as fit."""
    import wandb

    # Shared equally among the classes; with more classes than images, the first classes have one each.
    per_class = max(1, MAX_IMAGES // len(names))
    counts = [0] * len(names)
    rows: list[list[Any]] = []
    for place, prompt in enumerate(synthetic_images.prompts):
        if synthetic_images.paths[place] is None:
            continue  # it was not stored
        index = prompt.class_index
        counts[index] += 1
        if counts[index] <= per_class and len(rows) < MAX_IMAGES:
            rows.append([index, names[index], prompt.text, wandb.Image(synthetic_images.image(place))])
    return _table(["class", "name", "prompt", "image"], rows)


def _misjudged(run: Run, dataset: Dataset) -> "wandb.Table":
    """Returns misclassified images, the most confident first."""
    import wandb

    predictions = run.predictions
    names = dataset.class_names
    incorrect = np.flatnonzero(predictions.rank > 0)
    # Confident errors tell most: a wrong label, an ambiguous class name, or images that mislead. NaN sorts last.
    incorrect = incorrect[np.argsort(-predictions.confidence[incorrect], kind="stable")][:MAX_MISJUDGED]
    rows = []
    for i in incorrect.tolist():
        # W&B would take NaN for a number and sort by it; None is an empty cell.
        confidence = None if np.isnan(predictions.confidence[i]) else float(predictions.confidence[i])
        rows.append([
            dataset.places[i],
            wandb.Image(dataset.image(i)),
            names[predictions.label[i]],
            names[predictions.prediction[i]],
            int(predictions.rank[i]),
            confidence,
        ])  # fmt: skip
    return _table(["index", "image", "label", "prediction", "rank", "confidence"], rows)


def _confusion(run: Run, names: Sequence[str]) -> dict[str, Any]:
    """Returns the confusion matrix; for many classes, which would be unreadable, the most frequent confusions."""
    import wandb

    label = run.predictions.label
    prediction = run.predictions.prediction
    if len(names) <= MAX_CONFUSION:
        chart = wandb.plot.confusion_matrix(
            y_true=label.tolist(), preds=prediction.tolist(), class_names=list(names), title="Confusion"
        )
        return {"confusion": chart}
    incorrect = np.stack([label, prediction], axis=1)[label != prediction]
    pairs, times = np.unique(incorrect, axis=0, return_counts=True)
    # Stable, so that pairs as frequent as the last one are chosen in the order of the classes.
    first = np.argsort(-times, kind="stable")[:MAX_PAIRS]
    rows = [[names[a], names[b], n] for (a, b), n in zip(pairs[first].tolist(), times[first].tolist(), strict=True)]
    return {"confused": _table(["label", "prediction", "confusions"], rows)}
