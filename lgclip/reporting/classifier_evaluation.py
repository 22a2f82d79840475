"""Evaluates a classifier on labelled images, with the statistics of a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lgclip.classifier.model import ImageClassifier
from lgclip.classifier.parts import ImagePrediction
from lgclip.datasets.folder import Folder
from lgclip.evaluation.metrics import metrics, per_class
from lgclip.reporting.result_schema import Metrics


@dataclass(frozen=True)
class ClassifierEvaluation:
    """Holds the accuracy of a classifier on labelled images.

    Attributes:
        n: Number of images that were evaluated.
        metrics: Accuracies from 0 to 1, with their 95% intervals.
        per_class: Number of images and of correct predictions of each class that has images.
        predictions: Prediction for each image.
        labels: True class of each image, by name.
        unreadable: Images that were left out, with the reason of each.
    """

    n: int
    metrics: Metrics
    per_class: Mapping[str, tuple[int, int]]
    predictions: tuple[ImagePrediction, ...]
    labels: tuple[str, ...]
    unreadable: Mapping[str, str]

    def __str__(self) -> str:
        low, high = self.metrics.top1_ci95
        left_out = f", {len(self.unreadable)} unreadable ones left out" if self.unreadable else ""
        return (
            f"top-1 {100 * self.metrics.top1:.1f}% (95% interval {100 * low:.1f} - {100 * high:.1f}), mean per class "
            f"{100 * self.metrics.mean_per_class:.1f}%, {self.n} images{left_out}"
        )


def evaluate_classifier(
    classifier: ImageClassifier, root: str | Path, *, names: str | None = None, skip_unreadable: bool = False
) -> ClassifierEvaluation:
    """Evaluates a classifier on a folder with one folder of images per class.

    Args:
        classifier: The classifier.
        root: The folder; the folders in it are named as the classes, see `dataset=folder`.
        names: File with the class name of each folder; None uses the folders' names.
        skip_unreadable: Whether to leave out images that cannot be read, instead of an error.

    Raises:
        ValueError: If the folder has a class that the classifier lacks, or an image cannot be read.
    """
    data = Folder(str(root), names)
    place = {name.casefold(): index for index, name in enumerate(classifier.class_names)}
    unknown = [name for name in data.class_names if name.casefold() not in place]
    if unknown:
        raise ValueError(
            f"{root}: the classifier has no class {', '.join(map(repr, unknown[:6]))}; its classes are "
            f"{', '.join(map(repr, classifier.class_names[:6]))}. Give names by names=FILE, or add the classes"
        )
    files = [data.original(index) for index in range(len(data))]
    count = len(classifier.class_names)
    predictions: list[ImagePrediction] = []
    labels: list[int] = []
    ranks: list[int] = []
    unreadable: dict[str, str] = {}
    for index, prediction in enumerate(classifier.classify(files, top=count)):
        if prediction.error is not None:
            if not skip_unreadable:
                raise ValueError(
                    f"{prediction.path} cannot be read as an image ({prediction.error}); repair it, or leave out "
                    "such images by skip_unreadable=True"
                )
            unreadable[prediction.path] = prediction.error
            continue
        label = place[data.class_names[data.labels[index]].casefold()]
        ranked = [name for name, _ in prediction.top]
        labels.append(label)
        ranks.append(ranked.index(classifier.class_names[label]))
        predictions.append(prediction)
    if not predictions:
        raise ValueError(f"{root}: none of its {len(data)} images can be read")
    true_classes = np.array(labels)
    ranked_at = np.array(ranks)
    rows = per_class(true_classes, ranked_at, count)
    counted = {
        name: (row["n"], row["right"]) for name, row in zip(classifier.class_names, rows, strict=True) if row["n"]
    }
    return ClassifierEvaluation(
        n=len(predictions),
        metrics=Metrics(**metrics(true_classes, ranked_at, count)),  # pyright: ignore[reportArgumentType]
        per_class=counted,
        predictions=tuple(predictions),
        labels=tuple(classifier.class_names[label] for label in labels),
        unreadable=unreadable,
    )
