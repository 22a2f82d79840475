"""Tests InMaP against its formula in NumPy."""

import numpy as np
import pytest
import torch
from unlabeled_pools import arrays, probabilities, random_pool, softmax, unit

from lgclip.methods.transduction.base import UnlabeledPool
from lgclip.methods.transduction.inmap import InMaP, balance


def expected(rule: InMaP, pool: UnlabeledPool) -> np.ndarray:
    f, p, w = arrays(pool)
    n, num_classes = p.shape
    for _ in range(rule.sinkhorn):
        p = p / p.sum(axis=0) / num_classes
        p = p / p.sum(axis=1, keepdims=True)
    sure = p.max(axis=1) > rule.confidence
    p = np.where(sure[:, None], np.eye(num_classes)[p.argmax(axis=1)], p)
    rate, last = rule.rate, np.inf
    for _ in range(rule.iterations):
        gradient = (softmax(f @ w.T / rule.temperature) - p).T @ f
        norm = np.linalg.norm(gradient)
        rate /= 2 if norm > last * (1 - 1e-6) else 1
        last = norm
        w = unit(w - rate / (n * rule.temperature) * gradient)
    return softmax(f @ w.T / rule.temperature)


@pytest.mark.parametrize("has_prototypes", [True, False])
@pytest.mark.parametrize("rule", [InMaP(iterations=100), InMaP(0, 0.1, 0.9, 1.0, 30)], ids=str)
def test_inmap_matches_its_formula(rule: InMaP, has_prototypes: bool) -> None:
    for seed in range(3):
        pool = random_pool(seed, n=8 + 10 * seed, has_prototypes=has_prototypes)
        np.testing.assert_allclose(probabilities(rule, pool), expected(rule, pool), atol=1e-5)


def test_sinkhorn_by_hand() -> None:
    """Checks two images: the odds a^2 / (1 - a)^2 of the balanced table equal those of the first, 8/3."""
    table = torch.tensor([[0.8, 0.2], [0.6, 0.4]], dtype=torch.float64)
    probs = balance(table.log(), iterations=100).exp().numpy()
    a = np.sqrt(8 / 3) / (1 + np.sqrt(8 / 3))
    np.testing.assert_allclose(probs, [[a, 1 - a], [1 - a, a]], atol=1e-9)
    assert balance(table.log(), iterations=0).exp().numpy() == pytest.approx(table.numpy())


def test_sinkhorn_of_a_class_that_no_image_belongs_to() -> None:
    """Checks probabilities below the least float: their sums would be 0."""
    log_probs = torch.tensor([[0.0, -1000.0], [0.0, -1001.0]], dtype=torch.float32)
    probs = balance(log_probs, iterations=50).exp()
    np.testing.assert_allclose(probs.sum(dim=0), [1, 1], atol=1e-3)


def test_learning_ends_when_nothing_moves() -> None:
    """Checks that the bound on the movement changes no probability."""
    pool = random_pool(1, n=20)
    np.testing.assert_allclose(probabilities(InMaP(), pool), expected(InMaP(), pool), atol=1e-3)


def test_balance_is_assumed_by_sinkhorn_alone() -> None:
    assert InMaP().assumes_balanced
    assert not InMaP(sinkhorn=0).assumes_balanced


def test_inmap_finds_a_moved_class() -> None:
    """Checks two clusters that both lie nearer to the first prototype."""
    angles = torch.cat([torch.linspace(0, 0.2, 10), torch.linspace(0.5, 0.7, 10)]).double()
    features = torch.stack([angles.cos(), angles.sin()], dim=1)
    prototypes = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    pool = UnlabeledPool(features, features @ prototypes.T, 0.1, prototypes)
    assert pool.scores.argmax(dim=1).sum() == 0
    assert InMaP().refine(pool).argmax(dim=1).tolist() == [0] * 10 + [1] * 10
