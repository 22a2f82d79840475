"""Measures accuracy under distribution shift, and effective robustness beyond what in-distribution accuracy predicts.

Both accuracies are over the same classes: for a shifted set of some classes, the in-distribution one is over the
images of those classes, with the scores masked to them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from lgclip.evaluation.metrics import wilson


class Accuracy(NamedTuple):
    """Holds an accuracy.

    Attributes:
        top1: Top-1 accuracy, from 0 to 1.
        n: Number of images.
    """

    top1: float
    n: int

    @property
    def ci95(self) -> tuple[float, float]:
        """Returns Wilson's interval."""
        # Rounded, because an accuracy read back from a report is not exactly the number of images over n.
        return wilson(round(self.top1 * self.n), self.n)

    @property
    def logit(self) -> float:
        """Returns the log odds; an accuracy of 0 or 1 counts as half an image correct or incorrect.

        Macmillan and Kaplan 1985, doi:10.1037/0033-2909.98.1.185. No other accuracy of n images is that close to
        0 or 1, so no other is changed.
        """
        return _logit(min(max(self.top1, 0.5 / self.n), 1 - 0.5 / self.n))


class Line(NamedTuple):
    """Predicts accuracy on a shifted set from in-distribution accuracy, linear in logits (arXiv:2007.00644, sec. 2).

    Attributes:
        slope: Slope of the shifted logit over the in-distribution logit.
        intercept: Shifted logit where the in-distribution one is 0.
        n: Number of baseline runs it was fitted to.
        fitted: Whether the slope was fitted; otherwise it is 1.
    """

    slope: float
    intercept: float
    n: int
    fitted: bool

    def expected(self, top1: float, n: int) -> float:
        """Returns the predicted accuracy on the shifted set for an in-distribution accuracy on n images."""
        return float(1 / (1 + np.exp(-(self.slope * Accuracy(top1, n).logit + self.intercept))))


def shift_of(in_dist_right: Bool[np.ndarray, " n"], shifted_right: Bool[np.ndarray, " k"]) -> dict[str, Any]:
    """Compares the accuracy on a shifted set with the in-distribution one.

    Args:
        in_dist_right: Whether each in-distribution image of the shifted set's classes is classified correctly.
        shifted_right: The same for each image of the shifted set.

    Returns:
        `in_distribution` and `shifted`, `top1`, `top1_ci95` and `n` of each; `difference`, shifted minus
        in-distribution, with Newcombe's interval `difference_ci95` (1998,
        doi:10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I, method 10); `ratio`, shifted over
        in-distribution, with `ratio_ci95`, both None where the in-distribution accuracy is 0.

    Raises:
        ValueError: If a set has no image.
    """
    for name, correct in (("in-distribution", in_dist_right), ("shifted", shifted_right)):
        if not len(correct):
            raise ValueError(f"the {name} set has no image of the classes to compare: name a set that has some")
    inside = Accuracy(float(in_dist_right.mean()), len(in_dist_right))
    shifted = Accuracy(float(shifted_right.mean()), len(shifted_right))
    ratio = None
    ratio_ci95 = None
    # A ratio to 0 is not defined; the difference still is.
    if inside.top1 != 0:
        ratio = shifted.top1 / inside.top1
        ratio_ci95 = _ratio_interval(shifted, inside)
    return {
        "in_distribution": {"top1": inside.top1, "top1_ci95": list(inside.ci95), "n": inside.n},
        "shifted": {"top1": shifted.top1, "top1_ci95": list(shifted.ci95), "n": shifted.n},
        "difference": shifted.top1 - inside.top1,
        "difference_ci95": _minus(shifted.top1, shifted.ci95, inside.top1, inside.ci95),
        "ratio": ratio,
        "ratio_ci95": ratio_ci95,
    }


def _logit(accuracy: float) -> float:
    return float(np.log(accuracy) - np.log1p(-accuracy))


def _minus(a: float, a_ci95: Sequence[float], b: float, b_ci95: Sequence[float]) -> list[float]:
    """Computes the interval of a difference of independent terms from theirs (Zou, Donner 2008, doi:10.1002/sim.3095).

    With Wilson's intervals of two proportions it is Newcombe's.
    """
    return [
        float(a - b - np.hypot(a - a_ci95[0], b_ci95[1] - b)),
        float(a - b + np.hypot(a_ci95[1] - a, b - b_ci95[0])),
    ]


