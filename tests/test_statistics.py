"""Figures against their formulas, written out."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgclip.statistics import metrics, per_class, wilson


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_is_wilsons(trial: tuple[int, int]) -> None:
    """Wilson 1927, written out: the p with (p - right/n)^2 = z^2 p (1 - p) / n."""
    right, n = trial
    z, p = 1.959963984540054, right / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert wilson(right, n) == pytest.approx((centre - half, centre + half), abs=1e-9)


judgements = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 7)), min_size=1, max_size=60)


@given(judgements)
def test_figures_are_what_a_list_gives(judged: list[tuple[int, int]]) -> None:
    labels, ranks = (np.array(column) for column in zip(*judged, strict=True))
    found: dict[str, Any] = metrics(labels, ranks, num_classes=5)
    own = {c: [rank == 0 for label, rank in judged if label == c] for c in range(5)}
    assert found["top1"] == pytest.approx(sum(rank == 0 for _, rank in judged) / len(judged))
    assert found["top5"] == pytest.approx(sum(rank < 5 for _, rank in judged) / len(judged))
    shares = [sum(rights) / len(rights) for rights in own.values() if rights]
    assert found["mean_per_class"] == pytest.approx(sum(shares) / len(shares))
    assert per_class(labels, ranks, 5) == [{"n": len(own[c]), "right": sum(own[c])} for c in range(5)]
    low, high = found["top1_ci95"]
    assert low <= found["top1"] + 1e-12
    assert found["top1"] <= high + 1e-12


def test_classes_of_unequal_size_weigh_the_same_in_the_mean_per_class() -> None:
    labels, ranks = np.array([0] * 9 + [1]), np.array([0] * 9 + [3])
    found = metrics(labels, ranks, num_classes=2)
    assert (found["top1"], found["mean_per_class"], found["top5"]) == (0.9, 0.5, 1.0)
