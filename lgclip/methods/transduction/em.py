"""EM: a mixture of Gaussians with one covariance, fitted to the pool (arXiv:2402.04087)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lgclip.methods.transduction.base import Transduction, UnlabeledPool, check_at_least
from lgclip.methods.transduction.moments import class_moments, row_blocks


@dataclass(frozen=True)
class EM(Transduction):
    """Fits Gaussians of the classes with one full covariance by expectation maximization (arXiv:2402.04087, sec. 3).

    In turn the means m_c and the covariance S are estimated from the probabilities z, and the probabilities from them:
    `z_ic ~ y_ic N(f_i; m_c, S)`. The starting probabilities y stand for the prior of each image, so that a class keeps
    its meaning. The covariance is shrunk as in the release of the paper's GDA, `(n - 1) S + tr(S) I`.

    Ours: where the release scales the precision by d, the shrunk covariance here is divided by n - 1 + d, which keeps
    the trace of S, so that the likelihoods are those of Gaussians of this spread.

    Args:
        iterations: Number of times that both are estimated.

    Raises:
        ValueError: If the number is out of range.
    """

    key_name: ClassVar[str] = "EM"

    iterations: int = 10

    def __post_init__(self) -> None:
        check_at_least("iterations", self.iterations, 1)

    def logits(self, pool: UnlabeledPool) -> Float[Tensor, "n c"]:
        features = pool.features
        start = pool.log_probs()
        ones = features.new_ones(len(features))
        # One center for all images: the differences that decide are not lost in the common mean.
        center = features.double().mean(dim=0)
        second_moment = _second_moment(features, center)
        logits = start
        for _ in range(self.iterations):
            moments = class_moments(features, logits.log_softmax(dim=1), ones)
            means = moments.means - center
            between = means.T @ (moments.sizes[:, None] * means)
            shrunk = shrunk_covariance((second_moment - between) / len(features), len(features))
            weights = torch.linalg.solve(shrunk, means.T).T
            constant = (weights * means).sum(dim=1) / 2
            logits = torch.empty_like(start)
            for rows in row_blocks(len(features), start.shape[1] + features.shape[1]):
                values = (features[rows].double() - center) @ weights.T - constant
                logits[rows] = (values - values.amax(dim=1, keepdim=True)).to(start)
            logits += start
        return logits


def shrunk_covariance(covariance: Float[Tensor, "d d"], n: int) -> Float[Tensor, "d d"]:
    """Shrinks a covariance of n images towards a multiple of the identity with the same trace.

    A pool whose images all equal the mean of their class has no covariance; then it is a small multiple of the
    identity.
    """
    d = len(covariance)
    identity = torch.eye(d, dtype=covariance.dtype, device=covariance.device)
    trace = covariance.trace().clamp_min(1e-6)
    return ((n - 1) * covariance + trace * identity) / (n - 1 + d)


def _second_moment(features: Float[Tensor, "n d"], center: Float[Tensor, " d"]) -> Float[Tensor, "d d"]:
    """Returns the sum of the outer products of the centered features."""
    total = torch.zeros(len(center), len(center), dtype=torch.float64, device=features.device)
    for rows in row_blocks(*features.shape):
        block = features[rows].double() - center
        total += block.T @ block
    return total
