"""Creates inputs of prompt tuning: images of plain colors and a small two-tower model with random weights."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from factories import make_encoder
from PIL import Image
from student_factories import ColorPatches, build_context, build_stages, one_cpu, synthetic_patches

from lgclip.encoder.open_clip import OpenClip
from lgclip.encoder.scales import Scales, SquareCrops
from lgclip.stages.extract import encode
from lgclip.training.loop import run_training
from lgclip.training.prompt_tuning.config import PromptTuningConfig
from lgclip.training.prompt_tuning.paradigms import Paradigm
from lgclip.training.prompt_tuning.pool import PromptTuningData
from lgclip.training.prompt_tuning.task import PromptTuningSetup
from lgclip.training.prompt_tuning.train import PromptTraining

PER_CLASS = 8


class Relabelled(ColorPatches):
    """Replaces the labels of the images.

    Args:
        labels: Class index of each.
    """

    def __init__(self, labels: Sequence[int]) -> None:
        super().__init__(PER_CLASS, "train")
        self._shown = ColorPatches(PER_CLASS, "train")
        self.labels = tuple(labels)

    def image(self, index: int) -> Image.Image:
        return self._shown.image(index)


def encoder_of(root: Path) -> OpenClip:
    """Returns the model, created at the first call."""
    folder = root / "encoder"
    return OpenClip(str(folder if folder.exists() else make_encoder(folder)))


def tuning_data_of(
    root: Path, kind: str = "ul", pool: ColorPatches | None = None, *, images: int = 0, scales: Scales | None = None
) -> PromptTuningData:
    """Returns 24 images of three colors, and synthetic ones of each if requested."""
    encoder = encoder_of(root)
    pool = pool or ColorPatches(PER_CLASS, "train")
    scales = scales or SquareCrops()
    synthetic_images = synthetic_patches(root / "drawn", images) if images else None
    streams, read = encode(build_context(root / "store"), pool, encoder, scales, synthetic_images=synthetic_images)
    return PromptTuningData.create(streams.streams, read, Paradigm(kind), scales)


def small_config(**values: Any) -> PromptTuningConfig:
    """Returns a config of prompt tuning that takes a second."""
    chosen: dict[str, Any] = {
        "tokens": 4, "rounds": 2, "epochs": 2, "batch_size": 8, "warmup_epochs": 1, "lr": 0.05, "temperature": 0.05,
    }  # fmt: skip
    return PromptTuningConfig(**chosen | values)


def setup_of(root: Path, tuning_data: PromptTuningData | None = None, **values: Any) -> PromptTuningSetup:
    """Returns the setup of a prompt tuning on this data."""
    return PromptTuningSetup(small_config(**values), encoder_of(root), tuning_data or tuning_data_of(root))


def hidden_labels_of(tuning_data: PromptTuningData, pool: ColorPatches | None = None) -> list[int]:
    """Returns the true class of each unlabelled image."""
    labels = (pool or ColorPatches(PER_CLASS, "train")).labels
    return [labels[index] for index in tuning_data.class_split.unlabelled.tolist()]


def train_prompts(
    setup: PromptTuningSetup, root: Path, trainer: Any = one_cpu, hidden: Any = None, **kwargs: Any
) -> Path:
    """Tunes prompts; returns their folder."""
    context = build_context(root, partial(trainer), stages=build_stages(trainer), **kwargs)
    return run_training(PromptTraining(setup, hidden), context)
