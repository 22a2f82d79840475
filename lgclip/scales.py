"""Views of one image, their weights, and the one unit vector that they add up to."""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float
from PIL import Image
from torch import Tensor

WHOLE = "whole"
"""The view that is the whole image, as the encoder's own preprocessing sees it."""


class View(NamedTuple):
    """One view of an image, not yet resized.

    Attributes:
        image: Its pixels.
        squash: Whether it is resized to the encoder's input as it is; otherwise the encoder's own
            preprocessing resizes the shorter side and cuts out the centre.
    """

    image: Image.Image
    squash: bool


@dataclass(frozen=True)
class Scales(ABC):
    """Crops of an image at several area fractions, added up by weight (arXiv:2512.17160, multi-scale fusion).

    What a crop shows depends on the image's id and the view alone, so real and synthetic images
    give the same views whatever the order, the batch or the device.

    Args:
        fractions: Area of each crop, in (0, 1].
        weights: Weight of each crop, in any unit: they are divided by their sum.

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
                raise ValueError(f"scales.fractions: {fraction} is not an area share in (0, 1]")
        if len(set(self.views)) != len(self.views):
            raise ValueError(f"scales.fractions={list(self.fractions)}: a fraction stands there twice")
        if not all(math.isfinite(w) and w >= 0 for w in self.weights) or sum(self.weights) <= 0:
            raise ValueError(f"scales.weights={list(self.weights)}: weights are at least 0 and sum to more than 0")

    @property
    def views(self) -> tuple[str, ...]:
        """Name of each view, the same in every run: the key of its features."""
        return tuple(self._name(fraction) for fraction in self.fractions)

    def crop(self, image: Image.Image, image_id: str) -> list[View]:
        """The views of one image."""
        return [
            View(image, squash=False)
            if view == WHOLE
            else View(self._one(image, image_id, fraction, view), squash=True)
            for fraction, view in zip(self.fractions, self.views, strict=True)
        ]

    def fuse(self, features: Float[Tensor, "b s d"]) -> Float[Tensor, "b d"]:
        """The weighted sum of unit views, at unit length again."""
        import torch

        weights = torch.tensor(self.weights, dtype=features.dtype, device=features.device)
        return torch.nn.functional.normalize(torch.einsum("bsd,s->bd", features, weights / weights.sum()), dim=-1)

    @abstractmethod
    def _name(self, fraction: float) -> str:
        """Name of the view at one fraction."""

    @abstractmethod
    def _one(self, image: Image.Image, image_id: str, fraction: float, view: str) -> Image.Image:
        """The crop at one fraction."""


@dataclass(frozen=True)
class SquareCrops(Scales):
    """Squares, as shares of the image's largest square; the fraction 1 is the whole image."""

    def _name(self, fraction: float) -> str:
        return WHOLE if fraction == 1 else f"square-{fraction:.6f}"

    def _one(self, image: Image.Image, image_id: str, fraction: float, view: str) -> Image.Image:
        side = max(1, round(math.sqrt(fraction) * min(image.size)))
        left, top = (
            part * (length - side + 1) >> 64
            for part, length in zip(_random_parts(image_id, view), image.size, strict=True)
        )
        return image.crop((left, top, left + side, top + side))


@dataclass(frozen=True)
class RandomResizedCrops(Scales):
    """torchvision's `RandomResizedCrop` at fixed areas, as in the official release of LGCLIP.

    A fraction is a share of the whole image's area. Ten shapes are tried; if none fits, the crop is
    the central one nearest in shape, which at the fraction 1 is a whole square or 4:3 image, squashed.

    Args:
        aspect: Least and greatest width / height of a crop, drawn log-uniformly between them.
        whole: Take the whole image, by the encoder's own preprocessing, for the fraction 1.

    Raises:
        ValueError: Also if `aspect` is no range of positive numbers.
    """

    aspect: Sequence[float] = (3 / 4, 4 / 3)
    whole: bool = False

    def __post_init__(self) -> None:
        if len(self.aspect) != 2 or not 0 < self.aspect[0] <= self.aspect[1] < math.inf:
            raise ValueError(f"scales.aspect={list(self.aspect)}: give the least and the greatest, both above 0")
        super().__post_init__()

    def _name(self, fraction: float) -> str:
        if self.whole and fraction == 1:
            return WHOLE
        return f"resized-{fraction:.6f}-{self.aspect[0]:.6f}-{self.aspect[1]:.6f}"

    def _one(self, image: Image.Image, image_id: str, fraction: float, view: str) -> Image.Image:
        import torch
        from torchvision.transforms import RandomResizedCrop

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_random_parts(image_id, view)[0] >> 1)
            place = RandomResizedCrop.get_params(image, [fraction, fraction], list(self.aspect))  # pyright: ignore[reportArgumentType]
        top, left, height, width = place
        return image.crop((left, top, left + width, top + height))


def _random_parts(image_id: str, view: str) -> tuple[int, int]:
    """Two whole numbers below 2**64 that belong to one view of one image."""
    digest = hashlib.sha256(f"{image_id}/{view}".encode()).digest()
    return int.from_bytes(digest[:8]), int.from_bytes(digest[8:16])
