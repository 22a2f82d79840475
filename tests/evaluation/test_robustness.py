"""Tests shifted against in-distribution accuracy: statsmodels' intervals, a least-squares line, 0 and 1."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import linregress
from statsmodels.stats.proportion import confint_proportions_2indep

from lgclip.evaluation.robustness import Accuracy, Line, baseline, effective_robustness, shift_of


def right(hits: int, n: int) -> np.ndarray:
    return np.arange(n) < hits


@settings(max_examples=100, deadline=None)
@given(counts=st.tuples(st.integers(1, 300), st.integers(1, 300)), shares=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_shift_interval_is_newcombe(counts: tuple[int, int], shares: tuple[float, float]) -> None:
    n, k = counts
    a = round(shares[0] * n)
    b = round(shares[1] * k)
    result = shift_of(right(a, n), right(b, k))
    assert (result["in_distribution"]["n"], result["shifted"]["top1"]) == (n, b / k)
    assert result["difference"] == pytest.approx(b / k - a / n)
    expected = confint_proportions_2indep(b, k, a, n, method="newcomb", compare="diff")
    assert result["difference_ci95"] == pytest.approx(expected, abs=1e-9)
    if not a:
        assert result["ratio"] is result["ratio_ci95"] is None
        return
    low, high = result["ratio_ci95"]
    assert result["ratio"] == pytest.approx((b / k) / (a / n))
    assert -1e-9 <= low <= result["ratio"] + 1e-9
    assert result["ratio"] <= high + 1e-9
    difference = result["difference_ci95"]
    if min(a, b, n - a, k - b):
        assert (low > 1) == (difference[0] > 0), "what leaves one out leaves the other out"
        assert (high < 1) == (difference[1] < 0)


@pytest.mark.slow
def test_ratio_interval_has_nominal_coverage() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        low, high = shift_of(rng.random(300) < 0.8, rng.random(200) < 0.5)["ratio_ci95"]
        covered.append(low <= 0.5 / 0.8 <= high)
    assert 0.92 <= np.mean(covered) <= 0.98


def test_empty_dataset_is_rejected() -> None:
    for sides, name in (((0, 3), "in-distribution"), ((3, 0), "shifted")):
        with pytest.raises(ValueError, match=f"the {name} set has no image"):
            shift_of(right(0, sides[0]), right(0, sides[1]))


def test_line_is_least_squares_in_logits() -> None:
    rng = np.random.default_rng(1)
    inside = [Accuracy(float(x), 1000) for x in np.linspace(0.3, 0.9, 7)]
    shifted = [Accuracy(float(expit(0.8 * logit(s.top1) - 0.5 + rng.normal(0, 0.05))), 800) for s in inside]
    line = baseline(inside, shifted)
    oracle: Any = linregress([logit(s.top1) for s in inside], [logit(s.top1) for s in shifted])
    assert (line.slope, line.intercept) == pytest.approx((oracle.slope, oracle.intercept))
    assert (line.n, line.fitted) == (7, True)
    assert line.expected(0.6, 1000) == pytest.approx(expit(oracle.slope * logit(0.6) + oracle.intercept))


@pytest.mark.parametrize("shares", [(0.7,), (0.7, 0.7), (0.70, 0.71, 0.69, 0.705, 0.70)])
def test_equal_baselines_define_no_slope(shares: tuple[float, ...]) -> None:
    """Checks that runs of one setting, which differ by chance, define no slope."""
    rng = np.random.default_rng(2)
    shifted = [Accuracy(float(0.5 + rng.normal(0, 0.02)), 200) for _ in shares]
    line = baseline([Accuracy(share, 200) for share in shares], shifted)
    assert (line.slope, line.n, line.fitted) == (1.0, len(shares), False)
    assert line.intercept == pytest.approx(
        np.mean([logit(s.top1) - logit(share) for s, share in zip(shifted, shares, strict=True)])
    )


def test_single_baseline_has_no_effective_robustness() -> None:
    inside = Accuracy(0.8, 500)
    shifted = Accuracy(0.6, 300)
    line = baseline([inside], [shifted])
    robustness = effective_robustness(inside, shifted, line)
    assert robustness["rho"] == pytest.approx(0)
    assert robustness["expected"] == pytest.approx(0.6)
    assert robustness["line"] == {"slope": 1.0, "intercept": line.intercept, "n": 1, "fitted": False}
    better = effective_robustness(Accuracy(0.7, 500), Accuracy(0.6, 300), line)
    predicted = expit(logit(0.7) + logit(0.6) - logit(0.8))
    assert better["rho"] == pytest.approx(0.6 - predicted)
    low, high = better["rho_ci95"]
    assert low < better["rho"] < high


@pytest.mark.parametrize("slope", [1.0, 0.6, -0.4])
def test_effective_robustness_interval_has_nominal_coverage(slope: float) -> None:
    line = Line(slope, -0.4, 5, fitted=True)
    truth = 0.55 - float(expit(slope * logit(0.75) - 0.4))
    rng = np.random.default_rng(3)
    covered = []
    for _ in range(400):
        inside, shifted = (Accuracy(float(rng.binomial(n, p) / n), n) for n, p in ((250, 0.75), (200, 0.55)))
        low, high = effective_robustness(inside, shifted, line)["rho_ci95"]
        covered.append(low <= truth <= high)
    assert 0.92 <= np.mean(covered) <= 0.98


def test_extreme_accuracies_are_corrected() -> None:
    assert Accuracy(1.0, 50).logit == pytest.approx(logit(49.5 / 50))
    assert Accuracy(0.0, 50).logit == pytest.approx(-Accuracy(1.0, 50).logit)
    assert Accuracy(0.02, 50).logit == pytest.approx(logit(0.02)), "one right of fifty is as it is"
    for a, b in itertools.product((0.0, 1.0), repeat=2):
        line = baseline([Accuracy(a, 50)], [Accuracy(b, 40)])
        result = effective_robustness(Accuracy(a, 50), Accuracy(b, 40), line)
        assert abs(result["rho"]) == pytest.approx(0.5 / 40)
        assert np.isfinite([result["expected"], *result["rho_ci95"], line.intercept]).all()


def test_baselines_need_both_accuracies() -> None:
    for inside, shifted in (([], []), ([Accuracy(0.5, 10)], [])):
        with pytest.raises(ValueError, match="a baseline needs both of each run"):
            baseline(inside, shifted)
