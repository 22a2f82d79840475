"""Tests for membership inference by the threshold attack on the probability of the true class.

A model that was trained on an image tends to be more confident of its class, so an attacker calls every image above a
threshold a member (Yeom et al., arXiv:1709.01604, sec. 3.3). If the attack is no better than chance, AUROC and
balanced accuracy are 0.5.
"""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def attack(members: Float[Tensor, " m"], non_members: Float[Tensor, " n"], seed: int = 0) -> dict[str, Any]:
    """Measures how well a threshold separates members of the training set from other images.

    Args:
        members: Probability of the true class, or its logarithm, of each image that may have been trained on.
        non_members: The same for comparable images that were not trained on.
        seed: Seed of the random halves, which depend on nothing else.

    Returns:
        `members` and `non_members`, the numbers of images; `auroc`, the probability that a member has the higher value,
        with ties half, and `auroc_ci95` (DeLong et al. 1988, doi:10.2307/2531595); `balanced_accuracy`, the highest
        mean of true positive and true negative rate over all thresholds, with its `balanced_accuracy_ci95` and
        `threshold`: members are the images at or above it. That threshold was selected on the images that it is
        measured on, which is optimistic; `held_out_balanced_accuracy` and its interval use thresholds that were
        selected on the other half of the images, both halves combined: what such an attacker achieves.
        The interval of AUROC is None where the values of the two sides do not overlap, or one side is a single image:
        such samples give no estimate of the variance. The held-out values are None for a single image.

    Raises:
        ValueError: If a side has no image, or a value is not finite.
    """
    m = _values(members, "members")
    n = _values(non_members, "non_members")
    auroc, deviation = _auroc(m, n)
    best, threshold = _best(m, n)
    # Holds for every threshold at once, so for the one that is chosen: arXiv:1107.5356, eq. 1 for two samples.
    band = math.sqrt(math.log(2 / 0.05) / 2 * (1 / len(m) + 1 / len(n))) / 2
    held_out, held_out_ci95 = _held_out(m, n, seed)
    # A deviation of 0 is not certainty: such samples say nothing of their spread.
    auroc_ci95 = None
    if deviation:
        auroc_ci95 = _within(auroc, 1.959964 * deviation, 0.0)
    return {
        "members": len(m),
        "non_members": len(n),
        "auroc": auroc,
        "auroc_ci95": auroc_ci95,
        "balanced_accuracy": best,
        "balanced_accuracy_ci95": _within(best, band, 0.5),
        "threshold": threshold,
        "held_out_balanced_accuracy": held_out,
        "held_out_balanced_accuracy_ci95": held_out_ci95,
    }


def _values(side: Float[Tensor, " k"], name: str) -> Float[np.ndarray, " k"]:
    """Returns the values in double precision, which preserves every tie and creates none."""
    if not len(side):
        raise ValueError(
            f"no {name} to attack with: membership needs images that were trained on and some that were not"
        )
    if unusable := int((~torch.isfinite(side)).sum()):
        raise ValueError(
            f"{unusable} of {len(side)} values of {name} are not finite: pass log-probabilities of finite scores"
        )
    return np.sort(side.detach().cpu().double().numpy())


def _within(value: float, half: float, least: float) -> list[float]:
    return [max(value - half, least), min(value + half, 1.0)]


def _auroc(m: Float[np.ndarray, " m"], n: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Computes AUROC and its standard deviation: 0 where the two sides do not overlap or one is a single image."""
    above = _fraction_below(m, n)  # of each member: the fraction of non-members below it
    below = 1 - _fraction_below(n, m)  # of each non-member: the fraction of members above it
    auroc = float(above.mean())
    if min(len(m), len(n)) < 2:
        return auroc, 0.0
    # DeLong's structural components: both sides add the variance of their own mean.
    return auroc, float(np.sqrt(above.var(ddof=1) / len(m) + below.var(ddof=1) / len(n)))


def _fraction_below(values: Float[np.ndarray, " a"], reference: Float[np.ndarray, " b"]) -> Float[np.ndarray, " a"]:
    """Computes for each value the fraction of sorted values below it; equal ones count half."""
    return (np.searchsorted(reference, values, "left") + np.searchsorted(reference, values, "right")) / (
        2 * len(reference)
    )


def _best(m: Float[np.ndarray, " m"], n: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Returns the highest balanced accuracy over all thresholds; the lowest of several such thresholds.

    A threshold between two member values has no higher true positive rate and no lower false positive rate than the
    upper of them, so that only the members' own values need to be tried.
    """
    thresholds = np.unique(m)
    caught = len(m) - np.searchsorted(m, thresholds, "left")
    mistaken = len(n) - np.searchsorted(n, thresholds, "left")
    # In whole numbers, so that equal accuracies are equal and the first of them, the lowest threshold, is taken.
    index = int(np.argmax(caught * len(n) - mistaken * len(m)))
    return _balanced(int(caught[index]), len(m), int(mistaken[index]), len(n)), float(thresholds[index])


def _balanced(caught: int, m: int, mistaken: int, n: int) -> float:
    return 0.5 + (caught / m - mistaken / n) / 2


def _held_out(
    m: Float[np.ndarray, " m"], n: Float[np.ndarray, " n"], seed: int
) -> tuple[float | None, list[float] | None]:
    """Evaluates each half by the best threshold of the other, with an interval for two independent proportions.

    Balanced accuracy is 1/2 plus half the difference of the two rates of predicted members, so Newcombe's interval
    (1998, doi:10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I, method 10) applies.
    """
    if min(len(m), len(n)) < 2:
        return None, None
    rng = np.random.default_rng(seed)
    # Members first: another order of the two permutations would change the halves, and with them every result.
    m_first, m_second = np.array_split(rng.permutation(m), 2)
    n_first, n_second = np.array_split(rng.permutation(n), 2)
    caught = 0
    mistaken = 0
    first = (m_first, n_first)
    second = (m_second, n_second)
    for chosen, evaluated in ((first, second), (second, first)):
        # `_best` searches in sorted values, and the permutation has undone the sort.
        _, threshold = _best(np.sort(chosen[0]), np.sort(chosen[1]))
        caught += int((evaluated[0] >= threshold).sum())
        mistaken += int((evaluated[1] >= threshold).sum())
    low, high = difference_interval((caught, len(m)), (mistaken, len(n)))
    # The balanced accuracy is linear in the difference, so its interval is that of the difference, mapped.
    return _balanced(caught, len(m), mistaken, len(n)), [0.5 + low / 2, 0.5 + high / 2]


def difference_interval(first: tuple[int, int], second: tuple[int, int]) -> tuple[float, float]:
    """Computes Newcombe's 95% interval of the difference of two independent proportions (method 10 of the paper above).

    Implemented here because statsmodels, which has it, would add pandas to every installation.

    Args:
        first: Successes and trials of the first.
        second: Successes and trials of the second, which is subtracted.
    """
    from scipy.stats import binomtest

    intervals = []
    for successes, trials in (first, second):
        wilson = binomtest(successes, trials).proportion_ci(method="wilson")
        intervals.append((successes / trials, float(wilson.low), float(wilson.high)))
    (p1, low1, high1), (p2, low2, high2) = intervals
    below = math.hypot(p1 - low1, high2 - p2)
    above = math.hypot(high1 - p1, p2 - low2)
    return p1 - p2 - below, p1 - p2 + above
