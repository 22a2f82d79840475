"""Where something is learned from images: a student, soft prompts, or the weights that adapt a diffusion model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightning import Trainer

from lgclip import adapting, learning, prompt_learning
from lgclip.adaptation import Adaptation
from lgclip.datasets.base import Dataset
from lgclip.diffuser.base import Pictures
from lgclip.lesson import Lesson
from lgclip.lora_spec import LoraTuning
from lgclip.pool import check_apart
from lgclip.prompt_learning import PromptLesson, check_towers
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
        workers: Processes that make batches.
    """

    stages: Stages
    make_trainer: Callable[..., Trainer]
    root: Path
    dataset: Dataset
    opened: Callable[..., Dataset]
    draw: Callable[[], Pictures]
    logger: Any
    workers: int

    def make(
        self, asked: Student | PromptTask | LoraTuning, trainer: Trainer, parts: Mapping[str, Any], each: int
    ) -> str:
        """Makes what is asked for, unless it is there, and says in a line where it lies.

        Args:
            asked: The recipe.
            trainer: Whose device decides what a recipe leaves to it.
            parts: The encoder, the scales and the diffuser, by their groups.
            each: How many real training images of each class a student learns from.

        Raises:
            ValueError: If the recipe does not go with the parts, or images that it asks for are not there.
        """
        device = trainer.strategy.root_device
        encoder, scales = parts["encoder"].on(device), parts["scales"]
        more = {"logger": self.logger, "workers": self.workers}
        here = partial(self._here, more)
        match asked:
            case LoraTuning():
                what = Adaptation.of(asked.on(device), parts["diffuser"], self._training, self.draw)
                return adapting.told(here(adapting.adapt, what))
            case PromptTask():
                check_towers(asked.spec, encoder, scales)
                pool = self.opened(**self.dataset.pool_values())
                check_apart(pool, self.dataset)
                drawing = self.draw() if asked.spec.needs_images else None
                lesson, hidden = PromptLesson.of(
                    self.stages, asked.spec, encoder, asked.paradigm, pool, scales, self.root,
                    drawing=drawing, workers=self.workers,
                )  # fmt: skip
                return prompt_learning.told(here(partial(prompt_learning.learn_prompts, hidden=hidden), lesson))
            case Student():
                lesson = Lesson.of(asked.on(device), self.dataset, encoder, self.draw, self._training, each)
                return learning.told(here(learning.learn, lesson))

    def _here(self, more: Mapping[str, Any], stage: Callable[..., Path], what: object) -> Path:
        return stage(self.stages, self.make_trainer, what, self.root, **more)

    def _training(self) -> Dataset:
        return self.opened(**self.dataset.training_values())
