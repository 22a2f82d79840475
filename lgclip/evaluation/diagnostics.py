"""Diagnoses poorly classified classes by statistics of their synthetic images."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from lgclip.methods.prototypes import SupportSet
from lgclip.methods.selection import LeaveOneOut

MEASURES = ("alignment", "spread", "margin", "effective_images", "claimed", "gap")
"""Measures that may explain a low class accuracy; only `gap` uses labelled test images."""

COLUMNS = (
    "class", "name", "images", "alignment", "spread", "margin", "nearest", "effective_images", "claimed", "gap",
    "accuracy",
)  # fmt: skip
"""Columns of diagnostics.csv."""

_AT_ONCE = 2**24
"""Maximum number of elements of Gram matrices that are decomposed at once: 128 MiB."""


@dataclass(frozen=True)
class Diagnosis:
    """Holds the measures of each class; NaN where one is undefined.

    Attributes:
        images: Number of synthetic images of each class.
        nearest: Class with the nearest prototype; -1 if there is no other.
        measures: Values by the names in `MEASURES`.
        accuracy: Accuracy on the class's test images.
    """

    images: Int[np.ndarray, " c"]
    nearest: Int[np.ndarray, " c"]
    measures: Mapping[str, Float[np.ndarray, " c"]]
    accuracy: Float[np.ndarray, " c"]

    def rows(self, class_names: Sequence[str]) -> list[tuple[object, ...]]:
        """Returns the rows of diagnostics.csv, in the order of `COLUMNS`; empty where a value is undefined.

        Args:
            class_names: Name of each class.
        """
        columns = {
            "class": range(len(class_names)),
            "name": class_names,
            "images": self.images.tolist(),
            "nearest": [c if c >= 0 else "" for c in self.nearest.tolist()],
            **{name: _formatted(values) for name, values in self.measures.items()},
            "accuracy": _formatted(self.accuracy),
        }
        return list(zip(*(columns[name] for name in COLUMNS), strict=True))

    @cached_property
    def correlations(self) -> dict[str, dict[str, float] | None]:
        """Computes Spearman's rank correlation of each measure with the class accuracies, and its p value.

        None where it is undefined: fewer than three classes have both, or either is constant.
        """
        return {name: _spearman(values, self.accuracy) for name, values in self.measures.items()}


def diagnose(
    support: SupportSet, real: Iterable[Float[Tensor, "b d"]], label: Int[Tensor, " n"], correct: Bool[Tensor, " n"]
) -> Diagnosis:
    """Computes the measures of every class; never used for classification: `gap` and the accuracy need test labels.

    With unit features x_i of a class's k synthetic images, their mean m, and p = m / |m|:

    - `alignment`: mean cosine of x_i and p, which is |m|.
    - `spread`: mean of 1 - cosine over the pairs of x_i. Needs two images.
    - `margin`: 1 - cosine of p and the nearest other p. Needs two classes.
    - `effective_images`: the Vendi score, exp of the entropy of the eigenvalues of the x_i's cosines / k
      (arXiv:2210.02410); 1 if all are the same, k if they are orthogonal.
    - `claimed`: fraction of the x_i that are nearer to another class's p than to their own without them.
      Needs two images and two classes.
    - `gap`: 1 - cosine of p and the mean of the class's real features. Needs a real image; uses labels.

    Args:
        support: The synthetic images; at least one of each class.
        real: Unit features of the test images, in chunks, so that they need not be in memory together.
        label: Their true classes.
        correct: Whether each prediction is correct.

    Raises:
        ValueError: If a class has no synthetic image.
    """
    # In double precision: `spread` is a difference of numbers near 1, of which single precision leaves little.
    support = SupportSet(support.features.double().cpu(), support.labels.cpu(), support.num_classes)
    label = label.cpu()
    correct = correct.cpu()
    means = support.means(renormalize=False)
    counts = support.counts()
    alignment = means.norm(dim=1)
    prototypes = normalize(means, dim=1)
    several = counts > 1
    tested = torch.bincount(label, minlength=support.num_classes)
    # |m|^2 is the mean cosine over all k^2 pairs. The k pairs of an image with itself are taken out, which leaves the
    # mean over k (k - 1) pairs. A class of one image divides by 0 here, and is masked below.
    spread = 1 - (counts * alignment.square() - 1) / (counts - 1)
    margin, nearest = _margins(prototypes)
    # A sum will do, since only its direction is used. It is taken part by part, in the order of `label`.
    totals = prototypes.new_zeros(prototypes.shape)
    start = 0
    for part in real:
        totals.index_add_(0, label[start : start + len(part)], part.double().cpu())
        start += len(part)
    gap = 1 - (prototypes * normalize(totals, dim=1)).sum(dim=1)
    measures = {
        "alignment": alignment,
        "spread": _where(several, spread),
        "margin": margin,
        "effective_images": _vendi_scores(support),
        "claimed": _where(several & (nearest >= 0), _claimed(support)),
        "gap": _where(tested > 0, gap),
    }
    # A class without a test image is 0 / 0, which is not a number: what the report leaves empty.
    class_accuracy = torch.bincount(label[correct], minlength=support.num_classes).double() / tested
    return Diagnosis(
        counts.numpy(),
        nearest.numpy(),
        {name: values.numpy() for name, values in measures.items()},
        class_accuracy.numpy(),
    )


def _where(defined: Bool[Tensor, " c"], values: Float[Tensor, " c"]) -> Float[Tensor, " c"]:
    return values.where(defined, torch.nan)


def _margins(prototypes: Float[Tensor, "c d"]) -> tuple[Float[Tensor, " c"], Int[Tensor, " c"]]:
    # The maximum over no other class is not defined.
    if len(prototypes) == 1:
        return prototypes.new_full((1,), torch.nan), torch.tensor([-1])
    cosines = (prototypes @ prototypes.T).fill_diagonal_(-torch.inf)
    highest, nearest = cosines.max(dim=1)
    return 1 - highest, nearest


def _claimed(support: SupportSet) -> Float[Tensor, " c"]:
    """Computes the fraction of each class's images for which their own class, without them, is not the nearest."""
    lost = (LeaveOneOut().rank_scores(support, None) < 0).double()
    return lost.new_zeros(support.num_classes).index_add(0, support.labels, lost) / support.counts()


