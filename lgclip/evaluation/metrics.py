"""Computes metrics of predictions with confidence intervals, and paired comparisons.

SciPy is imported where it is used: a finished run is read without it.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

RESAMPLES = 2_000
"""Bootstrap samples of a mean over classes."""

PAIRED_RESAMPLES = 10_000
"""Bootstrap samples of a difference: it has three cells only, so more cost nothing."""


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Computes Wilson's 95% interval of a proportion (Wilson 1927, doi:10.2307/2276774).

    Args:
        correct: Successes.
        n: Trials, at least 1.
    """
    from scipy.stats import binomtest

    low, high = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    return float(low), float(high)


def per_class(labels: Int[np.ndarray, " n"], ranks: Int[np.ndarray, " n"], num_classes: int) -> list[dict[str, int]]:
    """Returns the number of images and of correct predictions of each class, in index order.

    Args:
        labels: True class of each image.
        ranks: Rank of the true class, 0 if the prediction is correct.
        num_classes: Number of classes.
    """
    n = np.bincount(labels, minlength=num_classes)
    correct = np.bincount(labels[ranks == 0], minlength=num_classes)
    return [{"n": int(a), "right": int(b)} for a, b in zip(n, correct, strict=True)]


def metrics(labels: Int[np.ndarray, " n"], ranks: Int[np.ndarray, " n"], num_classes: int) -> dict[str, object]:
    """Computes top-1 and mean per-class accuracy with their intervals, and top-5 accuracy, from 0 to 1.

    The mean per class is over the classes that have images.
    """
    n = len(ranks)
    correct = int((ranks == 0).sum())
    rows = per_class(labels, ranks, num_classes)
    # A class without a test image has no accuracy; as 0 it would pull the mean down.
    counts = np.array([(row["n"], row["right"]) for row in rows if row["n"]])
    return {
        "top1": correct / n,
        "top1_ci95": list(wilson(correct, n)),
        "top5": float((ranks < 5).mean()),
        "mean_per_class": float((counts[:, 1] / counts[:, 0]).mean()),
        "mean_per_class_ci95": _interval(_resampled_means(counts[:, 0], counts[:, 1])),
    }


def _resampled_means(
    n: Int[np.ndarray, " classes"], correct: Int[np.ndarray, " classes"], seed: int = 0
) -> Float[np.ndarray, " resamples"]:
    """Computes bootstrap replicates of mean per-class accuracy, with images resampled within each class.

    Of n resampled images of a class Binomial(n, correct / n) are correct, and k classes with the same counts together
    have Binomial(k n, correct / n): the same distribution as resampling image by image, with one draw for all of them.
    """
    (size, hits), classes = np.unique(np.stack([n, correct]), axis=1, return_counts=True)
    # A separate generator with a fixed seed: the same predictions give the same interval in every report.
    rng = np.random.default_rng(seed)
    # One row per distinct accuracy: NumPy prepares a binomial again only where its parameters change.
    resampled = rng.binomial((classes * size)[:, None], (hits / size)[:, None], (len(size), RESAMPLES))
    return (resampled / size[:, None]).sum(axis=0) / len(n)


def _interval(resampled: Float[np.ndarray, " resamples"]) -> list[float]:
    """Returns the middle 95% (percentile bootstrap: Efron 1979, doi:10.1214/aos/1176344552)."""
    return [float(bound) for bound in np.quantile(resampled, (0.025, 0.975))]


def paired(
    label: Int[np.ndarray, " n"], prediction_a: Int[np.ndarray, " n"], prediction_b: Int[np.ndarray, " n"]
) -> dict[str, Any]:
    """Compares the top-1 accuracy of two predictions on the same images.

    Args:
        label: True class of each image.
        prediction_a: Predictions of the first.
        prediction_b: Predictions of the second.

    Returns:
        `difference` of the accuracies, the first minus the second; `ci95`, its percentile interval over resampled
        images; `only_this` and `only_other`, the number of images that only one of them classifies correctly; `p` of
        McNemar's exact test (McNemar 1947, doi:10.1007/BF02295996), 1 if there is no such image.

    Raises:
        ValueError: If there is no image.
    """
    n = len(label)
    if not n:
        raise ValueError("no image was evaluated: a paired test needs at least one image")
    right_a = prediction_a == label
    right_b = prediction_b == label
    only_a = int((right_a & ~right_b).sum())
    only_b = int((right_b & ~right_a).sum())
    # Resampled images fall into four cells, of which the two where both agree change no difference.
    fractions = np.array([only_a, only_b, n - only_a - only_b]) / n
    resampled = np.random.default_rng(0).multinomial(n, fractions, PAIRED_RESAMPLES)
    return {
        "difference": (only_a - only_b) / n,
        "ci95": _interval((resampled[:, 0] - resampled[:, 1]) / n),
        "only_this": only_a,
        "only_other": only_b,
        "p": _mcnemar(only_a, only_b),
    }


