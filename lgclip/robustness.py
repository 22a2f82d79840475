"""How an accuracy fares on a shifted data set, and whether better than accuracy alone foretells.

Both accuracies are over the same classes: for a shifted set of some classes, the in-distribution one is over the
images of those classes, with the scores masked to them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from lgclip.statistics import wilson


class Share(NamedTuple):
    """An accuracy.

    Attributes:
        top1: Share of the images that are judged right, from 0 to 1.
        n: Number of images.
    """

    top1: float
    n: int

    @property
    def ci95(self) -> tuple[float, float]:
        """Wilson's interval."""
        return wilson(round(self.top1 * self.n), self.n)

    @property
    def logit(self) -> float:
        """Logarithm of the odds; an accuracy of 0 or 1 stands for half an image right or wrong.

        Macmillan and Kaplan 1985, doi:10.1037/0033-2909.98.1.185. No other accuracy of n images is that close to
        0 or 1, so no other is changed.
        """
        return _logit(min(max(self.top1, 0.5 / self.n), 1 - 0.5 / self.n))


class Line(NamedTuple):
    """What accuracy in distribution foretells on a shifted set, linear in logits (arXiv:2007.00644, sec. 2).

    Attributes:
        slope: Of the shifted set's logit in the in-distribution one.
        intercept: The shifted set's logit where the in-distribution one is 0.
        n: Baseline runs that it goes through.
        fitted: Whether the slope is theirs; otherwise it is 1.
    """

    slope: float
    intercept: float
    n: int
    fitted: bool

    def expected(self, top1: float, n: int) -> float:
        """The accuracy on the shifted set that an in-distribution accuracy on n images foretells."""
        return float(1 / (1 + np.exp(-(self.slope * Share(top1, n).logit + self.intercept))))


def shift_of(in_dist_right: Bool[np.ndarray, " n"], shifted_right: Bool[np.ndarray, " k"]) -> dict[str, Any]:
    """The accuracy on a shifted set against the in-distribution one.

    Args:
        in_dist_right: Of each in-distribution image of the shifted set's classes, whether it is judged right.
        shifted_right: The same of each image of the shifted set.

    Returns:
        `in_distribution` and `shifted`, `top1`, `top1_ci95` and `n` of each; `difference`, shifted minus
        in-distribution, with Newcombe's interval `difference_ci95` (1998,
        doi:10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I, method 10); `ratio`, shifted over
        in-distribution, with `ratio_ci95`, both None where nothing in distribution is right.

    Raises:
        ValueError: If a set has no image.
    """
    for name, right in (("in-distribution", in_dist_right), ("shifted", shifted_right)):
        if not len(right):
            raise ValueError(f"the {name} set has no image of the classes to compare: name a set that has some")
    inside, shifted = (Share(float(right.mean()), len(right)) for right in (in_dist_right, shifted_right))
    ratio = None if inside.top1 == 0 else shifted.top1 / inside.top1
    return {
        **{
            name: {"top1": share.top1, "top1_ci95": list(share.ci95), "n": share.n}
            for name, share in (("in_distribution", inside), ("shifted", shifted))
        },
        "difference": shifted.top1 - inside.top1,
        "difference_ci95": _minus(shifted.top1, shifted.ci95, inside.top1, inside.ci95),
        "ratio": ratio,
        "ratio_ci95": None if ratio is None else _ratio_interval(shifted, inside),
    }


def _logit(share: float) -> float:
    return float(np.log(share) - np.log1p(-share))


def _minus(a: float, a_ci95: Sequence[float], b: float, b_ci95: Sequence[float]) -> list[float]:
    """Interval of a difference from those of its independent terms (Zou and Donner 2008, doi:10.1002/sim.3095).

    With Wilson's intervals of two shares it is Newcombe's.
    """
    return [
        float(a - b - np.hypot(a - a_ci95[0], b_ci95[1] - b)),
        float(a - b + np.hypot(a_ci95[1] - a, b - b_ci95[0])),
    ]


def _ratio_interval(over: Share, under: Share) -> list[float]:
    """Interval of a ratio of independent shares from theirs (Donner and Zou 2012, doi:10.1177/0962280210383082).

    statsmodels' intervals of a ratio have no width, or fail, where a share is 0 or 1.
    """
    (a, _), (a_low, a_high), (b, _), (b_low, b_high) = over, over.ci95, under, under.ci95
    low, high = a_low * (2 * a - a_low), a_high * (2 * a - a_high)
    least, most = b_high * (2 * b - b_high), b_low * (2 * b - b_low)
    root = np.sqrt((a * b) ** 2 - low * least)
    # The lower root of the quadratic, as product over upper root: it stays defined where `least` is 0.
    return [
        float(low / (a * b + root)) if a else 0.0,
        float((a * b + np.sqrt((a * b) ** 2 - high * most)) / most),
    ]


def baseline(in_distribution: Sequence[Share], shifted: Sequence[Share]) -> Line:
    """The line through baseline runs, by least squares in logits (on such lines models lie: arXiv:2107.04649).

    A slope needs baselines of different accuracy. Where in-distribution accuracies differ by no more than chance
    (chi-squared test of equal shares, 5%), such as seeds of one setting, the slope is 1: the same odds ratio
    everywhere.

    Args:
        in_distribution: Accuracy of each baseline run.
        shifted: Accuracy of the same runs on the shifted set.

    Raises:
        ValueError: If there is no run, or not as many on one side.
    """
    if not in_distribution or len(in_distribution) != len(shifted):
        raise ValueError(
            f"{len(in_distribution)} accuracies in distribution and {len(shifted)} shifted: "
            "a baseline needs both of each run, and at least one run"
        )
    x, y = (np.array([share.logit for share in side]) for side in (in_distribution, shifted))
    if not _differ(in_distribution):
        return Line(1.0, float((y - x).mean()), len(x), fitted=False)
    slope, intercept = np.polynomial.Polynomial.fit(x, y, 1).convert().coef[::-1]
    return Line(float(slope), float(intercept), len(x), fitted=True)


def _differ(shares: Sequence[Share]) -> bool:
    """Whether accuracies differ by more than chance."""
    if len(shares) < 2:
        return False
    from scipy.stats import chi2_contingency

    # Half an image on either side, so that no cell is empty.
    counts = np.array([(share.top1 * share.n + 0.5, (1 - share.top1) * share.n + 0.5) for share in shares])
    test: Any = chi2_contingency(counts, correction=False)
    return bool(test.pvalue < 0.05)


def effective_robustness(in_distribution: Share, shifted: Share, line: Line) -> dict[str, Any]:
    """How far an accuracy on a shifted set is above what a line foretells (arXiv:2007.00644, sec. 2).

    Args:
        in_distribution: The run's own accuracy on the same classes.
        shifted: Its accuracy on the shifted set.
        line: What baselines of that in-distribution accuracy have there.

    Returns:
        `expected`; `rho`, shifted minus expected, with `rho_ci95` over other images of both sets, for the line as it
        is: the chance in the baselines is not in it; `line`.
    """
    expected = line.expected(*in_distribution)
    ends = sorted(line.expected(bound, in_distribution.n) for bound in in_distribution.ci95)
    return {
        "expected": expected,
        "rho": shifted.top1 - expected,
        "rho_ci95": _minus(shifted.top1, shifted.ci95, expected, ends),
        "line": line._asdict(),
    }
