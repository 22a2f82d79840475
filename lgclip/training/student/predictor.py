"""Uses a trained student as a predictor, by its own logits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from lgclip.batches import FeatureBatch
from lgclip.datasets.base import Dataset
from lgclip.methods.base import Predictions
from lgclip.methods.calibration import Temperature
from lgclip.methods.logits import from_unit
from lgclip.stages.context import RunContext
from lgclip.stages.extract import predicted_stream
from lgclip.stages.streams import Stream, Streams
from lgclip.training.predictor import TrainedPredictor
from lgclip.training.student.encoder import StudentEncoder

_REPORTED = ("key", "backbone", "seed", "selected_on", "epoch", "accuracy")


@dataclass(frozen=True)
class StudentPredictor(TrainedPredictor):
    """Reads the logits of a student, which are stored as unit vectors.

    Attributes:
        student: The network.
        images_per_class: Number of real training images of each class it was trained with.
        classes: Which of its classes are evaluated, in this order; None for all.
    """

    stage: ClassVar[str] = "student"
    student: StudentEncoder
    images_per_class: int = 0
    classes: tuple[int, ...] | None = None

    @classmethod
    def load(cls, folder: str, dataset: Dataset) -> "StudentPredictor":
        """Loads a student from its folder.

        Args:
            folder: The folder.
            dataset: The data set to evaluate.

        Raises:
            ValueError: If there is no student in the folder, or it has other classes.
        """
        student = StudentEncoder(folder)
        # The order counts, too: a logit has no name, only a place.
        if student.class_names != tuple(dataset.class_names):
            raise ValueError(
                f"checkpoint={folder}: this student knows {len(student.class_names)} classes, "
                f"{student.class_names[0]!r} "
                f"first, which are not the {len(dataset.class_names)} of dataset={dataset.name}; name the data set "
                "that it was trained for"
            )
        return cls(student)

    def for_classes(self, classes: Sequence[int]) -> "StudentPredictor":
        return replace(self, classes=tuple(classes))

    def stream(self, context: RunContext, dataset: Dataset, data: Streams | None, title: str) -> Stream:
        return predicted_stream(context, dataset, self.student, title)

    def logits(self, batch: FeatureBatch) -> Float[Tensor, "b c"]:
        logits = from_unit(batch.features[:, 0])
        if self.classes is None:
            return logits
        # The other logits are left out before the softmax, not set to 0: probabilities are then over these classes.
        return logits[:, list(self.classes)]

    @property
    def temperature(self) -> Temperature:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Returns 1: these are logits already, not cosines."""
        return Temperature(1.0, "default")

    def description(self) -> dict[str, object]:
        return {"learned": "student"}

    def report(self, results: Mapping[str, Predictions], dataset: Dataset, prompt_form: str | None) -> dict[str, Any]:
        about = self.student.about
        history = about.get("history", [])
        # A list for each value instead of a row for each epoch: result.json stays readable over hundreds of epochs.
        names: list[str] = []
        if history:
            names = [name for name in history[0] if name != "epoch"]
        return {
            "student": {
                **{name: about.get(name) for name in _REPORTED},
                "steps": about.get("steps"),
                "history": {name: [row[name] for row in history] for name in names},
                "precision": self.student.precision,
                "trained_on": {"form": prompt_form, **about["trained_on"]},
            }
        }
