"""Turns tuned prompts into class logits."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lgclip.batches import FeatureBatch
from lgclip.datasets.base import Dataset
from lgclip.encoder.base import Encoder
from lgclip.encoder.scales import Scales
from lgclip.methods.base import Predictions
from lgclip.methods.calibration import Temperature
from lgclip.methods.logits import as_unit, from_unit
from lgclip.stages.context import RunContext
from lgclip.stages.extract import predicted_stream, text_prototypes
from lgclip.stages.streams import Stream, Streams
from lgclip.training.predictor import TrainedPredictor
from lgclip.training.prompt_tuning.encoder import LearnedPrompts
from lgclip.training.prompt_tuning.paradigms import harmonic
from lgclip.training.task import TrainingInputs
from lgclip.types import Role

_REPORTED = ("key", "prompt_types", "seed", "paradigm", "rounds", "auxiliary", "temperature", "trained_on")


@dataclass(frozen=True, kw_only=True)
class Answers(Stream):
    """Computes the outputs of tuned prompts for images with stored features: logits as unit vectors.

    Attributes:
        classes: Unit feature of each class.
        temperature: Divisor of the cosines.
        scales: Fuses the views of an image.
    """

    classes: Float[Tensor, "c d"]
    temperature: float
    scales: Scales

    def rows(self, places: Int[Tensor, " b"]) -> FeatureBatch:
        """Returns the logits of some images, from features that are read on access."""
        batch = super().rows(places)
        logits = self.scales.fuse(batch.features) @ self.classes.T / self.temperature
        # Logits travel through the same streams as features, which hold unit vectors, so they are packed as one.
        return batch._replace(features=as_unit(logits)[:, None])


@dataclass(frozen=True)
class PromptPredictor(TrainedPredictor):
    """Classifies images by their similarity to classes under tuned prompts.

    Attributes:
        learned_prompts: Folder of the prompts.
        encoder: Encoder whose towers are used.
        scales: Views of an image.
        device: Device of the towers.
    """

    stage: ClassVar[str] = "prompted"
    learned_prompts: LearnedPrompts
    encoder: Encoder
    scales: Scales
    device: torch.device

    @classmethod
    def load(cls, folder: str, inputs: TrainingInputs, device: torch.device) -> "PromptPredictor":
        """Loads tuned prompts from their folder.

        Args:
            folder: The folder.
            inputs: The parts of the run.
            device: Device of the towers.

        Raises:
            ValueError: If the folder holds none, or they were tuned with other towers or for other classes.
        """
        learned_prompts = LearnedPrompts(folder)
        learned_prompts.check(inputs.encoder, inputs.data.evaluated.class_names)
        return cls(learned_prompts, inputs.encoder, inputs.scales, device)

    def stream(self, context: RunContext, dataset: Dataset, data: Streams | None, title: str) -> Stream:
        if data is None:
            raise ValueError("tuned prompts need the features of the class names and of the images")
        by_role = {stream.role: stream for stream in data.streams}
        # A text prompt alone leaves the image features as they are, so those that the run has encoded are used again.
        images = by_role[Role.EVALUATED]
        if "visual" in self.learned_prompts.kinds:
            images = predicted_stream(context, dataset, self.learned_prompts.encoder(self.encoder), title)
        classes = self.learned_prompts.class_features(self.encoder, dataset.class_names, self.device)
        # Without a text prompt the classes are those of the sentences, as they were while the visual one was learned.
        if classes is None:
            classes = text_prototypes(by_role[Role.TEXT], len(dataset.class_names))
        # `dataclasses.replace` gives the type of the original, and this is a subclass with more fields.
        values: dict[str, Any] = {field.name: getattr(images, field.name) for field in fields(Stream)}
        values |= {"name": "prompted", "role": Role.PREDICTED}
        temperature = float(self.learned_prompts.about["temperature"])
        return Answers(**values, classes=classes, temperature=temperature, scales=self.scales)

    def logits(self, batch: FeatureBatch) -> Float[Tensor, "b c"]:
        return from_unit(batch.features[:, 0])

    @property
    def temperature(self) -> Temperature:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Returns 1: these are logits already, not cosines."""
        return Temperature(1.0, "default")

    def description(self) -> dict[str, object]:
        return {"learned": "prompt"}

    def report(self, results: Mapping[str, Predictions], dataset: Dataset, prompt_form: str | None) -> dict[str, Any]:
        about = self.learned_prompts.about
        reported: dict[str, Any] = {name: about.get(name) for name in _REPORTED}
        # On another data set the class indices mean other classes, so seen and unseen say nothing there.
        if about["unseen"] and tuple(about["class_names"]) == tuple(dataset.class_names):
            seen = about["seen"]
            unseen = about["unseen"]
            reported["by_type"] = {name: _by_type(predictions, seen, unseen) for name, predictions in results.items()}
        return {"prompt_tuning": reported}


def _by_type(predictions: Predictions, seen: list[int], unseen: list[int]) -> dict[str, float]:
    """Computes top-1 accuracy on the images of seen and of unseen classes, and the harmonic mean of both."""
    correct = predictions.rank == 0
    accuracies = []
    for classes in (seen, unseen):
        of_classes = torch.isin(predictions.label, torch.tensor(classes))
        accuracies.append(float(correct[of_classes].float().mean()))
    return {"seen": accuracies[0], "unseen": accuracies[1], "harmonic": harmonic(*accuracies)}
