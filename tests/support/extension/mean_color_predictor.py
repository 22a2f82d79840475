"""Defines a predictor outside of lgclip: the class whose mean color is nearest to an image's."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from lgclip.batches import FeatureBatch
from lgclip.datasets.base import Dataset
from lgclip.encoder.base import Encoder, Towers, Transform
from lgclip.methods.logits import as_unit, from_unit
from lgclip.stages.context import RunContext
from lgclip.stages.extract import predicted_stream
from lgclip.stages.streams import Stream, Streams
from lgclip.training.predictor import TrainedPredictor


@dataclass(frozen=True)
class Distances(Encoder):
    """Maps images to negative distances between their mean color and those of the classes."""

    colors: tuple[tuple[float, ...], ...]
    precision: str = "fp32"
    batch_size: int = 8

    has_text = False

    def on(self, device: torch.device) -> Encoder:
        return self

    def repositories(self) -> list[tuple[str, str | None]]:
        return []

    def transform(self, *, squash: bool = False) -> Transform:
        return to_mean_color

    def load(self, device: torch.device) -> Towers:
        return self

    def inputs(self) -> dict[str, object]:
        return {"encoder": {"part": "Distances", "colors": self.colors}}

    def images(self, pixels: Tensor) -> Tensor:
        return as_unit(-torch.cdist(pixels.mean(dim=(2, 3)), torch.tensor(self.colors)))

    def texts(self, sentences: Sequence[str]) -> Tensor:
        raise ValueError("it reads no text")

    def parameters(self) -> dict[str, int]:
        return {"image": 3 * len(self.colors)}


def to_mean_color(image: Image.Image) -> Tensor:
    """Returns the mean color of an image as one pixel."""
    return to_tensor(image).mean(dim=(1, 2), keepdim=True)


class MeanColorPredictor(TrainedPredictor):
    """Predicts the class with the nearest mean color."""

    stage: ClassVar[str] = "nearest color"

    def __init__(self, folder: str) -> None:
        colors = json.loads((Path(folder) / "colors.json").read_text(encoding="utf-8"))["colors"]
        self._encoder = Distances(tuple(map(tuple, colors)))

    def stream(self, context: RunContext, dataset: Dataset, data: Streams | None, title: str) -> Stream:
        return predicted_stream(context, dataset, self._encoder, title)

    def logits(self, batch: FeatureBatch) -> Tensor:
        return from_unit(batch.features[:, 0])

    def description(self) -> dict[str, object]:
        return {"learned": "mean colors"}
