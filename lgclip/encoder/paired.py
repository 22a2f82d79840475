"""Encodes images by two encoders, whose unit features are put side by side."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize, pad

from lgclip.encoder.backbone import Tower
from lgclip.encoder.base import Encoder, Towers, Transform
from lgclip.encoder.weight_checks import sample_pixels
from lgclip.store.keys import STANDS_FOR

PARTS = ("first", "second")
"""Fields of a pair, and the folders of their weights in a classifier."""


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
            raise ValueError(f"encoder2 is {_name(self.second)}, as is encoder: choose another one, or encoder2=none")
        if self.first.parts() or self.second.parts():
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
        """Returns the precision of the first; each encoder has its own."""
        return self.first.precision

    @property
    def batch_size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return min(self.first.batch_size, self.second.batch_size)

    def parts(self) -> Mapping[str, Encoder]:
        return {"first": self.first, "second": self.second}

    def on(self, device: torch.device) -> "PairedEncoder":
        return replace(self, first=self.first.on(device), second=self.second.on(device))

    def repositories(self) -> list[tuple[str, str | None]]:
        # Both may be of one repository.
        return list(dict.fromkeys([*self.first.repositories(), *self.second.repositories()]))

    def download(self) -> None:
        self.first.download()
        self.second.download()

    def transform(self, *, squash: bool = False) -> Transform:
        """Returns both preprocessings; their pixels are side by side in one row, which the towers split again."""
        return _Transforms((self.first.transform(squash=squash), self.second.transform(squash=squash)))

    def load(self, device: torch.device) -> Towers:
        samples = [sample_pixels(encoder) for encoder in (self.first, self.second)]
        second = self.second.load(device)
        width = second.images(samples[1]).shape[1]
        return _PairedTowers(self.first.load(device), second, [sample.shape[2:] for sample in samples], width)

    def check_weights(self) -> None:
        self.first.check_weights()
        self.second.check_weights()

    def width(self) -> int:
        return self.first.width() + self.second.width()

    def tower(self) -> Tower:
        raise ValueError("two encoders are no single tower that could be trained; name another backbone")

    def _no_prompts(self) -> ValueError:
        return ValueError("prompts are tuned with a single encoder: set encoder2=none")

    def inputs(self) -> dict[str, object]:
        return {"encoder": self.key_name, "first": self.first.inputs(), "second": self.second.inputs()}


def _name(encoder: Encoder) -> str:
    return str(getattr(encoder, "model", type(encoder).__name__))


class _Transforms:
    """Applies both preprocessings to an image."""

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self._transforms = transforms

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 1 p"]:
        return join_pixels([transform(image)[None] for transform in self._transforms])[0]


def join_pixels(pixels: Sequence[Float[Tensor, "b 3 _ _"]]) -> Float[Tensor, "b 3 1 p"]:
    """Returns the pixels of both towers in one row, since they may have different sizes."""
    return torch.cat([part.flatten(2) for part in pixels], dim=2)[:, :, None]


class _PairedTowers:
    """Encodes by both towers.

    Args:
        first: The first tower.
        second: The second tower.
        sizes: Height and width of the pixels that each takes.
        second_width: Feature dimension of the second.
    """

    def __init__(self, first: Towers, second: Towers, sizes: Sequence[torch.Size], second_width: int) -> None:
        self._towers = (first, second)
        self._sizes = sizes
        self._second_width = second_width

    def images(self, pixels: Float[Tensor, "b 3 1 p"]) -> Float[Tensor, "b d"]:
        counts = [height * width for height, width in self._sizes]
        features: list[Tensor] = []
        for tower, size, row in zip(self._towers, self._sizes, pixels[:, :, 0].split(counts, dim=2), strict=True):
            features.append(tower.images(row.unflatten(2, tuple(size)).contiguous()))
        return join_features(*features)

    def texts(self, sentences: Sequence[str]) -> Float[Tensor, "b d"]:
        return join_text_features(self._towers[0].texts(sentences), self._second_width)

    def parameters(self) -> dict[str, int]:
        first, second = (tower.parameters() for tower in self._towers)
        return {**first, "image": first["image"] + second["image"]}


def join_features(first: Float[Tensor, "*n d1"], second: Float[Tensor, "*n d2"]) -> Float[Tensor, "*n d"]:
    """Returns the unit features of a pair from those of each encoder."""
    return torch.cat([first, second], dim=-1) / math.sqrt(2)


def join_text_features(first: Float[Tensor, "*n d1"], second_width: int) -> Float[Tensor, "*n d"]:
    """Returns the features of sentences of a pair from those of the first encoder."""
    return pad(first, (0, second_width))


def split_features(
    features: Float[Tensor, "n d"], first_width: int
) -> tuple[Float[Tensor, "n d1"], Float[Tensor, "n d2"]]:
    """Returns the unit features of each encoder from those of a pair.

    Args:
        features: Features of a pair, also after a fusion of views.
        first_width: Feature dimension of the first encoder.
    """
    return normalize(features[:, :first_width], dim=1), normalize(features[:, first_width:], dim=1)
