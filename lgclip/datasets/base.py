"""Defines the data set interface: images, labels, class names and the split, all keyed by class index."""

import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from PIL import Image

from lgclip.runtime.terminal import TURNING
from lgclip.store.keys import content_key
from lgclip.types import TargetClass, count_earlier


class BadImageError(ValueError):
    """Reports that a file's content cannot be decoded as an image; disk and permission errors are other errors.

    Attributes:
        where: The file, or its position in a file.
        reason: What is wrong with it; independent of the file's location.
    """

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where} cannot be read as an image ({reason}); repair it or move it away")
        self.where = where
        self.reason = reason


@dataclass(frozen=True)
class Training:
    """Describes where the training images of a data set are.

    Attributes:
        values: Config values that select them; empty if there are none.
        pool: Config values that select all images that are not evaluated, if those are more: train and val together.
        lacking: Why there are none and how to fix it, as the end of a sentence.
    """

    values: Mapping[str, object] = field(default_factory=dict)
    pool: Mapping[str, object] = field(default_factory=dict)
    lacking: str = ": its images are for tests only; train on a data set that has a training split"


class Dataset(ABC):
    """Provides labelled images of named classes.

    Attributes:
        name: Name of the data set, as shown in results.
        split: Split of the images.
        names: List that the class names come from.
        class_names: Name of each class; only displayed and used in prompts, never looked up.
        labels: Class index of each image.
        ids: Content key of each image.
        templates: Templates for the text baseline; `{}` is the class name.
        context: Type of the classes, such as "a type of bird"; empty if unknown.
        class_indices: Index of each class among ImageNet's 1000; None for other classes.
        occurrences: How many earlier classes of the complete list have the name of each class, where some of the list
            are left out; None to count them in `class_names`.
        training: Where its training images are.
        draw_order: Classes, by index, in the order in which published random class splits draw them; None for the order
            of the indices.
        folder_names: Class name of each class folder, where these are the user's own.
        files_left_out: Number of files and folders that are not read, by reason.
        files_noted: Number of images that are read although a reader might not expect it, by reason.
        has_images: Whether there are images to evaluate; False for class names alone.
    """

    name: str
    split: str
    names: str = "own"
    class_names: tuple[str, ...]
    labels: tuple[int, ...]
    templates: tuple[str, ...] = ("a photo of a {}.",)
    context: str = ""
    class_indices: tuple[int, ...] | None = None
    occurrences: tuple[int, ...] | None = None
    training: Training = Training()
    draw_order: tuple[int, ...] | None = None
    folder_names: Mapping[str, str] = MappingProxyType({})
    files_left_out: Mapping[str, int] = MappingProxyType({})
    files_noted: Mapping[str, int] = MappingProxyType({})
    has_images: bool = True

    @cached_property
    @abstractmethod
    def ids(self) -> Sequence[str]:
        """Returns the content key of each image."""

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """Returns the image at `index`, decoded to RGB.

        Raises:
            BadImageError: If it cannot be decoded.
            ValueError: If it cannot be accessed.
        """

    def where(self, index: int) -> str:
        """Returns the location of the image at `index`, for messages."""
        return f"image {index} of {self.name}"

    def original(self, index: int) -> Path | bytes | None:
        """Returns the file of the image at `index`, or its bytes; None if it has neither."""
        return None

    def description(self, index: int) -> str | None:
        """Returns a true sentence about the content of the image at `index`; None if the data set has none."""
        return None

    @property
    def places(self) -> Sequence[int]:
        """Returns the position of each image in the complete data set; not its index where images are left out."""
        return range(len(self))

    @abstractmethod
    def source(self) -> dict[str, object]:
        """Returns the inputs that identify these images in the key of their features."""

    def training_values(self) -> dict[str, object]:
        """Returns the config values that turn this data set into its training images, of the same classes.

        None of these images is evaluated.

        Raises:
            ValueError: If it has no training split withs the evaluated one.
        """
        if not self.training.values:
            raise ValueError(f"dataset={self.name} has no training split{self.training.lacking}")
        return dict(self.training.values)

    def pool_values(self) -> dict[str, object]:
        """Returns the config values that select all images that are not evaluated: train and val where both exist.

        Raises:
            ValueError: As in `training_values`.
        """
        return dict(self.training.pool) or self.training_values()

    @cached_property
    def fingerprint(self) -> str:
        """Returns a key of all images and their labels: equal for equal content, wherever it lies."""
        return content_key({"ids": list(self.ids), "labels": list(self.labels)})

    @property
    def target_classes(self) -> tuple[TargetClass, ...]:
        """Returns the classes in the form that a prompt generator takes."""
        occurrences = self.occurrences
        if occurrences is None:
            occurrences = count_earlier(self.class_names)
        return tuple(
            TargetClass(index, name, self.context, occurrence)
            for index, (name, occurrence) in enumerate(zip(self.class_names, occurrences, strict=True))
        )

    def text_sentences(self, label: int) -> list[str]:
        """Returns the sentences of the text baseline that stand for a class."""
        return [template.replace("{}", self.class_names[label]) for template in self.templates]

    def __len__(self) -> int:
        return len(self.labels)


