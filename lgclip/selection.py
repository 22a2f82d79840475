"""Which of a class's synthetic images stand for it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from lgclip.prototypes import Support


@dataclass(frozen=True)
class Selection(ABC):
    """Keeps the `keep` images of each class that are worth most; a class that has fewer keeps all.

    Args:
        keep: Images of a class that are kept; None keeps all.

    Raises:
        ValueError: If `keep` is below 1.
    """

    keep: int | None = None

    needs_text = False
    """Whether the choice is by the text tower."""

    def __post_init__(self) -> None:
        if self.keep is not None and self.keep < 1:
            raise ValueError(f"selection.keep={self.keep}: it must be at least 1, or null for all")

    def select(self, support: Support, text: Float[Tensor, "c d"] | None) -> Support:
        """The images that stay, in their order.

        Args:
            support: All images.
            text: Text prototypes, where there are any.
        """
        if self.keep is None or int(support.counts().max()) <= self.keep:
            return support
        return support.take(best(support, self.worth(support, text), self.keep))

    @abstractmethod
    def worth(self, support: Support, text: Float[Tensor, "c d"] | None) -> Float[Tensor, " n"]:
        """What each image is worth among those of its class."""


@dataclass(frozen=True)
class First(Selection):
    """The earlier drawn, the better."""

    def worth(self, support: Support, text: Float[Tensor, "c d"] | None) -> Float[Tensor, " n"]:
        return -torch.arange(len(support.labels), dtype=torch.float64, device=support.labels.device)


@dataclass(frozen=True)
class ByText(Selection):
    """As in the official release of LGCLIP, so the choice is not free of text.

    Images that the text baseline puts into their own class come before the others; within each, the
    more like the class's sentence, the better.
    """

    needs_text = True

    def worth(self, support: Support, text: Float[Tensor, "c d"] | None) -> Float[Tensor, " n"]:
        if text is None:
            raise ValueError("selection=text needs a text tower, which this encoder lacks; use selection=medoid")
        scores = support.features @ text.T
        own = scores.gather(1, support.labels[:, None])[:, 0].double()
        return own + 10 * (scores.argmax(dim=1) == support.labels)


@dataclass(frozen=True)
class Medoid(Selection):
    """The more like the images of its class, the better; `keep` 1 is the medoid."""

    def worth(self, support: Support, text: Float[Tensor, "c d"] | None) -> Float[Tensor, " n"]:
        return (support.features * support.means(renormalise=False)[support.labels]).sum(dim=1)


@dataclass(frozen=True)
class Consensus(Selection):
    """The image least like the mean of its class goes, the mean is taken anew, and so on; the last is best.

    The last two are equally like their mean: the earlier stays.
    """

    def worth(self, support: Support, text: Float[Tensor, "c d"] | None) -> Float[Tensor, " n"]:
        worth = torch.zeros(len(support.labels), dtype=torch.float64, device=support.labels.device)
        for label in range(support.num_classes):
            rows = (support.labels == label).nonzero().flatten()
            for turn in range(len(rows)):
                features = support.features[rows].double()
                worst = 1 if len(rows) == 2 else int((features @ features.mean(dim=0)).argmin())
                worth[rows[worst]] = turn
                rows = torch.cat([rows[:worst], rows[worst + 1 :]])
        return worth


@dataclass(frozen=True)
class LeaveOneOut(Selection):
    """The better the other synthetic images tell its class, the better.

    Worth is the cosine to the prototype of the other images of its class, less the highest cosine to
    another class's prototype.
    """

    def worth(self, support: Support, text: Float[Tensor, "c d"] | None) -> Float[Tensor, " n"]:
        means, counts = support.means(renormalise=False).double(), support.counts()
        features = support.features.double()
        rest = means[support.labels] * counts[support.labels, None] - features
        own = (features * normalize(rest, dim=-1)).sum(dim=1)
        scores = features @ normalize(means, dim=-1).T
        return own - scores.scatter(1, support.labels[:, None], -torch.inf).amax(dim=1)


def best(support: Support, worth: Float[Tensor, " n"], keep: int) -> Bool[Tensor, " n"]:
    """Mask of the `keep` images of each class that are worth most; the earlier among equals."""
    order = worth.argsort(descending=True, stable=True)
    order = order[support.labels[order].argsort(stable=True)]  # class by class, the best first
    counts = support.counts()
    starts = counts.cumsum(0) - counts
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device) - starts[support.labels[order]]
    return place < keep
