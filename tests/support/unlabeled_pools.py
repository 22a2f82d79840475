"""Makes small pools of unlabelled images, and computes in NumPy what the oracles of transductive rules share."""

import numpy as np
import torch

from lgclip.methods.transduction.base import Transduction, UnlabeledPool

TEMPERATURE = 0.1


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def random_pool(seed: int, n: int = 12, c: int = 3, d: int = 5, has_prototypes: bool = True) -> UnlabeledPool:
    """Returns images around the prototypes of random classes, in double precision."""
    rng = np.random.default_rng(seed)
    prototypes = unit(rng.normal(size=(c, d)))
    features = unit(prototypes[rng.integers(c, size=n)] + 0.5 * rng.normal(size=(n, d)))
    scores = torch.from_numpy(features @ prototypes.T)
    anchors = torch.from_numpy(prototypes) if has_prototypes else None
    return UnlabeledPool(torch.from_numpy(features), scores, TEMPERATURE, anchors)


def arrays(pool: UnlabeledPool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns features, probabilities at the start, and prototypes or their stand-ins."""
    features = pool.features.numpy()
    probs = softmax(pool.scores.numpy() / pool.temperature)
    if pool.prototypes is not None:
        return features, probs, pool.prototypes.numpy()
    return features, probs, unit(probs.T @ features)


def cosine_graph(features: np.ndarray, k: int) -> np.ndarray:
    """Returns the cosines to the k nearest other images in the row of each image, else 0."""
    cosines = features @ features.T
    graph = np.zeros_like(cosines)
    for image, row in enumerate(cosines):
        others = [other for other in np.argsort(-row, kind="stable") if other != image]
        graph[image, others[:k]] = row[others[:k]]
    return graph


def probabilities(rule: Transduction, pool: UnlabeledPool) -> np.ndarray:
    return rule.refine(pool).softmax(dim=1).numpy()
