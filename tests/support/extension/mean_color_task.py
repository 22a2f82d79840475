"""Defines a training task outside of lgclip: the mean color of each class's synthetic images, in a JSON file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lgclip.diffuser.base import SyntheticImages
from lgclip.stages.context import RunContext
from lgclip.training.task import FitResult, TrainingConfig, TrainingInputs, TrainingTask

RESULT = "colors.json"


@dataclass(frozen=True)
class MeanColorTask(TrainingTask):
    """Averages pixels."""

    folder_name: ClassVar[str] = "mean_colors"
    stage: ClassVar[str] = "mean color"
    unit: ClassVar[str] = "class"

    synthetic_images: SyntheticImages

    @property
    def amount(self) -> int:
        return len(self.synthetic_images.target_classes)

    def inputs(self) -> dict[str, object]:
        return {"mean_colors": list(self.synthetic_images.ids)}

    def is_complete(self, folder: Path) -> bool:
        return (folder / RESULT).is_file()

    def fit(self, context: RunContext, folder: Path) -> FitResult:
        sums: dict[int, list[np.ndarray]] = {}
        for index, prompt in enumerate(self.synthetic_images.prompts):
            pixels = np.asarray(self.synthetic_images.image(index), dtype=np.float64) / 255
            sums.setdefault(prompt.class_index, []).append(pixels.mean(axis=(0, 1)))
        colors = [np.mean(sums[label], axis=0).tolist() for label in sorted(sums)]
        return FitResult(context.make_trainer(logger=False, enable_checkpointing=False), colors)

    def save(self, folder: Path, outcome: Any, cost: Mapping[str, object]) -> None:
        (folder / RESULT).write_text(json.dumps({"colors": outcome, **cost}), encoding="utf-8")

    @classmethod
    def summary(cls, folder: Path) -> str:
        return f"{folder}: {len(json.loads((folder / RESULT).read_text(encoding='utf-8'))['colors'])} mean colors"


@dataclass(frozen=True)
class MeanColor(TrainingConfig):
    """Configures the mean-color task."""

    def prepare(self, inputs: TrainingInputs, context: RunContext) -> TrainingTask:
        return MeanColorTask(inputs.synthetic_images())

    def load(self, folder: str, inputs: TrainingInputs, context: RunContext) -> Any:
        from mean_color_predictor import MeanColorPredictor

        return MeanColorPredictor(folder)
