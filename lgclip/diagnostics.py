"""Why a class is judged badly: what its synthetic images tell of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from lgclip.prototypes import Support
from lgclip.selection import LeaveOneOut

MEASURES = ("alignment", "spread", "margin", "effective_images", "claimed", "gap")
"""What may say why a class is bad; `gap` alone looks at labelled test images."""

COLUMNS = (
    "class", "name", "images", "alignment", "spread", "margin", "nearest", "effective_images", "claimed", "gap",
    "accuracy",
)  # fmt: skip
"""Columns of diagnostics.csv."""

_AT_ONCE = 2**24
"""Numbers of Gram matrices that are decomposed at once: 128 MiB."""


@dataclass(frozen=True)
class Diagnosis:
    """Measures of each class; not a number where one is not defined.

    Attributes:
        images: Synthetic images of each class.
        nearest: The class whose prototype is nearest; -1 if there is no other.
        measures: By the names in `MEASURES`.
        accuracy: Share of the class's test images that are judged right.
    """

    images: Int[np.ndarray, " c"]
    nearest: Int[np.ndarray, " c"]
    measures: Mapping[str, Float[np.ndarray, " c"]]
    accuracy: Float[np.ndarray, " c"]

    def rows(self, class_names: Sequence[str]) -> list[tuple[object, ...]]:
        """Rows of diagnostics.csv, in the order of `COLUMNS`; empty where a value is not defined.

        Args:
            class_names: Name of each class.
        """
        columns = {
            "class": range(len(class_names)),
            "name": class_names,
            "images": self.images.tolist(),
            "nearest": [c if c >= 0 else "" for c in self.nearest.tolist()],
            **{name: _shown(values) for name, values in self.measures.items()},
            "accuracy": _shown(self.accuracy),
        }
        return list(zip(*(columns[name] for name in COLUMNS), strict=True))

    @cached_property
    def correlations(self) -> dict[str, dict[str, float] | None]:
        """Spearman's rank correlation of each measure with the accuracy of the classes, and its p value.

        None where it is not defined: fewer than three classes have both, or either is the same for all.
        """
        return {name: _spearman(values, self.accuracy) for name, values in self.measures.items()}


def diagnose(
    support: Support, real: Iterable[Float[Tensor, "b d"]], label: Int[Tensor, " n"], right: Bool[Tensor, " n"]
) -> Diagnosis:
    """Measures every class; none of it is for judging, since `gap` and the accuracy need test labels.

    With unit features x_i of a class's k synthetic images, their mean m, and p = m / |m|:

    - `alignment`: mean cosine of x_i and p, which is |m|.
    - `spread`: mean of 1 - cosine over the pairs of x_i. Needs two images.
    - `margin`: 1 - cosine of p and the nearest other p. Needs two classes.
    - `effective_images`: the Vendi score, exp of the entropy of the eigenvalues of the x_i's cosines / k
      (arXiv:2210.02410); 1 if all are the same, k if they are orthogonal.
    - `claimed`: share of the x_i that are nearer to another class's p than to their own without them.
      Needs two images and two classes.
    - `gap`: 1 - cosine of p and the mean of the class's real features. Needs a real image; looks at labels.

    Args:
        support: The synthetic images; of each class at least one.
        real: Unit features of the test images, in parts, so that they need not be in memory together.
        label: Their true classes.
        right: Whether they are judged right.

    Raises:
        ValueError: If a class has no synthetic image.
    """
    support = Support(support.features.double().cpu(), support.labels.cpu(), support.num_classes)
    label, right = label.cpu(), right.cpu()
    means, counts = support.means(renormalise=False), support.counts()
    alignment, prototypes = means.norm(dim=1), normalize(means, dim=1)
    several, tested = counts > 1, torch.bincount(label, minlength=support.num_classes)
    spread = 1 - (counts * alignment.square() - 1) / (counts - 1)
    margin, nearest = _margins(prototypes)
    totals, start = prototypes.new_zeros(prototypes.shape), 0
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
    judged = torch.bincount(label[right], minlength=support.num_classes).double() / tested
    return Diagnosis(
        counts.numpy(),
        nearest.numpy(),
        {name: values.numpy() for name, values in measures.items()},
        judged.numpy(),
    )


def _where(defined: Bool[Tensor, " c"], values: Float[Tensor, " c"]) -> Float[Tensor, " c"]:
    return values.where(defined, torch.nan)


def _margins(prototypes: Float[Tensor, "c d"]) -> tuple[Float[Tensor, " c"], Int[Tensor, " c"]]:
    if len(prototypes) == 1:
        return prototypes.new_full((1,), torch.nan), torch.tensor([-1])
    cosines = (prototypes @ prototypes.T).fill_diagonal_(-torch.inf)
    highest, nearest = cosines.max(dim=1)
    return 1 - highest, nearest


def _claimed(support: Support) -> Float[Tensor, " c"]:
    """Share of each class's images whose own class, without them, is not the nearest."""
    lost = (LeaveOneOut().worth(support, None) < 0).double()
    return lost.new_zeros(support.num_classes).index_add(0, support.labels, lost) / support.counts()


def _vendi_scores(support: Support) -> Float[Tensor, " c"]:
    counts = support.counts()
    k = int(counts.max())
    order = support.labels.argsort(stable=True)
    labels = support.labels[order]
    place = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels]
    rows = torch.full((support.num_classes, k), -1)
    rows[labels, place] = order
    scores = []
    for part in rows.split(max(1, _AT_ONCE // (k * max(k, support.features.shape[1])))):
        features = support.features[part] * (part >= 0)[..., None]  # rows of zeros add eigenvalues of 0
        gram = features @ features.transpose(1, 2) / (part >= 0).sum(dim=1)[:, None, None]
        scores.append(torch.special.entr(torch.linalg.eigvalsh(gram).clamp(min=0)).sum(dim=1).exp())
    return torch.cat(scores)


def _spearman(measure: Float[np.ndarray, " c"], accuracy: Float[np.ndarray, " c"]) -> dict[str, float] | None:
    from scipy.stats import spearmanr

    both = np.isfinite(measure) & np.isfinite(accuracy)
    x, y = measure[both].round(12), accuracy[both]  # what differs by rounding alone is the same
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    found: Any = spearmanr(x, y)
    return {"spearman": float(found.statistic), "p": float(found.pvalue)}


def _shown(values: Float[np.ndarray, " c"]) -> list[str]:
    return ["" if np.isnan(value) else f"{value:z.6f}" for value in values]
