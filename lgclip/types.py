"""Defines the data types that all stages share, and the letters used in tensor shapes.

Letters in shapes: b batch, c classes, k synthetic images of a class, n images, s scales (views of
one image), d feature dimension, h and w pixels.
"""

from enum import Enum, StrEnum
from typing import NamedTuple


class TargetClass(NamedTuple):
    """Describes a class for a prompt generator.

    Attributes:
        class_index: Index in the data set's list of class names.
        name: Class name.
        context: Type of the class, such as "a type of bird"; empty if unknown.
    """

    class_index: int
    name: str
    context: str = ""


class Prompt(NamedTuple):
    """Holds one sentence to generate images of a class from.

    Attributes:
        class_index: Index of the class in the data set's list of class names.
        text: The sentence.
        repeat: How many earlier prompts of the class have the same text: 0 for the first.
    """

    class_index: int
    text: str
    repeat: int


class Unread(NamedTuple):
    """Describes an image that cannot be read.

    Attributes:
        id: Content key of the image.
        where: File of the image, or its position in a file.
        reason: Why it cannot be read.
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
    SYNTHETIC = "synthetic images that stand for the classes"
    EVALUATED = "images to evaluate"
    PREDICTED = "outputs of a trained predictor on the images to evaluate"
