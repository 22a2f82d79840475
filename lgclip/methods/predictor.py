"""Defines the interface of everything that computes class logits for images: prototypes, or a trained model."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from lgclip.batches import FeatureBatch
from lgclip.encoder.scales import Scales
from lgclip.methods.calibration import DEFAULT_TEMPERATURE, Temperature
from lgclip.methods.scoring import Scorer


class Predictor(ABC):
    """Turns the features of images into class logits.

    Attributes:
        temperature: Divisor that turns the logits into log-probabilities, up to a constant.
    """

    temperature: Temperature = DEFAULT_TEMPERATURE

    @abstractmethod
    def logits(self, batch: FeatureBatch) -> Float[Tensor, "b c"]:
        """Computes scores of every class for each image of a batch; the highest is the prediction.

        Args:
            batch: Features of the images, unit vectors of shape (b, views, d).
        """

    @abstractmethod
    def description(self) -> dict[str, object]:
        """Returns a description of the predictor, as plain values for `predictor` in result.json."""


@dataclass(frozen=True)
class PrototypePredictor(Predictor):
    """Scores images by their similarity to class prototypes.

    Attributes:
        scorer: Computes scores of the classes from the features of `features`.
        scales: Fuses the views of an image.
        choice: Rule, selection and text weight, as plain values.
        temperature: Fitted on the synthetic images where there are any.
        align: Aligns fused features of real images; None compares them as they are.
        prototypes: Unit prototypes, in the space of the aligned features; None where none were computed.
    """

    scorer: Scorer = field(repr=False)
    scales: Scales
    choice: dict[str, object]
    temperature: Temperature = DEFAULT_TEMPERATURE
    align: Scorer | None = field(default=None, repr=False)
    prototypes: Float[Tensor, "c d"] | None = field(default=None, repr=False)

    def features(self, batch: FeatureBatch) -> Float[Tensor, "b d"]:
        """Returns the fused features of images in the space where they are compared."""
        fused = self.scales.fuse(batch.features)
        return fused if self.align is None else self.align(fused)

    def logits(self, batch: FeatureBatch) -> Float[Tensor, "b c"]:
        return self.scorer(self.features(batch))

    def description(self) -> dict[str, object]:
        return self.choice
