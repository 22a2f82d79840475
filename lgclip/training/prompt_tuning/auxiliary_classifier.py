"""Implements AiR's auxiliary classifier: similarity of images to the synthetic images of each class (arXiv:2504.11930).

Its hyperparameters are not published. They are fixed by the config, or selected by the likelihood of held-out
synthetic images: no label of a real image is used. Letters in shapes: u unlabelled images, t classes that a
pseudo-label may have (`ClassSplit.targets`).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from lgclip.methods.calibration import DEFAULT_TEMPERATURE, likeliest_temperature
from lgclip.methods.left_out import place_in_class
from lgclip.methods.prototypes import SupportSet
from lgclip.methods.selection import Medoid, best

KEEPS = (16, 8, 32, 4, 64, 2, 128, 1)
"""Numbers of images of a class that `choose` tries, the default first."""

WEIGHTS = (1.0, 0.5, 2.0, 0.25, 4.0, 0.0)
"""Weights of the auxiliary classifier that `choose` tries, the default first."""

# Each fold costs one pass over the remaining images, and ten are enough to rank the values.
_FOLDS = 10
_EQUAL = 1e-4
"""Mean log-likelihoods, in nats, that differ by less are equal."""

SATURATED = 0.98
"""Accuracy of the text prompts on held-out synthetic images above which these say nothing of a gap to real images."""


def of_classes(support: SupportSet, targets: Sequence[int]) -> SupportSet:
    """Returns the synthetic images of some classes, which are renumbered in the order of `targets`.

    Args:
        support: Synthetic images of all classes.
        targets: Classes to keep.
    """
    # A lookup table from class index to column. -1 marks the classes that cannot be a pseudo-label.
    column = torch.full((support.num_classes,), -1, device=support.labels.device)
    column[list(targets)] = torch.arange(len(targets), device=column.device)
    labels = column[support.labels]
    return SupportSet(support.features[labels >= 0], labels[labels >= 0], len(targets))


def auxiliary(features: Float[Tensor, "u d"], support: SupportSet, k: int | None) -> Float[Tensor, "u t"]:
    """Computes AiR's auxiliary scores: mean cosine to the `k` synthetic images nearest to the class mean.

    Args:
        features: Unit features of the unlabelled images.
        support: Synthetic images, of the target classes only (`of_classes`).
        k: Number of images per class; None keeps all. A class that has fewer keeps all of its images.

    Raises:
        ValueError: If `k` is below 1 or above the size of every class, or a class has no image.
    """
    most = int(support.counts().max())
    # Only the largest class sets the limit: a smaller one keeps all of its images.
    if k is not None and not 1 <= k <= most:
        raise ValueError(f"K={k} synthetic images of a class: it must be 1 to {most}, the most that a class has")
    # The mean of the cosines to k unit vectors is the product with their plain mean, so that mean must not be scaled
    # to unit length again: its length is part of the score.
    return features @ Medoid(keep=k).select(support, None).means(renormalize=False).to(features).T


def softened(scores: Float[Tensor, "u t"], temperature: float) -> Float[Tensor, "u t"]:
    """Computes probabilities by a softmax over the classes.

    Args:
        scores: Score of each class, such as a cosine.
        temperature: Divisor of the scores; CLIP's own is 0.01.

    Raises:
        ValueError: If the temperature is not above 0 or a score is not a number.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature}: it must be above 0")
    if not bool(scores.isfinite().all()):
        raise ValueError("scores contain non-finite values: check the features")
    return (scores / temperature).softmax(dim=1)


def fused(text: Float[Tensor, "u t"], aux: Float[Tensor, "u t"], weight: float) -> Float[Tensor, "u t"]:
    """Computes `p_text + weight * p_aux` (AiR), divided by `1 + weight`, so that they are probabilities again.

    The division does not change the ranking of images and classes by the paper's sum.

    Args:
        text: Probabilities by the text prompts.
        aux: Probabilities by the auxiliary classifier.
        weight: Lambda, at least 0. The paper does not publish its value.

    Raises:
        ValueError: If the weight is out of range.
    """
    if not 0 <= weight < math.inf:
        raise ValueError(f"lambda={weight}: it must be at least 0")
    # Dividing changes no ranking. It keeps a row's sum at 1, which CPL's threshold on cumulative probability relies
    # on.
    return (text + weight * aux.to(text)) / (1 + weight)


def centered(features: Float[Tensor, "n d"], center: Float[Tensor, " d"]) -> Float[Tensor, "n d"]:
    """Subtracts a mean feature, and scales to unit length again.

    Real images by the pool's mean and synthetic ones by their own: what all images of a domain share then no longer
    counts. Ours, not part of AiR; a first step of CORAL (arXiv:1607.01719).

    Args:
        features: Unit features.
        center: Mean feature of their domain.
    """
    return normalize(features - center.to(features), dim=1)


def centered_support(support: SupportSet) -> SupportSet:
    """Returns synthetic images after the mean over the classes is subtracted (`centered`)."""
    mean = support.means(renormalize=False).mean(dim=0)
    return SupportSet(centered(support.features, mean), support.labels, support.num_classes)


