"""Defines what all transductive rules share: they classify the unlabelled images of a pool together.

A rule refines the scores of any classifier by what the images of the pool have in common. It sees no label.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from lgclip.methods.transduction.moments import class_means


class UnlabeledPool(NamedTuple):
    """Holds images that are classified together.

    Attributes:
        features: Unit features.
        scores: Starting scores of any classifier: the higher, the more likely the class.
        temperature: Divisor that turns the scores into logits.
        prototypes: Unit prototypes of the classifier in the space of the features, where it has them; None: the means
            of the features, weighted by the softmax of the scores, are used.
    """

    features: Float[Tensor, "n d"]
    scores: Float[Tensor, "n c"]
    temperature: float
    prototypes: Float[Tensor, "c d"] | None

    def log_probs(self) -> Float[Tensor, "n c"]:
        """Returns the logarithm of the probabilities at the start."""
        return (self.scores / self.temperature).log_softmax(dim=1)

    def anchors(self) -> Float[Tensor, "c d"]:
        """Returns the prototypes, or the unit means of the features weighted by the probabilities at the start."""
        if self.prototypes is not None:
            return self.prototypes
        return normalize(class_means(self.features, self.log_probs()), dim=1).to(self.features)


class Transduction(ABC):
    """Refines the scores of a pool of unlabelled images by the structure of the pool.

    A value of the config group `transduction`. Nothing is random, and equal scores are ordered by their place, so the
    same pool always gives the same logits.
    """

    key_name: ClassVar[str]
    """The name by which results identify the rule."""

    assumes_balanced: ClassVar[bool] = False
    """Whether it assumes that all classes are equally frequent in the pool."""

    is_online: ClassVar[bool] = False
    """Whether the logits of an image depend on earlier images of the pool only."""

    def refine(self, pool: UnlabeledPool) -> Float[Tensor, "n c"]:
        """Returns logits whose softmax holds the probabilities of the classes.

        Args:
            pool: The images. Features in half precision are computed with in single precision.

        Raises:
            ValueError: If the temperature of the pool is not above 0.
        """
        if not 0 < pool.temperature < math.inf:
            raise ValueError(f"temperature={pool.temperature} of the starting scores: it must be above 0")
        dtype = torch.promote_types(pool.features.dtype, torch.float32)
        prototypes = pool.prototypes
        if prototypes is not None:
            prototypes = prototypes.to(dtype)
        pool = pool._replace(features=pool.features.to(dtype), scores=pool.scores.to(dtype), prototypes=prototypes)
        if pool.scores.numel() == 0:
            return pool.scores
        return self.logits(pool)

    @abstractmethod
    def logits(self, pool: UnlabeledPool) -> Float[Tensor, "n c"]:
        """Returns the logits of a pool with at least one image and one class, in single or double precision."""


def check_at_least(name: str, value: float, least: float) -> None:
    """Checks a parameter of a rule.

    Raises:
        ValueError: If it is below the least value, or not finite.
    """
    if not least <= value < math.inf:
        raise ValueError(f"transduction.{name}={value}: it must be at least {least}")


def check_above_zero(name: str, value: float) -> None:
    """Checks a parameter of a rule.

    Raises:
        ValueError: If it is not above 0, or not finite.
    """
    if not 0 < value < math.inf:
        raise ValueError(f"transduction.{name}={value}: it must be above 0")


def check_fraction(name: str, value: float) -> None:
    """Checks a parameter of a rule.

    Raises:
        ValueError: If it is not in [0, 1).
    """
    if not 0 <= value < 1:
        raise ValueError(f"transduction.{name}={value}: it must be at least 0 and below 1")
