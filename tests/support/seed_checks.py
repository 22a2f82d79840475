"""Computes statistics over seeds by hand."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from scipy.stats import t as student_t


def assert_over_seeds(summary: Mapping[str, Any] | None, values: np.ndarray) -> None:
    """Compares mean, standard deviation and Student's interval with the values of the seeds."""
    assert summary is not None
    mean = values.mean()
    std = values.std(ddof=1)
    n = len(values)
    half = student_t.ppf(0.975, n - 1) * std / n**0.5
    assert (summary["n"], summary["mean"], summary["std"]) == (n, pytest.approx(mean), pytest.approx(std))
    assert summary["ci95"] == pytest.approx([mean - half, mean + half])
