"""Domain offset: removes what moves all images of a pool alike, whichever classes it holds."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from lgclip.methods.transduction.base import Transduction, UnlabeledPool, check_at_least


@dataclass(frozen=True)
class DomainOffset(Transduction):
    """Moves all images by the difference between their mean and that of their predicted classes' prototypes.

    With the fractions w_c of images whose best starting score is class c, the expected direction is
    `e = sum_c w_c p_c`, and the offset `o = mean(f) - (mean(f) . e / e . e) e`: the part of the mean feature that the
    prototypes do not explain. The logits become `s / T + (unit(f - u / (u + shrinkage) o) - f) . p_c / T` for u images.

    The idea is ours; a plain mean, which is often removed, takes the classes as equally frequent, and so removes the
    class itself from a pool of few. This rule assumes nothing on the frequencies. Without prototypes the means of the
    pool explain everything, and nothing changes.

    Args:
        shrinkage: Number of images that count as evidence for no offset.

    Raises:
        ValueError: If it is below 0.
    """

    key_name: ClassVar[str] = "DomainOffset"

    shrinkage: float = 5.0

    def __post_init__(self) -> None:
        check_at_least("shrinkage", self.shrinkage, 0)

    def logits(self, pool: UnlabeledPool) -> Float[Tensor, "n c"]:
        start = pool.scores / pool.temperature
        if pool.prototypes is None:
            return start
        features = pool.features
        count = len(features)
        # Sums in double precision, so that the order of the images does not matter.
        mean = features.double().mean(dim=0)
        counts = torch.bincount(start.argmax(dim=1), minlength=start.shape[1])
        expected = (counts.double() / count) @ pool.prototypes.double()
        explained = (mean @ expected) / (expected @ expected).clamp_min(torch.finfo(torch.float64).tiny)
        offset = (mean - explained * expected) * (count / (count + self.shrinkage))
        moved = normalize(features - offset.to(features), dim=1)
        return start + (moved - features) @ pool.prototypes.T / pool.temperature
