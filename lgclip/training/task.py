"""Defines the interfaces of a training: a config that prepares it, and the task that fits, saves and summarizes.

A new training is a `TrainingConfig` and a `TrainingTask` in one folder, and a YAML file that names the config: no other
module depends on the kinds of training.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from lightning import Trainer

from lgclip.datasets.splits import DatasetSplits
from lgclip.diffuser.base import ImageSource, SyntheticImages
from lgclip.encoder.base import Encoder
from lgclip.encoder.scales import Scales
from lgclip.stages.context import RunContext
from lgclip.stages.text import RunTexts
from lgclip.store.keys import content_key
from lgclip.training.predictor import TrainedPredictor


@dataclass(frozen=True)
class TrainingInputs:
    """Holds the inputs that a run provides to a training.

    Attributes:
        data: The data set with its splits.
        encoder: The run's encoder.
        scales: Views of an image.
        diffuser: Source of synthetic images.
        synthetic_images: Returns the run's synthetic images; generates missing ones, so call it only if they
            are needed, and after everything that can fail has been checked.
        images_per_class: Number of real training images per class, the first ones.
        texts: Returns the run's text side, and generates what it lacks; None for the data set's templates.
    """

    data: DatasetSplits
    encoder: Encoder
    scales: Scales
    diffuser: ImageSource
    synthetic_images: Callable[[], SyntheticImages]
    images_per_class: int
    texts: Callable[[], RunTexts | None] | None = None


class FitResult(NamedTuple):
    """Holds a finished training.

    Attributes:
        trainer: The trainer that ran it.
        outcome: Argument of `TrainingTask.save`; each task has its own type.
    """

    trainer: Trainer
    outcome: Any


class TrainingTask(ABC):
    """Defines one training: its inputs, how it fits, and the result in its folder of the store.

    Attributes:
        folder_name: Folder of the store for the results of this kind.
        stage: Name of the training in the run's costs.
        unit: Unit of its amount.
    """

    folder_name: ClassVar[str]
    stage: ClassVar[str]
    unit: ClassVar[str]

    @property
    @abstractmethod
    def amount(self) -> int:
        """Returns the number of units to train."""

    @abstractmethod
    def inputs(self) -> dict[str, object]:
        """Returns everything that the result depends on; hashed into its key."""

    @abstractmethod
    def is_complete(self, folder: Path) -> bool:
        """Checks whether a folder holds a finished result."""

    @abstractmethod
    def fit(self, context: RunContext, folder: Path) -> FitResult:
        """Trains, from the last checkpoint in `folder / "checkpoints"` if there is one.

        Raises:
            ValueError: If an image cannot be read, or a model cannot be built.
        """

    @abstractmethod
    def save(self, folder: Path, outcome: Any, cost: Mapping[str, object]) -> None:
        """Writes the result; the file that marks it complete comes last.

        Args:
            folder: Target folder.
            outcome: The outcome that `fit` returned.
            cost: Seconds, device and number of devices, to be written with it.
        """

    @classmethod
    @abstractmethod
    def summary(cls, folder: Path) -> str:
        """Returns one line about a finished result: its folder and its quality."""

    def folder(self, store: Path) -> Path:
        """Returns the folder of the result, whether or not it exists.

        Args:
            store: The store's folder.
        """
        # By the key of all inputs, so another value of any of them is another folder and nothing is ever overwritten.
        return store / self.folder_name / content_key(self.inputs())


class TrainingConfig(ABC):
    """Defines the recipe of a training, built from the config.

    Attributes:
        knows_members: Whether the result may reveal which real images it was trained on, so that `membership=true`
            can test it.
    """

    knows_members: ClassVar[bool] = False

    def check(self, inputs: TrainingInputs) -> None:  # noqa: B027  (most recipes have nothing to refuse)
        """Rejects incompatible settings, before anything is generated or loaded.

        Raises:
            ValueError: If the recipe is incompatible with the parts of the run.
        """

    @abstractmethod
    def prepare(self, inputs: TrainingInputs, context: RunContext) -> TrainingTask:
        """Returns the training on the parts of a run; computes the images and features that it needs.

        Raises:
            ValueError: If the recipe is incompatible with the parts, or required images are missing.
        """

    def load(self, folder: str, inputs: TrainingInputs, context: RunContext) -> TrainedPredictor:
        """Loads a finished result as a predictor.

        Args:
            folder: The result's folder.
            inputs: The parts of the run.
            context: Holds the device that it will run on.

        Raises:
            ValueError: If the result of this training predicts nothing, or is incompatible with the parts of the run.
        """
        # Not abstract: LoRA weights generate images and predict nothing.
        raise ValueError(f"{type(self).__name__}: what it trains gives no class scores, so it cannot be evaluated")
