"""Whether a model tells which images it was trained on: the threshold attack on the probability of the true class.

A model that has seen an image tends to be surer of its class, so an attacker calls every image above a threshold a
member (Yeom et al., arXiv:1709.01604, sec. 3.3). Where members are told no better than by a coin, AUROC and balanced
accuracy are 0.5.
"""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def attack(members: Float[Tensor, " m"], others: Float[Tensor, " n"], seed: int = 0) -> dict[str, Any]:
    """How well a threshold tells members of the training set from other images.

    Args:
        members: Probability of the true class, or its logarithm, of each image that may have been trained on.
        others: The same of images of the same kind that were not.
        seed: Of the halves, which depend on nothing else.

    Returns:
        `members` and `others`, the images of each; `auroc`, the probability that a member has the higher value, with
        ties half, and `auroc_ci95` (DeLong et al. 1988, doi:10.2307/2531595); `balanced_accuracy`, the highest
        mean of the shares of members caught and of others let go, with its `balanced_accuracy_ci95` and
        `threshold`: members are the images at or above it. That threshold was chosen on the images that it is
        measured on, which flatters it; `held_out_balanced_accuracy` and its interval are of thresholds that were
        chosen on the other half of the images, the two halves together: what such an attacker achieves.
        The interval of AUROC is None where all members are on one side of all others, or one side is a single image:
        such samples say nothing of their spread. What is held out is None for a single image.

    Raises:
        ValueError: If a side has no image, or a value is not finite.
    """
    m, n = _values(members, "members"), _values(others, "others")
    auroc, deviation = _auroc(m, n)
    best, threshold = _best(m, n)
    # Holds for every threshold at once, so for the one that is chosen: arXiv:1107.5356, eq. 1 for two samples.
    band = math.sqrt(math.log(2 / 0.05) / 2 * (1 / len(m) + 1 / len(n))) / 2
    held_out, held_out_ci95 = _held_out(m, n, seed)
    return {
        "members": len(m),
        "others": len(n),
        "auroc": auroc,
        "auroc_ci95": _within(auroc, 1.959964 * deviation, 0.0) if deviation else None,
        "balanced_accuracy": best,
        "balanced_accuracy_ci95": _within(best, band, 0.5),
        "threshold": threshold,
        "held_out_balanced_accuracy": held_out,
        "held_out_balanced_accuracy_ci95": held_out_ci95,
    }


def _values(side: Float[Tensor, " k"], name: str) -> Float[np.ndarray, " k"]:
    """The values in double precision, which keeps every tie and makes none."""
    if not len(side):
        raise ValueError(
            f"no {name} to attack with: membership needs images that were trained on and some that were not"
        )
    if unusable := int((~torch.isfinite(side)).sum()):
        raise ValueError(
            f"{unusable} of {len(side)} values of {name} are not finite: pass log-probabilities of finite scores"
        )
    return np.sort(side.detach().cpu().double().numpy())


def _within(figure: float, half: float, least: float) -> list[float]:
    return [max(figure - half, least), min(figure + half, 1.0)]


def _auroc(m: Float[np.ndarray, " m"], n: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """The area, and its standard deviation: 0 where the two sides do not overlap or one is a single image."""
    above = _share_below(m, n)  # of each member: the share of others below it
    below = 1 - _share_below(n, m)  # of each other: the share of members above it
    auroc = float(above.mean())
    if min(len(m), len(n)) < 2:
        return auroc, 0.0
    # DeLong's structural components: both sides add the variance of their own mean.
    return auroc, float(np.sqrt(above.var(ddof=1) / len(m) + below.var(ddof=1) / len(n)))


def _share_below(of: Float[np.ndarray, " a"], among: Float[np.ndarray, " b"]) -> Float[np.ndarray, " a"]:
    """Share of sorted values that are below each of another; equal ones count half."""
    return (np.searchsorted(among, of, "left") + np.searchsorted(among, of, "right")) / (2 * len(among))


def _best(m: Float[np.ndarray, " m"], n: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """The highest balanced accuracy of any threshold; of several such thresholds the lowest.

    A threshold between two members lets go no more members than the upper of them and catches no fewer others, so
    the members' own values are all that need be tried.
    """
    tried = np.unique(m)
    caught, mistaken = (len(side) - np.searchsorted(side, tried, "left") for side in (m, n))
    at = int(np.argmax(caught * len(n) - mistaken * len(m)))  # whole numbers: equal ones are equal
    return _balanced(int(caught[at]), len(m), int(mistaken[at]), len(n)), float(tried[at])


def _balanced(caught: int, m: int, mistaken: int, n: int) -> float:
    return 0.5 + (caught / m - mistaken / n) / 2


def _held_out(
    m: Float[np.ndarray, " m"], n: Float[np.ndarray, " n"], seed: int
) -> tuple[float | None, list[float] | None]:
    """Each half judged by the best threshold of the other; the interval is that of two independent shares.

    Balanced accuracy is half the difference of the shares called members, and a half above it: Newcombe's interval
    (1998, doi:10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I, method 10) serves it.
    """
    if min(len(m), len(n)) < 2:
        return None, None
    from statsmodels.stats.proportion import confint_proportions_2indep

    rng = np.random.default_rng(seed)
    (m_one, m_two), (n_one, n_two) = (np.array_split(rng.permutation(side), 2) for side in (m, n))
    caught = mistaken = 0
    for chosen, judged in (((m_one, n_one), (m_two, n_two)), ((m_two, n_two), (m_one, n_one))):
        _, threshold = _best(*(np.sort(half) for half in chosen))
        caught += int((judged[0] >= threshold).sum())
        mistaken += int((judged[1] >= threshold).sum())
    interval: Any = confint_proportions_2indep(caught, len(m), mistaken, len(n), method="newcomb", compare="diff")
    low, high = (0.5 + float(bound) / 2 for bound in interval)
    return _balanced(caught, len(m), mistaken, len(n)), [low, high]
