"""A prototype is a per-class mean; a mean is a metric, so Lightning sums it over devices."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize
from torchmetrics import Metric


class Prototypes(Metric):
    """Mean unit feature of each class, summed over every device (arXiv:2512.17160, sec. 3).

    Args:
        num_classes: Number of classes.
        width: Width of a feature.
        renormalise: Bring the mean back to unit length, so that the score is a cosine; without it
            the score is the average cosine to the class's images, as in the official release.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, num_classes: int, width: int, *, renormalise: bool = True) -> None:
        super().__init__()
        self.renormalise = renormalise
        # In double precision the sum is the same to the last shown digit whatever the order.
        zero = torch.zeros(num_classes, width, dtype=torch.float64)
        self.add_state("total", zero, dist_reduce_fx="sum", persistent=True)
        self.add_state("count", torch.zeros(num_classes), dist_reduce_fx="sum", persistent=True)

    def update(self, features: Float[Tensor, "b d"], labels: Int[Tensor, " b"]) -> None:
        """Adds some features to their classes."""
        self.total.index_add_(0, labels, features.to(self.total))
        self.count.index_add_(0, labels, torch.ones_like(labels, dtype=self.count.dtype))

    def compute(self) -> Float[Tensor, "c d"]:
        """The prototypes.

        Raises:
            ValueError: If a class has nothing to make a prototype from.
        """
        empty = (self.count == 0).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"nothing to make a prototype from for classes {empty[:10]}")
        mean = self.total / self.count[:, None]
        return (normalize(mean, dim=-1) if self.renormalise else mean).float()
