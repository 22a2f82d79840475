"""Tests prototypes against ten lines of NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lgclip.methods.feature_collector import FeatureCollector
from lgclip.methods.prototypes import SupportSet


def unit_rows(seed: int, n: int, width: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def collect_features(
    features: torch.Tensor, labels: torch.Tensor, order: torch.Tensor, classes: int, batch: int
) -> FeatureCollector:
    metric = FeatureCollector(classes, features.shape[1])
    for part in order.split(batch):
        metric.update(features[part], labels[part], part)
    return metric


@given(st.integers(0, 9999), st.integers(1, 7), st.integers(1, 40), st.booleans())
def test_prototypes_are_class_means(seed: int, classes: int, extra: int, unit: bool) -> None:
    features = unit_rows(seed, classes + extra, 6)
    labels = np.random.default_rng(seed).permutation(np.arange(classes + extra) % classes)
    result = SupportSet(torch.from_numpy(features), torch.from_numpy(labels), classes).means(renormalize=unit)

    mean = np.stack([features[labels == c].astype(np.float64).mean(axis=0) for c in range(classes)])
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True) if unit else mean
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-6)


def test_support_set_does_not_depend_on_devices() -> None:
    features = torch.from_numpy(unit_rows(0, 41, 8))
    labels = torch.arange(41) % 5
    expected = collect_features(features, labels, torch.arange(41), 5, batch=7).support()
    shares = [collect_features(features, labels, torch.arange(rank, 41, 2).flip(0), 5, batch=3) for rank in range(2)]
    # What Lightning does over devices: list states are joined, then reduced as they were registered.
    both = FeatureCollector(5, 8)
    for name, reduce in both._reductions.items():
        assert callable(reduce)
        setattr(both, name, [reduce([*getattr(shares[0], name), *getattr(shares[1], name)])])
    both._update_count = 1
    assert torch.equal(both.support().features, expected.features)
    assert torch.equal(both.support().labels, expected.labels)
    assert torch.equal(expected.features, features)


def test_image_order_changes_nothing() -> None:
    features = torch.from_numpy(unit_rows(1, 200, 16))
    labels = torch.arange(200) % 3
    turned = SupportSet(features.flip(0), labels.flip(0), 3).means(renormalize=True)
    assert torch.equal(turned, SupportSet(features, labels, 3).means(renormalize=True))


def test_class_without_images_is_named() -> None:
    support = SupportSet(torch.from_numpy(unit_rows(2, 2, 8)), torch.tensor([0, 2]), 4)
    with pytest.raises(ValueError, match=r"\[1, 3\]"):
        support.means(renormalize=True)


def test_empty_support_is_none() -> None:
    metric = FeatureCollector(2, 4)
    metric.update(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    assert metric.support().features.shape == (0, 4)
