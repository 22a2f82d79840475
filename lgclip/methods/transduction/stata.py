"""StatA: TransCLIP with statistical anchors, for pools of any subset of the classes (arXiv:2501.03729)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from lgclip.methods.transduction.base import Transduction, UnlabeledPool, check_above_zero, check_at_least
from lgclip.methods.transduction.moments import Moments, class_moments, diagonal_log_likelihood
from lgclip.methods.transduction.neighbors import distinct_images
from lgclip.methods.transduction.transclip import assign, build_affinity, raise_to_least


@dataclass(frozen=True)
class StatA(Transduction):
    """Refines probabilities by Gaussians whose means and variances are anchored at the prototypes (arXiv:2501.03729).

    The probabilities are updated as in TransCLIP. A class has its own diagonal variance, and with n_c images the
    weight `b_c = n_c / (alpha + n_c)` of its statistics against the anchors p_c and v_0 is small where the pool holds
    few of its images: `m_c = unit(b_c unit(mean_c) + (1 - b_c) p_c)` and
    `v_c = b_c s_c + (1 - b_c) (v_0 + (p_c - m_c)^2)`, where s_c is the variance around m_c. The anchor v_0 is
    the variance of all images around the prototypes, weighted by the starting probabilities. As in the release n_c
    counts the images whose most likely class is c, and the determinant of the covariance has no part in the likelihood.

    Ours: see TransCLIP. The release divides v_0 by the number of images once for each 2,500 of them; here it is an
    average.

    Args:
        neighbors: Number of nearest images in the graph.
        alpha: Number of images that weighs as much as the anchor.
        soft: Whether n_c is the sum of the probabilities instead, as the release also offers.
        iterations: Number of updates of means and variances.
        steps: Number of updates of the probabilities for each of them.

    Raises:
        ValueError: If a number is out of range.
    """

    key_name: ClassVar[str] = "StatA"

    neighbors: int = 3
    alpha: float = 1.0
    soft: bool = False
    iterations: int = 10
    steps: int = 5

    def __post_init__(self) -> None:
        check_at_least("neighbors", self.neighbors, 1)
        check_above_zero("alpha", self.alpha)
        check_at_least("iterations", self.iterations, 0)
        check_at_least("steps", self.steps, 1)

    def logits(self, pool: UnlabeledPool) -> Float[Tensor, "n c"]:
        images = distinct_images(pool)
        features = images.pool.features
        start = images.pool.log_probs()
        affinity = build_affinity(features, self.neighbors)
        anchors = pool.anchors().double()
        anchor_variances = raise_to_least(class_moments(features, start, images.counts).shared_variances(anchors))
        means = anchors
        variances = anchor_variances
        logits = start
        for iteration in range(self.iterations + 1):
            log_likelihood = diagonal_log_likelihood(features, means, variances)
            logits = assign(start, log_likelihood, affinity, logits, self.steps)
            if iteration < self.iterations:
                moments = class_moments(features, logits.log_softmax(dim=1), images.counts)
                weights = self._weights(logits, moments, images.counts)
                means = normalize(weights * normalize(moments.means, dim=1) + (1 - weights) * anchors, dim=1)
                anchored = anchor_variances + (anchors - means).square()
                variances = raise_to_least(weights * moments.variances(means) + (1 - weights) * anchored)
        return logits[images.rows]

    def _weights(
        self, logits: Float[Tensor, "n c"], moments: Moments, counts: Float[Tensor, " n"]
    ) -> Float[Tensor, "c 1"]:
        """Returns the weights of the statistics of the classes against their anchors."""
        sizes = moments.sizes
        if not self.soft:
            sizes = torch.zeros_like(sizes).index_add_(0, logits.argmax(dim=1), counts.double())
        return (sizes / (self.alpha + sizes))[:, None]
