"""Tests TDA against its formula, image by image, and that it looks at earlier images only."""

import math

import numpy as np
import pytest
import torch
from unlabeled_pools import arrays, random_pool

from lgclip.methods.transduction.base import UnlabeledPool
from lgclip.methods.transduction.tda import QUERIES, TDA, track_cache


def insert(cache: dict[int, list[tuple[float, int]]], label: int, entropy: float, image: int, size: int) -> None:
    """Keeps the images of the lowest entropy of a class."""
    items = cache.setdefault(label, [])
    if len(items) < size:
        items.append((entropy, image))
    elif items and entropy < items[-1][0]:
        items[-1] = (entropy, image)
    items.sort(key=lambda item: item[0])


def expected(rule: TDA, pool: UnlabeledPool) -> np.ndarray:
    f, y, _ = arrays(pool)
    num_classes = y.shape[1]
    logits = pool.scores.numpy() / pool.temperature
    positive: dict[int, list[tuple[float, int]]] = {}
    negative: dict[int, list[tuple[float, int]]] = {}
    for image, probs in enumerate(y):
        label, entropy = int(probs.argmax()), float(-(probs * np.log(probs)).sum())
        insert(positive, label, entropy, image, rule.positive_size)
        if rule.negative_entropy[0] < entropy / math.log2(num_classes) < rule.negative_entropy[1]:
            insert(negative, label, entropy, image, rule.negative_size)
        for key, items in positive.items():
            for _, item in items:
                similarity = np.exp(-rule.positive_sharpness * (1 - f[image] @ f[item]))
                logits[image, key] += rule.positive_weight * similarity
        for _, item in (item for items in negative.values() for item in items):
            similarity = np.exp(-rule.negative_sharpness * (1 - f[image] @ f[item]))
            unlikely = (y[item] > rule.negative_probs[0]) & (y[item] < rule.negative_probs[1])
            logits[image] -= rule.negative_weight * similarity * unlikely
    return logits


@pytest.mark.parametrize(
    "rule", [TDA(), TDA(1, 3.0, 2.0, 3, 1.0, 4.0, (0.05, 0.7), (0.1, 0.6)), TDA(negative_size=0)], ids=str
)
@pytest.mark.parametrize("n", [1, 30, QUERIES + 20])
def test_tda_matches_its_formula(rule: TDA, n: int) -> None:
    for seed in range(2):
        pool = random_pool(seed, n, c=4)
        np.testing.assert_allclose(rule.refine(pool).numpy(), expected(rule, pool), atol=1e-7)


def test_first_image_by_hand() -> None:
    """Checks that an image is in the cache when it is scored: its class gains the weight, its cosine being 1."""
    scores = torch.tensor([[1.0, 0.0]])
    logits = TDA().refine(UnlabeledPool(torch.tensor([[1.0, 0.0]]), scores, 0.01, None))
    torch.testing.assert_close(logits, torch.tensor([[102.0, 0.0]]))


def test_cache_replaces_the_least_sure_image() -> None:
    entropies = torch.tensor([0.5, 0.7, 0.7, 0.6, 0.9, 0.7], dtype=torch.float64)
    classes = torch.zeros(6, dtype=torch.long)
    cache = track_cache(classes, entropies, range(6), size=2)
    # Image 3 replaces image 1, the later of the two at 0.7 never enters, nor do images 4 and 5.
    assert cache.images.tolist() == [0, 1, 3]
    assert cache.removed.tolist() == [6, 3, 6]


@pytest.mark.parametrize("length", [1, 17, QUERIES + 1])
def test_an_image_depends_on_earlier_images_alone(length: int) -> None:
    pool = random_pool(5, n=QUERIES + 40, c=4)
    beginning = pool._replace(features=pool.features[:length], scores=pool.scores[:length])
    torch.testing.assert_close(TDA().refine(pool)[:length], TDA().refine(beginning), atol=1e-12, rtol=0)


def test_order_of_the_stream_matters() -> None:
    pool = random_pool(5, n=40)
    backwards = pool._replace(features=pool.features.flip(0), scores=pool.scores.flip(0))
    assert not torch.allclose(TDA().refine(pool), TDA().refine(backwards).flip(0), atol=0.1)
    assert TDA.is_online
