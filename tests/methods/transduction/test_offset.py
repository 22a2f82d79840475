"""Tests the domain offset against its formula in NumPy, and that few classes are not removed."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from unlabeled_pools import TEMPERATURE, arrays, random_pool, unit

from lgclip.methods.transduction.base import UnlabeledPool
from lgclip.methods.transduction.offset import DomainOffset


@pytest.mark.parametrize("shrinkage", [0.0, 5.0])
def test_offset_matches_its_formula(shrinkage: float) -> None:
    for seed in range(4):
        pool = random_pool(seed, n=4 + 12 * seed)
        f, _, p = arrays(pool)
        predicted = pool.scores.argmax(dim=1).numpy()
        e = np.mean([p[c] for c in predicted], axis=0)
        mean = f.mean(axis=0)
        offset = len(f) / (len(f) + shrinkage) * (mean - (mean @ e) / (e @ e) * e)
        expected = (pool.scores.numpy() + (unit(f - offset) - f) @ p.T) / TEMPERATURE
        np.testing.assert_allclose(DomainOffset(shrinkage).refine(pool), expected, atol=1e-9)


def moved_pool(seed: int, classes: int, strength: float) -> tuple[UnlabeledPool, torch.Tensor]:
    """Returns images of the first classes, all moved in one direction that no class has, and their labels."""
    rng = np.random.default_rng(seed)
    prototypes = unit(rng.normal(size=(8, 16)))
    labels = rng.integers(classes, size=60)
    direction = strength * unit(rng.normal(size=16))
    features = torch.from_numpy(unit(prototypes[labels] + direction + 0.35 * rng.normal(size=(60, 16))))
    anchors = torch.from_numpy(prototypes)
    return UnlabeledPool(features, features @ anchors.T, TEMPERATURE, anchors), torch.from_numpy(labels)


def accuracy(scores: torch.Tensor, labels: torch.Tensor) -> float:
    return float((scores.argmax(dim=1) == labels).double().mean())


@pytest.mark.parametrize("classes", [1, 2, 8])
def test_a_common_direction_is_removed_whatever_the_classes(classes: int) -> None:
    gains = []
    for seed in range(20):
        pool, labels = moved_pool(seed, classes, strength=0.8)
        gains.append(accuracy(DomainOffset().refine(pool), labels) - accuracy(pool.scores, labels))
    assert np.mean(gains) > 0.01


@pytest.mark.parametrize("classes", [1, 2, 8])
def test_without_an_offset_little_changes(classes: int) -> None:
    """Checks that the class of a pool of one class is not removed, as by a plain mean."""
    changes = []
    plain = []
    for seed in range(20):
        pool, labels = moved_pool(seed, classes, strength=0.0)
        before = accuracy(pool.scores, labels)
        changes.append(accuracy(DomainOffset().refine(pool), labels) - before)
        assert pool.prototypes is not None
        centered = normalize(pool.features - pool.features.mean(dim=0), dim=1) @ pool.prototypes.T
        plain.append(accuracy(centered, labels) - before)
    assert np.mean(changes) > -0.03
    if classes == 1:
        assert np.mean(plain) < -0.3


def test_without_prototypes_nothing_changes() -> None:
    pool = random_pool(0, has_prototypes=False)
    torch.testing.assert_close(DomainOffset().refine(pool), pool.scores / TEMPERATURE)


def test_negative_shrinkage_is_refused() -> None:
    with pytest.raises(ValueError, match=r"transduction\.shrinkage=-1"):
        DomainOffset(-1)
