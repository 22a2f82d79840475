"""Figures of a judgement, with intervals, and how two judgements differ.

SciPy's and statsmodels' parts are imported where they are used: a finished run is read without them.
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


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share (Wilson 1927, doi:10.2307/2276774).

    Args:
        right: Successes.
        n: Trials, at least 1.
    """
    from scipy.stats import binomtest

    low, high = binomtest(right, n).proportion_ci(0.95, method="wilson")
    return float(low), float(high)


def per_class(labels: Int[np.ndarray, " n"], ranks: Int[np.ndarray, " n"], num_classes: int) -> list[dict[str, int]]:
    """Images, and how many are right, of each class; in index order.

    Args:
        labels: True class of each image.
        ranks: Rank of the true class, 0 if the image is judged right.
        num_classes: Number of classes.
    """
    n = np.bincount(labels, minlength=num_classes)
    right = np.bincount(labels[ranks == 0], minlength=num_classes)
    return [{"n": int(a), "right": int(b)} for a, b in zip(n, right, strict=True)]


def metrics(labels: Int[np.ndarray, " n"], ranks: Int[np.ndarray, " n"], num_classes: int) -> dict[str, object]:
    """Top-1 and the mean over classes with their intervals, and top-5, as shares.

    The mean per class is over the classes that have images.
    """
    n, right = len(ranks), int((ranks == 0).sum())
    counts = np.array([(row["n"], row["right"]) for row in per_class(labels, ranks, num_classes) if row["n"]])
    return {
        "top1": right / n,
        "top1_ci95": list(wilson(right, n)),
        "top5": float((ranks < 5).mean()),
        "mean_per_class": float((counts[:, 1] / counts[:, 0]).mean()),
        "mean_per_class_ci95": _interval(_resampled_means(counts[:, 0], counts[:, 1])),
    }


def _resampled_means(
    n: Int[np.ndarray, " classes"], right: Int[np.ndarray, " classes"], seed: int = 0
) -> Float[np.ndarray, " resamples"]:
    """Means over classes whose images were each drawn again from their own class.

    Of a class's n drawn images Binomial(n, right / n) are right, and k classes with the same counts together
    have Binomial(k n, right / n): the same distribution as drawing images one by one, with one draw for all of them.
    """
    (size, hits), classes = np.unique(np.stack([n, right]), axis=1, return_counts=True)
    rng = np.random.default_rng(seed)
    # A row an equal share: NumPy prepares a binomial anew only where its parameters change.
    drawn = rng.binomial((classes * size)[:, None], (hits / size)[:, None], (len(size), RESAMPLES))
    return (drawn / size[:, None]).sum(axis=0) / len(n)


def _interval(resampled: Float[np.ndarray, " resamples"]) -> list[float]:
    """The middle 95% (percentile bootstrap: Efron 1979, doi:10.1214/aos/1176344552)."""
    return [float(bound) for bound in np.quantile(resampled, (0.025, 0.975))]


def paired(
    label: Int[np.ndarray, " n"], prediction_a: Int[np.ndarray, " n"], prediction_b: Int[np.ndarray, " n"]
) -> dict[str, Any]:
    """How the top-1 of two judgements of the same images differs.

    Args:
        label: True class of each image.
        prediction_a: What one predicts of each.
        prediction_b: What the other predicts of each.

    Returns:
        `difference` of the shares, the first minus the other; `ci95`, its percentile interval over images drawn
        again; `only_this` and `only_other`, the images that one alone judges right; `p` of McNemar's exact test
        (McNemar 1947, doi:10.1007/BF02295996), 1 if there is no such image.

    Raises:
        ValueError: If there is no image.
    """
    n = len(label)
    if not n:
        raise ValueError("no image was judged: a paired test needs at least one image")
    right_a, right_b = prediction_a == label, prediction_b == label
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    # Images drawn again fall into four cells, of which the two where both agree change no difference.
    shares = np.array([only_a, only_b, n - only_a - only_b]) / n
    drawn = np.random.default_rng(0).multinomial(n, shares, PAIRED_RESAMPLES)
    return {
        "difference": (only_a - only_b) / n,
        "ci95": _interval((drawn[:, 0] - drawn[:, 1]) / n),
        "only_this": only_a,
        "only_other": only_b,
        "p": _mcnemar(only_a, only_b),
    }


