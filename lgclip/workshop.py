"""Where something is learned from images: a student, soft prompts, or the weights that adapt a diffusion model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer

from lgclip import adapting, learning, prompt_learning
from lgclip.adaptation import Adaptation
from lgclip.damage import OnBadImage
from lgclip.datasets.base import Dataset
from lgclip.diffuser.base import Pictures
from lgclip.encoder.base import Encoder
from lgclip.lesson import Lesson
from lgclip.lora_spec import LoraTuning
from lgclip.pool import check_apart
from lgclip.prompt_learning import PromptLesson, check_towers
from lgclip.scales import Scales
from lgclip.stages import Stages
from lgclip.student_spec import Student
from lgclip.taught import PromptTask


@dataclass(frozen=True)
class Workshop:
    """What every training shares.

    Attributes:
        stages: Runs what must be made before, and keeps account.
        make_trainer: Makes a Lightning trainer of the run's devices.
        root: The store's folder.
        dataset: What will be judged.
        opened: Opens the data set with other values of its config.
        draw: Makes the synthetic images.
        logger: Of Lightning; False for none.
        workers: Processes that decode images and make batches.
        policy: What to do about images that are learnt from and cannot be read.
    """

    stages: Stages
    make_trainer: Callable[..., Trainer]
    root: Path
    dataset: Dataset
    opened: Callable[..., Dataset]
    draw: Callable[[], Pictures]
    logger: Any
    workers: int
    policy: OnBadImage

    def make(
        self, asked: Student | PromptTask | LoraTuning, device: torch.device, parts: Mapping[str, Any], each: int
    ) -> Path:
        """Makes what is asked for, unless it is there; the folder that it lies in.

        Args:
            asked: The recipe.
            device: Of this process; it decides what a recipe leaves to it.
            parts: The encoder and the scales, or the diffuser, by their groups.
            each: How many real training images of each class a student learns from.

        Raises:
            ValueError: If the recipe does not go with the parts, or images that it asks for are not there.
        """
        match asked:
            case LoraTuning():
                what = Adaptation.of(asked.on(device), parts["diffuser"], self._training, self.draw)
                return self._here(adapting.adapt, what)
            case PromptTask():
                return self._prompts(asked, parts["encoder"].on(device), parts["scales"])
            case Student():
                encoder = parts["encoder"].on(device)
                lesson = Lesson.of(asked.on(device), self.dataset, encoder, self.draw, self._training, each)
                return self._here(learning.learn, lesson)

    def _prompts(self, task: PromptTask, encoder: Encoder, scales: Scales) -> Path:
        """Prompts; the hidden labels of what they are learnt from serve the analysis alone."""
        check_towers(task.spec, encoder, scales)
        pool = self.opened(**self.dataset.pool_values())
        check_apart(pool, self.dataset)
        lesson, hidden = PromptLesson.of(
            self.stages, task.spec, encoder, task.paradigm, pool, scales, self.root,
            drawing=self.draw() if task.spec.needs_images else None, on_bad_image=self.policy, workers=self.workers,
        )  # fmt: skip
        return self._here(partial(prompt_learning.learn_prompts, hidden=hidden), lesson)

    def _here(self, stage: Callable[..., Path], what: object) -> Path:
        more = {"logger": self.logger, "workers": self.workers}
        return stage(self.stages, self.make_trainer, what, self.root, **more)

    def _training(self) -> Dataset:
        return self.opened(**self.dataset.training_values())


def told(asked: Student | PromptTask | LoraTuning, folder: Path) -> str:
    """A line that says what was made and where it lies."""
    match asked:
        case LoraTuning():
            return adapting.told(folder)
        case PromptTask():
            return prompt_learning.told(folder)
        case Student():
            return learning.told(folder)
