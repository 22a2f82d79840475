"""Tells images that show none of the classes by a threshold on a score, fitted without any real image.

The scores are those of OpenOOD (arXiv:2210.07242): a high score means that an image shows one of the classes. Positives
are left-out synthetic images of the classes; negatives are synthetic images of similar things that are no class.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lgclip.methods.calibration import Choice
from lgclip.methods.left_out import FOLDS, References, left_out_scores

AUTO = "auto"
_CLOSENESS = (0.3, 3.0)
"""Weights of the highest class score next to the comparison with the negatives: without it, an image that resembles
neither classes nor negatives would pass by chance."""


class ScoreInputs(NamedTuple):
    """Holds what the scores are computed from, for some images.

    Attributes:
        scores: Score of each class.
        nearest: Cosine to the nearest synthetic image of any class; None without synthetic images.
        negatives: Score of each negative class; None without negatives.
        temperature: Divisor that turns scores into log-probabilities.
    """

    scores: Float[Tensor, "q c"]
    nearest: Float[Tensor, " q"] | None
    negatives: Float[Tensor, "q m"] | None
    temperature: float


def max_probability(inputs: ScoreInputs) -> Float[Tensor, " q"]:
    """Returns the highest probability (arXiv:1610.02136)."""
    return (inputs.scores / inputs.temperature).softmax(dim=1).amax(dim=1)


def max_score(inputs: ScoreInputs) -> Float[Tensor, " q"]:
    """Returns the highest score, the maximum logit (arXiv:1911.11132)."""
    return inputs.scores.amax(dim=1)


def margin(inputs: ScoreInputs) -> Float[Tensor, " q"]:
    """Returns the difference of the two highest scores."""
    highest = inputs.scores.topk(2, dim=1).values
    return highest[:, 0] - highest[:, 1]


def energy(inputs: ScoreInputs) -> Float[Tensor, " q"]:
    """Returns the negative energy, `T log sum exp(s / T)` (arXiv:2010.03759, eq. 3)."""
    return _soft_maximum(inputs.scores, inputs.temperature)


def neighbor(inputs: ScoreInputs) -> Float[Tensor, " q"]:
    """Returns the cosine to the nearest synthetic image: k-NN distance with k = 1 (arXiv:2204.06507)."""
    if inputs.nearest is None:
        raise ValueError("rejection.score=neighbor needs synthetic images; this classifier has sentences only")
    return inputs.nearest


def negatives(inputs: ScoreInputs, closeness: float = 0.0) -> Float[Tensor, " q"]:
    """Compares the classes with the negative classes: NegLabel's score (arXiv:2403.20078, eq. 6) as log-odds.

    Args:
        inputs: Scores of the classes and of the negative ones.
        closeness: Weight of the highest class score.
    """
    if inputs.negatives is None:
        raise ValueError("rejection.score=negatives needs images of things that are no class; none were generated")
    odds = _soft_maximum(inputs.scores, inputs.temperature) - _soft_maximum(inputs.negatives, inputs.temperature)
    return odds + closeness * inputs.scores.amax(dim=1)


def _soft_maximum(scores: Float[Tensor, "q c"], temperature: float) -> Float[Tensor, " q"]:
    return temperature * (scores / temperature).logsumexp(dim=1)


def _close_negatives(closeness: float) -> Callable[[ScoreInputs], Tensor]:
    return lambda inputs: negatives(inputs, closeness)


SCORES: Mapping[str, Callable[[ScoreInputs], Tensor]] = {
    "max_probability": max_probability,
    "max_score": max_score,
    "margin": margin,
    "energy": energy,
    "neighbor": neighbor,
    "negatives": negatives,
    **{f"negatives_{weight:g}": _close_negatives(weight) for weight in _CLOSENESS},
}
"""Scores by name; `negatives_W` adds W times the highest class score."""
FROM_SCORES = ("max_probability", "max_score", "margin", "energy")
"""Those that need the scores of the classes alone."""


@dataclass(frozen=True)
class Rejection:
    """Describes how images that show none of the classes are rejected.

    Args:
        score: A name of `SCORES`, or `auto`: the best on left-out synthetic images, by AUROC.
        recall: Fraction of the left-out synthetic images of the classes that the threshold accepts.
        similar_names: Number of similar things per class that negatives are generated of; 0 generates none.
        images_per_name: Number of images of each.
        most_names: Maximum number of names in total.
        names: File with names of negatives, as for the classes; used instead of similar names.

    Raises:
        ValueError: If a value is out of range or the score is unknown.
    """

    score: str = AUTO
    recall: float = 0.95
    similar_names: int = 3
    images_per_name: int = 2
    most_names: int = 100
    names: str | None = None

    def __post_init__(self) -> None:
        if self.score not in (AUTO, *SCORES):
            raise ValueError(f"rejection.score={self.score}: choose {AUTO}, {', '.join(SCORES)}")
        if not 0 < self.recall < 1:
            raise ValueError(f"rejection.recall={self.recall}: it must be between 0 and 1, such as 0.95")
        for name, least in (("similar_names", 0), ("images_per_name", 1), ("most_names", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"rejection.{name}={getattr(self, name)}: it must be at least {least}")


class ScoreQuality(NamedTuple):
    """Holds how well a score separates left-out synthetic images of the classes from negatives.

    Attributes:
        auroc: Area under the ROC curve: 0.5 is chance.
        fpr95: Fraction of the negatives above the threshold that keeps 95% of the positives.
    """

    auroc: float
    fpr95: float


class FittedRejection(NamedTuple):
    """Holds a score with its threshold.

    Attributes:
        score: Name of the score.
        threshold: Images below it show none of the classes.
        positives: Number of left-out synthetic images of the classes that it was fitted on.
        negatives: Number of synthetic images of other things that it was compared on.
        recall: Fraction of the positives that it accepts.
        rejected: Fraction of the negatives that it rejects; None without negatives.
        qualities: Quality of each score; empty without negatives.
    """

    score: str
    threshold: float
    positives: int
    negatives: int
    recall: float
    rejected: float | None
    qualities: Mapping[str, ScoreQuality]


def auroc(positives: Float[np.ndarray, " n"], negatives: Float[np.ndarray, " m"]) -> float:
    """Computes the area under the ROC curve: the chance that a positive is above a negative, ties counted half."""
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([positives, negatives]))
    n = len(positives)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * len(negatives)))


def fpr_at(positives: Float[np.ndarray, " n"], negatives: Float[np.ndarray, " m"], recall: float = 0.95) -> float:
    """Computes the fraction of negatives at or above the threshold that keeps a fraction of the positives."""
    return float((negatives >= threshold_of(positives, recall)).mean())


def threshold_of(positives: Float[np.ndarray, " n"], recall: float) -> float:
    """Returns the highest threshold that keeps at least a fraction `recall` of the positives, at or above it."""
    # Rounded first: 0.95 of 300 is not a whole number in binary, and the next one would keep an image less.
    lost = int(np.floor(round(len(positives) * (1 - recall), 9)))
    return float(np.sort(positives)[lost])


def fit_rejection(
    rejection: Rejection, choice: Choice, temperature: float, references: References, negatives: References | None
) -> FittedRejection | None:
    """Fits the score and the threshold on synthetic images only.

    Each negative class is scored by the prototypes of the others: an unknown thing has no prototype of its own.

    Args:
        rejection: The settings.
        choice: Settings of the classifier.
        temperature: Divisor of the scores.
        references: Images of the classes, and their text prototypes.
        negatives: The same of things that are no class; None if there are none.

    Returns:
        The score and its threshold; None where no image can be left out, so that nothing can be fitted.

    Raises:
        ValueError: If the chosen score needs negatives, and there are none.
    """
    if choice.text_weight == 1 or not references.can_leave_out:
        return None
    left_out = left_out_scores(choice, references)
    against = None
    negative_inputs = None
    if negatives is not None and negatives.support is not None and negatives.support.num_classes > 1:
        against = choice.fit(negatives.support, negatives.text)(left_out.features)
        negative_inputs = _negative_inputs(choice, temperature, references, negatives)
    inputs = ScoreInputs(left_out.scores, left_out.nearest, against, temperature)
    positives = {name: _values(name, inputs) for name in _available(negative_inputs is not None)}
    negative_values: dict[str, np.ndarray] = {}
    qualities: dict[str, ScoreQuality] = {}
    if negative_inputs is not None:
        for name, values in positives.items():
            negative_values[name] = _values(name, negative_inputs)
            qualities[name] = ScoreQuality(auroc(values, negative_values[name]), fpr_at(values, negative_values[name]))
    score = rejection.score
    if score == AUTO:
        # Without negatives nothing compares the scores; this one is the best on the small world.
        score = max(qualities, key=lambda name: qualities[name].auroc) if qualities else "max_score"
    if score not in positives:
        raise ValueError(
            f"rejection.score={score} needs images of things that are no class, and there are none: give names by "
            "--negatives FILE, or choose max_score or energy"
        )
    threshold = threshold_of(positives[score], rejection.recall)
    return FittedRejection(
        score=score,
        threshold=threshold,
        positives=len(left_out.labels),
        negatives=0 if negative_inputs is None else len(negative_inputs.scores),
        recall=float((positives[score] >= threshold).mean()),
        rejected=float((negative_values[score] < threshold).mean()) if negative_values else None,
        qualities=qualities,
    )


def _negative_inputs(choice: Choice, temperature: float, references: References, negatives: References) -> ScoreInputs:
    """Returns the inputs of the negatives' scores, each negative class compared with the others."""
    support = negatives.support
    images = references.images
    assert support is not None
    assert images is not None
    count = support.num_classes
    folds = torch.arange(count) % min(FOLDS, count)
    scorer = choice.fit(images, references.text)
    scores: list[Tensor] = []
    nearest: list[Tensor] = []
    rivals: list[Tensor] = []
    for fold in range(min(FOLDS, count)):
        features = support.features[folds[support.labels] == fold]
        remaining = (folds != fold).nonzero().flatten()
        rest_text = None if negatives.text is None else negatives.text[remaining]
        against = choice.fit(support.of_classes(remaining.tolist()), rest_text)(features)
        scores.append(scorer(features))
        nearest.append((features @ images.features.T).amax(dim=1))
        # One column: folds have different numbers of classes, and a score needs their soft maximum only.
        rivals.append(_soft_maximum(against, temperature)[:, None])
    return ScoreInputs(torch.cat(scores), torch.cat(nearest), torch.cat(rivals), temperature)


def _available(has_negatives: bool) -> list[str]:
    return [name for name in SCORES if has_negatives or not name.startswith("negatives")]


def _values(name: str, inputs: ScoreInputs) -> np.ndarray:
    return SCORES[name](inputs).double().numpy()
