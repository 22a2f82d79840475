"""Encodes images by two encoders, whose unit features are put side by side."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lgclip.encoder.base import Encoder, Towers, Transform
from lgclip.encoder.weight_checks import sample_pixels
from lgclip.store.keys import STANDS_FOR


@dataclass(frozen=True)
class PairedEncoder(Encoder):
    """Joins two encoders: an image's feature is `[f1, f2] / sqrt(2)`, a sentence's `[t1, 0]`.

    The cosine of two images is then the mean of both encoders' cosines, so that every rule works with both. Sentences
    are compared with the first encoder's half alone.

    Args:
        first: The encoder whose text tower is used, if it has one.
        second: Another one; its text tower is not used.

    Raises:
        ValueError: If both are the same, or one is a pair.
    """

    key_name: ClassVar[str] = "PairedEncoder"

    first: Encoder = field(metadata={STANDS_FOR: lambda part: part.first.inputs()})
    second: Encoder = field(metadata={STANDS_FOR: lambda part: part.second.inputs()})

    def __post_init__(self) -> None:
        if self.first == self.second:
            raise ValueError("encoder2 is the same as encoder: choose another one, or encoder2=none")
        if isinstance(self.first, PairedEncoder) or isinstance(self.second, PairedEncoder):
            raise ValueError("encoder2: two encoders are joined, not more; choose single ones")

    @property
    def model(self) -> str:
        """Returns the names of both models."""
        return f"{_name(self.first)} + {_name(self.second)}"

    @property
    def has_text(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.first.has_text

    @property
    def precision(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.first.precision

    @property
    def batch_size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return min(self.first.batch_size, self.second.batch_size)

    def on(self, device: torch.device) -> "PairedEncoder":
        return replace(self, first=self.first.on(device), second=self.second.on(device))

    def repositories(self) -> list[tuple[str, str | None]]:
        return [*self.first.repositories(), *self.second.repositories()]

    def download(self) -> None:
        self.first.download()
        self.second.download()

    def transform(self, *, squash: bool = False) -> Transform:
        """Returns both preprocessings; their pixels are one flat vector, which the towers split again."""
        return _Transforms((self.first.transform(squash=squash), self.second.transform(squash=squash)))

    def load(self, device: torch.device) -> Towers:
        samples = [sample_pixels(encoder) for encoder in (self.first, self.second)]
        second = self.second.load(device)
        width = second.images(samples[1]).shape[1]
        return _PairedTowers(self.first.load(device), second, [sample.shape[1:] for sample in samples], width)

    def check_weights(self) -> None:
        self.first.check_weights()
        self.second.check_weights()

    def width(self) -> int:
        return self.first.width() + self.second.width()

    def inputs(self) -> dict[str, object]:
        return {"encoder": self.key_name, "first": self.first.inputs(), "second": self.second.inputs()}


def _name(encoder: Encoder) -> str:
    return str(getattr(encoder, "model", type(encoder).__name__))


class _Transforms:
    """Applies both preprocessings to an image."""

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self._transforms = transforms

    def __call__(self, image: Image.Image) -> Float[Tensor, " p"]:
        return torch.cat([transform(image).flatten() for transform in self._transforms])


class _PairedTowers:
    """Encodes by both towers.

    Args:
        first: The first tower.
        second: The second tower.
        shapes: Shape of the pixels that each takes.
        second_width: Feature dimension of the second.
    """

    def __init__(self, first: Towers, second: Towers, shapes: Sequence[torch.Size], second_width: int) -> None:
        self._towers = (first, second)
        self._shapes = shapes
        self._second_width = second_width

    def images(self, pixels: Float[Tensor, "b p"]) -> Float[Tensor, "b d"]:
        sizes = [math.prod(shape) for shape in self._shapes]
        parts: list[Tensor] = []
        for tower, shape, flat in zip(self._towers, self._shapes, pixels.split(sizes, dim=1), strict=True):
            parts.append(tower.images(flat.unflatten(1, tuple(shape))))
        return torch.cat(parts, dim=1) / math.sqrt(2)

    def texts(self, sentences: Sequence[str]) -> Float[Tensor, "b d"]:
        return torch.nn.functional.pad(self._towers[0].texts(sentences), (0, self._second_width))

    def parameters(self) -> dict[str, int]:
        first, second = (tower.parameters() for tower in self._towers)
        return {**first, "image": first["image"] + second["image"]}


def split_blocks(features: Float[Tensor, "n d"], width: int) -> tuple[Any, Any]:
    """Returns the unit features of each encoder from those of a pair.

    Args:
        features: Features of a pair, also after a fusion of views.
        width: Feature dimension of the first encoder.
    """
    unit = torch.nn.functional.normalize
    return unit(features[:, :width], dim=1), unit(features[:, width:], dim=1)
