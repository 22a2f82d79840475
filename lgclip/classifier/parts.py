"""Defines what a classifier consists of and what it returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from lgclip.methods.left_out import References

if TYPE_CHECKING:
    from lgclip.classifier.model import ImageClassifier


@dataclass(frozen=True)
class ImagePrediction:
    """Describes the predicted class of one image.

    Attributes:
        path: The file, or `image N` for one that was passed as pixels.
        label: Name of the most probable class; None if the image cannot be read.
        score: Its probability.
        runner_up: Name of the second class; None with an error.
        margin: Difference of the two probabilities.
        top: The most probable classes with their probabilities, the first first.
        error: Why the image cannot be read; None for a prediction.
        rejected: Whether the image shows none of the classes, so that the label is only the most similar one; None
            where the classifier has no threshold.
    """

    path: str
    label: str | None
    score: float | None
    runner_up: str | None
    margin: float | None
    top: tuple[tuple[str, float], ...] = ()
    error: str | None = None
    rejected: bool | None = None


class ClassInfo(NamedTuple):
    """Describes a class of a classifier.

    Attributes:
        name: Its name, which predictions give.
        description: What it looks like, as it was given to the prompt generator; empty if nothing was.
        prompts: The sentences that its images were generated from.
        prompted_as: Name that its prompts were generated from, where the class was renamed since; else empty.
    """

    name: str
    description: str = ""
    prompts: tuple[str, ...] = ()
    prompted_as: str = ""


class Negatives(NamedTuple):
    """Holds images of objects that are similar to the classes and belong to none.

    Attributes:
        names: What they show, by class index.
        references: Their synthetic images, and their text prototypes where the classifier has some.
    """

    names: tuple[str, ...]
    references: References


class Builder(Protocol):
    """Builds further classes with the settings of a classifier."""

    def build(self, names: Mapping[str, str], settings: Mapping[str, Any]) -> "ImageClassifier":
        """Builds a classifier of some classes, by name and description."""
        ...

    def similar_names(self, names: Mapping[str, str], settings: Mapping[str, Any], count: int) -> list[str]:
        """Returns names of objects that look similar to some classes and belong to none, at most `count` per class."""
        ...


def names_of(classes: Sequence[str]) -> tuple[str, ...]:
    """Returns class names, made distinct by their occurrence where one occurs twice, as two of ImageNet's do."""
    counts: dict[str, int] = {}
    names: list[str] = []
    for name in classes:
        counts[name] = counts.get(name, 0) + 1
        names.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return tuple(names)
