"""Choice of the free parameters on synthetic images alone: no label of a real image is used."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from scipy.optimize import root_scalar
from torch import Tensor

from lgclip.prototypes import Support
from lgclip.rules import Rule, Scorer
from lgclip.selection import Selection


class Choice(NamedTuple):
    """How images are judged.

    Attributes:
        rule: Score of a class from its images.
        selection: Which images stand for a class.
        text_weight: Share of the text prototype.
    """

    rule: Rule
    selection: Selection
    text_weight: float

    def fit(self, support: Support | None, text: Float[Tensor, "c d"] | None) -> Scorer:
        """The scorer over these images and sentences, each None where it has no weight.

        With `Mean` prototypes the weighted sum of scores is the score of the weighted sum of
        prototypes, since the cosine is linear in them.
        """
        if self.text_weight == 1:
            assert text is not None
            return lambda features: features @ text.T
        assert support is not None
        image = self.rule.fit(self.selection.select(support, text))
        if self.text_weight == 0:
            return image
        assert text is not None
        return lambda features: self.text_weight * (features @ text.T) + (1 - self.text_weight) * image(features)

    def described(self) -> dict[str, object]:
        """Plain values, for the report."""
        parts = {"prototype": self.rule, "selection": self.selection}
        plain = {name: {"part": type(part).__name__, **asdict(part)} for name, part in parts.items()}  # pyright: ignore[reportArgumentType]
        return {**plain, "text_weight": self.text_weight}


@dataclass(frozen=True)
class LeaveOneOut:
    """Leaves out one image of every class at a time, judges it by the others, and keeps what judges best.

    Leaving out one of *every* class keeps the classes equal: with one less in its own class alone, an
    image would be drawn to the other classes. Among equals the first candidate wins, which is what the
    config says.

    Args:
        rules: Whether the rule's parameters are chosen.
        keeps: Numbers of images to try for `selection.keep`; none leaves it as it is.
        text_weights: Text weights to try where both text and images are used; none leaves it as it is.

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

    def choose(self, given: Choice, support: Support, text: Float[Tensor, "c d"] | None) -> tuple[Choice, float]:
        """The candidate that judges most of the left-out images right, and the share that it does.

        Args:
            given: What the config says, the first candidate.
            support: The synthetic images.
            text: Text prototypes, where there are any.

        Raises:
            ValueError: If a class has fewer than two images, so that none can be left out.
        """
        folds = place_in_class(support)
        if int(support.counts().min()) < 2:
            few = (support.counts() < 2).nonzero().flatten().tolist()
            raise ValueError(
                f"calibration=leave_one_out needs two images of each class, classes {few[:10]} have fewer; "
                "raise prompts_per_class or images_per_prompt, or use calibration=none"
            )
        candidates = self._candidates(given)
        right = torch.zeros(len(candidates), dtype=torch.long)
        for fold in folds.unique().tolist():
            out = folds == fold
            rest, left_out = support.take(~out), support.take(out)
            for at, candidate in enumerate(candidates):
                scores = candidate.fit(rest, text)(left_out.features)
                right[at] += int((scores.argmax(dim=1) == left_out.labels).sum())
        winner = int(right.argmax())  # the first among equals
        return candidates[winner], int(right[winner]) / len(support.labels)

    def _candidates(self, given: Choice) -> list[Choice]:
        rules = given.rule.candidates() if self.rules else [given.rule]
        keeps = [given.selection, *(replace(given.selection, keep=keep) for keep in self.keeps)]
        mixed = 0 < given.text_weight < 1
        weights = [given.text_weight, *(self.text_weights if mixed else ())]
        return list(dict.fromkeys(Choice(*parts) for parts in itertools.product(rules, keeps, weights)))


class Temperature(NamedTuple):
    """What scores are divided by before a softmax makes probabilities of them.

    Attributes:
        value: The temperature, above 0.
        fitted_on: `synthetic images`, or `default` where none could be left out.
    """

    value: float
    fitted_on: str


DEFAULT_TEMPERATURE = Temperature(0.01, "default")
"""CLIP's own: its logit scale ends at 100 (arXiv:2103.00020, sec. 2.5)."""

_FOLDS = 10
_RANGE = (1e-4, 1e2)


def temperature_of(choice: Choice, support: Support | None, text: Float[Tensor, "c d"] | None) -> Temperature:
    """The temperature at which left-out synthetic images are likeliest (arXiv:1706.04599, sec. 4.2).

    One image of every class is left out at a time, as in `LeaveOneOut`, at most ten times. The default stands
    where no image can be left out, and where every left-out image is judged right: then the smaller, the likelier.

    Args:
        choice: How images are judged.
        support: All synthetic images; None if there are none.
        text: Text prototypes, where there are any.
    """
    if support is None or choice.text_weight == 1 or int(support.counts().min()) < 2:
        return DEFAULT_TEMPERATURE
    folds = place_in_class(support)
    scores, labels = [], []
    for fold in range(min(_FOLDS, int(folds.max()) + 1)):
        left_out = support.take(folds == fold)
        scores.append(choice.fit(support.take(folds != fold), text)(left_out.features))
        labels.append(left_out.labels)
    value = likeliest_temperature(torch.cat(scores), torch.cat(labels))
    return DEFAULT_TEMPERATURE if value is None else Temperature(value, "synthetic images")


def likeliest_temperature(scores: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> float | None:
    """The temperature of least negative log-likelihood; None if the smaller, the less.

    Args:
        scores: Score of each class.
        labels: True classes.
    """
    scores = scores - scores.amax(dim=1, keepdim=True)
    own = scores.gather(1, labels[:, None])[:, 0]

    def slope(log_temperature: float) -> float:
        """Of the negative log-likelihood over 1 / temperature, in which it is convex."""
        chances = (scores / math.exp(log_temperature)).softmax(dim=1)
        return float(((chances * scores).sum(dim=1) - own).double().mean())

    low, high = map(math.log, _RANGE)
    if slope(low) <= 0:
        return None
    return math.exp(high if slope(high) >= 0 else root_scalar(slope, bracket=(low, high), xtol=1e-4).root)


def place_in_class(support: Support) -> Tensor:
    """Of each image, how many of its class come before it."""
    seen: dict[int, int] = {}
    places = []
    for label in support.labels.tolist():
        places.append(seen.setdefault(label, 0))
        seen[label] += 1
    return torch.tensor(places, device=support.labels.device)
