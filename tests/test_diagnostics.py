"""Measures of each class against loops in NumPy, and what is left empty."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata
from torch.nn.functional import normalize

from lgclip.diagnostics import COLUMNS, MEASURES, Diagnosis, diagnose
from lgclip.prototypes import Support

WIDTH = 6


def support(counts: list[int], seed: int = 0, noise: float = 0.8) -> Support:
    """Images in no order of their classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    centres = torch.randn(len(counts), WIDTH, generator=generator)
    features = centres[labels] + noise * torch.randn(len(labels), WIDTH, generator=generator)
    return Support(normalize(features, dim=1), labels, len(counts))


def real_images(labels: list[int], seed: int = 5) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = normalize(torch.randn(len(labels), WIDTH, generator=generator), dim=1)
    return [*features.split(7)], torch.tensor(labels), torch.rand(len(labels), generator=generator) < 0.6


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


@given(st.lists(st.integers(1, 5), min_size=2, max_size=6), st.integers(0, 99))
def test_every_measure_is_what_its_definition_says(counts: list[int], seed: int) -> None:
    images = support(counts, seed)
    real, label, right = real_images([i % len(counts) for i in range(17)], seed)
    found = diagnose(images, real, label, right)
    own = [images.features[images.labels == c].double().numpy() for c in range(len(counts))]
    prototypes = [unit(x.mean(axis=0)) for x in own]
    assert found.images.tolist() == counts
    for c, x in enumerate(own):
        others = [o for o in range(len(counts)) if o != c]
        expected = {
            "alignment": np.mean(x @ prototypes[c]),
            "spread": np.mean([1 - a @ b for a, b in itertools.combinations(x, 2)]) if len(x) > 1 else np.nan,
            "margin": min(1 - prototypes[c] @ prototypes[o] for o in others),
            "gap": 1 - prototypes[c] @ unit(torch.cat(real)[label == c].double().numpy().mean(axis=0)),
            "claimed": np.nan,
        }
        eigenvalues = np.linalg.eigvalsh(x @ x.T / len(x)).clip(1e-300)
        expected["effective_images"] = np.exp(-(eigenvalues * np.log(eigenvalues)).sum())
        if len(x) > 1:
            rest = [unit(np.delete(x, i, axis=0).mean(axis=0)) for i in range(len(x))]
            lost = [max(x[i] @ prototypes[o] for o in others) > x[i] @ rest[i] for i in range(len(x))]
            expected["claimed"] = np.mean(lost)
        for name in MEASURES:
            assert found.measures[name][c] == pytest.approx(expected[name], abs=1e-6, nan_ok=True), name
        assert prototypes[c] @ prototypes[found.nearest[c]] == pytest.approx(1 - expected["margin"])
        assert found.accuracy[c] == right[label == c].double().mean()


@pytest.mark.parametrize(("rows", "effective"), [(torch.eye(4), 4), (torch.eye(4)[[1, 1, 1, 1]], 1)])
def test_orthogonal_images_all_count_and_equal_ones_count_once(rows: torch.Tensor, effective: int) -> None:
    images = Support(torch.cat([rows, -rows]), torch.tensor([0] * 4 + [1] * 4), 2)
    found = diagnose(images, [torch.eye(4)[:1]], torch.tensor([0]), torch.tensor([True]))
    assert found.measures["effective_images"] == pytest.approx([effective, effective])


def test_many_images_are_decomposed_in_parts_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    images, real = support([3, 5, 1, 2, 4]), real_images([0, 1, 2, 3, 4])
    whole = diagnose(images, *real).measures["effective_images"]
    monkeypatch.setattr("lgclip.diagnostics._AT_ONCE", 1)
    np.testing.assert_allclose(diagnose(images, *real).measures["effective_images"], whole)


def test_what_is_not_defined_is_empty() -> None:
    found = diagnose(support([1, 3, 2]), *real_images([0, 0, 1]))
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in found.rows(["a", "b", "c"])]
    empty = [{name for name, value in row.items() if value == ""} for row in rows]
    assert empty == [{"spread", "claimed"}, set(), {"gap", "accuracy"}]
    assert not any("nan" in str(value) for row in rows for value in row.values())
    assert rows[0]["effective_images"] == "1.000000"
    assert [row["name"] for row in rows] == ["a", "b", "c"]


def test_one_class_has_nothing_to_be_far_from() -> None:
    found = diagnose(support([3]), *real_images([0, 0]))
    row = dict(zip(COLUMNS, found.rows(["only"])[0], strict=True))
    assert {name for name, value in row.items() if value == ""} == {"margin", "nearest", "claimed"}
    assert set(found.correlations.values()) == {None}


def test_images_that_cancel_out_leave_no_number_that_is_none() -> None:
    rows = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, 1]])
    found = diagnose(Support(rows, torch.tensor([0, 0, 1, 1]), 2), [rows], torch.tensor([0, 0, 1, 1]), rows[:, 1] > 0)
    assert found.measures["alignment"] == pytest.approx([0, 1])
    assert found.rows(["a", "b"])[1][COLUMNS.index("spread")] == "0.000000", "not -0"
    assert all(np.isfinite(values).all() for values in found.measures.values())


def test_a_class_without_an_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"classes \[1\]"):
        diagnose(support([2, 0, 2]), *real_images([0, 1, 2]))


def diagnosis(measure: list[float], accuracy: list[float]) -> Diagnosis:
    n = len(measure)
    values = {name: np.array(measure, dtype=np.float64) for name in MEASURES}
    return Diagnosis(np.ones(n, int), np.zeros(n, int), values, np.array(accuracy, dtype=np.float64))


def test_a_correlation_is_that_of_the_ranks() -> None:
    rng = np.random.default_rng(0)
    measure, accuracy = rng.random(20).round(1), rng.random(20).round(1)  # with ties
    told = diagnosis([*measure, np.nan, 0.5], [*accuracy, 0.5, np.nan]).correlations["margin"]
    assert told is not None
    assert told["spearman"] == pytest.approx(np.corrcoef(rankdata(measure), rankdata(accuracy))[0, 1])
    assert 0 <= told["p"] <= 1


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
def test_a_correlation_of_too_few_or_of_equals_is_none(measure: list[float], accuracy: list[float]) -> None:
    assert set(diagnosis(measure, accuracy).correlations.values()) == {None}


def test_test_labels_change_the_gap_and_the_accuracy_alone() -> None:
    images = support([3, 3, 3])
    real, label, right = real_images([0, 0, 1, 1, 2, 2])
    one, other = (diagnose(images, real, labels, right) for labels in (label, label.flip(0)))
    changed = {name for name in MEASURES if not np.array_equal(one.measures[name], other.measures[name])}
    assert changed == {"gap"}
