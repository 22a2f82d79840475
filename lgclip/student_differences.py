"""How students of two training sets differ, over the seeds that both have and over the images."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from lgclip.runs import Run
from lgclip.statistics import holm
from lgclip.student_rows import BASIC, REAL, TOP1, Figure, Row, Students


@dataclass(frozen=True)
class Difference:
    """How two training sets differ, over the seeds that both have.

    Attributes:
        one: What the one was trained on.
        other: What the other was trained on.
        figure: Of what.
        n: Seeds that both have.
        mean: Mean difference, the first minus the other.
        over_seeds: `ci95` and `p` of the paired t test; None for one seed, or where all differ by the same.
        over_images: The same where the images are the sample and the seeds are as they are; None for a shifted set.
        p_holm: The seeds' p value, raised for all tests of the table; None where there is none.
    """

    one: str
    other: str
    figure: Figure
    n: int
    mean: float
    over_seeds: Mapping[str, Any] | None
    over_images: Mapping[str, Any] | None
    p_holm: float | None = None


def differences(students: Students) -> list[Difference]:
    """Synthetic training sets against the basic prompt, and all against real images, where the settings are alike.

    Args:
        students: Rows of a sweep.
    """
    rows = [row for row in students.rows if row.runs]
    pairs = [(a, b) for b in rows if b.name == BASIC for a in rows if a.name not in (REAL, BASIC) and not a.mixed]
    pairs += [(a, b) for b in rows if b.name == REAL for a in rows if a.name != REAL]
    alike = [(a, b) for a, b in pairs if a.apart == b.apart or not a.apart or not b.apart]
    figures = [TOP1, *(Figure("top1", name) for name in students.shifted)]
    found = [one for a, b in alike for figure in figures if (one := _difference(a, b, figure))]
    raised = iter(holm([one.over_seeds["p"] for one in found if one.over_seeds]))
    return [replace(one, p_holm=next(raised)) if one.over_seeds else one for one in found]


def _difference(a: Row, b: Row, figure: Figure) -> Difference | None:
    one, other = a.of(figure), b.of(figure)
    seeds = [seed for seed in one if seed in other]
    if not seeds:
        return None
    values = np.array([one[seed] - other[seed] for seed in seeds])
    over_images = None
    if figure == TOP1:
        right = [_right(a.runs[seed]) - _right(b.runs[seed]) for seed in seeds]
        over_images = _t_test(np.mean(right, axis=0))
    return Difference(a.label, b.label, figure, len(seeds), float(values.mean()), _t_test(values), over_images)


def _right(run: Run) -> Float[np.ndarray, " n"]:
    return (run.predictions.prediction == run.predictions.label).astype(np.float64)


def _t_test(values: Float[np.ndarray, " k"]) -> dict[str, Any] | None:
    """Whether paired differences are 0 on average; None for one, or where none differs from the others."""
    if len(values) < 2 or np.ptp(values) < 1e-12:
        return None
    from scipy.stats import ttest_1samp

    test: Any = ttest_1samp(values, 0.0)
    interval = test.confidence_interval(0.95)
    return {"ci95": [float(interval.low), float(interval.high)], "p": float(test.pvalue)}
