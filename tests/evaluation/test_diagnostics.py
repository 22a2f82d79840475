"""Tests the measures of each class against loops in NumPy, and undefined values."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata
from torch.nn.functional import normalize

from lgclip.evaluation.diagnostics import COLUMNS, MEASURES, Diagnosis, diagnose
from lgclip.methods.prototypes import SupportSet

WIDTH = 6


def support(counts: list[int], seed: int = 0, noise: float = 0.8) -> SupportSet:
    """Returns a support set with shuffled labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    centers = torch.randn(len(counts), WIDTH, generator=generator)
    features = centers[labels] + noise * torch.randn(len(labels), WIDTH, generator=generator)
    return SupportSet(normalize(features, dim=1), labels, len(counts))


def real_images(labels: list[int], seed: int = 5) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = normalize(torch.randn(len(labels), WIDTH, generator=generator), dim=1)
    return [*features.split(7)], torch.tensor(labels), torch.rand(len(labels), generator=generator) < 0.6


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


@given(st.lists(st.integers(1, 5), min_size=2, max_size=6), st.integers(0, 99))
def test_measures_match_their_definitions(counts: list[int], seed: int) -> None:
    images = support(counts, seed)
    real, label, right = real_images([i % len(counts) for i in range(17)], seed)
    diagnostics = diagnose(images, real, label, right)
    per_class = [images.features[images.labels == c].double().numpy() for c in range(len(counts))]
    prototypes = [unit(x.mean(axis=0)) for x in per_class]
    assert diagnostics.images.tolist() == counts
    for c, x in enumerate(per_class):
        variants = [o for o in range(len(counts)) if o != c]
        expected = {
            "alignment": np.mean(x @ prototypes[c]),
            "spread": np.mean([1 - a @ b for a, b in itertools.combinations(x, 2)]) if len(x) > 1 else np.nan,
            "margin": min(1 - prototypes[c] @ prototypes[o] for o in variants),
            "gap": 1 - prototypes[c] @ unit(torch.cat(real)[label == c].double().numpy().mean(axis=0)),
            "claimed": np.nan,
        }
        eigenvalues = np.linalg.eigvalsh(x @ x.T / len(x)).clip(1e-300)
        expected["effective_images"] = np.exp(-(eigenvalues * np.log(eigenvalues)).sum())
        if len(x) > 1:
            rest = [unit(np.delete(x, i, axis=0).mean(axis=0)) for i in range(len(x))]
            lost = []
            for i in range(len(x)):
                lost.append(max(x[i] @ prototypes[o] for o in variants) > x[i] @ rest[i])
            expected["claimed"] = np.mean(lost)
        for name in MEASURES:
            assert diagnostics.measures[name][c] == pytest.approx(expected[name], abs=1e-6, nan_ok=True), name
        assert prototypes[c] @ prototypes[diagnostics.nearest[c]] == pytest.approx(1 - expected["margin"])
        assert diagnostics.accuracy[c] == right[label == c].double().mean()


@pytest.mark.parametrize(("rows", "effective"), [(torch.eye(4), 4), (torch.eye(4)[[1, 1, 1, 1]], 1)])
def test_effective_images_count_distinct_directions(rows: torch.Tensor, effective: int) -> None:
    images = SupportSet(torch.cat([rows, -rows]), torch.tensor([0] * 4 + [1] * 4), 2)
    diagnostics = diagnose(images, [torch.eye(4)[:1]], torch.tensor([0]), torch.tensor([True]))
    assert diagnostics.measures["effective_images"] == pytest.approx([effective, effective])


def test_large_sets_are_decomposed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    images = support([3, 5, 1, 2, 4])
    real = real_images([0, 1, 2, 3, 4])
    full = diagnose(images, *real).measures["effective_images"]
    monkeypatch.setattr("lgclip.evaluation.diagnostics._AT_ONCE", 1)
    np.testing.assert_allclose(diagnose(images, *real).measures["effective_images"], full)


def test_undefined_measures_are_empty() -> None:
    diagnostics = diagnose(support([1, 3, 2]), *real_images([0, 0, 1]))
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in diagnostics.rows(["a", "b", "c"])]
    empty = []
    for row in rows:
        empty.append({name for name, value in row.items() if value == ""})
    assert empty == [{"spread", "claimed"}, set(), {"gap", "accuracy"}]
    assert not any("nan" in str(value) for row in rows for value in row.values())
    assert rows[0]["effective_images"] == "1.000000"
    assert [row["name"] for row in rows] == ["a", "b", "c"]


def test_single_class_has_no_margin() -> None:
    diagnostics = diagnose(support([3]), *real_images([0, 0]))
    row = dict(zip(COLUMNS, diagnostics.rows(["only"])[0], strict=True))
    assert {name for name, value in row.items() if value == ""} == {"margin", "nearest", "claimed"}
    assert set(diagnostics.correlations.values()) == {None}


def test_cancelling_images_give_no_nan() -> None:
    rows = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, 1]])
    diagnostics = diagnose(
        SupportSet(rows, torch.tensor([0, 0, 1, 1]), 2), [rows], torch.tensor([0, 0, 1, 1]), rows[:, 1] > 0
    )
    assert diagnostics.measures["alignment"] == pytest.approx([0, 1])
    assert diagnostics.rows(["a", "b"])[1][COLUMNS.index("spread")] == "0.000000", "not -0"
    assert all(np.isfinite(values).all() for values in diagnostics.measures.values())


def test_class_without_images_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"classes \[1\]"):
        diagnose(support([2, 0, 2]), *real_images([0, 1, 2]))


def diagnosis(measure: list[float], accuracy: list[float]) -> Diagnosis:
    n = len(measure)
    values = {name: np.array(measure, dtype=np.float64) for name in MEASURES}
    return Diagnosis(np.ones(n, int), np.zeros(n, int), values, np.array(accuracy, dtype=np.float64))


def test_correlation_uses_ranks() -> None:
    rng = np.random.default_rng(0)
    # with ties
    measure = rng.random(20).round(1)
    accuracy = rng.random(20).round(1)
    correlation = diagnosis([*measure, np.nan, 0.5], [*accuracy, 0.5, np.nan]).correlations["margin"]
    assert correlation is not None
    assert correlation["spearman"] == pytest.approx(np.corrcoef(rankdata(measure), rankdata(accuracy))[0, 1])
    assert 0 <= correlation["p"] <= 1


@pytest.mark.parametrize(
    ("measure", "accuracy"),
    [
        ([0.1, 0.2], [0.3, 0.4]),
        ([0.1, 0.2, np.nan, 0.4], [0.3, 0.4, 0.5, np.nan]),
        ([0.5, 0.5, 0.5], [0.1, 0.2, 0.3]),
        ([0.5, 0.5 + 1e-15, 0.5], [0.1, 0.2, 0.3]),
        ([0.1, 0.2, 0.3], [1.0, 1.0, 1.0]),
    ],
)
def test_correlation_of_few_or_equal_values_is_none(measure: list[float], accuracy: list[float]) -> None:
    assert set(diagnosis(measure, accuracy).correlations.values()) == {None}


def test_labels_change_gap_and_accuracy_only() -> None:
    images = support([3, 3, 3])
    real, label, right = real_images([0, 0, 1, 1, 2, 2])
    first, second = (diagnose(images, real, labels, right) for labels in (label, label.flip(0)))
    changed = {name for name in MEASURES if not np.array_equal(first.measures[name], second.measures[name])}
    assert changed == {"gap"}
