"""Mixes a few real images of each class with its synthetic ones."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lgclip.methods.prototypes import SupportSet

REPEATS = (1, 2, 4, 8, 16, 32)
"""Weights of a real image that are tried: it counts as so many synthetic ones."""
DEFAULT_REPEATS = 4
"""The weight where no class has two real images, so that none can be left out."""


class Shots(NamedTuple):
    """Holds real images of some of the classes, and their weight.

    Attributes:
        features: Unit features.
        labels: Class index of each.
        ids: Content key of each.
        repeats: Number of synthetic images that one of them counts as. Repeating an image weighs it in every scoring
            rule alike.
    """

    features: Float[Tensor, "m d"]
    labels: Int[Tensor, " m"]
    ids: tuple[str, ...]
    repeats: int

    def take(self, rows: Sequence[int]) -> "Shots":
        """Returns some of them."""
        places = torch.tensor(list(rows), dtype=torch.long)
        return Shots(self.features[places], self.labels[places], tuple(self.ids[row] for row in rows), self.repeats)

    def joined(self, support: SupportSet) -> SupportSet:
        """Returns the synthetic images and these real ones, each repeated by its weight."""
        return SupportSet(
            torch.cat([support.features, self.features.repeat(self.repeats, 1)]),
            torch.cat([support.labels, self.labels.repeat(self.repeats)]),
            support.num_classes,
        )
