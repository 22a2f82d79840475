"""Scores by two encoders: each one's scores are standardized, then weighted.

Letters in shapes: q query images; see `lgclip.types` for the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lgclip.encoder.paired import split_features
from lgclip.methods.calibration import Choice
from lgclip.methods.left_out import LeftOut, References, left_out_scores
from lgclip.methods.prototypes import SupportSet
from lgclip.methods.scoring import Scorer, ScoringRule
from lgclip.methods.selection import First

GLOBAL = "global"
PER_CLASS = "per_class"
EQUAL = "equal"
WEIGHTS = (GLOBAL, PER_CLASS, EQUAL)
"""How the two encoders are weighted."""

STEPS = 10
"""Global weights are tried in steps of a tenth."""


class _HalfRule(ScoringRule):
    """Compares images with sentences by the first encoder alone, whose text tower has encoded them.

    The half is brought to unit length, so that the scores are those of a run with this encoder alone.
    """

    rule: ScoringRule
    width: int

    def described(self) -> dict[str, object]:
        return {**super().described(), "rule": self.rule.described()}

    def text_scorer(self, text: Float[Tensor, "c d"]) -> Scorer:
        sentences = split_features(text, self.width)[0]
        return lambda features: split_features(features, self.width)[0] @ sentences.T


@dataclass(frozen=True)
class SingleEncoder(_HalfRule):
    """Scores by one encoder of a pair: the scores are those of a run with this encoder alone.

    Args:
        rule: Scoring rule.
        width: Feature dimension of the first encoder.
        is_second: Whether the second encoder is used.
    """

    key_name: ClassVar[str] = "SingleEncoder"

    rule: ScoringRule
    width: int
    is_second: bool = False

    def candidates(self) -> Sequence[ScoringRule]:
        return [replace(self, rule=rule) for rule in self.rule.candidates()]

    def fit(self, support: SupportSet) -> Scorer:
        scorer = self.rule.fit(halves(support, self.width)[self.is_second])
        return lambda features: scorer(split_features(features, self.width)[self.is_second])


@dataclass(frozen=True)
class Paired(_HalfRule):
    """Adds the standardized scores of two encoders, each by the same rule on its half of the features.

    A standardized score is `(s - mean) / std` over the scores of all classes for left-out synthetic images. No real
    image is used. Where a class has a single image, nothing can be left out: then the scores of the images themselves
    are standardized, and the weights are equal.

    Args:
        rule: Scoring rule of each encoder.
        width: Feature dimension of the first encoder.
        weights: `global` is the weight of `global_weight` for all classes; `per_class` is that of `class_weights`;
            `equal` is 0.5.

    Raises:
        ValueError: If the name of the weights is unknown.
    """

    key_name: ClassVar[str] = "Paired"
    is_rescaled: ClassVar[bool] = True

    rule: ScoringRule
    width: int
    weights: str = GLOBAL

    def __post_init__(self) -> None:
        if self.weights not in WEIGHTS:
            raise ValueError(f"encoder_weights={self.weights}: choose {', '.join(WEIGHTS)}")

    def candidates(self) -> Sequence[ScoringRule]:
        return [replace(self, rule=rule) for rule in self.rule.candidates()]

    def fit(self, support: SupportSet) -> Scorer:
        return self.fixed(support).fit(support)

    def fixed(self, support: SupportSet) -> "FixedPair":
        left_out = [self._left_out(half) for half in halves(support, self.width)]
        scales = tuple(_standardization(part.scores) for part in left_out)
        weights = torch.full((support.num_classes,), 0.5)
        if self.weights != EQUAL and References(support).can_leave_out:
            first, second = (scale.standardized(part.scores) for scale, part in zip(scales, left_out, strict=True))
            compute = class_weights if self.weights == PER_CLASS else global_weight
            weights = compute(first, second, left_out[0].labels)
        return FixedPair(self.rule, self.width, scales, weights.to(support.features))

    def _left_out(self, half: SupportSet) -> LeftOut:
        """Returns the scores of left-out images; those of the images themselves where none can be left out."""
        if References(half).can_leave_out:
            return left_out_scores(Choice(self.rule, First(), 0.0), References(half))
        scores = self.rule.fit(half)(half.features)
        rows = torch.arange(len(half.labels), device=half.labels.device)
        return LeftOut(scores, half.labels, half.features, scores.amax(dim=1), rows)


class Standardization(NamedTuple):
    """Holds the mean and the standard deviation of an encoder's scores."""

    mean: float
    spread: float

    def standardized(self, scores: Float[Tensor, "q c"]) -> Float[Tensor, "q c"]:
        """Returns scores of mean 0 and standard deviation 1."""
        return (scores - self.mean) / self.spread