def _mcnemar(only_a: int, only_b: int) -> float:
    """Where neither is better, each image that one alone judges right is a fair coin's throw."""
    if only_a + only_b == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values of a family of tests, raised so that 5% is the risk of one error in all of them.

    Holm 1979, https://www.jstor.org/stable/4615733. No test needs to be independent of another.
    """
    if not p_values:
        return []
    from statsmodels.stats.multitest import multipletests

    raised: Any = multipletests(list(p_values), method="holm")
    return [float(p) for p in raised[1]]


def detectable(n: int, discordant: float, alpha: float = 0.05, power: float = 0.8) -> dict[str, float | None]:
    """The smallest difference of top-1 that a paired test on n images finds with a given probability.

    Solves the sample size of McNemar's test for the difference d, with q the share of images on which the two
    disagree: n d^2 = (z_alpha sqrt(q) + z_power sqrt(q - d^2))^2 (Connor 1987, Biometrics 43:207, after
    Miettinen 1968, Biometrics 24:339). Two that differ by d disagree on d at least, so where d would be above q, q
    is taken to be d. The exact test is more careful than the formula: at that d its power is up to 0.05 below `power`.

    Args:
        n: Images.
        discordant: Share of the images that one alone of the two judges right, from 0 to 1.
        alpha: Risk of finding a difference where there is none; two-sided.
        power: Probability of finding the difference, at least 0.5.

    Returns:
        `difference`, None if so few images show none; `power` and `discordant` as given.

    Raises:
        ValueError: If a number is outside its range.
    """
    if n < 1 or not 0 <= discordant <= 1 or not 0 < alpha < 1 or not 0.5 <= power < 1:
        raise ValueError(
            f"n={n}, discordant={discordant}, alpha={alpha}, power={power}: at least one image, shares from 0 to 1, "
            "alpha above 0 and power from 0.5 to below 1 are needed"
        )
    from scipy.special import ndtri

    z_alpha, z_power = float(ndtri(1 - alpha / 2)), float(ndtri(power))
    difference = None
    if n > z_alpha**2 and 0.5 ** (n - 1) <= alpha:  # else not even n images for one alone are significant
        root = math.sqrt(n + z_power**2 - z_alpha**2)
        difference = math.sqrt(discordant) * (z_alpha * math.sqrt(n) + z_power * root) / (n + z_power**2)
        if difference >= discordant:  # with q = d: n d = (z_alpha + z_power sqrt(1 - d))^2, quadratic in sqrt(1 - d)
            agreeing = (math.sqrt(n) * root - z_alpha * z_power) / (n + z_power**2)
            difference = 1 - agreeing**2
    return {"difference": difference, "power": power, "discordant": discordant}


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """A figure over repetitions that differ in their seed alone.

    Returns:
        `n`, `mean`, `std` (of the sample) and `ci95`, Student's t interval of the mean; the last two are None for
        one value.

    Raises:
        ValueError: If there is no value.
    """
    if not values:
        raise ValueError("no value to average: name at least one run")
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return {"n": 1, "mean": mean, "std": None, "ci95": None}
    from scipy.special import stdtrit

    std = float(np.std(values, ddof=1))
    half = float(stdtrit(n - 1, 0.975)) * std / math.sqrt(n)
    return {"n": n, "mean": mean, "std": std, "ci95": [mean - half, mean + half]}


def welch(a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    """How the means of two independent groups differ (Welch 1947, doi:10.1093/biomet/34.1-2.28).

    Args:
        a: At least two values.
        b: At least two values.

    Returns:
        `difference` of the means, the first minus the other; `ci95`, its t interval; `p`. The last two are None
        if no value differs from the others of its group: such groups say nothing of their spread.

    Raises:
        ValueError: If a group has fewer than two values.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"groups of {len(a)} and {len(b)} values: a spread needs at least two seeds in each")
    difference = float(np.mean(a) - np.mean(b))
    if max(np.ptp(a), np.ptp(b)) < 1e-12:  # averages of equal shares may differ in the last digit
        return {"difference": difference, "ci95": None, "p": None}
    import warnings

    from scipy.stats import ttest_ind

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # said where one group alone is constant, which is no fault
        test: Any = ttest_ind(a, b, equal_var=False)
        interval = test.confidence_interval(0.95)
    return {"difference": difference, "ci95": [float(interval.low), float(interval.high)], "p": float(test.pvalue)}