def _vendi_scores(support: SupportSet) -> Float[Tensor, " c"]:
    counts = support.counts()
    k = int(counts.max())
    # Images are laid out as a table, a row a class, so that the eigenvalues of many classes come from one call. The
    # places that a smaller class lacks hold -1.
    order = support.labels.argsort(stable=True)
    labels = support.labels[order]
    place = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels]
    rows = torch.full((support.num_classes, k), -1)
    rows[labels, place] = order
    scores = []
    # Some classes at a time: all Gram matrices of a thousand classes would not fit into memory.
    for part in rows.split(max(1, _AT_ONCE // (k * max(k, support.features.shape[1])))):
        features = support.features[part] * (part >= 0)[..., None]  # rows of zeros add eigenvalues of 0
        gram = features @ features.transpose(1, 2) / (part >= 0).sum(dim=1)[:, None, None]
        # Rounding may make an eigenvalue slightly negative, of which the entropy is not defined.
        scores.append(torch.special.entr(torch.linalg.eigvalsh(gram).clamp(min=0)).sum(dim=1).exp())
    return torch.cat(scores)


def _spearman(measure: Float[np.ndarray, " c"], accuracy: Float[np.ndarray, " c"]) -> dict[str, float] | None:
    from scipy.stats import spearmanr

    both = np.isfinite(measure) & np.isfinite(accuracy)
    # What differs by rounding alone is the same, and must not get two ranks.
    x = measure[both].round(12)
    y = accuracy[both]
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    test: Any = spearmanr(x, y)
    return {"spearman": float(test.statistic), "p": float(test.pvalue)}


def _formatted(values: Float[np.ndarray, " c"]) -> list[str]:
    return ["" if np.isnan(value) else f"{value:z.6f}" for value in values]
