"""Predicts the accuracy of a classifier from its synthetic images, before any real image is seen.

An image that is left out of the prototypes is a test image whose class is known. The forecast is exact for images like
the synthetic ones; how real images differ from them, no synthetic image tells (arXiv:2601.17535 reports the same).
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from lgclip.methods.calibration import Choice
from lgclip.methods.left_out import LeftOut, References, left_out_scores

AT_RISK = 0.8
"""Classes that are expected to be below it are named."""
CONFUSABLE = 0.1
"""Pairs with at least this fraction of images on the wrong side are named."""
_Z95 = 1.959963984540054
_PAIRS = 20
_SPREADS = 1.5


class ClassForecast(NamedTuple):
    """Holds the expected accuracy of a class.

    Attributes:
        expected: Expected accuracy, 0 to 1.
        images: Number of left-out images that it is computed from.
        confused_with: Index of the class that most of the wrong images are taken for; None if none is wrong.
        fraction: Fraction of its images that are taken for that class.
    """

    expected: float
    images: int
    confused_with: int | None
    fraction: float


class ConfusablePair(NamedTuple):
    """Names two classes whose images are hard to distinguish.

    Attributes:
        first: Index of the first class.
        second: Index of the second class.
        fraction: Fraction of the images of both that are nearer to the other class.
    """

    first: int
    second: int
    fraction: float


class Forecast(NamedTuple):
    """Holds the expected accuracy of a classifier.

    Attributes:
        expected: Expected top-1 accuracy, 0 to 1, as a mean over the classes.
        low: Lower end of its interval: that of the 95% interval of the lower of the two values it is the mean of.
        high: Upper end: that of the higher value.
        images: Number of left-out images.
        classes: Forecast of each class, in the order of their indices.
        pairs: Confusable pairs, the worst first.
    """

    expected: float
    low: float
    high: float
    images: int
    classes: tuple[ClassForecast, ...]
    pairs: tuple[ConfusablePair, ...]

    def at_risk(self) -> list[int]:
        """Returns the classes that are expected to be below `AT_RISK`, the worst first."""
        low = [index for index, item in enumerate(self.classes) if item.expected < AT_RISK]
        return sorted(low, key=lambda index: self.classes[index].expected)


def forecast(choice: Choice, references: References) -> Forecast | None:
    """Predicts the accuracy of a classifier.

    The expected accuracy of a class is the mean of two values of its left-out images: the fraction that is correct, and
    the mean probability of the true class. The fraction has the right level and few distinct values with ten images;
    the probability ranks classes and tasks that have the same fraction. Its temperature is 1.5 times the standard
    deviation of the true class's score within the classes, a property of encoder and generator. The fitted temperature
    would not do: it makes the mean probability equal to the accuracy in every task, and hides how close classes are.

    Args:
        choice: Settings of the classifier.
        references: The images and the text prototypes.

    Returns:
        The forecast; None where a class has fewer than two images, or text alone represents the classes.
    """
    if choice.text_weight == 1 or not references.can_leave_out:
        return None
    left_out = left_out_scores(choice, references)
    predicted = left_out.scores.argmax(dim=1)
    correct = (predicted == left_out.labels).double()
    probs = (left_out.scores / _spread(left_out)).softmax(dim=1).gather(1, left_out.labels[:, None])[:, 0].double()
    classes: list[ClassForecast] = []
    for index in range(left_out.scores.shape[1]):
        rows = left_out.labels == index
        expected = float((correct[rows].mean() + probs[rows].mean()) / 2)
        classes.append(ClassForecast(expected, int(rows.sum()), *_mistaken_for(predicted[rows], index)))
    mean = sum(item.expected for item in classes) / len(classes)
    # From the lower end of the one value's interval to the upper end of the other's: chance in so many images, and the
    # difference of the two ways to count.
    count = len(left_out.labels)
    lower, upper = sorted((float(correct.mean()), float(probs.mean())))
    low, _ = _interval(lower, count)
    _, high = _interval(upper, count)
    return Forecast(mean, low, high, count, tuple(classes), confusable_pairs(left_out))


def _spread(left_out: LeftOut) -> float:
    """Returns the temperature: a multiple of the standard deviation of the true class's score within the classes."""
    true_scores = left_out.scores.gather(1, left_out.labels[:, None])[:, 0].double()
    counts = torch.bincount(left_out.labels).double()
    means = torch.zeros_like(counts).index_add(0, left_out.labels, true_scores) / counts
    deviation = float((true_scores - means[left_out.labels]).square().mean().sqrt())
    return max(_SPREADS * deviation, 1e-6)


def confusable_pairs(left_out: LeftOut) -> tuple[ConfusablePair, ...]:
    """Returns the pairs of classes of which many images have a higher score for the other class, the worst first."""
    count = left_out.scores.shape[1]
    wrong = left_out.scores.new_zeros(count, count)
    sizes = torch.bincount(left_out.labels, minlength=count).to(wrong)
    for index in range(count):
        scores = left_out.scores[left_out.labels == index]
        wrong[index] = (scores > scores[:, index : index + 1]).sum(dim=0)
    fractions = (wrong + wrong.T) / (sizes[:, None] + sizes[None, :])
    upper = fractions.triu(diagonal=1)
    places = upper.flatten().topk(min(_PAIRS, upper.numel())).indices.tolist()
    pairs = [ConfusablePair(place // count, place % count, float(upper.flatten()[place])) for place in places]
    return tuple(pair for pair in pairs if pair.fraction >= CONFUSABLE)


def _mistaken_for(predicted: Int[Tensor, " k"], index: int) -> tuple[int | None, float]:
    counts = torch.bincount(predicted[predicted != index])
    if not len(counts):
        return None, 0.0
    return int(counts.argmax()), float(counts.max()) / len(predicted)


def _interval(proportion: float, n: int) -> tuple[float, float]:
    """Computes Wilson's 95% interval of a proportion that need not be a count (doi:10.2307/2276774)."""
    center = (proportion + _Z95**2 / (2 * n)) / (1 + _Z95**2 / n)
    spread = math.sqrt(proportion * (1 - proportion) / n + _Z95**2 / (4 * n * n))
    half = _Z95 / (1 + _Z95**2 / n) * spread
    return max(0.0, center - half), min(1.0, center + half)
