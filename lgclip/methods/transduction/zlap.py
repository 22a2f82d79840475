"""ZLaP: label propagation over a graph of the images and the classes (arXiv:2404.04072)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lgclip.methods.transduction.base import (
    Transduction,
    UnlabeledPool,
    check_above_zero,
    check_at_least,
    check_fraction,
)
from lgclip.methods.transduction.moments import row_blocks
from lgclip.methods.transduction.neighbors import distinct_images, neighbor_graph, top_columns

TOLERANCE = 1e-9
"""Bound on what the terms left out of the series add to a score."""

UNREACHED = 1e-12
"""Weight of the starting probabilities in the result."""


@dataclass(frozen=True)
class ZLaP(Transduction):
    """Propagates labels from class nodes over the nearest images (arXiv:2404.04072).

    The nodes are the images and the classes. Images are connected to their nearest images by their cosine, and to
    their nearest classes by the similarity to the power `gamma`, which bridges the gap between text and images;
    classes are not connected with each other. With the normalized adjacency S the scores of a class are the rows of
    the images in `(I - alpha S)^-1 y`, where y is 1 at the class.

    Ours: of a classifier without prototypes the similarity is the starting probability itself, since means of features
    would leave out what else it knows. The inverse is a series instead of conjugate gradients. Scores are divided by
    their sum over the classes, and classes that the graph does not reach are ranked by the starting probabilities.
    Copies of an image are one image.

    Args:
        neighbors: Number of nearest images; the release's 5 counts the image itself.
        classes: Number of nearest classes.
        gamma: Power of the similarity to a class.
        alpha: Weight of the neighbors' scores.

    Raises:
        ValueError: If a number is out of range.
    """

    key_name: ClassVar[str] = "ZLaP"

    neighbors: int = 4
    classes: int = 5
    gamma: float = 5.0
    alpha: float = 0.3

    def __post_init__(self) -> None:
        check_at_least("neighbors", self.neighbors, 1)
        check_at_least("classes", self.classes, 1)
        check_above_zero("gamma", self.gamma)
        check_fraction("alpha", self.alpha)

    def logits(self, pool: UnlabeledPool) -> Float[Tensor, "n c"]:
        images = distinct_images(pool)
        graph = self._graph(images.pool)
        steps = 1
        if self.alpha > 0:
            steps = math.ceil(math.log(TOLERANCE) / math.log(self.alpha))
        n = len(images.pool.features)
        num_classes = images.pool.scores.shape[1]
        # Added where the graph does not reach a class, so that no logit is infinite.
        logits = images.pool.log_probs() + math.log(UNREACHED)
        totals = torch.zeros(n, dtype=torch.float64, device=logits.device)
        log_scores = torch.empty_like(logits)
        for columns in row_blocks(num_classes, n + num_classes):
            classes = torch.arange(columns.start, columns.stop, device=logits.device)
            labels = torch.zeros(n + num_classes, len(classes), dtype=torch.float64, device=logits.device)
            labels[n + classes, classes - columns.start] = 1
            scores = labels
            for _ in range(steps):
                scores = torch.sparse.mm(graph, scores).mul_(self.alpha).add_(labels)
            totals += scores[:n].sum(dim=1)
            log_scores[:, columns] = scores[:n].log().to(logits)
        # The sum is 0 for an image that no class reaches.
        log_scores -= totals.clamp_min(torch.finfo(torch.float64).tiny).log().to(logits)[:, None]
        return torch.logaddexp(log_scores, logits)[images.rows]

    def _graph(self, pool: UnlabeledPool) -> Tensor:
        """Returns the normalized sparse adjacency of images and classes, in this order."""
        n, num_classes = pool.scores.shape
        size = n + num_classes
        similarities, classes = self._nearest_classes(pool)
        images = torch.arange(n, device=classes.device).repeat_interleave(classes.shape[1])
        class_nodes = n + classes.flatten()
        between_images = neighbor_graph(pool.features, self.neighbors)
        places = torch.cat(
            [between_images.indices(), torch.stack([images, class_nodes]), torch.stack([class_nodes, images])], dim=1
        )
        values = torch.cat([between_images.values().double().clamp_min(0), similarities.flatten().repeat(2)])
        adjacency = torch.sparse_coo_tensor(places, values, (size, size), check_invariants=False).coalesce()
        rows, columns = adjacency.indices()
        degrees = torch.sparse.mm(adjacency, values.new_ones(size, 1))[:, 0]
        # A node without an edge of a positive weight has no row to normalize.
        scales = degrees.clamp_min(torch.finfo(torch.float64).tiny).rsqrt()
        normalized = adjacency.values() * scales[rows] * scales[columns]
        return torch.sparse_coo_tensor(
            adjacency.indices(), normalized, (size, size), is_coalesced=True, check_invariants=False
        )

    def _nearest_classes(self, pool: UnlabeledPool) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
        """Returns the similarity of each image to its nearest classes, and these classes."""
        n, num_classes = pool.scores.shape
        k = min(self.classes, num_classes)
        similarities = torch.empty(n, k, dtype=torch.float64, device=pool.features.device)
        classes = torch.empty(n, k, dtype=torch.long, device=pool.features.device)
        for rows in row_blocks(n, num_classes):
            if pool.prototypes is None:
                block = (pool.scores[rows] / pool.temperature).softmax(dim=1)
            else:
                block = (pool.features[rows] @ pool.prototypes.T).clamp_min(0).pow(self.gamma)
            classes[rows] = top_columns(block, k)
            similarities[rows] = block.gather(1, classes[rows]).double()
        return similarities, classes
