"""Cuts views of an image, weights them, and fuses their features to one unit vector."""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import ClassVar, NamedTuple

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lgclip.store.keys import STANDS_FOR, key_inputs

_GENERATOR = Lock()
"""Guards torch's global generator."""

FULL_IMAGE = "full"
"""Name of the view of the full image, with the encoder's own preprocessing."""


class View(NamedTuple):
    """Holds one view of an image, not yet resized.

    Attributes:
        image: Its pixels.
        squash: Whether to resize it directly to the encoder's input; otherwise the encoder's own
            preprocessing resizes the shorter side and takes the center crop.
    """

    image: Image.Image
    squash: bool


@dataclass(frozen=True)
class Scales(ABC):
    """Fuses features of crops at several area fractions by weight (arXiv:2512.17160, multi-scale fusion).

    A crop depends only on the image's id and the view, so that real and synthetic images have the same views for any
    order, batch or device.

    Args:
        fractions: Area of each crop, in (0, 1].
        weights: Weight of each crop, normalized by their sum.

    Raises:
        ValueError: If there is no scale, the lengths differ, a fraction or weight is out of range,
            or the weights sum to 0.
    """

    fractions: Sequence[float] = (1.0,)
    weights: Sequence[float] = (1.0,)

    def __post_init__(self) -> None:
        if not self.fractions:
            raise ValueError("scales.fractions=[]: at least one scale is needed, for example [1.0]")
        if len(self.weights) != len(self.fractions):
            raise ValueError(f"scales: {len(self.weights)} weights for {len(self.fractions)} fractions; give one each")
        for fraction in self.fractions:
            if not 0 < fraction <= 1:
                raise ValueError(f"scales.fractions: {fraction} is not an area fraction in (0, 1]")
        if len(set(self.views)) != len(self.views):
            raise ValueError(f"scales.fractions={list(self.fractions)}: a fraction occurs twice")
        if not all(math.isfinite(w) and w >= 0 for w in self.weights) or sum(self.weights) <= 0:
            raise ValueError(f"scales.weights={list(self.weights)}: weights are at least 0 and sum to more than 0")

    @property
    def views(self) -> tuple[str, ...]:
        """Returns the name of each view, the same in every run: the key of its features."""
        return tuple(self._name(fraction) for fraction in self.fractions)

    def crop(self, image: Image.Image, image_id: str) -> list[View]:
        """Returns the views of one image."""
        views: list[View] = []
        for fraction, view in zip(self.fractions, self.views, strict=True):
            if view == FULL_IMAGE:
                views.append(View(image, squash=False))
            else:
                # A crop has been cut already: the tower's own preprocessing would cut its borders off again.
                views.append(View(self._crop(image, image_id, fraction, view), squash=True))
        return views

    def fuse(self, features: Float[Tensor, "b s d"]) -> Float[Tensor, "b d"]:
        """Returns the weighted sum of unit views, normalized to unit length."""
        import torch

        # Only the ratios of the weights count, since the sum is brought to unit length. They are divided by their sum
        # all the same, to keep the sum of views within the range of half precision.
        weights = torch.tensor(self.weights, dtype=features.dtype, device=features.device)
        return torch.nn.functional.normalize(torch.einsum("bsd,s->bd", features, weights / weights.sum()), dim=-1)

    @abstractmethod
    def _name(self, fraction: float) -> str:
        """Returns the name of the view at one fraction."""

    @abstractmethod
    def _crop(self, image: Image.Image, image_id: str, fraction: float, view: str) -> Image.Image:
        """Returns the crop at one fraction."""


@dataclass(frozen=True)
class SquareCrops(Scales):
    """Crops squares, as area fractions of the image's largest square; the fraction 1 is the full image."""

    key_name: ClassVar[str] = "SquareCrops"

    def _name(self, fraction: float) -> str:
        # The largest square of an image would cut off its ends; the whole image is shared with other scales, too.
        if fraction == 1:
            return FULL_IMAGE
        return f"square-{fraction:.6f}"

    def _crop(self, image: Image.Image, image_id: str, fraction: float, view: str) -> Image.Image:
        side = max(1, round(math.sqrt(fraction) * min(image.size)))
        width, height = image.size
        horizontal, vertical = _random_parts(image_id, view)
        # A number below 2**64 times the count of places, divided by 2**64, is a place; in whole numbers, because
        # floats could round up to one place too many.
        left = horizontal * (width - side + 1) >> 64
        top = vertical * (height - side + 1) >> 64
        return image.crop((left, top, left + side, top + side))


