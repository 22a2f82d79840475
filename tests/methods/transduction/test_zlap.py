"""Tests ZLaP against its formula in NumPy."""

import numpy as np
import pytest
import torch
from unlabeled_pools import arrays, cosine_graph, probabilities, random_pool

from lgclip.methods.transduction.base import UnlabeledPool
from lgclip.methods.transduction.zlap import ZLaP


def expected(rule: ZLaP, pool: UnlabeledPool) -> np.ndarray:
    f, y, prototypes = arrays(pool)
    n, num_classes = y.shape
    similarity = y if pool.prototypes is None else np.maximum(f @ prototypes.T, 0) ** rule.gamma
    adjacency = np.zeros((n + num_classes, n + num_classes))
    adjacency[:n, :n] = np.maximum(cosine_graph(f, rule.neighbors), 0)
    for image, row in enumerate(similarity):
        near = np.argsort(-row, kind="stable")[: rule.classes]
        adjacency[image, n + near] = row[near]
    adjacency += adjacency.T
    root = np.sqrt(adjacency.sum(axis=1))
    normalized = adjacency / np.where(root > 0, root, 1)[:, None] / np.where(root > 0, root, 1)
    scores = np.linalg.inv(np.eye(len(normalized)) - rule.alpha * normalized)[:n, n:]
    return scores / scores.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("has_prototypes", [True, False])
@pytest.mark.parametrize("rule", [ZLaP(), ZLaP(2, 1, 1.5, 0.9)], ids=str)
def test_zlap_matches_its_formula(rule: ZLaP, has_prototypes: bool) -> None:
    for seed in range(3):
        pool = random_pool(seed, n=8 + 10 * seed, has_prototypes=has_prototypes)
        np.testing.assert_allclose(probabilities(rule, pool), expected(rule, pool), atol=1e-6)


def test_single_image_by_hand() -> None:
    """Computes the graph of one image: its scores are as the roots of the similarities, here of 0.8 and 0.6."""
    prototypes = torch.tensor([[0.8, 0.6], [0.6, -0.8]], dtype=torch.float64)
    features = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    pool = UnlabeledPool(features, features @ prototypes.T, 0.1, prototypes)
    roots = np.sqrt([0.8, 0.6])
    np.testing.assert_allclose(probabilities(ZLaP(gamma=1.0), pool)[0], roots / roots.sum(), atol=1e-9)


def test_unreached_classes_are_ranked_by_their_start() -> None:
    """Checks an image without an edge to any class: all its similarities are negative."""
    prototypes = torch.tensor([[-1.0, 0.0], [-0.8, 0.6], [-0.6, -0.8]])
    features = torch.tensor([[1.0, 0.0]])
    logits = ZLaP().refine(UnlabeledPool(features, features @ prototypes.T, 0.1, prototypes))
    assert logits.isfinite().all()
    assert logits[0].argsort(descending=True).tolist() == [2, 1, 0]
