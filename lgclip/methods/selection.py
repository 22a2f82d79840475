"""Selects the synthetic images that represent a class."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from lgclip.methods.prototypes import SupportSet


@dataclass(frozen=True)
class Selection(ABC):
    """Keeps the `keep` highest-ranked images of each class; a class that has fewer keeps all.

    Args:
        keep: Number of images per class; None keeps all.

    Raises:
        ValueError: If `keep` is below 1.
    """

    keep: int | None = None

    key_name: ClassVar[str]
    """The name by which results identify the selection."""

    needs_text = False
    """Whether the selection uses the text tower."""

    def __post_init__(self) -> None:
        if self.keep is not None and self.keep < 1:
            raise ValueError(f"selection.keep={self.keep}: it must be at least 1, or null for all")

    def select(self, support: SupportSet, text: Float[Tensor, "c d"] | None) -> SupportSet:
        """Returns the selected images, in their original order.

        Args:
            support: All images.
            text: Text prototypes, where there are any.
        """
        if self.keep is None or int(support.counts().max()) <= self.keep:
            return support
        return support.take(self.mask(support, text))

    def mask(self, support: SupportSet, text: Float[Tensor, "c d"] | None) -> Bool[Tensor, " n"]:
        """Returns a mask of the selected images; the arguments are those of `select`."""
        if self.keep is None:
            return torch.ones(len(support.labels), dtype=torch.bool, device=support.labels.device)
        return best(support, self.rank_scores(support, text), self.keep)

    @abstractmethod
    def rank_scores(self, support: SupportSet, text: Float[Tensor, "c d"] | None) -> Float[Tensor, " n"]:
        """Returns the selection score of each image within its class."""


@dataclass(frozen=True)
class First(Selection):
    """Ranks images by the order of generation, the earliest first."""

    key_name: ClassVar[str] = "First"

    def rank_scores(self, support: SupportSet, text: Float[Tensor, "c d"] | None) -> Float[Tensor, " n"]:
        return -torch.arange(len(support.labels), dtype=torch.float64, device=support.labels.device)


@dataclass(frozen=True)
class ByText(Selection):
    """Ranks images by the text tower, as in the official release of LGCLIP; the selection thus depends on text.

    Images that the text baseline assigns to their own class come before the others; within each group, a higher
    similarity to the class's sentence comes first. As in the release, the full image is compared, whatever crops the
    prototypes are fused from.
    """

    key_name: ClassVar[str] = "ByText"

    needs_text = True

    def rank_scores(self, support: SupportSet, text: Float[Tensor, "c d"] | None) -> Float[Tensor, " n"]:
        if text is None:
            raise ValueError("selection=text needs a text tower, which this encoder lacks; use selection=medoid")
        features = support.features if support.full_image is None else support.full_image
        scores = features @ text.T
        similarity = scores.gather(1, support.labels[:, None])[:, 0].double()
        # Cosines lie within 2 of each other, so adding 10 puts all of these images before the others.
        return similarity + 10 * (scores.argmax(dim=1) == support.labels)


@dataclass(frozen=True)
class Medoid(Selection):
    """Ranks images by their similarity to the images of their class; `keep` 1 is the medoid."""

    key_name: ClassVar[str] = "Medoid"

    def rank_scores(self, support: SupportSet, text: Float[Tensor, "c d"] | None) -> Float[Tensor, " n"]:
        return (support.features * support.means(renormalize=False)[support.labels]).sum(dim=1)


@dataclass(frozen=True)
class Consensus(Selection):
    """Removes, step by step, the image least similar to the mean of its class; the last one ranks first.

    The mean is recomputed after each step.
    The last two are equally similar to their mean: the earlier one stays.
    """

    key_name: ClassVar[str] = "Consensus"

    def rank_scores(self, support: SupportSet, text: Float[Tensor, "c d"] | None) -> Float[Tensor, " n"]:
        rank_scores = torch.zeros(len(support.labels), dtype=torch.float64, device=support.labels.device)
        for label in range(support.num_classes):
            rows = (support.labels == label).nonzero().flatten()
            # The later an image is removed, the higher its score.
            for turn in range(len(rows)):
                features = support.features[rows].double()
                worst = int((features @ features.mean(dim=0)).argmin())
                # Two are equally similar to their mean. Rounding would decide, differently from machine to machine.
                if len(rows) == 2:
                    worst = 1
                rank_scores[rows[worst]] = turn
                rows = torch.cat([rows[:worst], rows[worst + 1 :]])
        return rank_scores


@dataclass(frozen=True)
class LeaveOneOut(Selection):
    """Ranks images by how well the other synthetic images predict their class.

    The score is the cosine to the prototype of the other images of its class, minus the highest cosine to
    another class's prototype.
    """

    key_name: ClassVar[str] = "LeaveOneOut"

    def rank_scores(self, support: SupportSet, text: Float[Tensor, "c d"] | None) -> Float[Tensor, " n"]:
        means = support.means(renormalize=False).double()
        counts = support.counts()
        features = support.features.double()
        # The sum of the class without the image itself, so that no mean has to be computed for each image. Of a single
        # image it is 0, and so is its similarity.
        others = means[support.labels] * counts[support.labels, None] - features
        similarity = (features * normalize(others, dim=-1)).sum(dim=1)
        scores = features @ normalize(means, dim=-1).T
        # The image's own class is taken out before the maximum over the others.
        return similarity - scores.scatter(1, support.labels[:, None], -torch.inf).amax(dim=1)


def best(support: SupportSet, rank_scores: Float[Tensor, " n"], keep: int) -> Bool[Tensor, " n"]:
    """Returns a mask of the `keep` images of each class with the highest scores; the earlier among equals."""
    # Two stable sorts instead of a loop over the classes: by score, then by class, which keeps the order within each.
    order = rank_scores.argsort(descending=True, stable=True)
    order = order[support.labels[order].argsort(stable=True)]
    # The place within the class is the place in the sorted order, less where the class begins there.
    counts = support.counts()
    starts = counts.cumsum(0) - counts
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device) - starts[support.labels[order]]
    return place < keep
