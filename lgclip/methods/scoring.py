"""Scores the similarity of images to classes, given the classes' synthetic images.

Letters in shapes: q query images; see `lgclip.types` for the others.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lgclip.methods.prototypes import SupportSet
from lgclip.store.keys import key_name_of

Scorer = Callable[[Float[Tensor, "q d"]], Float[Tensor, "q c"]]
"""Maps unit features of images to a score for each class."""


class ScoringRule(ABC):
    """Computes the score of a class from its synthetic images."""

    is_rescaled: ClassVar[bool] = False
    """Whether its scores are brought to the spread of cosines before they are mixed with text."""

    def described(self) -> dict[str, object]:
        """Returns its name and parameters as plain values, for results and files."""
        return {"part": key_name_of(self), **asdict(self)}  # pyright: ignore[reportArgumentType]

    @abstractmethod
    def fit(self, support: SupportSet) -> Scorer:
        """Returns a scorer for these images.

        Raises:
            ValueError: If a class has no image.
        """

    def candidates(self) -> Sequence["ScoringRule"]:
        """Returns candidate values of its parameters, its own first."""
        return [self]

    def text_scorer(self, text: Float[Tensor, "c d"]) -> Scorer:
        """Returns a scorer that compares images with text prototypes by the cosine.

        Args:
            text: Text prototypes.
        """
        return lambda features: features @ text.T

    def fixed(self, support: SupportSet) -> "ScoringRule":
        """Returns this rule with whatever it learns by leaving images out, so that it is not learned in every fold.

        Args:
            support: All images.
        """
        return self


@dataclass(frozen=True)
class Mean(ScoringRule):
    """Scores by the cosine to the mean of the class's unit features: the nearest centroid.

    Args:
        renormalize: Whether to normalize the mean to unit length. Otherwise the score is the mean similarity
            to the class's images, as in the official release of LGCLIP; the two can disagree.
    """

    key_name: ClassVar[str] = "Mean"

    renormalize: bool = True

    def fit(self, support: SupportSet) -> Scorer:
        prototypes = support.means(renormalize=self.renormalize)
        return lambda features: features @ prototypes.T


@dataclass(frozen=True)
class GDA(ScoringRule):
    """Scores by Gaussian discriminant analysis: all classes share a covariance (arXiv:2402.04087, sec. 3.2).

    With the mean m_c of a class and the precision P the score is `f P m_c - m_c P m_c / 2`, the log-likelihood of the
    class up to a constant of the image. The precision is that of the release, `d inv(S + tr(S) / (n - 1) I)` with the
    scatter S of the images around their class means, here over the mean of its eigenvalues, which changes no order.
    Where no class has two images there is no scatter, P is the identity, and the score that of the nearest mean. The
    scores are brought to the spread of cosines before they are mixed with text.
    """

    key_name: ClassVar[str] = "GDA"
    is_rescaled: ClassVar[bool] = True

    def fit(self, support: SupportSet) -> Scorer:
        weights, bias = self.head(support)
        return lambda features: features @ weights.T + bias

    def head(self, support: SupportSet) -> tuple[Float[Tensor, "c d"], Float[Tensor, " c"]]:
        """Returns the linear head that computes the scores."""
        means = support.means(renormalize=False).double()
        centered = support.features.double() - means[support.labels]
        scatter = centered.T @ centered
        identity = torch.eye(scatter.shape[0], dtype=torch.float64, device=scatter.device)
        trace = scatter.trace()
        precision = identity
        if trace > 0:
            precision = torch.linalg.inv(scatter + trace / max(len(support.labels) - 1, 1) * identity)
            precision = precision / precision.trace() * len(precision)
        weights = means @ precision
        bias = -(weights * means).sum(dim=1) / 2
        return weights.to(support.features), bias.to(support.features)


@dataclass(frozen=True)
class Nearest(ScoringRule):
    """Scores by the mean cosine to the `n` nearest images of the class.

    Args:
        n: Number of neighbors; 1 is the nearest image only, the class size gives the mean similarity.

    Raises:
        ValueError: If `n` is below 1.
    """

    key_name: ClassVar[str] = "Nearest"

    n: int = 1

    def __post_init__(self) -> None:
        _check_at_least("prototype.n", self.n, 1)

    def fit(self, support: SupportSet) -> Scorer:
        support.means(renormalize=False)  # called for its error: no class may be empty
        rows_of_class = [(support.labels == c).nonzero().flatten() for c in range(support.num_classes)]

        def score(features: Float[Tensor, "q d"]) -> Float[Tensor, "q c"]:
            cosines = features @ support.features.T
            # Class by class, since classes may have different numbers of images, some of them fewer than n.
            best = [cosines[:, rows].topk(min(self.n, len(rows)), dim=1).values.mean(dim=1) for rows in rows_of_class]
            return torch.stack(best, dim=1)

        return score

    def candidates(self) -> Sequence[ScoringRule]:
        return [self, *(replace(self, n=n) for n in (1, 2, 3, 5, 8) if n != self.n)]


@dataclass(frozen=True)
class WeightedKNN(ScoringRule):
    """Scores by votes of the `k` nearest images of all classes, each weighted by exp(cosine / temperature).

    The weights are those of Wu et al., arXiv:1805.01978. Classes without a vote rank below those that
    have one, by their mean similarity.

    Args:
        k: Number of neighbors.
        temperature: The smaller, the more the nearest images dominate.

    Raises:
        ValueError: If a value is out of range.
    """

    key_name: ClassVar[str] = "WeightedKNN"

    k: int = 10
    temperature: float = 0.07

    def __post_init__(self) -> None:
        _check_at_least("prototype.k", self.k, 1)
        _above_zero("prototype.temperature", self.temperature)

    def fit(self, support: SupportSet) -> Scorer:
        means = support.means(renormalize=False)

        def score(features: Float[Tensor, "q d"]) -> Float[Tensor, "q c"]:
            nearest = (features @ support.features.T).topk(min(self.k, len(support.labels)), dim=1)
            # Shares of the vote: as counts they would overflow at a small temperature.
            votes = (nearest.values / self.temperature).softmax(dim=1)
            # Not `len`, which would fix the number of images in an exported graph.
            shares = features.new_zeros(features.shape[0], support.num_classes)
            shares.scatter_add_(1, support.labels[nearest.indices], votes)
            # With a vote a score lies in (1, 2], without one in [-2, 0]: the two never mix.
            return torch.where(shares > 0, shares + 1, features @ means.T - 1)

        return score

    def candidates(self) -> Sequence[ScoringRule]:
        grid = itertools.product((3, 5, 10, 20, 50), (0.02, 0.07, 0.2))
        rules = [replace(self, k=k, temperature=temperature) for k, temperature in grid]
        return [self, *(rule for rule in rules if rule != self)]


@dataclass(frozen=True)
class Affinity(ScoringRule):
    """Scores by the mean of exp(-beta (1 - cosine)) over the class's images: Tip-Adapter's cache (arXiv:2207.09519).

    Args:
        beta: Sharpness; small values approach the mean similarity, large ones the nearest image.

    Raises:
        ValueError: If `beta` is not above 0.
    """

    key_name: ClassVar[str] = "Affinity"

    beta: float = 5.5

    def __post_init__(self) -> None:
        _above_zero("prototype.beta", self.beta)

    def fit(self, support: SupportSet) -> Scorer:
        class_weights = _class_weights(support)
        # A mean, where Tip-Adapter and SuS-X sum: a class with more images would otherwise have higher scores. With
        # equal numbers of images the two rank classes alike.
        return lambda features: torch.exp(-self.beta * (1 - features @ support.features.T)) @ class_weights

    def candidates(self) -> Sequence[ScoringRule]:
        return [self, *(replace(self, beta=beta) for beta in (1.0, 2.0, 5.5, 10.0, 20.0, 40.0) if beta != self.beta)]


LOGIT_SCALE = 100.0
"""Factor of CLIP's cosines in its logits (arXiv:2103.00020, sec. 2.5)."""


