"""What classes are compared with: means of sentences, and the synthetic images themselves."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class Support(NamedTuple):
    """The synthetic images that classes are known by.

    Attributes:
        features: Unit features.
        labels: Class index of each.
        num_classes: Number of classes.
    """

    features: Float[Tensor, "n d"]
    labels: Int[Tensor, " n"]
    num_classes: int

    def take(self, rows: Tensor) -> "Support":
        """Some of the images, by place or by mask."""
        return Support(self.features[rows], self.labels[rows], self.num_classes)

    def counts(self) -> Int[Tensor, " c"]:
        """Images of each class."""
        return torch.bincount(self.labels, minlength=self.num_classes)

    def means(self, *, renormalise: bool) -> Float[Tensor, "c d"]:
        """Mean unit feature of each class (arXiv:2512.17160, sec. 3).

        Args:
            renormalise: Bring the mean back to unit length, so that the score is a cosine; without
                it the score is the average cosine to the class's images, as in the official release.

        Raises:
            ValueError: If a class has nothing to make a prototype from.
        """
        counts = self.counts()
        empty = (counts == 0).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"nothing to make a prototype from for classes {empty[:10]}")
        # In double precision the sum is the same to the last shown digit whatever the order.
        total = self.features.new_zeros(self.num_classes, self.features.shape[1], dtype=torch.float64)
        mean = total.index_add(0, self.labels, self.features.double()) / counts[:, None]
        return (normalize(mean, dim=-1) if renormalise else mean).to(self.features)


class Gathered(Metric):
    """Features and labels from every device, in the order of the stream.

    Args:
        num_classes: Number of classes.
        width: Width of a feature.
    """

    full_state_update = False
    features: list[Tensor]
    labels: list[Tensor]
    indices: list[Tensor]

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.num_classes, self.width = num_classes, width
        for state in ("features", "labels", "indices"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def update(self, features: Float[Tensor, "b d"], labels: Int[Tensor, " b"], indices: Int[Tensor, " b"]) -> None:
        """Adds some features."""
        self.features.append(features)
        self.labels.append(labels)
        self.indices.append(indices)

    def compute(self) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
        """Features and labels, none if none were added."""
        if isinstance(self.indices, list) and not self.indices:  # joined over devices it is a tensor
            return torch.zeros(0, self.width), torch.zeros(0, dtype=torch.long)
        order = dim_zero_cat(self.indices).argsort()
        return dim_zero_cat(self.features)[order], dim_zero_cat(self.labels)[order]

    def support(self) -> Support:
        """The same as a `Support`."""
        return Support(*self.compute(), self.num_classes)
