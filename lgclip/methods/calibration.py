"""Selects the free parameters on synthetic images only: no label of a real image is used."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from scipy.optimize import root_scalar
from torch import Tensor
from torch.nn.functional import normalize

from lgclip.methods.left_out import References, left_out_scores, place_in_class
from lgclip.methods.prototypes import SupportSet
from lgclip.methods.scoring import Scorer, ScoringRule
from lgclip.methods.selection import Selection
from lgclip.store.keys import key_name_of


class Choice(NamedTuple):
    """Holds the settings of a prototype classifier.

    Attributes:
        rule: Scoring rule that computes the score of a class from its images.
        selection: Selects the images that represent a class.
        text_weight: Weight of the text prototype, 0 to 1.
    """

    rule: ScoringRule
    selection: Selection
    text_weight: float

    @property
    def selects_by_text(self) -> bool:
        """Returns whether the text tower takes part in the selection of images."""
        return self.selection.needs_text and self.selection.keep is not None

    def fit(self, support: SupportSet | None, text: Float[Tensor, "c d"] | None) -> Scorer:
        """Fits a scorer on these images and sentences, each None where it has no weight.

        With `Mean` prototypes the weighted sum of scores is the score of the weighted sum of
        prototypes, since the cosine is linear in them.
        """
        # The two ends are cases of their own, because what has no weight need not exist.
        if self.text_weight == 1:
            assert text is not None
            return self.rule.text_scorer(text)
        assert support is not None
        selected = self.selection.select(support, text)
        image = self.rule.fit(selected)
        if self.text_weight == 0:
            return image
        assert text is not None
        text_scorer = self.rule.text_scorer(text)
        if self.rule.is_rescaled:
            image = _rescaled(image, text_scorer, selected)
        return lambda features: self.text_weight * text_scorer(features) + (1 - self.text_weight) * image(features)

    def fixed(self, support: SupportSet | None, text: Float[Tensor, "c d"] | None) -> "Choice":
        """Returns these settings with whatever the rule learns by leaving images out; the arguments are as in `fit`."""
        if support is None or self.text_weight == 1:
            return self
        return self._replace(rule=self.rule.fixed(self.selection.select(support, text)))

    def prototypes(self, support: SupportSet | None, text: Float[Tensor, "c d"] | None) -> Float[Tensor, "c d"]:
        """Returns one unit vector per class, whatever the scoring rule; the arguments are those of `fit`."""
        total: Any = 0
        if self.text_weight > 0:
            assert text is not None
            total = self.text_weight * text
        if self.text_weight < 1:
            assert support is not None
            means = self.selection.select(support, text).means(renormalize=True)
            total = total + (1 - self.text_weight) * means
        return normalize(total, dim=1)

    def described(self) -> dict[str, object]:
        """Returns plain values, for the report."""
        return {
            "prototype": self.rule.described(),
            "selection": {"part": key_name_of(self.selection), **asdict(self.selection)},
            "text_weight": self.text_weight,
            "selects_by_text": self.selects_by_text,
        }


def _rescaled(image: Scorer, text: Scorer, support: SupportSet) -> Scorer:
    """Returns image scores that vary over the synthetic images as much as the cosines to text do."""
    spread = float(image(support.features).double().std())
    # Of one class with one image nothing varies, and any factor gives the same prediction.
    if not spread > 0:
        return image
    factor = float(text(support.features).double().std()) / spread
    return lambda features: factor * image(features)


@dataclass(frozen=True)
class LeaveOneOut:
    """Selects parameters by leave-one-out accuracy: holds out one image of every class at a time.

    One image of *every* class is held out so that class sizes stay equal: with one less only in its own class, an
    image would be biased towards the other classes. Among equals the first candidate wins, which is the config's own.

    Args:
        rules: Whether to select the rule's parameters.
        keeps: Candidate values of `selection.keep`; empty leaves it unchanged.
        text_weights: Candidate text weights where both text and images are used; empty leaves it unchanged.

    Raises:
        ValueError: If a number is out of range.
    """

    rules: bool = True
    keeps: Sequence[int] = ()
    text_weights: Sequence[float] = ()

    def __post_init__(self) -> None:
        for keep in self.keeps:
            if keep < 1:
                raise ValueError(f"calibration.keeps: {keep} must be at least 1")
        for weight in self.text_weights:
            if not 0 <= weight <= 1:
                raise ValueError(f"calibration.text_weights: {weight} is not in [0, 1]")

    def choose(
        self, configured: Choice, support: SupportSet, text: Float[Tensor, "c d"] | None
    ) -> tuple[Choice, float]:
        """Returns the candidate with the highest leave-one-out accuracy, and that accuracy.

        Args:
            configured: The config's settings, the first candidate.
            support: The synthetic images.
            text: Text prototypes, where there are any.

        Raises:
            ValueError: If a class has fewer than two images, so that none can be held out.
        """
        folds = place_in_class(support)
        if not References(support).can_leave_out:
            few = (support.counts() < 2).nonzero().flatten().tolist()
            raise ValueError(
                f"calibration=leave_one_out needs two images of each class, classes {few[:10]} have fewer; "
                "raise prompts_per_class or images_per_prompt, or use calibration=none"
            )
        candidates = self._candidates(configured)
        fixed = [candidate.fixed(support, text) for candidate in candidates]
        correct = torch.zeros(len(candidates), dtype=torch.long)
        # A fold is the images with the same place in their classes. Classes of different sizes take part in as many
        # folds as they have images, so each image is left out exactly once.
        for fold in folds.unique().tolist():
            mask = folds == fold
            remaining = support.take(~mask)
            left_out = support.take(mask)
            for index, candidate in enumerate(fixed):
                scores = candidate.fit(remaining, text)(left_out.features)
                correct[index] += int((scores.argmax(dim=1) == left_out.labels).sum())
        winner = int(correct.argmax())  # the first among equals
        return candidates[winner], int(correct[winner]) / len(support.labels)

    def _candidates(self, configured: Choice) -> list[Choice]:
        # What the config says comes first in each list, and so in their product: it wins among equals.
        rules: Sequence[ScoringRule] = [configured.rule]
        if self.rules:
            rules = configured.rule.candidates()
        keeps = [configured.selection, *(replace(configured.selection, keep=keep) for keep in self.keeps)]
        weights = [configured.text_weight]
        # A weight of 0 or 1 is another method (LGCLIP or CLIP's text baseline), not a value to be chosen.
        if 0 < configured.text_weight < 1:
            weights += self.text_weights
        # A dict instead of a set, which would lose the order.
        return list(dict.fromkeys(Choice(*parts) for parts in itertools.product(rules, keeps, weights)))


class Temperature(NamedTuple):
    """Holds the divisor of scores before a softmax turns them into probabilities.

    Attributes:
        value: The temperature, above 0.
        fitted_on: `synthetic images`; `default` for text prototypes, which have CLIP's own; `not fitted` where no
            synthetic image can be left out, so that no probability is sure.
    """

    value: float
    fitted_on: str

    @property
    def is_fitted(self) -> bool:
        """Returns whether it was fitted, here or with the model."""
        return self.fitted_on != NOT_FITTED.fitted_on


DEFAULT_TEMPERATURE = Temperature(0.01, "default")
"""CLIP's own: its logit scale ends at 100 (arXiv:2103.00020, sec. 2.5)."""

