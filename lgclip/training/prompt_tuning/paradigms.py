"""Splits a pool into labelled and unlabelled images: no labels, a few of each class, or those of some classes.

The pool is a data set's training images (train and val), without evaluated ones. The rules are those of
GRIP (arXiv:2306.01669, sec. 4), which CPL and AiR (arXiv:2504.11930) adopt, with the random splits of its release.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from lgclip.store.keys import STANDS_FOR

KINDS = ("ul", "ssl", "trzsl")
"""Unsupervised, semi-supervised and transductive zero-shot learning."""

_LEGACY_SEEDS = 2**32
"""Upper bound of seeds of NumPy's legacy generator."""


class ClassSplit(NamedTuple):
    """Holds indices and classes of a split pool, but no label.

    Labels may be read only at the indices in `labelled`.

    Attributes:
        labelled: Indices in the pool of the labelled images.
        unlabelled: Indices of the others, in the pool's order.
        seen_classes: Classes with labelled images, in index order.
        unseen: The other classes.
        targets: Classes that a pseudo-label may have, in index order: the columns of its probabilities.
    """

    labelled: Int[Tensor, " l"]
    unlabelled: Int[Tensor, " u"]
    seen_classes: tuple[int, ...]
    unseen: tuple[int, ...]
    targets: tuple[int, ...]