def _mcnemar(only_a: int, only_b: int) -> float:
    """Computes McNemar's exact p value: under the null hypothesis each discordant image is a fair coin toss."""
    # The binomial test takes no 0 trials, and two predictions without a difference do not contradict the hypothesis.
    if only_a + only_b == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts the p values of a family of tests, so that 5% bounds the probability of any false positive.

    Holm 1979, https://www.jstor.org/stable/4615733. The tests need not be independent. Implemented here because
    statsmodels, which has it, would add pandas to every installation.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0  # an adjusted p value is at least that of every smaller one
    # The smallest p value is multiplied by the number of all tests, the next by one less, and so on.
    ascending = sorted(range(len(p_values)), key=lambda index: p_values[index])
    for rank, index in enumerate(ascending):
        largest = max(largest, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, largest)
    return adjusted


def detectable(n: int, discordant: float, alpha: float = 0.05, power: float = 0.8) -> dict[str, float | None]:
    """Computes the smallest top-1 difference that a paired test on n images detects with a given power.

    Solves the sample size of McNemar's test for the difference d, with q the fraction of images on which the two
    disagree: n d^2 = (z_alpha sqrt(q) + z_power sqrt(q - d^2))^2 (Connor 1987, Biometrics 43:207, after
    Miettinen 1968, Biometrics 24:339). Two methods that differ by d disagree on at least d, so q is set to d where d
    would exceed it. The exact test is more conservative than the formula: from n = 100 on its power at that d is at
    most 0.05 below `power`; with fewer images it falls further, to 0.67 instead of 0.8 at n = 10.

    Args:
        n: Number of images.
        discordant: Fraction of images that exactly one of the two classifies correctly, from 0 to 1.
        alpha: Significance level; two-sided.
        power: Probability of detecting the difference, at least 0.5.

    Returns:
        `difference`, None if no difference is detectable with so few images; `power` and `discordant` as passed.

    Raises:
        ValueError: If a number is outside its range.
    """
    if n < 1 or not 0 <= discordant <= 1 or not 0 < alpha < 1 or not 0.5 <= power < 1:
        raise ValueError(
            f"n={n}, discordant={discordant}, alpha={alpha}, power={power}: at least one image, shares from 0 to 1, "
            "alpha above 0 and power from 0.5 to below 1 are needed"
        )
    from scipy.special import ndtri

    z_alpha = float(ndtri(1 - alpha / 2))
    z_power = float(ndtri(power))
    difference = None
    if n > z_alpha**2 and 0.5 ** (n - 1) <= alpha:  # else not even n images for one alone are significant
        root = math.sqrt(n + z_power**2 - z_alpha**2)
        difference = math.sqrt(discordant) * (z_alpha * math.sqrt(n) + z_power * root) / (n + z_power**2)
        if difference >= discordant:  # with q = d: n d = (z_alpha + z_power sqrt(1 - d))^2, quadratic in sqrt(1 - d)
            agreeing = (math.sqrt(n) * root - z_alpha * z_power) / (n + z_power**2)
            difference = 1 - agreeing**2
    return {"difference": difference, "power": power, "discordant": discordant}


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Aggregates a metric over repetitions that differ only in their seed.

    Returns:
        `n`, `mean`, `std` (of the sample) and `ci95`, Student's t interval of the mean; the last two are None for
        one value.

    Raises:
        ValueError: If there is no value.
    """
    if not values:
        raise ValueError("no value to average: name at least one run")
    n = len(values)
    mean = float(np.mean(values))
    if n == 1:
        return {"n": 1, "mean": mean, "std": None, "ci95": None}
    from scipy.special import stdtrit

    # Student's t and not the normal: with three seeds its interval is more than twice as wide.
    std = float(np.std(values, ddof=1))
    half = float(stdtrit(n - 1, 0.975)) * std / math.sqrt(n)
    return {"n": n, "mean": mean, "std": std, "ci95": [mean - half, mean + half]}


def welch(a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    """Compares the means of two independent groups (Welch 1947, doi:10.1093/biomet/34.1-2.28).

    Args:
        a: At least two values.
        b: At least two values.

    Returns:
        `difference` of the means, the first minus the second; `ci95`, its t interval; `p`. The last two are None
        if both groups are constant: such groups give no estimate of the variance.

    Raises:
        ValueError: If a group has fewer than two values.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"groups of {len(a)} and {len(b)} values: a spread needs at least two seeds in each")
    difference = float(np.mean(a) - np.mean(b))
    if max(np.ptp(a), np.ptp(b)) < 1e-12:  # averages of equal fractions may differ in the last digit
        return {"difference": difference, "ci95": None, "p": None}
    import warnings

    from scipy.stats import ttest_ind

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a warning if only one group is constant, which is valid
        test: Any = ttest_ind(a, b, equal_var=False)
        interval = test.confidence_interval(0.95)
    return {"difference": difference, "ci95": [float(interval.low), float(interval.high)], "p": float(test.pvalue)}