NOT_FITTED = Temperature(1.0, "not fitted")
"""Of cosines, differences of 1 at most: no class gets a probability near 1 for a reason that nobody checked."""

_RANGE = (1e-4, 1e2)


def temperature_of(choice: Choice, references: References) -> Temperature:
    """Fits the temperature of maximum likelihood on left-out synthetic images (arXiv:1706.04599, sec. 4.2).

    The targets are Platt's (1999): of n images, the true class has (n + 1) / (n + 2) instead of 1. Where all left-out
    images are correct, the likelihood of plain targets would grow without bound as the temperature falls, and an
    encoder that separates the synthetic images perfectly would call every photograph sure.

    Args:
        choice: Settings of the classifier.
        references: All images, and the text prototypes.
    """
    if choice.text_weight == 1:
        return DEFAULT_TEMPERATURE
    if not references.can_leave_out:
        return NOT_FITTED
    left_out = left_out_scores(choice, references)
    value = likeliest_temperature(left_out.scores, left_out.labels, smooth=True)
    return NOT_FITTED if value is None else Temperature(value, "synthetic images")


class FittedChoice(NamedTuple):
    """Holds the settings that a classifier uses, after calibration.

    Attributes:
        choice: The settings.
        leave_one_out: Their leave-one-out accuracy on the synthetic images; None without calibration.
        temperature: Divisor of the scores.
    """

    choice: Choice
    leave_one_out: float | None
    temperature: Temperature


def fit_choice(configured: Choice, calibration: LeaveOneOut | None, references: References) -> FittedChoice:
    """Calibrates the settings of a classifier and fits its temperature, on synthetic images only.

    Args:
        configured: The config's settings.
        calibration: Selects the free parameters; None leaves them unchanged.
        references: The images and the text prototypes. Real images have no part in the selection of parameters.

    Raises:
        ValueError: If the calibration needs more images.
    """
    used = configured
    accuracy: float | None = None
    # Text alone has no free parameter that images could choose.
    if calibration is not None and references.support is not None and configured.text_weight < 1:
        used, accuracy = calibration.choose(configured, references.support, references.text)
    return FittedChoice(used, accuracy, temperature_of(used, references))


def likeliest_temperature(
    scores: Float[Tensor, "n c"], labels: Int[Tensor, " n"], *, smooth: bool = False
) -> float | None:
    """Returns the temperature of minimum negative log-likelihood; None if it has no minimum above 0.

    Args:
        scores: Score of each class.
        labels: True classes.
        smooth: Whether the target of the true class is (n + 1) / (n + 2) instead of 1, the rest spread over the others.
    """
    # A constant for each image changes no probability; with the highest at 0 nothing overflows.
    scores = scores - scores.amax(dim=1, keepdim=True)
    target_scores = scores.gather(1, labels[:, None])[:, 0]
    if smooth and scores.shape[1] > 1:
        smoothing = 1 / (len(labels) + 2)
        others = (scores.sum(dim=1) - target_scores) / (scores.shape[1] - 1)
        target_scores = (1 - smoothing) * target_scores + smoothing * others

    # With b = 1 / temperature the loss is log(sum exp(b s)) - b s_target, and its derivative is the mean score under
    # the softmax less s_target. The loss is convex in b, so the derivative has one root at most. The search is over the
    # logarithm, since the temperature may lie anywhere within six orders of magnitude.
    def slope(log_temperature: float) -> float:
        probs = (scores / math.exp(log_temperature)).softmax(dim=1)
        return float(((probs * scores).sum(dim=1) - target_scores).double().mean())

    low, high = map(math.log, _RANGE)
    # Even at the lowest temperature a lower one would be better: all images are correct, and no value is best.
    if slope(low) <= 0:
        return None
    # Even at the highest a higher one would be better: the scores say nothing of the classes.
    if slope(high) >= 0:
        return math.exp(high)
    return math.exp(root_scalar(slope, bracket=(low, high), xtol=1e-4).root)
