"""InMaP: prototypes in the space of the images, learned from pseudo-labels of the pool (arXiv:2310.19752)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from lgclip.methods.transduction.base import Transduction, UnlabeledPool, check_above_zero, check_at_least
from lgclip.methods.transduction.moments import row_blocks

CONVERGED = 1e-6
"""Distance by which no prototype moves any more where learning ends."""

SHRUNK = 1e-6
"""Fraction by which the norm of the gradient must shrink, or the rate is halved."""


@dataclass(frozen=True)
class InMaP(Transduction):
    """Learns a unit prototype of each class from pseudo-labels of all images (arXiv:2310.19752).

    The pseudo-labels are the starting probabilities, changed by Sinkhorn's iterations so that all classes have equally
    many images; an image whose highest probability is above `confidence` counts for that class alone. The
    prototypes w minimize the divergence of `softmax(f w / temperature)` from them, by descent along the gradient over
    all images; after each step they are normalized, and the rate is halved whenever the gradient has grown (as in the
    release). They begin at the prototypes of the pool.

    Ours: the rate is also halved where the gradient has not shrunk, since with few classes the steps of the release
    jump to and fro; descent ends once no prototype moves; probabilities are those of the last prototypes.

    Args:
        sinkhorn: Number of Sinkhorn's iterations; 0 takes the probabilities as they are, and then the rule does not
            assume that the classes are balanced.
        temperature: Temperature of the softmax over cosines to the prototypes.
        confidence: Probability above which a pseudo-label is a single class.
        rate: Learning rate at the start.
        iterations: Maximum number of steps.

    Raises:
        ValueError: If a number is out of range.
    """

    key_name: ClassVar[str] = "InMaP"
    assumes_balanced: ClassVar[bool] = True

    sinkhorn: int = 20
    temperature: float = 0.04
    confidence: float = 0.6
    rate: float = 10.0
    iterations: int = 2000

    def __post_init__(self) -> None:
        check_at_least("sinkhorn", self.sinkhorn, 0)
        check_above_zero("temperature", self.temperature)
        check_at_least("confidence", self.confidence, 0)
        check_above_zero("rate", self.rate)
        check_at_least("iterations", self.iterations, 1)
        if self.sinkhorn == 0:
            object.__setattr__(self, "assumes_balanced", False)  # the data class is frozen

    def logits(self, pool: UnlabeledPool) -> Float[Tensor, "n c"]:
        log_probs = balance(pool.log_probs(), self.sinkhorn)
        prototypes = self._learn(pool.features, log_probs, pool.anchors())
        return pool.features @ prototypes.T / self.temperature

    def _learn(
        self, features: Float[Tensor, "n d"], log_probs: Float[Tensor, "n c"], prototypes: Float[Tensor, "c d"]
    ) -> Float[Tensor, "c d"]:
        """Returns the prototypes that explain the pseudo-labels."""
        # The part of the gradient that does not change.
        target = torch.zeros(prototypes.shape, dtype=torch.float64, device=features.device)
        for rows in row_blocks(*log_probs.shape):
            target += self._pseudo_labels(log_probs[rows]).T @ features[rows]
        rate = self.rate / (len(features) * self.temperature)
        last_norm = torch.inf
        for _ in range(self.iterations):
            gradient = -target
            for rows in row_blocks(*log_probs.shape):
                probs = (features[rows] @ prototypes.T / self.temperature).softmax(dim=1)
                gradient += probs.T @ features[rows]
            norm = float(gradient.norm())
            if norm > last_norm * (1 - SHRUNK):
                rate /= 2
            last_norm = norm
            new_prototypes = normalize(prototypes - rate * gradient.to(prototypes), dim=1)
            distance = float((new_prototypes - prototypes).norm(dim=1).max())
            prototypes = new_prototypes
            if distance < CONVERGED:
                break
        return prototypes

    def _pseudo_labels(self, log_probs: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
        """Returns probabilities, of which the confident ones are a single class."""
        probs = log_probs.exp()
        highest, classes = probs.max(dim=1, keepdim=True)
        one_hot = torch.zeros_like(probs).scatter_(1, classes, 1)
        return torch.where(highest > self.confidence, one_hot, probs)


def balance(log_probs: Float[Tensor, "n c"], iterations: int) -> Float[Tensor, "n c"]:
    """Scales classes and images in turn, so that all classes have equal sums and each image a sum of 1 (Sinkhorn 1967).

    Args:
        log_probs: Logarithm of the probabilities.
        iterations: Number of times that both are scaled.

    Returns:
        The logarithm of the probabilities. Only the factors are computed, as logarithms: a class that no image belongs
        to has a sum that is no float.
    """
    n, num_classes = log_probs.shape
    image_factors = torch.zeros(n, 1, dtype=torch.float64, device=log_probs.device)
    class_factors = torch.zeros(1, num_classes, dtype=torch.float64, device=log_probs.device)
    for _ in range(iterations):
        sums = torch.full_like(class_factors, -torch.inf)
        for rows in row_blocks(n, num_classes):
            block = (log_probs[rows] + image_factors[rows]).logsumexp(dim=0, keepdim=True)
            sums = torch.logaddexp(sums, block)
        class_factors = -sums
        for rows in row_blocks(n, num_classes):
            image_factors[rows] = -(log_probs[rows] + class_factors).logsumexp(dim=1, keepdim=True)
    return (log_probs + image_factors.to(log_probs)).add_(class_factors.to(log_probs))
