"""Defines the batches that stages, encoders and methods exchange.

They hold tensors; `lgclip.types` has the types that need no torch, so that data sets are imported in milliseconds.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from lgclip.types import Unread

CPU_ROWS = 32
"""Views, or sentences, of a forward pass on a CPU, where the size makes no difference in speed."""


class ImageBatch(NamedTuple):
    """Holds views of some images, ready for an encoder.

    Attributes:
        ids: Content keys of the images.
        views: Preprocessed pixels.
        unread: Images that belong to the batch but cannot be read.
        notes: Notes on images with an unusual format, by id.
    """

    ids: list[str]
    views: Float[Tensor, "b s 3 h w"]
    unread: Sequence[Unread] = ()
    notes: Mapping[str, str] = MappingProxyType({})


class FeatureBatch(NamedTuple):
    """Holds L2-normalized features of some images or sentences.

    Attributes:
        features: One unit vector per view.
        labels: Class indices.
        indices: Positions in the stream that the features come from.
    """

    features: Float[Tensor, "b s d"]
    labels: Int[Tensor, " b"]
    indices: Int[Tensor, " b"]


class TrainingBatch(NamedTuple):
    """Holds one device's shard of a training step's batch.

    Attributes:
        step: Index of the step, from 0.
        pixels: Images as bytes, augmented according to the recipe.
        labels: Class indices.
        total: Size of the global batch, over all devices.
    """

    step: int
    pixels: UInt8[Tensor, "b 3 h w"]
    labels: Int[Tensor, " b"]
    total: int


class PromptBatch(NamedTuple):
    """Holds one device's shard of a batch for prompt tuning.

    Attributes:
        step: Index of the step within the round, from 0.
        inputs: Unit features (b, d), or preprocessed pixels (b, 3, h, w).
        sets: Candidate classes of each image; a single one where the label is known.
        kinds: Type of each image: 0 labelled, 1 pseudo-labelled, 2 synthetic.
        totals: Number of images of each type in the global batch, over all devices.
    """

    step: int
    inputs: Float[Tensor, "b ..."]
    sets: Bool[Tensor, "b c"]
    kinds: Int[Tensor, " b"]
    totals: Int[Tensor, " 3"]
