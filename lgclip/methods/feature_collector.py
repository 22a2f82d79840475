"""Collects features from all devices."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lgclip.methods.prototypes import SupportSet


class FeatureCollector(Metric):
    """Collects features and labels from all devices, in the order of the stream.

    Args:
        num_classes: Number of classes.
        width: Feature dimension.
    """

    full_state_update = False
    features: list[Tensor]
    labels: list[Tensor]
    indices: list[Tensor]

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.width = width
        for state in ("features", "labels", "indices"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def update(self, features: Float[Tensor, "b d"], labels: Int[Tensor, " b"], indices: Int[Tensor, " b"]) -> None:
        """Adds some features."""
        self.features.append(features)
        self.labels.append(labels)
        self.indices.append(indices)

    def compute(self) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
        """Returns features and labels, empty if none were added."""
        if isinstance(self.indices, list) and not self.indices:  # joined over devices it is a tensor
            return torch.zeros(0, self.width), torch.zeros(0, dtype=torch.long)
        # In the order of the stream and not of arrival: `selection=first` depends on it, and so do folds.
        order = dim_zero_cat(self.indices).argsort()
        return dim_zero_cat(self.features)[order], dim_zero_cat(self.labels)[order]

    def support(self) -> SupportSet:
        """Returns the collected features and labels as a `SupportSet`."""
        return SupportSet(*self.compute(), self.num_classes)
