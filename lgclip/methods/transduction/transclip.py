"""TransCLIP: Gaussians of the classes, agreement of neighbors, and the starting probabilities (arXiv:2406.01837)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from lgclip.methods.transduction.base import Transduction, UnlabeledPool, check_at_least
from lgclip.methods.transduction.moments import class_moments, diagonal_log_likelihood, row_blocks
from lgclip.methods.transduction.neighbors import distinct_images, neighbor_graph, top_columns

LIKELIHOOD_WEIGHT = 1 / 50
"""Weight of a log-likelihood against the starting log-probability: that of the releases of TransCLIP and StatA."""

LEAST_VARIANCE = 1e-6
"""Least variance of a dimension, over that of a random unit vector: a class of a single image has none."""


@dataclass(frozen=True)
class TransCLIP(Transduction):
    """Refines probabilities by Gaussians with one diagonal covariance, and by the nearest images (arXiv:2406.01837).

    The paper's objective without labelled images: log-likelihood of the Gaussians, a Laplacian term over the graph of
    nearest images, and the divergence from the starting probabilities y. Blocks of unknowns are minimized in turn:
    `z_ic ~ y_ic exp(l_ic / 50 + sum_j a_ij z_jc)`, repeated for all images at once, then the means at unit length and
    the variances. As in the release the means start at the most confident images of each class, weighted by their
    probability, and the variances at 1 / d.

    Ours: the starting probabilities are of any classifier; copies of an image are one image that counts several times;
    the affinities of fewer neighbors are averaged over as many as there are; a variance has a least value.

    Args:
        neighbors: Number of nearest images in the graph.
        confident: Number of images that the mean of a class starts at.
        iterations: Number of updates of means and variances.
        steps: Number of updates of the probabilities for each of them.

    Raises:
        ValueError: If a number is out of range.
    """

    key_name: ClassVar[str] = "TransCLIP"

    neighbors: int = 3
    confident: int = 8
    iterations: int = 10
    steps: int = 5

    def __post_init__(self) -> None:
        check_at_least("neighbors", self.neighbors, 1)
        check_at_least("confident", self.confident, 1)
        check_at_least("iterations", self.iterations, 0)
        check_at_least("steps", self.steps, 1)

    def logits(self, pool: UnlabeledPool) -> Float[Tensor, "n c"]:
        images = distinct_images(pool)
        features = images.pool.features
        d = features.shape[1]
        start = images.pool.log_probs()
        affinity = build_affinity(features, self.neighbors)
        means = _confident_means(features, start, self.confident)
        variances = torch.full((1, d), 1 / d, dtype=torch.float64, device=features.device)
        logits = start
        for iteration in range(self.iterations + 1):
            log_likelihood = diagonal_log_likelihood(features, means, variances)
            logits = assign(start, log_likelihood, affinity, logits, self.steps)
            if iteration < self.iterations:
                moments = class_moments(features, logits.log_softmax(dim=1), images.counts)
                means = normalize(moments.means, dim=1)
                variances = raise_to_least(moments.shared_variances(means))
        return logits[images.rows]


def build_affinity(features: Float[Tensor, "n d"], neighbors: int) -> Tensor:
    """Returns the sparse affinity `(W + W^T) / 2k` with the cosines to the k nearest images in W."""
    k = min(neighbors, len(features) - 1)
    return neighbor_graph(features, k) / max(2 * k, 1)


def assign(
    start: Float[Tensor, "n c"],
    log_likelihood: Float[Tensor, "n c"],
    affinity: Tensor,
    logits: Float[Tensor, "n c"],
    steps: int,
) -> Float[Tensor, "n c"]:
    """Updates the probabilities of all images by their neighbors' (arXiv:2406.01837).

    Args:
        start: Logarithm of the starting probabilities.
        log_likelihood: Log-likelihood of the Gaussian of each class.
        affinity: Sparse affinity of the images.
        logits: Logits of the previous step.
        steps: Number of updates.

    Returns:
        The logits of the last step.
    """
    unary = log_likelihood.mul_(LIKELIHOOD_WEIGHT).add_(start)
    for _ in range(steps):
        logits = torch.sparse.mm(affinity, logits.softmax(dim=1)).add_(unary)
    return logits


def raise_to_least(variances: Float[Tensor, "v d"]) -> Float[Tensor, "v d"]:
    """Raises variances to the least value."""
    return variances.clamp_min(LEAST_VARIANCE / variances.shape[1])


def _confident_means(
    features: Float[Tensor, "n d"], log_probs: Float[Tensor, "n c"], confident: int
) -> Float[Tensor, "c d"]:
    """Returns the unit mean of the most confident images of each class, weighted by their probability."""
    n, num_classes = log_probs.shape
    k = min(confident, n)
    means = torch.empty(num_classes, features.shape[1], dtype=torch.float64, device=features.device)
    for classes in row_blocks(num_classes, n + k * features.shape[1]):
        columns = log_probs[:, classes].T
        images = top_columns(columns, k)
        values = columns.gather(1, images).double()
        # Over the highest, which changes no direction: the probabilities of an unlikely class would be 0.
        weights = (values - values.amax(dim=1, keepdim=True)).exp()
        means[classes] = torch.einsum("ck,ckd->cd", weights, features[images].double())
    return normalize(means, dim=1)
