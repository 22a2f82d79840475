"""Builds what images are compared with: mean text features, and the synthetic images themselves."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize


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

    def of_classes(self, classes: Sequence[int]) -> "SupportSet":
        """Returns the images of some classes, which are renumbered in the given order."""
        new = torch.full((self.num_classes,), -1, device=self.labels.device)
        new[list(classes)] = torch.arange(len(classes), device=self.labels.device)
        labels = new[self.labels]
        selected = self.take(labels >= 0)
        return selected._replace(labels=labels[labels >= 0], num_classes=len(classes))

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
