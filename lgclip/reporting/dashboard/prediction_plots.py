"""Computes from a run's predictions what the page's confusion matrix and reliability diagram show."""

import numpy as np
from jaxtyping import Int

from lgclip.reporting.dashboard.schema import ReliabilityBin
from lgclip.reporting.run_folder import Predictions

BINS = 15
"""Number of bins: as in `lgclip.evaluation.confidence`, whose import would load torch for a page without images."""

DIGITS = 4
"""Decimals of a mean confidence and of an accuracy."""


def confusion_cells(mistaken: Int[np.ndarray, "c c"]) -> list[tuple[int, int, int]]:
    """Returns true class, predicted class and count of each kind of mistake that was made, row by row.

    Only these cells, because nearly all others of a thousand classes are 0, and the diagonal follows from the classes.
    """
    true, predicted = np.nonzero(mistaken)
    counts = mistaken[true, predicted]
    return list(zip(true.tolist(), predicted.tolist(), counts.tolist(), strict=True))


def reliability_bins(predictions: Predictions) -> list[ReliabilityBin]:
    """Returns mean confidence and accuracy of the images in each bin of equal width; empty bins are left out.

    The bins are those of the calibration error (Guo et al., arXiv:1706.04599), whose upper edge belongs to them.

    Args:
        predictions: The run's predictions; without confidences there is no bin.
    """
    confidence = predictions.confidence
    if not np.isfinite(confidence).all():
        return []
    # Bin b is (b / BINS, (b + 1) / BINS]; a confidence of exactly 0 goes to the first bin.
    place = np.ceil(confidence * BINS).astype(np.int64).clip(1, BINS) - 1
    counts = np.bincount(place, minlength=BINS)
    confidence_sums = np.bincount(place, confidence, minlength=BINS)
    correct_sums = np.bincount(place, predictions.rank == 0, minlength=BINS)
    bins = []
    for index in np.flatnonzero(counts):
        n = int(counts[index])
        bins.append(
            ReliabilityBin(
                n=n,
                confidence=round(float(confidence_sums[index]) / n, DIGITS),
                accuracy=round(float(correct_sums[index]) / n, DIGITS),
            )
        )
    return bins
