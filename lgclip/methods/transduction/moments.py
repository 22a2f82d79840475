"""Computes weighted means and squares of features per class, and likelihoods of Gaussians, in bounded memory.

Everything here is a product of matrices over blocks of images, never a tensor of shape (n, c, d). Sums and
differences of squares are in double precision, since they decide the result.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 2**22
"""Maximum number of elements of one block: 32 MB in double precision."""


class Moments(NamedTuple):
    """Holds the moments of each class, weighted by the probabilities of its images.

    Attributes:
        sizes: Sum of the probabilities: the expected number of images.
        means: Weighted mean of the features.
        squares: Weighted mean of the squared features.
    """

    sizes: Float[Tensor, " c"]
    means: Float[Tensor, "c d"]
    squares: Float[Tensor, "c d"]

    def variances(self, centers: Float[Tensor, "c d"]) -> Float[Tensor, "c d"]:
        """Returns the weighted mean of the squared distances to a center, for each dimension."""
        return (self.squares - 2 * centers * self.means + centers.square()).clamp_min(0)

    def shared_variances(self, centers: Float[Tensor, "c d"]) -> Float[Tensor, "1 d"]:
        """Returns the variances around the centers of the classes, averaged over the images."""
        weights = self.sizes / self.sizes.sum()
        return (weights[:, None] * self.variances(centers)).sum(dim=0, keepdim=True)


def row_blocks(n: int, width: int) -> Iterator[slice]:
    """Yields slices of rows, such that a block of this width has at most `BLOCK` elements.

    Args:
        n: Number of rows.
        width: Number of columns.
    """
    size = max(1, BLOCK // max(1, width))
    for first in range(0, n, size):
        yield slice(first, min(first + size, n))


def class_moments(
    features: Float[Tensor, "n d"], log_probs: Float[Tensor, "n c"], counts: Float[Tensor, " n"]
) -> Moments:
    """Computes the moments of each class in double precision.

    The weights of a class are divided by their maximum, which changes no mean: a class that no image belongs to would
    otherwise have a sum of 0.

    Args:
        features: Features of the images.
        log_probs: Logarithm of the probabilities of the classes.
        counts: How many times each image counts.
    """
    n, d = features.shape
    num_classes = log_probs.shape[1]
    highest = log_probs.amax(dim=0).double()
    sizes = torch.zeros(num_classes, dtype=torch.float64, device=features.device)
    sums = torch.zeros(num_classes, 2 * d, dtype=torch.float64, device=features.device)
    for rows in row_blocks(n, num_classes + 2 * d):
        block = features[rows].double()
        weights = (log_probs[rows].double() - highest).exp_() * counts[rows, None].double()
        sizes += weights.sum(dim=0)
        sums += weights.T @ torch.cat([block, block.square()], dim=1)
    sums /= sizes[:, None]
    return Moments(sizes * highest.exp(), sums[:, :d], sums[:, d:])


def class_means(features: Float[Tensor, "n d"], log_probs: Float[Tensor, "n c"]) -> Float[Tensor, "c d"]:
    """Computes the means of the features, weighted by the probabilities of each class, in double precision."""
    return class_moments(features, log_probs, features.new_ones(len(features))).means


def diagonal_log_likelihood(
    features: Float[Tensor, "n d"], means: Float[Tensor, "c d"], variances: Float[Tensor, "v d"]
) -> Float[Tensor, "n c"]:
    """Computes `-sum_d (f_d - m_cd)^2 / (2 v_cd)` less its maximum over the classes.

    Without the maximum, which changes no probability, the values would lose their digits in single precision.

    Args:
        features: Features of the images.
        means: Means of the classes.
        variances: Variance of each dimension, for each class or in one row for all.
    """
    n, d = features.shape
    log_likelihood = features.new_empty(n, len(means))
    precisions = 1 / variances.double()
    weighted = means.double() * precisions
    constant = (means.double() * weighted).sum(dim=1) / 2
    for rows in row_blocks(n, len(means) + d):
        block = features[rows].double()
        values = block @ weighted.T - constant - block.square() @ precisions.T / 2
        log_likelihood[rows] = (values - values.amax(dim=1, keepdim=True)).to(features)
    return log_likelihood
