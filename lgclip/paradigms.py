"""Which images of the pool a learner may know the labels of: none, a few of each class, or those of some classes.

The pool is a data set's training images (train and val); the judged ones are not among them. The rules are those of
GRIP (arXiv:2306.01669, sec. 4), which CPL and AiR (arXiv:2504.11930) take over, with the draws of its release.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from lgclip.identity import STANDS_FOR

KINDS = ("ul", "ssl", "trzsl")
"""Unsupervised, semi-supervised and transductive zero-shot learning."""

_LEGACY_SEEDS = 2**32
"""What NumPy's legacy generator takes as a seed is below this."""


class Division(NamedTuple):
    """What a learner may know of a pool: places and classes, but no label.

    Labels may be read at the places in `labelled` alone.

    Attributes:
        labelled: Places in the pool of the images whose label is known.
        unlabelled: Places of the others, in the pool's order.
        seen: Classes with labelled images, in index order.
        unseen: The others.
        targets: Classes that a pseudo-label may be of, in index order: the columns of its probabilities.
    """

    labelled: Int[Tensor, " l"]
    unlabelled: Int[Tensor, " u"]
    seen: tuple[int, ...]
    unseen: tuple[int, ...]
    targets: tuple[int, ...]


@dataclass(frozen=True)
class Paradigm:
    """How a pool is divided into labelled and unlabelled images.

    - `ul`: no label is known; pseudo-labels are of all classes.
    - `ssl`: `shots` labels of each class are known; pseudo-labels are of all classes.
    - `trzsl`: all labels of the seen classes are known; the images of the others are the unlabelled ones, and
      pseudo-labels are of these other classes alone.

    Args:
        kind: One of these.
        split_seed: Which classes are seen, with `trzsl`. The release judges with 500, 0 and 200.
        seen_share: Share of the classes that is seen, rounded down, with `trzsl`.
        seen: The seen classes by index, in place of a draw; the release does so for CUB.
        shots: Labelled images of each class, with `ssl`.
        shots_seed: Which ones.

    Raises:
        ValueError: If a value is out of range.
    """

    kind: str = "ul"
    split_seed: int = field(default=500, metadata={STANDS_FOR: lambda part: part._drawn(part.split_seed)})
    seen_share: float = field(default=0.62, metadata={STANDS_FOR: lambda part: part._drawn(part.seen_share)})
    seen: Sequence[int] | None = field(default=None, metadata={STANDS_FOR: lambda part: part._given()})
    shots: int = field(default=2, metadata={STANDS_FOR: lambda part: part._few(part.shots)})
    shots_seed: int = field(default=0, metadata={STANDS_FOR: lambda part: part._few(part.shots_seed)})

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"paradigm.kind={self.kind}: choose {', '.join(KINDS)}")
        if not 0 < self.seen_share < 1:
            raise ValueError(
                f"paradigm.seen_share={self.seen_share}: it must be above 0 and below 1, so that some classes are "
                "seen and some are not"
            )
        if not _whole(self.shots) or self.shots < 1:
            raise ValueError(
                f"paradigm.shots={self.shots}: it must be a whole number, at least 1; without labels it is paradigm=ul"
            )
        for name in ("split_seed", "shots_seed"):
            if not _whole(seed := getattr(self, name)) or not 0 <= seed < _LEGACY_SEEDS:
                raise ValueError(
                    f"paradigm.{name}={seed}: it must be a whole number, at least 0 and below {_LEGACY_SEEDS}"
                )

    def divide(self, labels: Sequence[int], num_classes: int) -> Division:
        """Which images of a pool are labelled, and which classes pseudo-labels may be of.

        Args:
            labels: True class of each image of the pool. Those of the unlabelled images are not given on.
            num_classes: Classes of the data set.

        Raises:
            ValueError: If the pool is empty or has other classes, a class has fewer images than `shots`, no class
                would be seen or unseen, or nothing would be labelled or unlabelled.
        """
        pool = np.asarray(labels, dtype=np.int64)
        if not len(pool):
            raise ValueError("the pool has no image: a data set with training images is needed")
        if pool.min() < 0 or pool.max() >= num_classes:
            raise ValueError(f"the pool has labels from {pool.min()} to {pool.max()}, and {num_classes} classes")
        everything = tuple(range(num_classes))
        if self.kind == "ul":
            return _division(pool, np.array([], np.int64), (), everything)
        if self.kind == "ssl":
            return _division(pool, self._few_of_each(pool, num_classes), everything, everything)
        seen = self.seen_classes(num_classes)
        unseen = tuple(sorted(set(everything) - set(seen)))
        return _division(pool, np.flatnonzero(np.isin(pool, seen)), seen, unseen)

    def seen_classes(self, num_classes: int) -> tuple[int, ...]:
        """The seen classes of `trzsl`, in index order.

        They are drawn as the release does: `numpy.random.seed(split_seed)`, then
        `numpy.random.choice(range(C), size=int(C * 0.62), replace=False)`.

        Args:
            num_classes: Classes of the data set.

        Raises:
            ValueError: If no class would be seen or unseen, or a given one is not among them.
        """
        if self.seen is None:
            # The legacy generator on purpose: its draws are the published splits. Of its own, so that no other
            # part's random numbers change.
            drawn = np.random.RandomState(self.split_seed).choice(
                num_classes, size=int(num_classes * self.seen_share), replace=False
            )
            seen = tuple(sorted(drawn.tolist()))
        else:
            seen = tuple(sorted(set(self.seen)))
            if seen and (seen[0] < 0 or seen[-1] >= num_classes):
                raise ValueError(f"paradigm.seen={list(self.seen)}: classes are 0 to {num_classes - 1}")
        if not seen or len(seen) == num_classes:
            how = f"seen_share={self.seen_share}" if self.seen is None else f"seen={list(self.seen)}"
            raise ValueError(
                f"paradigm.{how}: of {num_classes} classes {len(seen)} would be seen and {num_classes - len(seen)} "
                "unseen, and paradigm=trzsl needs both"
            )
        return seen

    def _few_of_each(self, pool: np.ndarray, num_classes: int) -> np.ndarray:
        """Places of the labelled images of `ssl`, class by class in the order of the draw.

        As in the release the generator is seeded anew for each class, so that classes of one size have their
        labelled images at the same places among their own.
        """
        chosen = []
        for label in range(num_classes):
            places = np.flatnonzero(pool == label)
            if len(places) < self.shots:
                raise ValueError(
                    f"paradigm.shots={self.shots}: class {label} has {len(places)} images in the pool; choose fewer"
                )
            generator = np.random.RandomState(self.shots_seed)
            chosen.append(generator.choice(places, size=self.shots, replace=False))
        return np.concatenate(chosen)

    def _drawn(self, value: float) -> float | None:
        return value if self.kind == "trzsl" and self.seen is None else None

    def _few(self, value: int) -> int | None:
        return value if self.kind == "ssl" else None

    def _given(self) -> list[int] | None:
        return sorted(set(self.seen)) if self.kind == "trzsl" and self.seen is not None else None


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _division(pool: np.ndarray, labelled: np.ndarray, seen: tuple[int, ...], targets: tuple[int, ...]) -> Division:
    unlabelled = np.setdiff1d(np.arange(len(pool)), labelled)
    if not len(unlabelled):
        raise ValueError(f"all {len(pool)} images of the pool would be labelled, none is left for pseudo-labels")
    if seen and not len(labelled):
        raise ValueError(f"the pool has no image of the {len(seen)} seen classes; choose another paradigm.split_seed")
    unseen = tuple(sorted(set(targets) - set(seen)))
    return Division(torch.from_numpy(labelled), torch.from_numpy(unlabelled), seen, unseen, targets)


def harmonic(seen: float, unseen: float) -> float:
    """Harmonic mean of the accuracy on seen and on unseen classes, GRIP's figure for `trzsl`; 0 if either is 0.

    Args:
        seen: Share of the images of seen classes that are judged right.
        unseen: The same of unseen classes.

    Raises:
        ValueError: If one is no share.
    """
    for name, share in (("seen", seen), ("unseen", unseen)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} accuracy {share}: it must be in [0, 1]")
    return 2 * seen * unseen / (seen + unseen) if seen and unseen else 0.0
