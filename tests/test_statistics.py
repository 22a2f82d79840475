"""Figures against their formulas, written out."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, t

from lgclip.statistics import (
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
def test_the_interval_is_wilsons(trial: tuple[int, int]) -> None:
    """Wilson 1927, written out: the p with (p - right/n)^2 = z^2 p (1 - p) / n."""
    right, n = trial
    z, p = 1.959963984540054, right / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert wilson(right, n) == pytest.approx((centre - half, centre + half), abs=1e-9)


judgements = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 7)), min_size=1, max_size=60)


@given(judgements)
def test_figures_are_what_a_list_gives(judged: list[tuple[int, int]]) -> None:
    labels, ranks = (np.array(column) for column in zip(*judged, strict=True))
    found: dict[str, Any] = metrics(labels, ranks, num_classes=5)
    own = {c: [rank == 0 for label, rank in judged if label == c] for c in range(5)}
    assert found["top1"] == pytest.approx(sum(rank == 0 for _, rank in judged) / len(judged))
    assert found["top5"] == pytest.approx(sum(rank < 5 for _, rank in judged) / len(judged))
    shares = [sum(rights) / len(rights) for rights in own.values() if rights]
    assert found["mean_per_class"] == pytest.approx(sum(shares) / len(shares))
    assert per_class(labels, ranks, 5) == [{"n": len(own[c]), "right": sum(own[c])} for c in range(5)]
    low, high = found["top1_ci95"]
    assert low <= found["top1"] + 1e-12
    assert found["top1"] <= high + 1e-12
    low, high = found["mean_per_class_ci95"]
    assert 0 <= low <= high <= 1


def test_classes_of_unequal_size_weigh_the_same_in_the_mean_per_class() -> None:
    labels, ranks = np.array([0] * 9 + [1]), np.array([0] * 9 + [3])
    found = metrics(labels, ranks, num_classes=2)
    assert (found["top1"], found["mean_per_class"], found["top5"]) == (0.9, 0.5, 1.0)


def test_the_mean_per_class_has_the_interval_of_images_drawn_again_within_their_class() -> None:
    """Oracle: a loop that draws images, with classes of several sizes, one of them without an image."""
    rng = np.random.default_rng(5)
    labels = np.repeat([0, 1, 2, 4], [40, 10, 25, 40])
    ranks = (rng.random(len(labels)) < np.array([0.1, 0.4, 0.8, 0.0, 0.1])[labels]).astype(int)
    means = []
    for _ in range(4000):
        again = [rng.choice(ranks[labels == c] == 0, (labels == c).sum()).mean() for c in (0, 1, 2, 4)]
        means.append(np.mean(again))
    found: Any = metrics(labels, ranks, num_classes=5)
    assert found["mean_per_class_ci95"] == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=0.01)
    assert found["mean_per_class_ci95"] == metrics(labels, ranks, num_classes=5)["mean_per_class_ci95"], "no chance"


def test_classes_that_share_their_counts_are_drawn_together_without_changing_the_spread() -> None:
    """The variance of a mean of independent shares, sum p (1 - p) / n / classes^2, written out."""
    n, right = np.repeat([50, 50, 20], 100), np.repeat([30, 45, 19], 100)
    drawn = _resampled_means(n, right)
    shares = right / n
    assert drawn.mean() == pytest.approx(shares.mean(), abs=5e-4)
    assert drawn.std() == pytest.approx(np.sqrt((shares * (1 - shares) / n).sum()) / 300, rel=0.05)


outcomes = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=80)


@given(outcomes)
def test_a_paired_test_counts_what_one_alone_judges_right(images: list[tuple[int, int, int]]) -> None:
    label, a, b = (np.array(column) for column in zip(*images, strict=True))
    found = paired(label, a, b)
    only_a = sum(x == y != z for y, x, z in images)
    only_b = sum(z == y != x for y, x, z in images)
    assert (found["only_this"], found["only_other"]) == (only_a, only_b)
    assert found["difference"] == pytest.approx((a == label).mean() - (b == label).mean())
    low, high = found["ci95"]
    assert -1 <= low <= high <= 1
    tail = sum(math.comb(only_a + only_b, k) for k in range(min(only_a, only_b) + 1)) / 2 ** (only_a + only_b)
    assert found["p"] == pytest.approx(min(1.0, 2 * tail))
    turned = paired(label, b, a)
    assert (turned["difference"], turned["p"]) == pytest.approx((-found["difference"], found["p"]))


def test_a_paired_difference_has_statsmodels_p_and_the_spread_of_images_drawn_again() -> None:
    from statsmodels.stats.contingency_tables import mcnemar

    rng = np.random.default_rng(3)
    label = np.zeros(400, dtype=int)
    a, b = (rng.random(400) < 0.2).astype(int), (rng.random(400) < 0.3).astype(int)
    found: Any = paired(label, a, b)
    right = [[((a == x) & (b == y)).sum() for y in (0, 1)] for x in (0, 1)]
    oracle: Any = mcnemar(np.array(right), exact=True)
    assert found["p"] == pytest.approx(oracle.pvalue)
    places = rng.integers(0, 400, (4000, 400))
    again = ((a == 0).astype(float) - (b == 0))[places].mean(axis=1)
    assert found["ci95"] == pytest.approx(np.quantile(again, (0.025, 0.975)), abs=0.006)
    json.dumps(found)


def test_two_judgements_that_agree_on_every_image_do_not_differ() -> None:
    label = np.array([0, 1, 2])
    found = paired(label, np.array([0, 0, 0]), np.array([0, 2, 1]))
    assert found == {"difference": 0.0, "ci95": [0.0, 0.0], "only_this": 0, "only_other": 0, "p": 1.0}


def test_a_paired_test_needs_an_image() -> None:
    none = np.zeros(0, dtype=int)
    with pytest.raises(ValueError, match="at least one image"):
        paired(none, none, none)


@settings(max_examples=10)  # statsmodels collects garbage at each call, 0.2 s beside PyTorch
@given(st.lists(st.floats(0, 1), max_size=12))
def test_holms_p_values_are_the_steps_down_written_out(p_values: list[float]) -> None:
    found = holm(p_values)
    highest, m = 0.0, len(p_values)
    for step, at in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (m - step) * p_values[at]))
        assert found[at] == pytest.approx(highest)
    assert len(found) == m


@pytest.mark.parametrize(("discordant", "difference", "images"), [(0.5, 0.4, 23), (0.2, 0.1, 155)])
def test_the_detectable_difference_is_connors(discordant: float, difference: float, images: int) -> None:
    """His sample size (1987, p. 209), of which the first is his example's, turned round."""
    z, power = 1.959963984540054, 0.8416212335729143
    wanted = ((z * math.sqrt(discordant) + power * math.sqrt(discordant - difference**2)) / difference) ** 2
    assert math.ceil(wanted) == images
    found, fewer = (detectable(n, discordant)["difference"] for n in (images, images - 1))
    assert found is not None
    assert fewer is not None
    assert found <= difference < fewer


