"""Tests metrics against their formulas."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, t

from lgclip.evaluation.metrics import (
    _resampled_means,
    detectable,
    holm,
    metrics,
    over_seeds,
    paired,
    per_class,
    welch,
    wilson,
)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_accuracy_interval_is_wilson(trial: tuple[int, int]) -> None:
    """Checks Wilson (1927): the p with (p - right/n)^2 = z^2 p (1 - p) / n."""
    right, n = trial
    z = 1.959963984540054
    p = right / n
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert wilson(right, n) == pytest.approx((center - half, center + half), abs=1e-9)


collectors = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 7)), min_size=1, max_size=60)


@given(collectors)
def test_metrics_match_a_list(predictions: list[tuple[int, int]]) -> None:
    labels, ranks = (np.array(column) for column in zip(*predictions, strict=True))
    computed: dict[str, Any] = metrics(labels, ranks, num_classes=5)
    hits_per_class = {}
    for c in range(5):
        hits_per_class[c] = [rank == 0 for label, rank in predictions if label == c]
    assert computed["top1"] == pytest.approx(sum(rank == 0 for _, rank in predictions) / len(predictions))
    assert computed["top5"] == pytest.approx(sum(rank < 5 for _, rank in predictions) / len(predictions))
    shares = [sum(rights) / len(rights) for rights in hits_per_class.values() if rights]
    assert computed["mean_per_class"] == pytest.approx(sum(shares) / len(shares))
    assert per_class(labels, ranks, 5) == [
        {"n": len(hits_per_class[c]), "right": sum(hits_per_class[c])} for c in range(5)
    ]
    low, high = computed["top1_ci95"]
    assert low <= computed["top1"] + 1e-12
    assert computed["top1"] <= high + 1e-12
    low, high = computed["mean_per_class_ci95"]
    assert 0 <= low <= high <= 1


def test_mean_per_class_weighs_classes_equally() -> None:
    labels = np.array([0] * 9 + [1])
    ranks = np.array([0] * 9 + [3])
    computed = metrics(labels, ranks, num_classes=2)
    assert (computed["top1"], computed["mean_per_class"], computed["top5"]) == (0.9, 0.5, 1.0)


def test_mean_per_class_interval_matches_bootstrap() -> None:
    """Compares with a loop that resamples images within classes of several sizes, one of them empty."""
    rng = np.random.default_rng(5)
    labels = np.repeat([0, 1, 2, 4], [40, 10, 25, 40])
    ranks = (rng.random(len(labels)) < np.array([0.1, 0.4, 0.8, 0.0, 0.1])[labels]).astype(int)
    means = []
    for _ in range(4000):
        again = [rng.choice(ranks[labels == c] == 0, (labels == c).sum()).mean() for c in (0, 1, 2, 4)]
        means.append(np.mean(again))
    computed: Any = metrics(labels, ranks, num_classes=5)
    assert computed["mean_per_class_ci95"] == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=0.01)
    assert computed["mean_per_class_ci95"] == metrics(labels, ranks, num_classes=5)["mean_per_class_ci95"], "no chance"


def test_bootstrap_groups_equal_classes() -> None:
    """Checks the variance of a mean of independent fractions, sum p (1 - p) / n / classes^2."""
    n = np.repeat([50, 50, 20], 100)
    right = np.repeat([30, 45, 19], 100)
    generated = _resampled_means(n, right)
    shares = right / n
    assert generated.mean() == pytest.approx(shares.mean(), abs=5e-4)
    assert generated.std() == pytest.approx(np.sqrt((shares * (1 - shares) / n).sum()) / 300, rel=0.05)


outcomes = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=80)


@given(outcomes)
def test_paired_test_counts_discordant_images(images: list[tuple[int, int, int]]) -> None:
    label, a, b = (np.array(column) for column in zip(*images, strict=True))
    result = paired(label, a, b)
    only_a = sum(x == y != z for y, x, z in images)
    only_b = sum(z == y != x for y, x, z in images)
    assert (result["only_this"], result["only_other"]) == (only_a, only_b)
    assert result["difference"] == pytest.approx((a == label).mean() - (b == label).mean())
    low, high = result["ci95"]
    assert -1 <= low <= high <= 1
    tail = sum(math.comb(only_a + only_b, k) for k in range(min(only_a, only_b) + 1)) / 2 ** (only_a + only_b)
    assert result["p"] == pytest.approx(min(1.0, 2 * tail))
    turned = paired(label, b, a)
    assert (turned["difference"], turned["p"]) == pytest.approx((-result["difference"], result["p"]))


def test_paired_test_matches_statsmodels() -> None:
    from statsmodels.stats.contingency_tables import mcnemar

    rng = np.random.default_rng(3)
    label = np.zeros(400, dtype=int)
    a = (rng.random(400) < 0.2).astype(int)
    b = (rng.random(400) < 0.3).astype(int)
    results: Any = paired(label, a, b)
    right = []
    for x in (0, 1):
        right.append([((a == x) & (b == y)).sum() for y in (0, 1)])
    oracle: Any = mcnemar(np.array(right), exact=True)
    assert results["p"] == pytest.approx(oracle.pvalue)
    places = rng.integers(0, 400, (4000, 400))
    again = ((a == 0).astype(float) - (b == 0))[places].mean(axis=1)
    assert results["ci95"] == pytest.approx(np.quantile(again, (0.025, 0.975)), abs=0.006)
    json.dumps(results)


def test_equal_predictions_do_not_differ() -> None:
    label = np.array([0, 1, 2])
    result = paired(label, np.array([0, 0, 0]), np.array([0, 2, 1]))
    assert result == {"difference": 0.0, "ci95": [0.0, 0.0], "only_this": 0, "only_other": 0, "p": 1.0}


def test_paired_test_requires_an_image() -> None:
    none = np.zeros(0, dtype=int)
    with pytest.raises(ValueError, match="at least one image"):
        paired(none, none, none)


@settings(max_examples=10)  # statsmodels collects garbage at each call, 0.2 s beside PyTorch
@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_matches_its_definition(p_values: list[float]) -> None:
    result = holm(p_values)
    highest = 0.0
    m = len(p_values)
    for step, index in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (m - step) * p_values[index]))
        assert result[index] == pytest.approx(highest)
    assert len(result) == m


@pytest.mark.parametrize(("discordant", "difference", "images"), [(0.5, 0.4, 23), (0.2, 0.1, 155)])
def test_detectable_difference_is_connor(discordant: float, difference: float, images: int) -> None:
    """Inverts Connor's sample size (1987, p. 209), of which the first is his example."""
    z = 1.959963984540054
    power = 0.8416212335729143
    expected = ((z * math.sqrt(discordant) + power * math.sqrt(discordant - difference**2)) / difference) ** 2
    assert math.ceil(expected) == images
    result, fewer = (detectable(n, discordant)["difference"] for n in (images, images - 1))
    assert result is not None
    assert fewer is not None
    assert result <= difference < fewer


