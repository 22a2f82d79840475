"""Prototypes against ten lines of NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lgclip.prototypes import Prototypes


def unit_rows(seed: int, n: int, width: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@given(st.integers(0, 9999), st.integers(1, 7), st.integers(1, 40), st.booleans())
def test_prototypes_are_the_mean_features_of_their_classes(seed: int, classes: int, more: int, unit: bool) -> None:
    features = unit_rows(seed, classes + more, 6)
    labels = np.random.default_rng(seed).permutation(np.arange(classes + more) % classes)
    metric = Prototypes(classes, 6, renormalise=unit)
    for part in np.array_split(np.arange(len(labels)), 3):  # batches, the last of them perhaps empty
        metric.update(torch.from_numpy(features[part]), torch.from_numpy(labels[part]))

    mean = np.stack([features[labels == c].astype(np.float64).mean(axis=0) for c in range(classes)])
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True) if unit else mean
    np.testing.assert_allclose(metric.compute().numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("renormalise", [True, False])
def test_two_devices_are_one(renormalise: bool) -> None:
    features, labels = torch.from_numpy(unit_rows(0, 41, 8)), torch.arange(41) % 5
    one = Prototypes(5, 8, renormalise=renormalise)
    one.update(features, labels)
    shares = [Prototypes(5, 8, renormalise=renormalise) for _ in range(2)]
    for rank, share in enumerate(shares):
        share.update(features[rank::2], labels[rank::2])
    # What Lightning does over devices: every state is reduced by the function it was registered with.
    both = Prototypes(5, 8, renormalise=renormalise)
    for name, reduce in both._reductions.items():
        assert callable(reduce)
        setattr(both, name, reduce(torch.stack([getattr(share, name) for share in shares])))
    both._update_count = 1
    torch.testing.assert_close(both.compute(), one.compute(), rtol=0, atol=1e-7)


def test_the_order_of_the_batches_changes_no_digit() -> None:
    features, labels = torch.from_numpy(unit_rows(1, 200, 16)), torch.arange(200) % 3
    found = []
    for order in (torch.arange(200), torch.arange(200).flip(0)):
        metric = Prototypes(3, 16)
        for part in order.split(7):
            metric.update(features[part], labels[part])
        found.append(metric.compute())
    assert torch.equal(*found)


def test_a_class_without_images_is_named() -> None:
    metric = Prototypes(4, 8)
    metric.update(torch.from_numpy(unit_rows(2, 2, 8)), torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"\[1, 3\]"):
        metric.compute()


def test_prototypes_travel_with_the_model() -> None:
    metric = Prototypes(2, 4)
    metric.update(torch.from_numpy(unit_rows(3, 6, 4)), torch.arange(6) % 2)
    other = Prototypes(2, 4)
    other.load_state_dict(metric.state_dict())
    other._update_count = 1
    assert torch.equal(other.compute(), metric.compute())
