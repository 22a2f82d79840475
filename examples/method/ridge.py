"""A method outside of lgclip: ridge regression from the features of synthetic images to the classes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lgclip.batches import FeatureBatch
from lgclip.datasets.base import Dataset
from lgclip.encoder.scales import Scales
from lgclip.stages.context import RunContext
from lgclip.stages.extract import encode
from lgclip.stages.streams import Stream, Streams
from lgclip.training.predictor import TrainedPredictor
from lgclip.training.task import FitResult, TrainingConfig, TrainingInputs, TrainingTask
from lgclip.types import Role


@dataclass(frozen=True)
class Ridge(TrainingConfig):
    """What the YAML file names: prepares the training, and loads its result."""

    penalty: float = 1.0

    def prepare(self, inputs: TrainingInputs, context: RunContext) -> TrainingTask:
        encoder = inputs.encoder.on(context.device)
        images = inputs.synthetic_images()
        data, _ = encode(context, inputs.data.evaluated, encoder, inputs.scales, synthetic_images=images)
        stream = next(stream for stream in data.streams if stream.role is Role.SYNTHETIC)
        features = inputs.scales.fuse(stream.features())
        key = {"penalty": self.penalty, "images": list(stream.ids), "views": list(stream.views), **encoder.inputs()}
        return RidgeTask(features, torch.tensor(stream.labels), self.penalty, key)

    def load(self, folder: str, inputs: TrainingInputs, context: RunContext) -> TrainedPredictor:
        return RidgePredictor(load_file(Path(folder) / "ridge.safetensors")["weights"], inputs.scales)


@dataclass(frozen=True)
class RidgeTask(TrainingTask):
    """The training: solves the normal equations, and stores the weights under the key of its inputs."""

    folder_name: ClassVar[str] = "ridge"
    stage: ClassVar[str] = "ridge"
    unit: ClassVar[str] = "image"

    features: Tensor
    labels: Tensor
    penalty: float
    key: Mapping[str, object]

    @property
    def amount(self) -> int:
        return len(self.labels)

    def inputs(self) -> dict[str, object]:
        return {"ridge": dict(self.key)}

    def is_complete(self, folder: Path) -> bool:
        return (folder / "ridge.safetensors").is_file()

    def fit(self, context: RunContext, folder: Path) -> FitResult:
        x = self.features.double()
        targets = torch.nn.functional.one_hot(self.labels).double()
        weights = torch.linalg.solve(x.T @ x + self.penalty * torch.eye(x.shape[1]), x.T @ targets)
        return FitResult(context.make_trainer(logger=False, enable_checkpointing=False), weights.float())

    def save(self, folder: Path, outcome: Any, cost: Mapping[str, object]) -> None:
        save_file({"weights": outcome.contiguous()}, folder / "ridge.safetensors")

    @classmethod
    def summary(cls, folder: Path) -> str:
        return f"{folder}: ridge regression"


@dataclass(frozen=True)
class RidgePredictor(TrainedPredictor):
    """The predictor: class scores from the features that the run has stored."""

    stage: ClassVar[str] = "ridge"

    weights: Tensor
    scales: Scales

    def stream(self, context: RunContext, dataset: Dataset, data: Streams | None, title: str) -> Stream:
        assert data is not None
        evaluated = next(stream for stream in data.streams if stream.role is Role.EVALUATED)
        return replace(evaluated, name="ridge", role=Role.PREDICTED)

    def logits(self, batch: FeatureBatch) -> Tensor:
        return self.scales.fuse(batch.features) @ self.weights.to(batch.features.device)

    def description(self) -> dict[str, object]:
        return {"learned": "ridge regression"}
