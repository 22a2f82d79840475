"""Tests EM against its formula in NumPy and SciPy's densities."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from unlabeled_pools import arrays, probabilities, random_pool

from lgclip.methods.transduction.base import UnlabeledPool
from lgclip.methods.transduction.em import EM, shrunk_covariance


def expected(rule: EM, pool: UnlabeledPool) -> np.ndarray:
    f, y, _ = arrays(pool)
    n, d = f.shape
    z = y
    for _ in range(rule.iterations):
        means = z.T @ f / z.sum(axis=0)[:, None]
        residuals = f[:, None] - means
        covariance = np.einsum("nc,ncd,nce->de", z, residuals, residuals) / n
        shrunk = ((n - 1) * covariance + np.trace(covariance) * np.eye(d)) / (n - 1 + d)
        z = y * np.stack([multivariate_normal(mean, shrunk).pdf(f) for mean in means], axis=1)
        z /= z.sum(axis=1, keepdims=True)
    return z


@pytest.mark.parametrize("iterations", [1, 10])
def test_em_matches_its_formula(iterations: int) -> None:
    for seed in range(4):
        pool = random_pool(seed, n=4 + 12 * seed)
        rule = EM(iterations)
        np.testing.assert_allclose(probabilities(rule, pool), expected(rule, pool), atol=1e-7)


def test_shrinkage_keeps_the_trace() -> None:
    covariance = torch.diag(torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64))
    shrunk = shrunk_covariance(covariance, n=4)
    # (3 S + 4 I) / 6
    torch.testing.assert_close(shrunk.diag(), torch.tensor([13.0, 7.0, 4.0], dtype=torch.float64) / 6)


def test_symmetric_classes_stay_undecided() -> None:
    """Checks an image halfway between two mirrored classes."""
    features = torch.nn.functional.normalize(
        torch.tensor([[1.0, 0.9], [1.0, 0.8], [1.0, -0.9], [1.0, -0.8], [1.0, 0.0]], dtype=torch.float64), dim=1
    )
    scores = features @ torch.tensor([[0.0, 1.0], [0.0, -1.0]], dtype=torch.float64).T
    probs = probabilities(EM(), UnlabeledPool(features, scores, 0.1, None))
    np.testing.assert_allclose(probs[4], [0.5, 0.5], atol=1e-9)
    np.testing.assert_allclose(probs[0], probs[2, ::-1], atol=1e-9)
