"""Collects the evaluated images of a test from all devices, and refines their scores together."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lgclip.batches import FeatureBatch
from lgclip.methods.calibration import DEFAULT_TEMPERATURE, Temperature
from lgclip.methods.feature_collector import FeatureCollector
from lgclip.methods.transduction.base import Transduction, UnlabeledPool

INDUCTIVE = "inductive"
"""Name of the baseline that classifies each image by itself, with the scores that a transductive rule refines."""

REFINED = Temperature(1.0, "transduction")
"""Temperature of refined scores, which are logits already."""


def start_temperature(temperature: Temperature) -> Temperature:
    """Returns the temperature of the scores that a rule refines: CLIP's own where none could be fitted.

    A rule that starts at flat probabilities would have nothing to refine.
    """
    return temperature if temperature.is_fitted else DEFAULT_TEMPERATURE


class EvaluatedPool(torch.nn.Module):
    """Collects features and scores of all evaluated images.

    Args:
        num_classes: Number of classes.
        width: Feature dimension.
    """

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self._features = FeatureCollector(num_classes, width)
        self._scores = FeatureCollector(num_classes, num_classes)

    def add_features(self, features: Float[Tensor, "b d"], batch: FeatureBatch) -> None:
        """Adds the features of some images, in the space where they are compared."""
        self._features.update(features, batch.labels, batch.indices)

    def add_scores(self, scores: Float[Tensor, "b c"], batch: FeatureBatch) -> None:
        """Adds the scores of some images."""
        self._scores.update(scores, batch.labels, batch.indices)

    def refine(
        self,
        rule: Transduction,
        ids: Sequence[str],
        temperature: float,
        prototypes: Float[Tensor, "c d"] | None,
    ) -> tuple[Float[Tensor, "n c"], Int[Tensor, " n"]]:
        """Returns the refined logits of all images, and their labels, which the rule does not see.

        Args:
            rule: The transductive rule.
            ids: Content keys of the images; an online rule gets the images in the order of these hashes, since data
                sets are often sorted by class.
            temperature: Divisor of the scores.
            prototypes: Unit prototypes of the classes, where there are any.
        """
        features, labels = self._features.compute()
        scores, _ = self._scores.compute()
        order = torch.arange(len(labels), device=labels.device)
        if rule.is_online:
            order = torch.tensor(sorted(range(len(ids)), key=ids.__getitem__), device=labels.device)
        logits = torch.empty_like(scores)
        refined = rule.refine(UnlabeledPool(features[order], scores[order], temperature, prototypes))
        logits[order] = refined.to(scores)
        return logits, labels
