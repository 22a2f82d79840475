"""A scoring rule outside of lgclip: the cosine to the median feature of a class."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import normalize

from lgclip.methods.prototypes import SupportSet
from lgclip.methods.scoring import Scorer, ScoringRule


@dataclass(frozen=True)
class Median(ScoringRule):
    """Scores by the cosine to the median of each feature value over the class's images.

    An image that shows something else moves a median less than a mean.

    Args:
        mean_weight: Weight of the mean in the prototype, from 0 to 1.
    """

    key_name: ClassVar[str] = "Median"

    mean_weight: float = 0.0

    def fit(self, support: SupportSet) -> Scorer:
        means = support.means(renormalize=False)  # raises an error if a class has no image
        classes = [support.features[support.labels == label] for label in range(support.num_classes)]
        medians = torch.stack([features.quantile(0.5, dim=0) for features in classes])
        prototypes = normalize(self.mean_weight * means + (1 - self.mean_weight) * medians, dim=1)
        return lambda features: features @ prototypes.T