class Fusion(NamedTuple):
    """Holds the hyperparameters that fuse text and auxiliary classifier for pseudo-labelling.

    Attributes:
        keep: Synthetic images per class that the auxiliary classifier keeps.
        weight: Lambda.
        text_temperature: Temperature of the text scores.
        aux_temperature: Temperature of the auxiliary scores.
    """

    keep: int
    weight: float
    text_temperature: float
    aux_temperature: float


class Selection(NamedTuple):
    """Holds selected hyperparameters.

    Attributes:
        fusion: The values.
        correct: Accuracy of the fused probabilities on the held-out synthetic images.
        text_correct: Accuracy of the text prompts alone on them.
    """

    fusion: Fusion
    correct: float
    text_correct: float

    @property
    def saturated(self) -> bool:
        """Returns whether held-out synthetic images are too easy to say anything of real ones."""
        return self.text_correct >= SATURATED


def choose(
    support: SupportSet,
    text: Float[Tensor, "t d"],
    *,
    centering: bool = False,
    keeps: Sequence[int] = KEEPS,
    weights: Sequence[float] = WEIGHTS,
    text_temperature: float | None = None,
    aux_temperature: float | None = None,
) -> Selection:
    """Selects lambda, K and temperatures by the likelihood of held-out synthetic images.

    One image of every class is held out at a time, at most ten times, and classified by the others and the text.
    Temperatures are fitted first, each separately; then K and lambda jointly, the first among equals, which are those
    within 1e-4 nats of the maximum. Likelihood is used instead of accuracy, since synthetic images are so easy to
    classify that accuracies are often equal.

    Args:
        support: Synthetic images, of the target classes only (`of_classes`).
        text: Text prototypes of these classes.
        centering: Whether images are compared with each other after their mean is subtracted.
        keeps: Candidate values of K, a single one if it is fixed; those above the size of every class are skipped.
        weights: Candidate values of lambda, a single one if it is fixed.
        text_temperature: None to fit it.
        aux_temperature: None to fit it.

    Returns:
        The values, and how well they and the text classify the held-out images.

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
    features, labels, scores = _left_out(support, tried, centering)
    by_text = features @ text.to(features).T
    # The temperatures are fitted before K and lambda: a grid over all four values would be much larger, and each
    # classifier should be calibrated before the two are weighed against each other.
    warmth = text_temperature
    if warmth is None:
        warmth = _likeliest(by_text, labels)
    text_probs = softened(by_text, warmth)
    candidates: list[tuple[float, float, Fusion]] = []
    for keep, by_images in scores.items():
        # The scale of the mean cosine depends on K, and so does the temperature.
        temperature = aux_temperature
        if temperature is None:
            temperature = _likeliest(by_images, labels)
        aux_probs = softened(by_images, temperature)
        for weight in weights:
            probs = fused(text_probs, aux_probs, weight)
            # A probability may underflow to 0, whose logarithm would make every mean minus infinity.
            true_class = probs.gather(1, labels[:, None]).clamp_min(torch.finfo(probs.dtype).tiny)
            correct = float((probs.argmax(dim=1) == labels).double().mean())
            candidates.append((float(true_class.log().mean()), correct, Fusion(keep, weight, warmth, temperature)))
    highest = max(log for log, _, _ in candidates)
    # The first among equals, not the maximum: rounding differs between machines and must not change the choice.
    correct, fusion = next((correct, fusion) for log, correct, fusion in candidates if log >= highest - _EQUAL)
    text_correct = float((by_text.argmax(dim=1) == labels).double().mean())
    return Selection(fusion, correct, text_correct)


def _left_out(
    support: SupportSet, keeps: Sequence[int], centering: bool
) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"], dict[int, Float[Tensor, "n t"]]]:
    """Returns held-out images in double precision, their classes, and for each K the scores by the remaining images."""
    folds = place_in_class(support)
    compared = centered_support(support) if centering else support
    scores = {keep: [] for keep in keeps}
    features = []
    labels = []
    # A fold is the images with the same place in their classes, so each class loses at most one image at a time.
    for fold in range(min(_FOLDS, int(folds.max()) + 1)):
        out = compared.take(folds == fold)
        remaining = compared.take(folds != fold)
        # The ranking is computed without the left-out images: they must not influence their own evaluation. It
        # serves every K, so it is outside the inner loop.
        rank_scores = Medoid().rank_scores(remaining, None)
        # The text is compared with the features as they are.
        features.append(support.features[folds == fold].double())
        labels.append(out.labels)
        for keep in keeps:
            means = remaining.take(best(remaining, rank_scores, keep)).means(renormalize=False)
            scores[keep].append(out.features.double() @ means.double().T)
    return torch.cat(features), torch.cat(labels), {keep: torch.cat(parts) for keep, parts in scores.items()}


def _likeliest(scores: Float[Tensor, "n t"], labels: Int[Tensor, " n"]) -> float:
    temperature = likeliest_temperature(scores, labels)
    if temperature is None:
        return DEFAULT_TEMPERATURE.value
    return temperature
