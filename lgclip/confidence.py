"""Whether a run's confidence can be trusted: calibration, proper scores, and what rejection gains."""

import numpy as np
from jaxtyping import Bool, Float

from lgclip.calibration import Temperature
from lgclip.methods.base import Judged

BINS = 15
"""Bins of the calibration error."""

COVERAGES = tuple(step / 20 for step in range(1, 21))
"""Shares of the images that the rejection curve keeps."""


def confidence_of(judged: Judged, temperature: Temperature) -> dict[str, object]:
    """What `result.json` says of a method's confidence.

    Args:
        judged: The judgement of every image.
        temperature: What its scores were divided by.

    Returns:
        The temperature and what it was fitted on; `ece` (see `calibration_error`), `nll`, the mean
        negative logarithm of the true class's probability; `brier`, the mean squared distance of the
        probabilities to the truth, 0 to 2; `aurc` and `rejection` (see `rejection`).
    """
    confidence = judged.confidence.double().numpy()
    right = (judged.rank == 0).numpy()
    log_chance = judged.log_chance.double().numpy()
    # Over the classes, the sum of (p - truth)^2 is the sum of p^2, less 2 p of the true class, plus 1.
    squares = judged.squares.double().numpy() - 2 * np.exp(log_chance) + 1
    aurc, curve = rejection(confidence, right)
    return {
        "temperature": temperature.value,
        "fitted_on": temperature.fitted_on,
        "ece": calibration_error(confidence, right),
        "nll": float(-log_chance.mean()),
        "brier": float(squares.mean()),
        "aurc": aurc,
        "rejection": curve,
    }


def calibration_error(confidence: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"], bins: int = BINS) -> float:
    """Expected calibration error over bins of equal width (Guo et al., arXiv:1706.04599, eq. 3).

    Args:
        confidence: Probability of the predicted class.
        right: Whether it is the true one.
        bins: How many bins; their upper edge belongs to them.
    """
    place = np.ceil(confidence * bins).astype(np.int64).clip(1, bins) - 1
    gap = np.bincount(place, right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def rejection(
    confidence: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"]
) -> tuple[float, list[dict[str, float]]]:
    """What is gained by leaving the least sure images to somebody else.

    Images of equal confidence share their errors evenly, so their order does not matter.

    Args:
        confidence: Probability of the predicted class.
        right: Whether it is the true one.

    Returns:
        The area under the risk-coverage curve (AURC, arXiv:1805.08206): the mean over all
        numbers of kept images of the share of errors among them. And about twenty points of the
        curve: the share of images kept, and top-1 among them.
    """
    n = len(confidence)
    _, group, sizes = np.unique(-confidence, return_inverse=True, return_counts=True)
    share = np.bincount(group, right) / sizes
    top1 = np.cumsum(np.repeat(share, sizes)) / np.arange(1, n + 1)
    kept = sorted({max(1, round(coverage * n)) for coverage in COVERAGES})
    curve = [{"coverage": k / n, "top1": float(top1[k - 1])} for k in kept]
    return float((1 - top1).mean()), curve