@dataclass(frozen=True)
class RandomResizedCrops(Scales):
    """Applies torchvision's `RandomResizedCrop` at fixed areas, as in the official release of LGCLIP.

    A fraction is relative to the area of the full image. Ten shapes are tried; if none fits, the crop is
    the central one with the nearest aspect ratio, which at the fraction 1 is a full square or 4:3 image, squashed.

    Args:
        aspect: Minimum and maximum width / height of a crop, sampled log-uniformly.
        full_image: Whether to use it, with the encoder's own preprocessing, for the fraction 1.

    Raises:
        ValueError: Also if `aspect` is not a range of positive numbers.
    """

    key_name: ClassVar[str] = "RandomResizedCrops"

    aspect: Sequence[float] = (3 / 4, 4 / 3)
    full_image: bool = False

    def __post_init__(self) -> None:
        if len(self.aspect) != 2 or not 0 < self.aspect[0] <= self.aspect[1] < math.inf:
            raise ValueError(f"scales.aspect={list(self.aspect)}: give the smallest and largest, both above 0")
        super().__post_init__()

    def _name(self, fraction: float) -> str:
        if self.full_image and fraction == 1:
            return FULL_IMAGE
        return f"resized-{fraction:.6f}-{self.aspect[0]:.6f}-{self.aspect[1]:.6f}"

    def _crop(self, image: Image.Image, image_id: str, fraction: float, view: str) -> Image.Image:
        import torch
        from torchvision.transforms import RandomResizedCrop

        # torchvision uses only torch's global generator: it is seeded for this crop and then restored, so that
        # the training that goes on around it is not changed. By one thread at a time: images are cropped in several.
        with _GENERATOR, torch.random.fork_rng(devices=[]):
            torch.manual_seed(_random_parts(image_id, view)[0] >> 1)  # 63 bits: the seed is a signed number
            place = RandomResizedCrop.get_params(image, [fraction, fraction], list(self.aspect))  # pyright: ignore[reportArgumentType]
        top, left, height, width = place
        return image.crop((left, top, left + width, top + height))


@dataclass(frozen=True)
class WithFullImage(Scales):
    """Adds the view of the full image to others; their fusion does not use it.

    Args:
        others: The views that are fused.
    """

    key_name: ClassVar[str] = "WithFullImage"

    others: Scales = field(default_factory=SquareCrops, metadata={STANDS_FOR: lambda part: key_inputs(part.others)})

    @property
    def views(self) -> tuple[str, ...]:
        return (*self.others.views, FULL_IMAGE)

    def crop(self, image: Image.Image, image_id: str) -> list[View]:
        return [*self.others.crop(image, image_id), View(image, squash=False)]

    def fuse(self, features: Float[Tensor, "b s d"]) -> Float[Tensor, "b d"]:
        return self.others.fuse(features[:, :-1])

    def _name(self, fraction: float) -> str:
        return self.others._name(fraction)

    def _crop(self, image: Image.Image, image_id: str, fraction: float, view: str) -> Image.Image:
        return self.others._crop(image, image_id, fraction, view)


def full_image_place(scales: Scales) -> int | None:
    """Returns the index of the full image among several views; None if it is the only view or there is none."""
    views = list(scales.views)
    if len(views) < 2 or FULL_IMAGE not in views:
        return None
    return views.index(FULL_IMAGE)


def _random_parts(image_id: str, view: str) -> tuple[int, int]:
    """Returns two pseudo-random integers below 2**64 for one view of one image."""
    digest = hashlib.sha256(f"{image_id}/{view}".encode()).digest()
    return int.from_bytes(digest[:8]), int.from_bytes(digest[8:16])