@dataclass(frozen=True)
class Cache(ScoringRule):
    """Scores by the cache model exactly as Tip-Adapter defines it (arXiv:2207.09519, eq. 6; SuS-X, arXiv:2211.16198).

    The published logits are `100 f . t_c + alpha sum_i exp(-beta (1 - f . x_i))`, summed over the images of the class.
    This rule gives the second term over 100, on the scale of cosines. With `method=fusion` and its text weight of 0.5
    the score is half of the published logits over 100, and so ranks the classes alike.

    Args:
        alpha: Weight of the images, relative to 1 for the text.
        beta: Sharpness.

    Raises:
        ValueError: If a value is not above 0.
    """

    key_name: ClassVar[str] = "Cache"

    alpha: float = 1.0
    beta: float = 5.5

    def __post_init__(self) -> None:
        _above_zero("prototype.alpha", self.alpha)
        _above_zero("prototype.beta", self.beta)

    def fit(self, support: SupportSet) -> Scorer:
        members = _class_weights(support).sign()
        factor = self.alpha / LOGIT_SCALE
        return lambda features: factor * torch.exp(-self.beta * (1 - features @ support.features.T)) @ members

    def candidates(self) -> Sequence[ScoringRule]:
        grid = itertools.product((0.1, 0.3, 1.0, 3.0, 10.0), (1.0, 5.5, 10.0, 20.0))
        rules = [replace(self, alpha=alpha, beta=beta) for alpha, beta in grid]
        return [self, *(rule for rule in rules if rule != self)]


