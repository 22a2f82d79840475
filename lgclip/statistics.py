"""Figures of a judgement, with intervals."""

import numpy as np
from jaxtyping import Int
from scipy.stats import binomtest


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share (Wilson 1927, doi:10.2307/2276774).

    Args:
        right: Successes.
        n: Trials, at least 1.
    """
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
    """Top-1 with its interval, top-5 and the mean over classes, as shares.

    The mean per class is over the classes that have images.
    """
    n, right = len(ranks), int((ranks == 0).sum())
    shares = [row["right"] / row["n"] for row in per_class(labels, ranks, num_classes) if row["n"]]
    return {
        "top1": right / n,
        "top1_ci95": list(wilson(right, n)),
        "top5": float((ranks < 5).mean()),
        "mean_per_class": float(np.mean(shares)),
    }
