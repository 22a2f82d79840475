"""Prototypes against ten lines of NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lgclip.prototypes import Gathered, Support


def unit_rows(seed: int, n: int, width: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def gathered(features: torch.Tensor, labels: torch.Tensor, order: torch.Tensor, classes: int, batch: int) -> Gathered:
    metric = Gathered(classes, features.shape[1])
    for part in order.split(batch):
        metric.update(features[part], labels[part], part)
    return metric


@given(st.integers(0, 9999), st.integers(1, 7), st.integers(1, 40), st.booleans())
def test_prototypes_are_the_mean_features_of_their_classes(seed: int, classes: int, more: int, unit: bool) -> None:
    features = unit_rows(seed, classes + more, 6)
    labels = np.random.default_rng(seed).permutation(np.arange(classes + more) % classes)
    found = Support(torch.from_numpy(features), torch.from_numpy(labels), classes).means(renormalise=unit)

    mean = np.stack([features[labels == c].astype(np.float64).mean(axis=0) for c in range(classes)])
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True) if unit else mean
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_two_devices_are_one_in_whatever_order() -> None:
    features, labels = torch.from_numpy(unit_rows(0, 41, 8)), torch.arange(41) % 5
    one = gathered(features, labels, torch.arange(41), 5, batch=7).support()
    shares = [gathered(features, labels, torch.arange(rank, 41, 2).flip(0), 5, batch=3) for rank in range(2)]
    # What Lightning does over devices: list states are joined, then reduced as they were registered.
    both = Gathered(5, 8)
    for name, reduce in both._reductions.items():
        assert callable(reduce)
        setattr(both, name, [reduce([*getattr(shares[0], name), *getattr(shares[1], name)])])
    both._update_count = 1
    assert torch.equal(both.support().features, one.features)
    assert torch.equal(both.support().labels, one.labels)
    assert torch.equal(one.features, features)


def test_the_order_of_the_images_changes_no_digit() -> None:
    features, labels = torch.from_numpy(unit_rows(1, 200, 16)), torch.arange(200) % 3
    turned = Support(features.flip(0), labels.flip(0), 3).means(renormalise=True)
    assert torch.equal(turned, Support(features, labels, 3).means(renormalise=True))


def test_a_class_without_images_is_named() -> None:
    support = Support(torch.from_numpy(unit_rows(2, 2, 8)), torch.tensor([0, 2]), 4)
    with pytest.raises(ValueError, match=r"\[1, 3\]"):
        support.means(renormalise=True)


def test_nothing_gathered_is_nothing_and_no_crash() -> None:
    metric = Gathered(2, 4)
    metric.update(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    assert metric.support().features.shape == (0, 4)
