"""AiR's auxiliary classifier: how like an image is to the synthetic images of each class (arXiv:2504.11930).

Its values are not published. They are given, or chosen by how likely left-out synthetic images are: no label of a real
image is looked at. In shapes u is unlabelled images, t classes that a pseudo-label may be of (`Division.targets`).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lgclip.calibration import DEFAULT_TEMPERATURE, likeliest_temperature, place_in_class
from lgclip.prototypes import Support
from lgclip.selection import Medoid, best

KEEPS = (16, 8, 32, 4, 64, 2, 128, 1)
"""Numbers of images of a class that `choose` tries, the default first."""

WEIGHTS = (1.0, 0.5, 2.0, 0.25, 4.0, 0.0)
"""Weights of the auxiliary classifier that `choose` tries, the default first."""

_FOLDS = 10
_EQUAL = 1e-4
"""Mean log-likelihoods, in nats, that differ by less are equal."""


def of_classes(support: Support, targets: Sequence[int]) -> Support:
    """The synthetic images of some classes, which are numbered anew in the order of `targets`.

    Args:
        support: Synthetic images of all classes.
        targets: Classes to keep.
    """
    column = torch.full((support.num_classes,), -1, device=support.labels.device)
    column[list(targets)] = torch.arange(len(targets), device=column.device)
    labels = column[support.labels]
    return Support(support.features[labels >= 0], labels[labels >= 0], len(targets))


def auxiliary(features: Float[Tensor, "u d"], support: Support, k: int | None) -> Float[Tensor, "u t"]:
    """Scores of AiR's auxiliary classifier: mean cosine to the `k` synthetic images nearest to their class mean.

    Args:
        features: Unit features of the unlabelled images.
        support: Synthetic images, of the target classes alone (`of_classes`).
        k: Images of a class that are kept; None keeps all. A class that has fewer keeps all of its.

    Raises:
        ValueError: If `k` is below 1 or above what any class has, or a class has no image.
    """
    most = int(support.counts().max())
    if k is not None and not 1 <= k <= most:
        raise ValueError(f"K={k} synthetic images of a class: it must be 1 to {most}, the most that a class has")
    return features @ Medoid(keep=k).select(support, None).means(renormalise=False).to(features).T


def softened(scores: Float[Tensor, "u t"], temperature: float) -> Float[Tensor, "u t"]:
    """Probabilities, by a softmax over the classes.

    Args:
        scores: Score of each class, such as a cosine.
        temperature: What scores are divided by; CLIP's own is 0.01.

    Raises:
        ValueError: If the temperature is not above 0 or a score is no number.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature}: it must be above 0")
    if not bool(scores.isfinite().all()):
        raise ValueError("scores hold what is no finite number: look at the features that they come from")
    return (scores / temperature).softmax(dim=1)


def fused(text: Float[Tensor, "u t"], aux: Float[Tensor, "u t"], weight: float) -> Float[Tensor, "u t"]:
    """`p_text + weight * p_aux` (AiR), over `1 + weight`, so that they are probabilities again.

    The order of images and classes is that of the paper's sum.

    Args:
        text: Probabilities by the text prompts.
        aux: Probabilities by the auxiliary classifier.
        weight: Lambda, at least 0. The paper does not publish its value.

    Raises:
        ValueError: If the weight is out of range.
    """
    if not 0 <= weight < math.inf:
        raise ValueError(f"lambda={weight}: it must be at least 0")
    return (text + weight * aux.to(text)) / (1 + weight)


class Fusion(NamedTuple):
    """How the text and the auxiliary classifier make pseudo-labels together.

    Attributes:
        keep: Synthetic images of a class that the auxiliary classifier keeps.
        weight: Lambda.
        text_temperature: What text scores are divided by.
        aux_temperature: What auxiliary scores are divided by.
    """

    keep: int
    weight: float
    text_temperature: float
    aux_temperature: float


def choose(
    support: Support,
    text: Float[Tensor, "t d"],
    *,
    keeps: Sequence[int] = KEEPS,
    weights: Sequence[float] = WEIGHTS,
    text_temperature: float | None = None,
    aux_temperature: float | None = None,
) -> tuple[Fusion, float]:
    """Lambda, K and temperatures under which left-out synthetic images are likeliest.

    One image of every class is left out at a time, at most ten times, and judged by the others and the text.
    Temperatures come first, each alone; then K and lambda together, the first among equals, which are those within
    1e-4 nats of the likeliest. Likelihood and not the share that is right: synthetic images are told apart so well
    that shares are often equal.

    Args:
        support: Synthetic images, of the target classes alone (`of_classes`).
        text: Text prototypes of these classes.
        keeps: Values of K to try, a single one if it is given; those above what any class has are not tried.
        weights: Values of lambda to try, a single one if it is given.
        text_temperature: None to choose it.
        aux_temperature: None to choose it.

    Returns:
        The values, and the share of left-out images that they judge right.

    Raises:
        ValueError: If a class has fewer than two images, or there is no value to try.
    """
    largest = int(support.counts().max())
    if few := (support.counts() < 2).nonzero().flatten().tolist():
        raise ValueError(
            f"two synthetic images of each class are needed to leave one out, classes {few[:10]} have fewer; draw "
            "more, or give lambda, K and the temperatures"
        )
    tried = [keep for keep in keeps if 1 <= keep <= largest]
    if not tried or not weights:
        raise ValueError(
            f"nothing to choose from: K of {list(keeps)}, where the largest class has {largest} synthetic images, and "
            f"lambda of {list(weights)}"
        )
    features, labels, scores = _left_out(support, tried)
    by_text = features @ text.to(features).T
    warmth = _likeliest(by_text, labels) if text_temperature is None else text_temperature
    text_chances = softened(by_text, warmth)
    found: list[tuple[float, float, Fusion]] = []
    for keep, by_images in scores.items():
        temperature = _likeliest(by_images, labels) if aux_temperature is None else aux_temperature
        aux_chances = softened(by_images, temperature)
        for weight in weights:
            chances = fused(text_chances, aux_chances, weight)
            own = chances.gather(1, labels[:, None]).clamp_min(torch.finfo(chances.dtype).tiny)
            right = float((chances.argmax(dim=1) == labels).double().mean())
            found.append((float(own.log().mean()), right, Fusion(keep, weight, warmth, temperature)))
    highest = max(log for log, _, _ in found)
    return next((fusion, right) for log, right, fusion in found if log >= highest - _EQUAL)


def _left_out(
    support: Support, keeps: Sequence[int]
) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"], dict[int, Float[Tensor, "n t"]]]:
    """Left-out images in double precision, their classes, and for each K the scores by the images that stay."""
    folds, scores = place_in_class(support), {keep: [] for keep in keeps}
    features, labels = [], []
    for fold in range(min(_FOLDS, int(folds.max()) + 1)):
        out = support.take(folds == fold)
        rest = support.take(folds != fold)
        worth = Medoid().worth(rest, None)
        features.append(out.features.double())
        labels.append(out.labels)
        for keep in keeps:
            means = rest.take(best(rest, worth, keep)).means(renormalise=False)
            scores[keep].append(features[-1] @ means.double().T)
    return torch.cat(features), torch.cat(labels), {keep: torch.cat(parts) for keep, parts in scores.items()}


def _likeliest(scores: Float[Tensor, "n t"], labels: Int[Tensor, " n"]) -> float:
    found = likeliest_temperature(scores, labels)
    return DEFAULT_TEMPERATURE.value if found is None else found