def _ratio_interval(over: Accuracy, under: Accuracy) -> list[float]:
    """Computes the interval of a ratio of independent proportions (Donner and Zou 2012, doi:10.1177/0962280210383082).

    statsmodels' intervals of a ratio have no width, or fail, where a proportion is 0 or 1.
    """
    (a, _) = over
    (a_low, a_high) = over.ci95
    (b, _) = under
    (b_low, b_high) = under.ci95
    low = a_low * (2 * a - a_low)
    high = a_high * (2 * a - a_high)
    least = b_high * (2 * b - b_high)
    most = b_low * (2 * b - b_low)
    root = np.sqrt((a * b) ** 2 - low * least)
    # The lower root of the quadratic, as product over upper root: it stays defined where `least` is 0.
    lower = 0.0
    if a:
        lower = float(low / (a * b + root))
    return [lower, float((a * b + np.sqrt((a * b) ** 2 - high * most)) / most)]


def baseline(in_distribution: Sequence[Accuracy], shifted: Sequence[Accuracy]) -> Line:
    """Fits the line through baseline runs, by least squares in logits (models lie on such lines: arXiv:2107.04649).

    A slope needs baselines of different accuracy. Where in-distribution accuracies differ by no more than chance
    (chi-squared test of equal proportions, 5%), such as seeds of one setting, the slope is 1: the same odds ratio
    everywhere.

    Args:
        in_distribution: Accuracy of each baseline run.
        shifted: Accuracy of the same runs on the shifted set.

    Raises:
        ValueError: If there is no run, or the two lengths differ.
    """
    if not in_distribution or len(in_distribution) != len(shifted):
        raise ValueError(
            f"{len(in_distribution)} accuracies in distribution and {len(shifted)} shifted: "
            "a baseline needs both of each run, and at least one run"
        )
    x = np.array([accuracy.logit for accuracy in in_distribution])
    y = np.array([accuracy.logit for accuracy in shifted])
    # Through points that differ by chance alone a fitted slope would be noise, and meaningless far from them.
    if not _differ(in_distribution):
        return Line(1.0, float((y - x).mean()), len(x), fitted=False)
    # `fit` works on scaled values; `convert` brings the coefficients back, lowest order first.
    slope, intercept = np.polynomial.Polynomial.fit(x, y, 1).convert().coef[::-1]
    return Line(float(slope), float(intercept), len(x), fitted=True)


def _differ(accuracies: Sequence[Accuracy]) -> bool:
    """Checks whether accuracies differ by more than chance."""
    if len(accuracies) < 2:
        return False
    from scipy.stats import chi2_contingency

    # Half an image on either side, so that no cell is empty.
    counts = np.array(
        [(accuracy.top1 * accuracy.n + 0.5, (1 - accuracy.top1) * accuracy.n + 0.5) for accuracy in accuracies]
    )
    test: Any = chi2_contingency(counts, correction=False)
    return bool(test.pvalue < 0.05)


def effective_robustness(in_distribution: Accuracy, shifted: Accuracy, line: Line) -> dict[str, Any]:
    """Computes how far an accuracy on a shifted set is above a line's prediction (arXiv:2007.00644, sec. 2).

    Args:
        in_distribution: The run's own accuracy on the same classes.
        shifted: Its accuracy on the shifted set.
        line: Line through the baseline runs.

    Returns:
        `expected`; `rho`, shifted minus expected, with `rho_ci95` over the sampling of images in both sets for a fixed
        line: the uncertainty of the baselines is not included; `line`.
    """
    expected = line.expected(*in_distribution)
    # Sorted, because a falling line turns the bounds around.
    ends = sorted(line.expected(bound, in_distribution.n) for bound in in_distribution.ci95)
    return {
        "expected": expected,
        "rho": shifted.top1 - expected,
        "rho_ci95": _minus(shifted.top1, shifted.ci95, expected, ends),
        "line": line._asdict(),
    }
