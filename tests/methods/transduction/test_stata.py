"""Tests StatA against its formula in NumPy."""

import numpy as np
import pytest
import torch
from unlabeled_pools import arrays, cosine_graph, probabilities, random_pool, unit

from lgclip.methods.transduction.base import UnlabeledPool
from lgclip.methods.transduction.stata import StatA


def expected(rule: StatA, pool: UnlabeledPool) -> np.ndarray:
    f, y, anchor = arrays(pool)
    n, num_classes = y.shape
    graph = cosine_graph(f, rule.neighbors)
    k = min(rule.neighbors, n - 1)
    first = np.einsum("nc,ncd->d", y, (f[:, None] - anchor) ** 2) / n
    mu, variance, z = anchor, np.tile(first, (num_classes, 1)), y
    for iteration in range(rule.iterations + 1):
        likelihood = -0.5 * ((f[:, None] - mu) ** 2 / variance).sum(axis=2)
        for _ in range(rule.steps):
            z = y * np.exp(likelihood / 50 + (graph + graph.T) @ z / (2 * k))
            z /= z.sum(axis=1, keepdims=True)
        if iteration < rule.iterations:
            size = z.sum(axis=0) if rule.soft else np.bincount(z.argmax(axis=1), minlength=num_classes)
            b = (size / (rule.alpha + size))[:, None]
            mu = unit(b * unit(z.T @ f) + (1 - b) * anchor)
            scatter = np.einsum("nc,ncd->cd", z, (f[:, None] - mu) ** 2) / z.sum(axis=0)[:, None]
            variance = b * scatter + (1 - b) * (first + (anchor - mu) ** 2)
    return z


@pytest.mark.parametrize("has_prototypes", [True, False])
@pytest.mark.parametrize("rule", [StatA(), StatA(neighbors=2, alpha=5.0, soft=True, iterations=4)], ids=str)
def test_stata_matches_its_formula(rule: StatA, has_prototypes: bool) -> None:
    for seed in range(4):
        pool = random_pool(seed, n=6 + 10 * seed, has_prototypes=has_prototypes)
        np.testing.assert_allclose(probabilities(rule, pool), expected(rule, pool), atol=1e-7)


def test_strong_anchor_leaves_classes_where_they_are() -> None:
    """Checks that with a huge alpha the means never move: later iterations change nothing."""
    pool = random_pool(0, n=30)
    once, often = (StatA(alpha=1e12, iterations=iterations, steps=40).refine(pool) for iterations in (0, 5))
    torch.testing.assert_close(once.softmax(dim=1), often.softmax(dim=1), atol=1e-8, rtol=0)


def test_class_without_images_stays_at_its_anchor() -> None:
    """Checks a pool of a single class at the other class's opposite: nothing is drawn to the empty class."""
    features = torch.nn.functional.normalize(torch.tensor([[1.0, 0.01], [1.0, 0.02], [1.0, -0.01], [1.0, 0.0]]), dim=1)
    prototypes = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    logits = StatA().refine(UnlabeledPool(features, features @ prototypes.T, 0.01, prototypes))
    assert logits.isfinite().all()
    assert logits.argmax(dim=1).tolist() == [0, 0, 0, 0]
