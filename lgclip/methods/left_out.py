"""Scores synthetic images that are left out of the prototypes: what the fits without real images are made on."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lgclip.methods.prototypes import SupportSet
from lgclip.methods.shots import Shots

if TYPE_CHECKING:
    from lgclip.methods.calibration import Choice

FOLDS = 10
"""Maximum number of folds: the time to fit the prototypes does not grow with the number of images per class."""


class References(NamedTuple):
    """Holds what images are compared with.

    Attributes:
        support: Synthetic images of the classes; None if text alone represents them.
        text: Text prototypes, where the classifier has them.
        shots: Real images of the classes, where there are any.
    """

    support: SupportSet | None
    text: Float[Tensor, "c d"] | None = None
    shots: Shots | None = None

    @property
    def images(self) -> SupportSet | None:
        """Returns the synthetic and the real images of the classes."""
        if self.support is None or self.shots is None:
            return self.support
        return self.shots.joined(self.support)

    @property
    def can_leave_out(self) -> bool:
        """Returns whether every class has a synthetic image besides the one that is left out."""
        return self.support is not None and int(self.support.counts().min()) >= 2


class LeftOut(NamedTuple):
    """Holds the scores of left-out synthetic images, and of left-out real ones.

    Attributes:
        scores: Score of each class, by prototypes without the image.
        labels: Class index of each image.
        features: Unit features of the images.
        nearest: Cosine to the nearest remaining image of any class.
        rows: Row of each image among the synthetic ones; of real images, among those.
    """

    scores: Float[Tensor, "n c"]
    labels: Int[Tensor, " n"]
    features: Float[Tensor, "n d"]
    nearest: Float[Tensor, " n"]
    rows: Int[Tensor, " n"]


def place_in_class(support: SupportSet) -> Tensor:
    """Returns for each image the number of earlier images of its class."""
    counts: dict[int, int] = {}
    places = []
    for label in support.labels.tolist():
        places.append(counts.setdefault(label, 0))
        counts[label] += 1
    return torch.tensor(places, device=support.labels.device)


def left_out_scores(choice: "Choice", references: References, *, synthetic: bool = True) -> LeftOut:
    """Scores images by prototypes that do not contain them.

    One image of *every* class is left out at a time, so that the classes stay equally large; of more than ten images of
    a class, a tenth. Real images are left out in the same way, after the synthetic ones.

    Args:
        choice: Settings of the classifier.
        references: The images, at least two synthetic ones of each class, and the text prototypes.
        synthetic: Whether synthetic images are left out too, and not real ones alone.
    """
    support = references.support
    shots = references.shots
    assert support is not None
    choice = choice.fixed(references.images, references.text)
    parts: list[LeftOut] = []
    for mask in _folds(support) if synthetic else ():
        remaining = support.take(~mask)
        if shots is not None:
            remaining = shots.joined(remaining)
        parts.append(_scored(choice, support, mask, remaining, references.text))
    if shots is not None:
        real = SupportSet(shots.features, shots.labels, support.num_classes)
        for mask in _folds(real):
            others = real.take(~mask)
            remaining = shots._replace(features=others.features, labels=others.labels)
            parts.append(_scored(choice, real, mask, remaining.joined(support), references.text))
    return LeftOut(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _folds(support: SupportSet) -> Iterator[Bool[Tensor, " n"]]:
    """Yields a mask of the images of each fold: those with the same place in their classes, modulo ten."""
    folds = place_in_class(support) % FOLDS
    for fold in range(int(folds.max()) + 1):
        yield folds == fold


def _scored(
    choice: "Choice",
    images: SupportSet,
    mask: Bool[Tensor, " n"],
    remaining: SupportSet,
    text: Float[Tensor, "c d"] | None,
) -> LeftOut:
    left_out = images.take(mask)
    scores = choice.fit(remaining, text)(left_out.features)
    nearest = (left_out.features @ remaining.features.T).amax(dim=1)
    return LeftOut(scores, left_out.labels, left_out.features, nearest, mask.nonzero().flatten())
