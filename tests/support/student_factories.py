"""Creates inputs of student training: small images of plain colors, real and synthetic, and a CPU trainer."""

from collections.abc import Sequence
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Trainer
from PIL import Image

from lgclip.datasets.base import Dataset
from lgclip.datasets.splits import DatasetSplits
from lgclip.diffuser.base import SyntheticImages
from lgclip.diffuser.pipeline import Diffuser
from lgclip.encoder.scales import SquareCrops
from lgclip.encoder.timm import Timm
from lgclip.stages.context import RunContext
from lgclip.stages.runner import StageBar, Stages, quiet
from lgclip.training.loop import run_training
from lgclip.training.student.config import Student
from lgclip.training.student.task import StudentSetup
from lgclip.training.student.train import StudentTraining
from lgclip.training.task import TrainingInputs
from lgclip.types import Prompt

COLORS = ((220, 30, 30), (30, 200, 40), (40, 60, 220))
NAMES = ("red", "green", "blue")


def color_patch(label: int, index: int) -> Image.Image:
    """Returns a noisy image of a class's color, 20 x 24 pixels."""
    rng = np.random.default_rng([label, index])
    pixels = np.array(COLORS[label]) + rng.integers(-30, 30, (24, 20, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


class ColorPatches(Dataset):
    """Contains images of plain colors.

    Args:
        per_class: Number of images per class.
        split: Name of the split; each split has other images.
        names: Class names.
    """

    name = "patches"

    def __init__(self, per_class: int = 6, split: str = "test", names: Sequence[str] = NAMES) -> None:
        self.split = split
        self.class_names = tuple(names)
        self.labels = tuple(label for label, _ in product(range(len(names)), range(per_class)))

    @cached_property
    def ids(self) -> Sequence[str]:
        return [f"{self.split}-{index}" for index in range(len(self))]

    def image(self, index: int) -> Image.Image:
        return color_patch(self.labels[index], index + 1000 * len(self.split))

    def source(self) -> dict[str, object]:
        return {"dataset": self.name}


def synthetic_patches(folder: Path, per_class: int = 10, names: Sequence[str] = NAMES) -> SyntheticImages:
    """Saves synthetic images of plain colors."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts = []
    paths = []
    target_classes = ColorPatches(names=names).target_classes
    for label, target_class in enumerate(target_classes):
        for repeat in range(per_class):
            prompts.append(Prompt(target_class, f"a {target_class.name} patch", repeat))
            paths.append(folder / f"{label}-{repeat}.png")
            color_patch(label, 5000 + repeat).save(paths[-1])
    ids = [f"drawn-{index}" for index in range(len(paths))]
    return SyntheticImages("drawn", target_classes, prompts, ids, paths)


def small_student(**values: Any) -> Student:
    """Returns a student that is trained in a second."""
    chosen: dict[str, Any] = {
        "backbone": "test_resnet", "image_size": 32, "epochs": 3, "batch_size": 8, "lr": 0.05, "scale_lr": False,
        "crop": (0.5, 1.0), "color_jitter": 0.2, "validation": 0.2,
    }  # fmt: skip
    return Student(**chosen | values)


def one_cpu(**kwargs: Any) -> Trainer:
    """Returns a trainer as the config makes one."""
    settings: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "use_distributed_sampler": False, **kwargs}
    return Trainer(enable_model_summary=False, **settings)


def build_stages(trainer: Any = one_cpu) -> Stages:
    """Returns stages that count costs."""
    quiet()
    return Stages(trainer(logger=False, enable_checkpointing=False, callbacks=[StageBar()]))


def build_context(store: Path, make_trainer: Any = one_cpu, **values: Any) -> RunContext:
    """Returns the context of a training on the CPU."""
    stages = values.pop("stages", None) or build_stages()
    return RunContext(store, stages, make_trainer, **values)


def key_inputs(data: DatasetSplits, encoder: Any = None, scales: Any = None, diffuser: Any = None) -> TrainingInputs:
    """Returns the inputs of a training without synthetic images."""

    def nothing() -> Any:
        raise AssertionError("nothing is generated")

    encoder = encoder or Timm("test_vit", checkpoint=None, precision="fp32")
    return TrainingInputs(
        data, encoder, scales or SquareCrops(), diffuser or Diffuser("tiny:diffuser"), nothing, images_per_class=1
    )


def train_student(setup: StudentSetup, root: Path, **kwargs: Any) -> Path:
    """Trains a student; returns its folder."""
    return run_training(StudentTraining(setup), build_context(root, partial(one_cpu, **kwargs)))
