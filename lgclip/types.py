"""Defines the data types that all stages share, and the letters used in tensor shapes.

Letters in shapes: b batch, c classes, k synthetic images of a class, n images, s scales (views of
one image), d feature dimension, h and w pixels.
"""

from collections.abc import Iterable
from enum import Enum, StrEnum
from typing import NamedTuple

TRAINING = "training"
TEST = "test"
"""Sources of unlabelled images: the data set's training split, or the evaluated images themselves."""


class TargetClass(NamedTuple):
    """Describes a class for a prompt generator.

    Attributes:
        class_index: Index in the data set's list of class names: its label, which no key and no seed may hold.
        name: Class name.
        context: Type of the class, such as "a type of bird"; empty if unknown.
        occurrence: How many earlier classes of the data set's complete list have the same name: 0 for the first.
    """

    class_index: int
    name: str
    context: str = ""
    occurrence: int = 0

    def identity(self) -> dict[str, object]:
        """Returns the class's identity in keys and seeds, independent of its index."""
        # Two classes may share a name, as "missile" does in ImageNet; each has its own prompts and images.
        return {"class": self.name, "occurrence": self.occurrence}


def count_earlier(names: Iterable[str]) -> tuple[int, ...]:
    """Returns for each name how many earlier ones are equal to it.

    Args:
        names: The names of a data set's classes, in their order.
    """
    counts: dict[str, int] = {}
    occurrences: list[int] = []
    for name in names:
        occurrences.append(counts.get(name, 0))
        counts[name] = occurrences[-1] + 1
    return tuple(occurrences)


class Prompt(NamedTuple):
    """Holds one sentence to generate images of a class from.

    Attributes:
        target_class: The class.
        text: The sentence.
        repeat: How many earlier prompts of the class have the same text: 0 for the first.
    """

    target_class: TargetClass
    text: str
    repeat: int

    @property
    def class_index(self) -> int:
        """Returns the label of its images."""
        return self.target_class.class_index

    def identity(self) -> dict[str, object]:
        """Returns the prompt's identity in keys and seeds; the context is not part of it, since the sentence is."""
        return {**self.target_class.identity(), "text": self.text, "repeat": self.repeat}


class Unread(NamedTuple):
    """Describes an image that cannot be read.

    Attributes:
        id: Content key of the image.
        where: File of the image, or its position in a file.
        reason: Reason why it cannot be read.
    """

    id: str
    where: str
    reason: str


class Fault(StrEnum):
    """Enumerates what can be wrong with an image; each value calls for a different remedy."""

    UNSAFE = "unsafe"
    """The pipeline's safety checker replaced it by a black image: due to the prompt, or a false alarm."""
    NOT_FINITE = "not finite"
    """Latents or pixels are NaN or infinite: the precision is too small for this model."""
    BLACK = "black"
    """Every pixel is 0 although no safety checker flagged it."""
    FLAT = "flat"
    """A single color everywhere, see `FLAT_STD`."""
    UNREADABLE = "unreadable"
    """A file that is not an image."""


class Role(Enum):
    """Enumerates what the features of a stream are used for."""

    TEXT = "sentences that stand for the classes"
    OTHER_TEXT = "sentences of a further text baseline"
    SYNTHETIC = "synthetic images that stand for the classes"
    UNLABELED = "unlabelled images, whose distribution is used"
    EVALUATED = "images to evaluate"
    PREDICTED = "outputs of a trained predictor on the images to evaluate"
