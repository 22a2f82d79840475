"""The words every stage shares, and the legend of the shapes.

Letters in shapes: b batch, c classes, k synthetic images of a class, n images, s scales (views of
one image), d feature width, h and w pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor


class Subject(NamedTuple):
    """A class as it is told to a writer of prompts.

    Attributes:
        class_index: Its place in the data set's list of names.
        name: Its name.
        context: What kind of thing it is, such as "a type of bird"; empty if nothing is said.
    """

    class_index: int
    name: str
    context: str = ""


class Prompt(NamedTuple):
    """One sentence to draw a class from.

    Attributes:
        class_index: The class, by its place in the data set's list of names.
        text: The sentence.
        repeat: How often the same sentence came before in its class: 0 for the first.
    """

    class_index: int
    text: str
    repeat: int


class Unread(NamedTuple):
    """An image that cannot be read.

    Attributes:
        id: Its content key.
        where: The file, or its place in one.
        reason: What is wrong with it.
    """

    id: str
    where: str
    reason: str


class ImageBatch(NamedTuple):
    """Views of some images, ready for an encoder.

    Attributes:
        ids: Content keys of the images.
        views: Preprocessed pixels.
        unread: Images that should be among them and cannot be read.
    """

    ids: list[str]
    views: Float[Tensor, "b s 3 h w"]
    unread: Sequence[Unread] = ()


class FeatureBatch(NamedTuple):
    """Unit features of some images or sentences.

    Attributes:
        features: One unit vector a view.
        labels: Class indices.
        indices: Places in the stream that the features come from.
    """

    features: Float[Tensor, "b s d"]
    labels: Int[Tensor, " b"]
    indices: Int[Tensor, " b"]


class TrainingBatch(NamedTuple):
    """One device's share of a training step's batch.

    Attributes:
        step: Which step it is, from 0.
        pixels: Images as bytes, changed as the recipe says.
        labels: Class indices.
        total: How many images the whole batch has, on all devices.
    """

    step: int
    pixels: UInt8[Tensor, "b 3 h w"]
    labels: Int[Tensor, " b"]
    total: int


class PromptBatch(NamedTuple):
    """One device's share of a step's batch that soft prompts are learnt from.

    Attributes:
        step: Which step of the round it is, from 0.
        inputs: Unit features (b, d), or preprocessed pixels (b, 3, h, w).
        sets: The classes that each image may be of; one where its label is known.
        kinds: Of each image 0 if it is labelled, 1 if its label is a guess, 2 if it is synthetic.
        totals: How many of each kind the whole batch has, on all devices.
    """

    step: int
    inputs: Float[Tensor, "b ..."]
    sets: Bool[Tensor, "b c"]
    kinds: Int[Tensor, " b"]
    totals: Int[Tensor, " 3"]