@pytest.mark.parametrize(("n", "discordant"), [(100, 0.1), (100, 0.3), (900, 0.03), (10_000, 0.1), (30, 0.01)])
def test_detectable_difference_has_80_percent_power(n: int, discordant: float) -> None:
    """Simulates predictions; the exact test is conservative, so a little power is lost."""
    difference = detectable(n, discordant)["difference"]
    assert difference is not None
    q = max(discordant, difference)  # who differ by d disagree on d at least
    cells = [(q + difference) / 2, (q - difference) / 2, 1 - q]
    a, b, _ = np.random.default_rng(0).multinomial(n, cells, 20_000).T
    is_significant = 2 * binom.cdf(np.minimum(a, b), a + b, 0.5) <= 0.05
    assert 0.74 < is_significant.mean() < 0.81


@given(st.integers(6, 100_000), st.floats(0, 1))
def test_detectable_difference_shrinks_with_more_images(n: int, discordant: float) -> None:
    difference, more_images, fewer = (
        detectable(images, share)["difference"]
        for images, share in ((n, discordant), (2 * n, discordant), (n, discordant / 2))
    )
    assert difference is not None
    assert more_images is not None
    assert fewer is not None
    assert 0 < more_images < difference <= 1
    assert fewer <= difference + 1e-12


def test_five_images_detect_no_difference() -> None:
    """Checks the smallest case: with all five for one side, the exact test still has p = 0.0625."""
    assert detectable(5, 1.0) == {"difference": None, "power": 0.8, "discordant": 1.0}
    assert detectable(6, 1.0)["difference"] is not None


@pytest.mark.parametrize(
    "arguments", [(0, 0.1, 0.05, 0.8), (9, 1.1, 0.05, 0.8), (9, 0.1, 0.0, 0.8), (9, 0.1, 0.05, 0.4)]
)
def test_detectable_difference_rejects_invalid_values(arguments: tuple[int, float, float, float]) -> None:
    with pytest.raises(ValueError, match="are needed"):
        detectable(*arguments)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_mean_over_seeds_has_students_interval(values: list[float]) -> None:
    result = over_seeds(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    low, high = t.interval(0.95, len(values) - 1) if error else (0.0, 0.0)
    mean = sum(values) / len(values)
    assert result["ci95"] == pytest.approx([mean + low * error, mean + high * error])
    assert (result["n"], result["mean"]) == (len(values), pytest.approx(mean))


def test_single_seed_has_no_spread() -> None:
    assert over_seeds([0.5]) == {"n": 1, "mean": 0.5, "std": None, "ci95": None}
    with pytest.raises(ValueError, match="at least one run"):
        over_seeds([])


def test_group_means_are_compared_by_welch() -> None:
    """Compares with Welch (1947) and degrees of freedom after Satterthwaite."""
    a = [0.97, 0.98, 0.96, 0.975]
    b = [0.99, 0.992, 0.991]
    parts = [np.var(x, ddof=1) / len(x) for x in (a, b)]
    freedom = sum(parts) ** 2 / sum(p**2 / (len(x) - 1) for p, x in zip(parts, (a, b), strict=True))
    difference = np.mean(a) - np.mean(b)
    error = math.sqrt(sum(parts))
    half = t.ppf(0.975, freedom) * error
    result = welch(a, b)
    assert result["difference"] == pytest.approx(difference)
    assert result["ci95"] == pytest.approx([difference - half, difference + half])
    assert result["p"] == pytest.approx(2 * t.sf(abs(difference) / error, freedom))


def test_groups_without_spread_have_no_test() -> None:
    assert welch([0.5, 0.5], [0.25, 0.25]) == {"difference": 0.25, "ci95": None, "p": None}
    one_sided = welch([0.5, 0.5], [0.2, 0.3])
    assert one_sided["p"] == pytest.approx(2 * t.sf(0.25 / 0.05, 1)), "a constant group alone is no fault"
    with pytest.raises(ValueError, match="at least two seeds"):
        welch([0.5], [0.2, 0.3])
