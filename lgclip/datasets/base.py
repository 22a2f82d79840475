"""Data sets to judge on: images, labels, class names and the split, all keyed by class index."""

import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from functools import cached_property

from PIL import Image

from lgclip.batch import Subject


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
    """

    name: str
    split: str
    names: str = "own"
    class_names: tuple[str, ...]
    labels: tuple[int, ...]
    templates: tuple[str, ...] = ("a photo of a {}.",)
    context: str = ""

    @cached_property
    @abstractmethod
    def ids(self) -> tuple[str, ...]:
        """Content key of each image."""

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """The image at `index`, decoded to RGB.

        Raises:
            ValueError: If it cannot be decoded.
        """

    @abstractmethod
    def source(self) -> dict[str, object]:
        """What these images are, for the key of their features."""

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """The classes as they are told to a writer of prompts."""
        return tuple(Subject(index, name, self.context) for index, name in enumerate(self.class_names))

    def __len__(self) -> int:
        return len(self.labels)


def checked_names(names: Sequence[str], *, unique: bool = True) -> tuple[str, ...]:
    """Class names as they go into prompts: one line each, no control characters.

    Args:
        names: One name a class.
        unique: Whether no two may be the same but for case and spaces. ImageNet's usual list has two
            "missile" and two "sunglasses", which stay 1000 classes.

    Raises:
        ValueError: If a name is empty, or stands there twice where it may not.
    """
    clean = []
    for index, name in enumerate(names):
        text = "".join(" " if unicodedata.category(c) == "Cc" else c for c in unicodedata.normalize("NFC", name))
        text = " ".join(text.split())
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
