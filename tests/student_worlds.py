"""What students learn from in tests: small pictures of plain colours, real and drawn, and a trainer of one CPU."""

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Trainer
from PIL import Image

from lgclip.batch import Prompt
from lgclip.datasets.base import Dataset
from lgclip.diffuser.base import Pictures
from lgclip.learning import learn
from lgclip.lesson import Lesson
from lgclip.stages import StageBar, Stages, quiet
from lgclip.student_spec import Student

COLOURS = ((220, 30, 30), (30, 200, 40), (40, 60, 220))
NAMES = ("red", "green", "blue")


def patch(label: int, at: int) -> Image.Image:
    """A noisy picture of a class's colour, 20 x 24 pixels."""
    rng = np.random.default_rng([label, at])
    pixels = np.array(COLOURS[label]) + rng.integers(-30, 30, (24, 20, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


class Patches(Dataset):
    """Pictures of colours.

    Args:
        each: How many of each class.
        split: Another split has other pictures.
        names: Of the classes.
    """

    name = "patches"

    def __init__(self, each: int = 6, split: str = "test", names: Sequence[str] = NAMES) -> None:
        self.split, self.class_names = split, tuple(names)
        self.labels = tuple(label for label in range(len(names)) for _ in range(each))

    @cached_property
    def ids(self) -> Sequence[str]:
        return [f"{self.split}-{at}" for at in range(len(self))]

    def image(self, index: int) -> Image.Image:
        return patch(self.labels[index], index + 1000 * len(self.split))

    def source(self) -> dict[str, object]:
        return {"dataset": self.name}


def drawn(folder: Path, each: int = 10, names: Sequence[str] = NAMES) -> Pictures:
    """Synthetic pictures of colours, a file each."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts, paths = [], []
    for label in range(len(names)):
        for repeat in range(each):
            prompts.append(Prompt(label, f"a {names[label]} patch", repeat))
            paths.append(folder / f"{label}-{repeat}.png")
            patch(label, 5000 + repeat).save(paths[-1])
    ids = [f"drawn-{at}" for at in range(len(paths))]
    return Pictures("drawn", Patches(names=names).subjects, prompts, ids, paths)


def small(**values: Any) -> Student:
    """A student that is trained in a second."""
    chosen: dict[str, Any] = {
        "backbone": "test_resnet", "image_size": 32, "epochs": 3, "batch_size": 8, "lr": 0.05, "scale_lr": False,
        "crop": (0.5, 1.0), "colour_jitter": 0.2, "validation": 0.2,
    }  # fmt: skip
    return Student(**chosen | values)


def one_cpu(**more: Any) -> Trainer:
    """A trainer as the config makes one."""
    given: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "use_distributed_sampler": False, **more}
    return Trainer(enable_model_summary=False, **given)


def stages_of(trainer: Any = one_cpu) -> Stages:
    """Stages that keep account."""
    quiet()
    return Stages(trainer(logger=False, enable_checkpointing=False, callbacks=[StageBar()]))


def taught(lesson: Lesson, root: Path, **more: Any) -> Path:
    """The folder of a trained student."""
    return learn(stages_of(), partial(one_cpu, **more), lesson, root)