@dataclass(frozen=True, eq=False)
class FixedPair(_HalfRule):
    """Scores by two encoders with known standardizations and weights.

    Args:
        rule: Scoring rule of each encoder.
        width: Feature dimension of the first encoder.
        scales: Standardization of each encoder's scores.
        weights: Weight of the first encoder for each class.
    """

    is_rescaled: ClassVar[bool] = True

    rule: ScoringRule
    width: int
    scales: tuple[Standardization, ...]
    weights: Float[Tensor, " c"]

    def fit(self, support: SupportSet) -> Scorer:
        scorers = [self.rule.fit(half) for half in halves(support, self.width)]

        def score(features: Float[Tensor, "q d"]) -> Float[Tensor, "q c"]:
            standardized: list[Tensor] = []
            for scorer, scale, half in zip(scorers, self.scales, split_features(features, self.width), strict=True):
                standardized.append(scale.standardized(scorer(half)))
            return self.weights * standardized[0] + (1 - self.weights) * standardized[1]

        return score


def halves(support: SupportSet, width: int) -> tuple[SupportSet, SupportSet]:
    """Returns the images with the features of each encoder.

    Args:
        support: Images with the features of a pair.
        width: Feature dimension of the first encoder.
    """
    first, second = split_features(support.features, width)
    # The full images were for the selection, which is done.
    return support._replace(features=first, full_image=None), support._replace(features=second, full_image=None)


def global_weight(first: Float[Tensor, "n c"], second: Float[Tensor, "n c"], labels: Tensor) -> Float[Tensor, " c"]:
    """Returns for all classes the weight of the first encoder, a multiple of 0.1, with the clearest margins.

    The margin of a left-out image is the score of its class less the highest other one. The weight is that of the
    largest mean margin relative to the standard deviation of the margins. Accuracy would be coarse: two encoders that
    recognize all synthetic images are equal by it, however sure each is.

    Args:
        first: Standardized scores of left-out images by the first encoder.
        second: Those by the second.
        labels: Their classes.
    """
    candidates = [step / STEPS for step in range(STEPS + 1)]
    # Of equals the nearest to the middle, where neither encoder is left out.
    candidates.sort(key=lambda weight: abs(weight - 0.5))
    weight = max(candidates, key=lambda weight: clearness(weight * first + (1 - weight) * second, labels))
    return torch.full((first.shape[1],), weight)


def clearness(scores: Float[Tensor, "n c"], labels: Tensor) -> float:
    """Returns the mean margin between the true class and the best other one, in standard deviations of the margins."""
    if scores.shape[1] < 2:
        return 0.0
    true = scores.gather(1, labels[:, None])[:, 0]
    margins = (true - scores.scatter(1, labels[:, None], -torch.inf).amax(dim=1)).double()
    # Rounded, so that rounding errors of equal weights decide nothing.
    return round(float(margins.mean() / margins.std().clamp_min(1e-12)), 6)


def class_weights(first: Float[Tensor, "n c"], second: Float[Tensor, "n c"], labels: Tensor) -> Float[Tensor, " c"]:
    """Returns the weight of the first encoder for each class: its share of both precisions (arXiv:2509.09311).

    The precision of an encoder for a class is the fraction of the left-out images predicted as the class that are of
    it; where both are 0, the weight is 0.5. The arguments are those of `global_weight`.
    """
    precisions = [_precisions(scores, labels) for scores in (first, second)]
    total = precisions[0] + precisions[1]
    return torch.where(total > 0, precisions[0] / total.clamp_min(1e-12), torch.full_like(total, 0.5))


def _precisions(scores: Float[Tensor, "n c"], labels: Tensor) -> Float[Tensor, " c"]:
    predicted = scores.argmax(dim=1)
    correct = torch.bincount(labels[predicted == labels], minlength=scores.shape[1])
    return correct / torch.bincount(predicted, minlength=scores.shape[1]).clamp_min(1)


def _standardization(scores: Float[Tensor, "n c"]) -> Standardization:
    values = scores.double()
    # A single score has no spread.
    spread = float(values.std()) if values.numel() > 1 else 0.0
    return Standardization(float(values.mean()), spread or 1.0)
