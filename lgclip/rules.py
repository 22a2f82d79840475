"""How alike an image and a class are, given the class's synthetic images.

Letters in shapes: q images to judge; see `batch` for the others.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from lgclip.prototypes import Support

Scorer = Callable[[Float[Tensor, "q d"]], Float[Tensor, "q c"]]
"""Unit features of images to a score for each class."""


class Rule(ABC):
    """How the score of a class comes from its synthetic images."""

    @abstractmethod
    def fit(self, support: Support) -> Scorer:
        """The scorer over these images.

        Raises:
            ValueError: If a class has no image.
        """

    def candidates(self) -> Sequence["Rule"]:
        """Other values of its parameters to choose from, itself first."""
        return [self]


@dataclass(frozen=True)
class Mean(Rule):
    """Cosine to the mean of the class's unit features: the nearest centroid.

    Args:
        renormalise: Bring the mean back to unit length. Without it the score is the mean similarity
            to the class's images, as in the official release of LGCLIP; the two can disagree.
    """

    renormalise: bool = True

    def fit(self, support: Support) -> Scorer:
        prototypes = support.means(renormalise=self.renormalise)
        return lambda features: features @ prototypes.T


@dataclass(frozen=True)
class Nearest(Rule):
    """Mean cosine to the `n` images of the class that are nearest.

    Args:
        n: How many; 1 is the nearest image alone, as many as there are is the mean similarity.

    Raises:
        ValueError: If `n` is below 1.
    """

    n: int = 1

    def __post_init__(self) -> None:
        _at_least("prototype.n", self.n, 1)

    def fit(self, support: Support) -> Scorer:
        support.means(renormalise=False)  # no class may be empty
        own = [(support.labels == c).nonzero().flatten() for c in range(support.num_classes)]

        def score(features: Float[Tensor, "q d"]) -> Float[Tensor, "q c"]:
            cosines = features @ support.features.T
            best = [cosines[:, rows].topk(min(self.n, len(rows)), dim=1).values.mean(dim=1) for rows in own]
            return torch.stack(best, dim=1)

        return score

    def candidates(self) -> Sequence[Rule]:
        return [self, *(replace(self, n=n) for n in (1, 2, 3, 5, 8) if n != self.n)]


@dataclass(frozen=True)
class WeightedKNN(Rule):
    """Votes of the `k` nearest images of all classes, each weighing exp(cosine / temperature).

    The weights are those of Wu et al., arXiv:1805.01978. A class without a vote comes after those that
    have one, by its mean similarity.

    Args:
        k: How many images vote.
        temperature: The smaller, the more the nearest counts.

    Raises:
        ValueError: If a value is out of range.
    """

    k: int = 10
    temperature: float = 0.07

    def __post_init__(self) -> None:
        _at_least("prototype.k", self.k, 1)
        _above_zero("prototype.temperature", self.temperature)

    def fit(self, support: Support) -> Scorer:
        means = support.means(renormalise=False)

        def score(features: Float[Tensor, "q d"]) -> Float[Tensor, "q c"]:
            nearest = (features @ support.features.T).topk(min(self.k, len(support.labels)), dim=1)
            # Shares of the vote: as counts they would overflow at a small temperature.
            votes = (nearest.values / self.temperature).softmax(dim=1)
            shares = features.new_zeros(len(features), support.num_classes)
            shares.scatter_add_(1, support.labels[nearest.indices], votes)
            return torch.where(shares > 0, shares + 1, features @ means.T - 1)

        return score

    def candidates(self) -> Sequence[Rule]:
        grid = itertools.product((3, 5, 10, 20, 50), (0.02, 0.07, 0.2))
        return [self, *(rule for rule in (replace(self, k=k, temperature=t) for k, t in grid) if rule != self)]


@dataclass(frozen=True)
class Affinity(Rule):
    """Mean of exp(-beta (1 - cosine)) over the class's images: Tip-Adapter's cache (arXiv:2207.09519).

    Args:
        beta: Sharpness; towards 0 it is the mean similarity, large it is the nearest image.

    Raises:
        ValueError: If `beta` is not above 0.
    """

    beta: float = 5.5

    def __post_init__(self) -> None:
        _above_zero("prototype.beta", self.beta)

    def fit(self, support: Support) -> Scorer:
        share = _shares(support)
        return lambda features: torch.exp(-self.beta * (1 - features @ support.features.T)) @ share

    def candidates(self) -> Sequence[Rule]:
        return [self, *(replace(self, beta=beta) for beta in (1.0, 2.0, 5.5, 10.0, 20.0, 40.0) if beta != self.beta)]


@dataclass(frozen=True)
class Signature(Rule):
    """How alike an image's and the class's images' likenesses to *all* classes are.

    Tip-X (SuS-X, arXiv:2211.16198) compares softmax signatures over the text prototypes by
    their KL divergence; here the signature is over the image prototypes, so no text tower is needed.

    Args:
        temperature: Of the softmax over the cosines to the prototypes.
        beta: Sharpness of exp(-beta KL).

    Raises:
        ValueError: If a value is not above 0.
    """

    temperature: float = 0.05
    beta: float = 1.0

    def __post_init__(self) -> None:
        _above_zero("prototype.temperature", self.temperature)
        _above_zero("prototype.beta", self.beta)

    def fit(self, support: Support) -> Scorer:
        share = _shares(support)
        prototypes = support.means(renormalise=True)
        known = (support.features @ prototypes.T / self.temperature).log_softmax(dim=1)

        def score(features: Float[Tensor, "q d"]) -> Float[Tensor, "q c"]:
            signature = (features @ prototypes.T / self.temperature).log_softmax(dim=1)
            chances = signature.exp()
            divergence = (chances * signature).sum(
                dim=1, keepdim=True
            ) - chances @ known.T  # (q, n), KL(query || known)
            return torch.exp(-self.beta * divergence) @ share

        return score

    def candidates(self) -> Sequence[Rule]:
        grid = itertools.product((0.02, 0.05, 0.1), (0.5, 1.0, 3.0))
        return [self, *(rule for rule in (replace(self, temperature=t, beta=b) for t, b in grid) if rule != self)]


def _shares(support: Support) -> Float[Tensor, "n c"]:
    """1 / (images of the class) where an image is of the class, else 0."""
    support.means(renormalise=False)  # no class may be empty
    share = torch.nn.functional.one_hot(support.labels, support.num_classes).to(support.features)
    return share / share.sum(dim=0)


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name}={value}: it must be at least {least}")


def _above_zero(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ValueError(f"{name}={value}: it must be above 0")
