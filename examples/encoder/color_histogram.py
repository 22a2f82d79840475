"""An encoder outside of lgclip: the color histogram of an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from lgclip.encoder.base import Encoder, Towers, Transform


@dataclass(frozen=True)
class ColorHistogram(Encoder):
    """Encodes an image as the square roots of its color frequencies, which have unit length.

    Args:
        bins: Number of bins per color channel; a feature has `bins ** 3` values.
    """

    key_name: ClassVar[str] = "ColorHistogram"

    bins: int = 4
    precision: str = "fp32"
    batch_size: int = 128

    has_text = False

    def on(self, device: torch.device) -> Encoder:
        return self

    def repositories(self) -> list[tuple[str, str | None]]:
        return []  # nothing to download

    def transform(self, *, squash: bool = False) -> Transform:
        return resized

    def load(self, device: torch.device) -> Towers:
        return self

    def inputs(self) -> dict[str, object]:
        return {"encoder": {"part": self.key_name, "bins": self.bins}}  # everything that a feature depends on

    def images(self, pixels: Tensor) -> Tensor:
        levels = (pixels * self.bins).long().clamp(max=self.bins - 1)  # (b, 3, h, w)
        colors = (levels[:, 0] * self.bins + levels[:, 1]) * self.bins + levels[:, 2]
        counts = torch.nn.functional.one_hot(colors.flatten(1), self.bins**3).sum(dim=1)
        return (counts / counts.sum(dim=1, keepdim=True)).sqrt()

    def texts(self, sentences: Sequence[str]) -> Tensor:
        raise ValueError("this encoder has no text tower")

    def parameters(self) -> dict[str, int]:
        return {"image": 0}


def resized(image: Image.Image) -> Tensor:
    """Returns the image as 32 x 32 pixels from 0 to 1; all images of a batch need one size."""
    return to_tensor(image.resize((32, 32)))
