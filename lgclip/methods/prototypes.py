"""Builds what images are compared with: mean text features, and the synthetic images themselves."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class SupportSet(NamedTuple):
    """Holds the synthetic images that represent the classes.

    Attributes:
        features: Unit features.
        labels: Class index of each.
        num_classes: Number of classes.
        full_image: Unit features of the full images, where `features` are those of fused crops; else None.
    """

    features: Float[Tensor, "n d"]
    labels: Int[Tensor, " n"]
    num_classes: int
    full_image: Float[Tensor, "n d"] | None = None

    def take(self, rows: Tensor) -> "SupportSet":
        """Returns some of the images, by index or by mask."""
        full_image = None if self.full_image is None else self.full_image[rows]
        return SupportSet(self.features[rows], self.labels[rows], self.num_classes, full_image)

    def counts(self) -> Int[Tensor, " c"]:
        """Returns the number of images of each class."""
        return torch.bincount(self.labels, minlength=self.num_classes)

    def means(self, *, renormalize: bool) -> Float[Tensor, "c d"]:
        """Returns the mean unit feature of each class (arXiv:2512.17160, sec. 3).

        Args:
            renormalize: Whether to normalize the mean to unit length, so that the score is a cosine; otherwise
                the score is the average cosine to the class's images, as in the official release.

        Raises:
            ValueError: If a class has nothing to build a prototype from.
        """
        counts = self.counts()
        empty = (counts == 0).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"nothing to make a prototype from for classes {empty[:10]}")
        # In double precision the sum is the same to the last shown digit whatever the order.
        total = self.features.new_zeros(self.num_classes, self.features.shape[1], dtype=torch.float64)
        mean = total.index_add(0, self.labels, self.features.double()) / counts[:, None]
        if renormalize:
            mean = normalize(mean, dim=-1)
        return mean.to(self.features)


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
