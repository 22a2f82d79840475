"""What a row's figure over seeds must be, worked out by hand."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from scipy.stats import t as student_t


def assert_over_seeds(told: Mapping[str, Any] | None, values: np.ndarray) -> None:
    """Holds mean, standard deviation and Student's interval against the values of the seeds."""
    assert told is not None
    mean, std, n = values.mean(), values.std(ddof=1), len(values)
    half = student_t.ppf(0.975, n - 1) * std / n**0.5
    assert (told["n"], told["mean"], told["std"]) == (n, pytest.approx(mean), pytest.approx(std))
    assert told["ci95"] == pytest.approx([mean - half, mean + half])