@dataclass(frozen=True)
class Paradigm:
    """Defines how a pool is divided into labelled and unlabelled images.

    - `ul`: no label is known; pseudo-labels are of all classes.
    - `ssl`: `shots` labels of each class are known; pseudo-labels are of all classes.
    - `trzsl`: all labels of the seen classes are known; the images of the others are the unlabelled ones, and
      pseudo-labels are only of these other classes.

    Args:
        kind: One of these.
        split_seed: Seed of the seen classes, with `trzsl`. The release evaluates with 500, 0 and 200.
        seen_fraction: Fraction of the classes that is seen, rounded down, with `trzsl`.
        seen_classes: The seen classes by index, instead of a random split; the release does so for CUB.
        shots: Labelled images per class, with `ssl`.
        shots_seed: Seed of their selection.

    Raises:
        ValueError: If a value is out of range.
    """

    key_name: ClassVar[str] = "Paradigm"

    kind: str = "ul"
    # A value that the kind does not use is None in the key: changing `shots` under `ul` must not learn again.
    split_seed: int = field(default=500, metadata={STANDS_FOR: lambda part: part._sampled(part.split_seed)})
    seen_fraction: float = field(default=0.62, metadata={STANDS_FOR: lambda part: part._sampled(part.seen_fraction)})
    seen_classes: Sequence[int] | None = field(
        default=None, metadata={STANDS_FOR: lambda part: part._explicit_classes()}
    )
    shots: int = field(default=2, metadata={STANDS_FOR: lambda part: part._few(part.shots)})
    shots_seed: int = field(default=0, metadata={STANDS_FOR: lambda part: part._few(part.shots_seed)})

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"paradigm.kind={self.kind}: choose {', '.join(KINDS)}")
        if not 0 < self.seen_fraction < 1:
            raise ValueError(
                f"paradigm.seen_fraction={self.seen_fraction}: it must be above 0 and below 1, so that some classes "
                f"are "
                "seen and some are not"
            )
        if not _is_integer(self.shots) or self.shots < 1:
            raise ValueError(
                f"paradigm.shots={self.shots}: it must be an integer, at least 1; without labels it is paradigm=ul"
            )
        for name in ("split_seed", "shots_seed"):
            if not _is_integer(seed := getattr(self, name)) or not 0 <= seed < _LEGACY_SEEDS:
                raise ValueError(f"paradigm.{name}={seed}: it must be an integer, at least 0 and below {_LEGACY_SEEDS}")

    def divide(self, labels: Sequence[int], num_classes: int, draw_order: Sequence[int] | None = None) -> ClassSplit:
        """Divides a pool into labelled and unlabelled images, and returns the classes of pseudo-labels.

        Args:
            labels: True class of each image of the pool. Those of the unlabelled images are not passed on.
            num_classes: Classes of the data set.
            draw_order: As in `choose_seen_classes`.

        Raises:
            ValueError: If the pool is empty or has other classes, a class has fewer images than `shots`, no class
                would be seen or unseen, or nothing would be labelled or unlabelled.
        """
        # In 64 bits on every system, so that an index means the same everywhere.
        pool = np.asarray(labels, dtype=np.int64)
        if not len(pool):
            raise ValueError("the pool has no image: a data set with training images is needed")
        if pool.min() < 0 or pool.max() >= num_classes:
            raise ValueError(f"the pool has labels from {pool.min()} to {pool.max()}, and {num_classes} classes")
        everything = tuple(range(num_classes))
        if self.kind == "ul":
            # In `ul` no class is seen: there is no label that could be.
            return _division(pool, np.array([], np.int64), (), everything)
        if self.kind == "ssl":
            return _division(pool, self._few_of_each(pool, num_classes), everything, everything)
        seen_classes = self.choose_seen_classes(num_classes, draw_order)
        unseen = tuple(sorted(set(everything) - set(seen_classes)))
        return _division(pool, np.flatnonzero(np.isin(pool, seen_classes)), seen_classes, unseen)

    def choose_seen_classes(self, num_classes: int, draw_order: Sequence[int] | None = None) -> tuple[int, ...]:
        """Returns the seen classes of `trzsl`, in index order.

        They are sampled as in the release: `numpy.random.seed(split_seed)`, then
        `numpy.random.choice(range(C), size=int(C * 0.62), replace=False)`.

        Args:
            num_classes: Classes of the data set.
            draw_order: The classes in the order of the release's list, which is what is sampled from; None for the
                order of the indices.

        Raises:
            ValueError: If no class would be seen or unseen, or an explicit one does not exist.
        """
        if self.seen_classes is None:
            # The legacy generator on purpose: it gives the published splits. A separate instance, so that no other
            # part's random numbers change.
            sampled = np.random.RandomState(self.split_seed).choice(
                num_classes, size=int(num_classes * self.seen_fraction), replace=False
            )
            order = range(num_classes) if draw_order is None else draw_order
            seen_classes = tuple(sorted(order[place] for place in sampled.tolist()))
        else:
            seen_classes = tuple(sorted(set(self.seen_classes)))
            # An index out of range would make a split in which that class has no image, without a word.
            if seen_classes and (seen_classes[0] < 0 or seen_classes[-1] >= num_classes):
                raise ValueError(f"paradigm.seen_classes={list(self.seen_classes)}: classes are 0 to {num_classes - 1}")
        if not seen_classes or len(seen_classes) == num_classes:
            setting = f"seen_fraction={self.seen_fraction}"
            if self.seen_classes is not None:
                setting = f"seen_classes={list(self.seen_classes)}"
            raise ValueError(
                f"paradigm.{setting}: of {num_classes} classes {len(seen_classes)} would be seen and "
                f"{num_classes - len(seen_classes)} "
                "unseen, and paradigm=trzsl needs both"
            )
        return seen_classes

    def _few_of_each(self, pool: np.ndarray, num_classes: int) -> np.ndarray:
        """Returns the indices of the labelled images of `ssl`, class by class in sampling order.

        As in the release the generator is reseeded for each class, so that classes of equal size have their
        labelled images at the same positions.
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

    def _sampled(self, value: float) -> float | None:
        # Explicit classes are not sampled, so then neither the seed nor the fraction has an effect.
        if self.kind == "trzsl" and self.seen_classes is None:
            return value
        return None

    def _few(self, value: int) -> int | None:
        if self.kind == "ssl":
            return value
        return None

    def _explicit_classes(self) -> list[int] | None:
        # As a sorted set: the order in which classes are listed must not change the key.
        if self.kind == "trzsl" and self.seen_classes is not None:
            return sorted(set(self.seen_classes))
        return None


def _is_integer(value: object) -> bool:
    # In Python True is an int, and `paradigm.shots=true` would be one shot.
    return isinstance(value, int) and not isinstance(value, bool)


def _division(
    pool: np.ndarray, labelled: np.ndarray, seen_classes: tuple[int, ...], targets: tuple[int, ...]
) -> ClassSplit:
    unlabelled = np.setdiff1d(np.arange(len(pool)), labelled)
    if not len(unlabelled):
        raise ValueError(f"all {len(pool)} images of the pool would be labelled, none is left for pseudo-labels")
    if seen_classes and not len(labelled):
        raise ValueError(
            f"the pool has no image of the {len(seen_classes)} seen classes; choose another paradigm.split_seed"
        )
    unseen = tuple(sorted(set(targets) - set(seen_classes)))
    return ClassSplit(torch.from_numpy(labelled), torch.from_numpy(unlabelled), seen_classes, unseen, targets)


def harmonic(seen: float, unseen: float) -> float:
    """Computes the harmonic mean of seen and unseen accuracy, GRIP's metric for `trzsl`; 0 if either is 0.

    Args:
        seen: Accuracy on the images of seen classes.
        unseen: Accuracy on the images of unseen classes.

    Raises:
        ValueError: If one is not between 0 and 1.
    """
    for name, share in (("seen", seen), ("unseen", unseen)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} accuracy {share}: it must be in [0, 1]")
    # Both 0 would divide by zero; one 0 is the limit of the formula.
    if not seen or not unseen:
        return 0.0
    return 2 * seen * unseen / (seen + unseen)
