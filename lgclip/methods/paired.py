"""Scores by two encoders: each one's scores are standardized, then weighted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lgclip.encoder.paired import split_blocks
from lgclip.methods.calibration import Choice
from lgclip.methods.left_out import LeftOut, References, left_out_scores
from lgclip.methods.prototypes import SupportSet
from lgclip.methods.scoring import Scorer, ScoringRule
from lgclip.methods.selection import First

GLOBAL = "global"
PER_CLASS = "per_class"
EQUAL = "equal"
FIRST = "first"
SECOND = "second"
WEIGHTS = (GLOBAL, PER_CLASS, EQUAL, FIRST, SECOND)
"""How the two encoders are weighted; `first` and `second` use one of them alone."""

_STEPS = 10
"""Global weights are tried in steps of a tenth."""


@dataclass(frozen=True)
class Paired(ScoringRule):
    """Adds the standardized scores of two encoders, each by the same rule on its half of the features.

    A standardized score is `(s - mean) / std` over the scores of all classes for left-out synthetic images. The weight
    of the first encoder is the same for all classes (`global`: the best of 0, 0.1, ..., 1 by leave-one-out accuracy,
    the nearest to 0.5 among equals), or that of a class is its precision on left-out images relative to the sum of both
    encoders' (`per_class`, arXiv:2509.09311). No real image is used. Where a class has a single image, nothing can be
    left out: then the scores of the images themselves are standardized, and the weights are equal.

    Args:
        rule: Scoring rule of each encoder.
        width: Feature dimension of the first encoder.
        weights: `global`, `per_class`, `equal`, `first` or `second`.

    Raises:
        ValueError: If a value is unknown.
    """

    key_name: ClassVar[str] = "Paired"
    is_rescaled: ClassVar[bool] = True

    rule: ScoringRule
    width: int
    weights: str = GLOBAL

    def __post_init__(self) -> None:
        if self.weights not in WEIGHTS:
            raise ValueError(f"encoder_weights={self.weights}: choose {', '.join(WEIGHTS)}")

    def described(self) -> dict[str, object]:
        return {**super().described(), "rule": self.rule.described()}

    def candidates(self) -> Sequence[ScoringRule]:
        return [replace(self, rule=rule) for rule in self.rule.candidates()]

    def fit(self, support: SupportSet) -> Scorer:
        blocks = [support._replace(features=part) for part in split_blocks(support.features, self.width)]
        left_out = [self._left_out(block) for block in blocks]
        standardized = [
            _standardized(self.rule.fit(block), part.scores) for block, part in zip(blocks, left_out, strict=True)
        ]
        weights = self._class_weights(left_out, can_leave_out=References(support).can_leave_out).to(support.features)

        def score(features: Float[Tensor, "q d"]) -> Float[Tensor, "q c"]:
            parts = split_blocks(features, self.width)
            first, second = (scorer(part) for scorer, part in zip(standardized, parts, strict=True))
            return weights * first + (1 - weights) * second

        return score

    def _left_out(self, block: SupportSet) -> LeftOut:
        """Returns the scores of left-out images; those of the images themselves where none can be left out."""
        if References(block).can_leave_out:
            return left_out_scores(Choice(self.rule, First(), 0.0), References(block))
        scores = self.rule.fit(block)(block.features)
        rows = torch.arange(len(block.labels), device=block.labels.device)
        return LeftOut(scores, block.labels, block.features, scores.amax(dim=1), rows)

    def _class_weights(self, left_out: Sequence[LeftOut], *, can_leave_out: bool) -> Float[Tensor, " c"]:
        """Returns the weight of the first encoder for each class."""
        classes = left_out[0].scores.shape[1]
        fixed = {FIRST: 1.0, SECOND: 0.0}.get(self.weights)
        if fixed is not None:
            return torch.full((classes,), fixed)
        if self.weights == EQUAL or not can_leave_out:
            return torch.full((classes,), 0.5)
        if self.weights == PER_CLASS:
            first, second = (_precisions(part.scores, part.labels) for part in left_out)
            total = first + second
            return torch.where(total > 0, first / total.clamp_min(1e-12), torch.full_like(first, 0.5))
        first, second = (_standardized_scores(part.scores) for part in left_out)
        labels = left_out[0].labels

        def quality(step: int) -> tuple[int, int]:
            weight = step / _STEPS
            correct = (weight * first + (1 - weight) * second).argmax(dim=1) == labels
            return int(correct.sum()), -abs(2 * step - _STEPS)

        return torch.full((classes,), max(range(_STEPS + 1), key=quality) / _STEPS)


def _standardized_scores(scores: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    return _standardization(scores)(scores)


def _standardized(scorer: Scorer, scores: Float[Tensor, "n c"]) -> Scorer:
    standardize = _standardization(scores)
    return lambda features: standardize(scorer(features))


def _standardization(scores: Float[Tensor, "n c"]) -> Callable[[Tensor], Tensor]:
    mean = float(scores.double().mean())
    # A single score has no spread.
    spread = float(scores.double().std()) if scores.numel() > 1 else 0.0
    return lambda values: (values - mean) / (spread or 1.0)


def _precisions(scores: Float[Tensor, "n c"], labels: Tensor) -> Float[Tensor, " c"]:
    """Returns the fraction of the images predicted as each class that are of it; 0 where none is predicted so."""
    predicted = scores.argmax(dim=1)
    correct = torch.bincount(labels[predicted == labels], minlength=scores.shape[1])
    return correct / torch.bincount(predicted, minlength=scores.shape[1]).clamp_min(1)