@dataclass(frozen=True)
class Signature(ScoringRule):
    """Compares the similarities of an image and of a class's images to *all* classes.

    Tip-X (SuS-X, arXiv:2211.16198) compares softmax signatures over the text prototypes by
    their KL divergence; here the signature is over the image prototypes, so that no text tower is needed.

    Args:
        temperature: Temperature of the softmax over the cosines to the prototypes.
        beta: Sharpness of exp(-beta KL).

    Raises:
        ValueError: If a value is not above 0.
    """

    key_name: ClassVar[str] = "Signature"

    temperature: float = 0.05
    beta: float = 1.0

    def __post_init__(self) -> None:
        _above_zero("prototype.temperature", self.temperature)
        _above_zero("prototype.beta", self.beta)

    def fit(self, support: SupportSet) -> Scorer:
        class_weights = _class_weights(support)
        prototypes = support.means(renormalize=True)
        image_signatures = (support.features @ prototypes.T / self.temperature).log_softmax(dim=1)

        def score(features: Float[Tensor, "q d"]) -> Float[Tensor, "q c"]:
            signature = (features @ prototypes.T / self.temperature).log_softmax(dim=1)
            probs = signature.exp()
            # KL(query || image) = sum p log p - sum p log q, of shape (q, n). As a matrix product it needs no tensor
            # of shape (q, n, c).
            entropy = (probs * signature).sum(dim=1, keepdim=True)
            divergence = entropy - probs @ image_signatures.T
            return torch.exp(-self.beta * divergence) @ class_weights

        return score

    def candidates(self) -> Sequence[ScoringRule]:
        grid = itertools.product((0.02, 0.05, 0.1), (0.5, 1.0, 3.0))
        rules = [replace(self, temperature=temperature, beta=beta) for temperature, beta in grid]
        return [self, *(rule for rule in rules if rule != self)]


def _class_weights(support: SupportSet) -> Float[Tensor, "n c"]:
    """Returns 1 / (images of the class) where an image belongs to the class, else 0."""
    support.means(renormalize=False)  # called for its error: no class may be empty
    class_weights = torch.nn.functional.one_hot(support.labels, support.num_classes).to(support.features)
    return class_weights / class_weights.sum(dim=0)


def _check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name}={value}: it must be at least {least}")


def _above_zero(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ValueError(f"{name}={value}: it must be above 0")
