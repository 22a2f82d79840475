"""Tests TransCLIP against its formula in NumPy."""

import numpy as np
import pytest
import torch
from unlabeled_pools import arrays, cosine_graph, probabilities, random_pool, unit

from lgclip.methods.transduction.base import UnlabeledPool
from lgclip.methods.transduction.transclip import TransCLIP, assign


def expected(rule: TransCLIP, pool: UnlabeledPool) -> np.ndarray:
    f, y, _ = arrays(pool)
    n, d = f.shape
    graph = cosine_graph(f, rule.neighbors)
    k = min(rule.neighbors, n - 1)
    top = [np.argsort(-column, kind="stable")[: rule.confident] for column in y.T]
    mu = unit(np.stack([y[images, c] @ f[images] for c, images in enumerate(top)]))
    variance, z = np.full(d, 1 / d), y
    for iteration in range(rule.iterations + 1):
        likelihood = -0.5 * ((f[:, None] - mu) ** 2 / variance).sum(axis=2)
        for _ in range(rule.steps):
            z = y * np.exp(likelihood / 50 + (graph + graph.T) @ z / (2 * k))
            z /= z.sum(axis=1, keepdims=True)
        if iteration < rule.iterations:
            mu = unit(z.T @ f)
            variance = np.maximum(np.einsum("nc,ncd->d", z, (f[:, None] - mu) ** 2) / n, 1e-6 / d)
    return z


@pytest.mark.parametrize("n", [4, 12, 40])
@pytest.mark.parametrize("rule", [TransCLIP(), TransCLIP(neighbors=1, confident=2, iterations=3, steps=2)], ids=str)
def test_transclip_matches_its_formula(rule: TransCLIP, n: int) -> None:
    for seed in range(3):
        pool = random_pool(seed, n)
        np.testing.assert_allclose(probabilities(rule, pool), expected(rule, pool), atol=1e-7)


def test_neighbors_agree() -> None:
    """Computes a step by hand: an unsure image takes over half the affinity times its neighbor's probability."""
    start = torch.tensor([[0.5, 0.5], [1.0, 1e-30]], dtype=torch.float64).log()
    affinity = torch.tensor([[0.0, 0.8], [0.8, 0.0]], dtype=torch.float64).to_sparse()
    logits = assign(start, torch.zeros_like(start), affinity, start, steps=1)
    odds = float((logits[0, 0] - logits[0, 1]).exp())
    assert odds == pytest.approx(np.exp(0.8))


def test_transclip_corrects_an_outlier_of_a_cluster() -> None:
    """Checks that an image which starts at the wrong class follows its cluster."""
    angles = np.array([0.0, 0.02, 0.04, 0.06, 1.4, 1.42, 1.44, 1.46])
    features = torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    scores = torch.tensor([[1.0, 0.0]] * 4 + [[0.0, 1.0]] * 4, dtype=torch.float64)
    scores[1] = torch.tensor([0.0, 0.05])
    pool = UnlabeledPool(features, scores, 0.1, None)
    assert scores.argmax(dim=1).tolist() == [0, 1, 0, 0, 1, 1, 1, 1]
    assert TransCLIP().refine(pool).argmax(dim=1).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
