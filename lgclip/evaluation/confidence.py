"""Measures the reliability of a run's confidence: calibration, proper scores, and selective prediction."""

import numpy as np
from jaxtyping import Bool, Float

from lgclip.methods.base import Predictions
from lgclip.methods.calibration import Temperature

BINS = 15
"""Bins of the calibration error."""

COVERAGES = tuple(step / 20 for step in range(1, 21))
"""Coverages of the rejection curve."""


def confidence_of(predictions: Predictions, temperature: Temperature) -> dict[str, object]:
    """Computes the confidence metrics of a method for `result.json`.

    Args:
        predictions: The predictions for all images.
        temperature: Temperature of its scores.

    Returns:
        The temperature and what it was fitted on; `ece` (see `calibration_error`), `nll`, the mean
        negative logarithm of the true class's probability; `brier`, the mean squared distance of the
        probabilities to the one-hot label, 0 to 2; `aurc` and `rejection` (see `rejection`).
    """
    confidence = predictions.confidence.double().numpy()
    correct = (predictions.rank == 0).numpy()
    log_prob = predictions.log_prob.double().numpy()
    # Over the classes, the sum of (p - truth)^2 is the sum of p^2, less 2 p of the true class, plus 1.
    squares = predictions.squares.double().numpy() - 2 * np.exp(log_prob) + 1
    aurc, curve = rejection(confidence, correct)
    return {
        "temperature": temperature.value,
        "fitted_on": temperature.fitted_on,
        "ece": calibration_error(confidence, correct),
        "nll": float(-log_prob.mean()),
        "brier": float(squares.mean()),
        "aurc": aurc,
        "rejection": curve,
    }


def calibration_error(confidence: Float[np.ndarray, " n"], correct: Bool[np.ndarray, " n"], bins: int = BINS) -> float:
    """Computes the expected calibration error over bins of equal width (Guo et al., arXiv:1706.04599, eq. 3).

    Args:
        confidence: Probability of the predicted class.
        correct: Whether the prediction is correct.
        bins: Number of bins; their upper edge belongs to them.
    """
    # Bin b is (b / bins, (b + 1) / bins] as in the paper, so the upper edge is found by `ceil`. A confidence of
    # exactly 0 goes to the first bin.
    place = np.ceil(confidence * bins).astype(np.int64).clip(1, bins) - 1
    # A bin's weight is its fraction of the images, which cancels the division of its mean: the sum of differences is
    # enough.
    gap = np.bincount(place, correct - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def rejection(
    confidence: Float[np.ndarray, " n"], correct: Bool[np.ndarray, " n"]
) -> tuple[float, list[dict[str, float]]]:
    """Computes the gain of abstaining from the least confident images.

    Images of equal confidence share their errors evenly, so their order does not matter.

    Args:
        confidence: Probability of the predicted class.
        correct: Whether the prediction is correct.

    Returns:
        The area under the risk-coverage curve (AURC, arXiv:1805.08206): the mean error rate over all
        numbers of retained images. And about twenty points of the curve: coverage, and top-1 accuracy
        among the retained images.
    """
    n = len(confidence)
    # Negative, because `unique` sorts upwards and the surest images are kept longest.
    _, group, sizes = np.unique(-confidence, return_inverse=True, return_counts=True)
    accuracy = np.bincount(group, correct) / sizes
    top1 = np.cumsum(np.repeat(accuracy, sizes)) / np.arange(1, n + 1)
    # A set, because with fewer than twenty images several coverages keep the same number of them.
    numbers = sorted({max(1, round(coverage * n)) for coverage in COVERAGES})
    curve = [{"coverage": k / n, "top1": float(top1[k - 1])} for k in numbers]
    return float((1 - top1).mean()), curve