def check_size(dataset: Dataset, key: str) -> None:
    """Checks that a data set has an image and at least two classes: with one class every prediction is correct.

    Args:
        dataset: The data set, or a selection of its classes.
        key: The config value that names it, for the message.

    Raises:
        ValueError: If it has no class, one class or no image.
    """
    names = dataset.class_names
    if len(names) < 2:
        classes = f"only one class, {names[0]!r}" if names else "no class"
        raise ValueError(f"{key}: {dataset.name} has {classes}; a classifier needs two at least, so name more classes")
    check_images(dataset, key)


def check_images(dataset: Dataset, key: str) -> None:
    """Checks that a data set has an image.

    Args:
        dataset: The data set.
        key: The config value that names it, for the message.

    Raises:
        ValueError: If it has none.
    """
    if not len(dataset):
        raise ValueError(
            f"{key}: {dataset.name} has no image of its {len(dataset.class_names)} classes; check the path"
        )


def check_same_classes(dataset: Dataset, training: Dataset) -> None:
    """Checks that a data set and its training images have the same classes.

    Raises:
        ValueError: If they are not the same, in the same order.
    """
    ours = dataset.class_names
    theirs = training.class_names
    if ours == theirs and dataset.class_indices == training.class_indices:
        return
    difference = ""
    # Equal names with other indices are two of ImageNet's classes that share a name; then no name distinguishes them.
    if ours != theirs:
        # Where one list is the beginning of the other, the first class that it lacks.
        shorter = min(len(ours), len(theirs))
        index = next((i for i in range(shorter) if ours[i] != theirs[i]), shorter)
        difference = f"; class {index} is {_name(ours, index)} and {_name(theirs, index)}"
    raise ValueError(
        f"dataset={dataset.name}: its {len(ours)} classes are not the {len(theirs)} of its training images"
        f"{difference}; give both one list by dataset.names=FILE, or choose another split"
    )


def _name(names: Sequence[str], index: int) -> str:
    if index >= len(names):
        return "missing"
    return repr(names[index])


def checked_names(names: Sequence[str], *, unique: bool = True) -> tuple[str, ...]:
    """Returns class names ready for prompts: one line each, without control characters.

    Args:
        names: One name per class.
        unique: Whether names must be unique, ignoring case and spaces. ImageNet's usual list has two
            "missile" and two "sunglasses", which stay 1000 classes.

    Raises:
        ValueError: If a name is empty, not text, or a duplicate where names must be unique.
    """
    clean: list[str] = []
    for index, name in enumerate(names):
        # NFC, because folders on macOS have accents as letters of their own, and the same name would be another prompt.
        letters = [letter for letter in unicodedata.normalize("NFC", name) if letter not in TURNING]
        letters = [" " if unicodedata.category(letter) == "Cc" else letter for letter in letters]
        text = " ".join("".join(letters).split())
        # Half of a surrogate pair represents a byte of a file name that is not UTF-8; no JSON or text can hold it.
        if any(unicodedata.category(letter) == "Cs" for letter in text):
            raise ValueError(f"class {index} has a name that is not text in UTF-8: {name!r}; rename it")
        if not text:
            raise ValueError(f"class {index} has an empty name: {name!r}")
        clean.append(text)
    counts = Counter(name.casefold() for name in clean if unique)
    for name in clean:
        if counts[name.casefold()] > 1:
            places = [i for i, other in enumerate(clean) if other.casefold() == name.casefold()]
            raise ValueError(f"classes {places} are all named {name!r}: give each a unique name in dataset.names=FILE")
    return tuple(clean)
