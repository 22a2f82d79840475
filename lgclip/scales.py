"""Views of one image, their weights, and the one unit vector that they add up to."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Scales:
    """Square crops of an image at several area fractions (arXiv:2512.17160, multi-scale fusion).

    The place of a crop depends on the image's id and the fraction alone, so real and synthetic
    images give the same views whatever the order, the batch or the device. The fraction 1 is the
    whole image as the encoder's own preprocessing sees it.

    Args:
        fractions: Area of each crop, as a share of the image's largest central square, in (0, 1].
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
        return tuple(f"square-{fraction:.6f}" for fraction in self.fractions)

    def crop(self, image: Image.Image, image_id: str) -> list[Image.Image]:
        """The views of one image, not yet resized."""
        return [self._one(image, image_id, f, v) for f, v in zip(self.fractions, self.views, strict=True)]

    def _one(self, image: Image.Image, image_id: str, fraction: float, view: str) -> Image.Image:
        if fraction == 1:
            return image
        side = max(1, round(math.sqrt(fraction) * min(image.size)))
        digest = hashlib.sha256(f"{image_id}/{view}".encode()).digest()
        left, top = (
            int.from_bytes(digest[at : at + 8]) * (length - side + 1) >> 64
            for at, length in zip((0, 8), image.size, strict=True)
        )
        return image.crop((left, top, left + side, top + side))

    def fuse(self, features: Float[Tensor, "b s d"]) -> Float[Tensor, "b d"]:
        """The weighted sum of unit views, at unit length again."""
        import torch

        weights = torch.tensor(self.weights, dtype=features.dtype, device=features.device)
        return torch.nn.functional.normalize(torch.einsum("bsd,s->bd", features, weights / weights.sum()), dim=-1)