@pytest.mark.parametrize(("n", "discordant"), [(100, 0.1), (100, 0.3), (900, 0.03), (10_000, 0.1), (30, 0.01)])
def test_the_exact_test_finds_the_detectable_difference_about_four_times_in_five(n: int, discordant: float) -> None:
    """Judgements are simulated; the exact test is careful, so that a little power is lost."""
    difference = detectable(n, discordant)["difference"]
    assert difference is not None
    q = max(discordant, difference)  # who differ by d disagree on d at least
    cells = [(q + difference) / 2, (q - difference) / 2, 1 - q]
    a, b, _ = np.random.default_rng(0).multinomial(n, cells, 20_000).T
    found = 2 * binom.cdf(np.minimum(a, b), a + b, 0.5) <= 0.05
    assert 0.74 < found.mean() < 0.81


@given(st.integers(6, 100_000), st.floats(0, 1))
def test_more_images_and_fewer_disagreements_show_smaller_differences(n: int, discordant: float) -> None:
    here, more, fewer = (
        detectable(images, share)["difference"]
        for images, share in ((n, discordant), (2 * n, discordant), (n, discordant / 2))
    )
    assert here is not None
    assert more is not None
    assert fewer is not None
    assert 0 < more < here <= 1
    assert fewer <= here + 1e-12


def test_five_images_show_no_difference_at_all() -> None:
    """Were all five for one alone, the exact test would still have p = 0.0625."""
    assert detectable(5, 1.0) == {"difference": None, "power": 0.8, "discordant": 1.0}
    assert detectable(6, 1.0)["difference"] is not None


@pytest.mark.parametrize("given", [(0, 0.1, 0.05, 0.8), (9, 1.1, 0.05, 0.8), (9, 0.1, 0.0, 0.8), (9, 0.1, 0.05, 0.4)])
def test_a_detectable_difference_is_asked_for_within_reason(given: tuple[int, float, float, float]) -> None:
    with pytest.raises(ValueError, match="are needed"):
        detectable(*given)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_a_mean_over_seeds_has_students_interval(values: list[float]) -> None:
    found = over_seeds(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    low, high = t.interval(0.95, len(values) - 1) if error else (0.0, 0.0)
    mean = sum(values) / len(values)
    assert found["ci95"] == pytest.approx([mean + low * error, mean + high * error])
    assert (found["n"], found["mean"]) == (len(values), pytest.approx(mean))


def test_one_seed_has_a_mean_and_no_spread() -> None:
    assert over_seeds([0.5]) == {"n": 1, "mean": 0.5, "std": None, "ci95": None}
    with pytest.raises(ValueError, match="at least one run"):
        over_seeds([])


def test_means_of_two_groups_differ_by_welch() -> None:
    """Welch 1947, written out: degrees of freedom after Satterthwaite."""
    a, b = [0.97, 0.98, 0.96, 0.975], [0.99, 0.992, 0.991]
    parts = [np.var(x, ddof=1) / len(x) for x in (a, b)]
    freedom = sum(parts) ** 2 / sum(p**2 / (len(x) - 1) for p, x in zip(parts, (a, b), strict=True))
    difference, error = np.mean(a) - np.mean(b), math.sqrt(sum(parts))
    half = t.ppf(0.975, freedom) * error
    found = welch(a, b)
    assert found["difference"] == pytest.approx(difference)
    assert found["ci95"] == pytest.approx([difference - half, difference + half])
    assert found["p"] == pytest.approx(2 * t.sf(abs(difference) / error, freedom))


def test_groups_without_spread_have_a_difference_and_no_test() -> None:
    assert welch([0.5, 0.5], [0.25, 0.25]) == {"difference": 0.25, "ci95": None, "p": None}
    one_sided = welch([0.5, 0.5], [0.2, 0.3])
    assert one_sided["p"] == pytest.approx(2 * t.sf(0.25 / 0.05, 1)), "a constant group alone is no fault"
    with pytest.raises(ValueError, match="at least two seeds"):
        welch([0.5], [0.2, 0.3])
