"""Data sets to judge on: images, labels, class names and the split, all keyed by class index."""

import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from PIL import Image

from lgclip.batch import Subject
from lgclip.shown import TURNING


class BadImageError(ValueError):
    """What an image file holds cannot be read as an image; that the disk or a right fails is another error.

    Attributes:
        where: The file, or its place in one.
        reason: What is wrong with it; the same wherever the file lies.
    """

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where} cannot be read as an image ({reason}); mend it or move it away")
        self.where, self.reason = where, reason


@dataclass(frozen=True)
class Training:
    """Where the training images of a data set are.

    Attributes:
        values: The values of its config that make it those; empty if there are none.
        pool: The values that make it all images that are not judged, if those are more: train and val together.
        lacking: Why there are none, and the way out, as the end of a sentence.
    """

    values: Mapping[str, object] = field(default_factory=dict)
    pool: Mapping[str, object] = field(default_factory=dict)
    lacking: str = ": its images are for tests alone; judge it beside a data set that has one"


class Dataset(ABC):
    """Labelled images of named classes.

    Attributes:
        name: The data set's name, as shown in results.
        split: Which of its images these are.
        names: Which list the class names are from.
        class_names: Name of each class; only shown and written into prompts, never looked up.
        labels: Class index of each image.
        ids: Content key of each image.
        templates: Sentences for the text baseline; `{}` is the class name.
        context: What kind of things the classes are, such as "a type of bird"; empty if nothing is said.
        class_indices: Index of each class among ImageNet's 1000; None for other classes.
        training: Where its training images are.
    """

    name: str
    split: str
    names: str = "own"
    class_names: tuple[str, ...]
    labels: tuple[int, ...]
    templates: tuple[str, ...] = ("a photo of a {}.",)
    context: str = ""
    class_indices: tuple[int, ...] | None = None
    training: Training = Training()

    @cached_property
    @abstractmethod
    def ids(self) -> Sequence[str]:
        """Content key of each image."""

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """The image at `index`, decoded to RGB.

        Raises:
            BadImageError: If it cannot be decoded.
            ValueError: If it cannot be got at.
        """

    def where(self, index: int) -> str:
        """Where the image at `index` lies, for the eye."""
        return f"image {index} of {self.name}"

    def original(self, index: int) -> Path | bytes | None:
        """The file of the image at `index`, or what is in it; None if there is no such thing."""
        return None

    @property
    def places(self) -> Sequence[int]:
        """Place of each image in the whole data set; another than its index where images are left out."""
        return range(len(self))

    @abstractmethod
    def source(self) -> dict[str, object]:
        """What these images are, for the key of their features."""

    def training_values(self) -> dict[str, object]:
        """The values of this data set's config that make it its training images, of the same classes.

        None of these images is among the judged ones.

        Raises:
            ValueError: If it has no training split beside the one that is judged.
        """
        if not self.training.values:
            raise ValueError(f"dataset={self.name} has no training split{self.training.lacking}")
        return dict(self.training.values)

    def pool_values(self) -> dict[str, object]:
        """The values of its config that make it all of its images that are not judged: train and val where both are.

        Raises:
            ValueError: As of `training_values`.
        """
        return dict(self.training.pool) or self.training_values()

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """The classes as they are told to a writer of prompts."""
        return tuple(Subject(index, name, self.context) for index, name in enumerate(self.class_names))

    def __len__(self) -> int:
        return len(self.labels)


def check_same_classes(dataset: Dataset, training: Dataset) -> None:
    """Compares the classes of a data set with those of its training images.

    Raises:
        ValueError: If they are not the same, in the same order.
    """
    ours, theirs = dataset.class_names, training.class_names
    if ours == theirs and dataset.class_indices == training.class_indices:
        return
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    first = f"; class {at} is {_name(ours, at)} and {_name(theirs, at)}"
    raise ValueError(
        f"dataset={dataset.name}: its {len(ours)} classes are not the {len(theirs)} of its training images"
        f"{first if ours != theirs else ''}; give both one list by dataset.names=FILE, or choose another split"
    )


def _name(names: Sequence[str], at: int) -> str:
    return repr(names[at]) if at < len(names) else "missing"


def checked_names(names: Sequence[str], *, unique: bool = True) -> tuple[str, ...]:
    """Class names as they go into prompts: one line each, nothing in it that steers a terminal.

    Args:
        names: One name a class.
        unique: Whether no two may be the same but for case and spaces. ImageNet's usual list has two
            "missile" and two "sunglasses", which stay 1000 classes.

    Raises:
        ValueError: If a name is empty or no text, or stands there twice where it may not.
    """
    clean = []
    for index, name in enumerate(names):
        plain = (letter for letter in unicodedata.normalize("NFC", name) if letter not in TURNING)
        text = " ".join("".join(" " if unicodedata.category(c) == "Cc" else c for c in plain).split())
        if any(unicodedata.category(letter) == "Cs" for letter in text):
            raise ValueError(f"class {index} has a name that is no text in UTF-8: {name!r}; rename it")
        if not text:
            raise ValueError(f"class {index} has an empty name: {name!r}")
        clean.append(text)
    seen = Counter(name.casefold() for name in clean if unique)
    for name in clean:
        if seen[name.casefold()] > 1:
            places = [i for i, other in enumerate(clean) if other.casefold() == name.casefold()]
            raise ValueError(
                f"classes {places} are all named {name!r}: give each a name of its own in dataset.names=FILE"
            )
    return tuple(clean)
