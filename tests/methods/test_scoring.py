"""Tests each scoring rule against its formula in NumPy."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lgclip.methods.calibration import Choice
from lgclip.methods.prototypes import SupportSet
from lgclip.methods.scoring import GDA, Affinity, Cache, Mean, Nearest, ScoringRule, Signature, WeightedKNN
from lgclip.methods.selection import First

CLASSES = 4
WIDTH = 6
RULES = [
    Mean(),
    Mean(False),
    GDA(),
    Nearest(),
    Nearest(3),
    WeightedKNN(5, 0.1),
    Affinity(),
    Cache(2.0, 3.0),
    Signature(),
]


def rows(seed: int, n: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(n, WIDTH))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def random_features(seed: int, uneven: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns queries, images and labels; classes have unequal sizes if `uneven`."""
    labels = np.arange(20) % CLASSES
    if uneven:
        labels[9:] = labels[9:] // 2
    return rows(seed, 7), rows(seed + 1, 20), labels


def scored(rule: ScoringRule, queries: np.ndarray, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    support = SupportSet(torch.from_numpy(images), torch.from_numpy(labels), CLASSES)
    return rule.fit(support)(torch.from_numpy(queries)).numpy()


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def centroids(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    mean = np.stack([images[labels == c].mean(axis=0) for c in range(CLASSES)])
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def expected(rule: Any, queries: np.ndarray, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Computes the formula class by class and image by image."""
    cosines = queries @ images.T
    members = [np.flatnonzero(labels == c) for c in range(CLASSES)]
    match rule:
        case Mean(renormalize=True):
            return queries @ centroids(images, labels).T
        case Mean():
            return np.stack([cosines[:, columns].mean(axis=1) for columns in members], axis=1)
        case GDA():
            means = np.stack([images[columns].mean(axis=0) for columns in members])
            scatter = sum(np.outer(x - means[c], x - means[c]) for x, c in zip(images, labels, strict=True))
            shrunk = np.cov((images - means[labels]).T) + np.trace(scatter) / (len(images) - 1) ** 2 * np.eye(WIDTH)
            precision = np.linalg.inv(shrunk)
            precision *= WIDTH / np.trace(precision)
            # The log-likelihoods of Gaussians, up to what all classes share.
            distances = queries[:, None] - means[None]
            likelihood = -0.5 * np.einsum("qcd,de,qce->qc", distances, precision, distances)
            return likelihood + 0.5 * np.einsum("qd,de,qe->q", queries, precision, queries)[:, None]
        case Nearest(n=n):
            return np.stack([np.sort(cosines[:, columns])[:, -n:].mean(axis=1) for columns in members], axis=1)
        case Affinity(beta=beta):
            return np.stack([np.exp(-beta * (1 - cosines[:, columns])).mean(axis=1) for columns in members], axis=1)
        case Cache(alpha=alpha, beta=beta):
            logits = [alpha * np.exp(-beta * (1 - cosines[:, columns])).sum(axis=1) for columns in members]
            return np.stack(logits, axis=1) / 100
        case Signature(temperature=t, beta=beta):
            p, q = (softmax(x @ centroids(images, labels).T / t) for x in (queries, images))
            kl = np.array([[(a * np.log(a / b)).sum() for b in q] for a in p])
            return np.stack([np.exp(-beta * kl[:, columns]).mean(axis=1) for columns in members], axis=1)
    raise AssertionError(rule)


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("rule", [rule for rule in RULES if not isinstance(rule, WeightedKNN)], ids=str)
def test_scoring_matches_its_formula(rule: ScoringRule, uneven: bool) -> None:
    for seed in range(5):
        case = random_features(seed, uneven)
        np.testing.assert_allclose(scored(rule, *case), expected(rule, *case), atol=1e-6)


@given(st.integers(0, 999), st.integers(1, 30), st.floats(0.01, 1))
def test_knn_votes_then_averages(seed: int, k: int, temperature: float) -> None:
    queries, images, labels = random_features(seed, uneven=True)
    scores = scored(WeightedKNN(k, temperature), queries, images, labels)
    for query, actual in zip(queries, scores, strict=True):
        cosines = images @ query
        near = np.argsort(-cosines)[:k]
        weights = np.exp((cosines[near] - cosines[near].max()) / temperature)
        votes = np.bincount(labels[near], weights, minlength=CLASSES) / weights.sum()
        voted = votes > 0
        np.testing.assert_allclose(actual[voted], votes[voted] + 1, atol=1e-6)
        if not voted.all():
            rest = [cosines[labels == c].mean() for c in np.flatnonzero(~voted)]
            np.testing.assert_allclose(actual[~voted], np.array(rest) - 1, atol=1e-5)
            assert actual[~voted].max() <= actual[voted].min(), "a vote is worth more than none"


def test_knn_over_all_is_the_mean_similarity() -> None:
    case = random_features(3, uneven=True)
    np.testing.assert_allclose(scored(Nearest(99), *case), scored(Mean(False), *case), atol=1e-9)


@given(st.integers(0, 999), st.floats(0.01, 20), st.floats(0.1, 20))
def test_fusion_with_the_cache_is_half_of_tip_adapter(seed: int, alpha: float, beta: float) -> None:
    """Checks against the logits of the paper, written as there: one-hot labels as values of the cache."""
    queries, images, labels = random_features(seed, uneven=True)
    text = rows(seed + 2, CLASSES)
    affinity = np.exp(-beta * (1 - queries @ images.T))
    published = 100 * queries @ text.T + alpha * affinity @ np.eye(CLASSES)[labels]
    support = SupportSet(torch.from_numpy(images), torch.from_numpy(labels), CLASSES)
    score = Choice(Cache(alpha, beta), First(), 0.5).fit(support, torch.from_numpy(text))
    np.testing.assert_allclose(score(torch.from_numpy(queries)), published / 200, atol=1e-9)


def test_means_can_disagree() -> None:
    """Checks a class of scattered images, whose short mean lowers the average cosine but not the centroid's."""
    images = np.array([[1, 0], [0, 1], [0.6, 0.8], [0.6, 0.8]], dtype=float)
    query = np.array([[0.66, 0.75]]) / np.linalg.norm([0.66, 0.75])
    support = SupportSet(torch.from_numpy(images), torch.tensor([0, 0, 1, 1]), 2)
    centroid, average = (Mean(unit).fit(support)(torch.from_numpy(query)).argmax() for unit in (True, False))
    assert (int(centroid), int(average)) == (0, 1)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_class_without_images_is_named(rule: ScoringRule) -> None:
    with pytest.raises(ValueError, match=r"classes \[2, 3\]"):
        rule.fit(SupportSet(torch.from_numpy(rows(0, 2)), torch.tensor([0, 1]), CLASSES))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_candidates_start_with_the_configured_rule(rule: ScoringRule) -> None:
    candidates = rule.candidates()
    assert candidates[0] == rule
    assert len(set(candidates)) == len(candidates)
    assert {type(candidate) for candidate in candidates} == {type(rule)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Nearest(0), "prototype.n=0"),
        (lambda: WeightedKNN(0), "prototype.k=0"),
        (lambda: WeightedKNN(temperature=0), "prototype.temperature=0"),
        (lambda: Affinity(-1.0), "prototype.beta=-1"),
        (lambda: Affinity(float("nan")), "prototype.beta=nan"),
        (lambda: Cache(alpha=0.0), "prototype.alpha=0"),
        (lambda: Cache(beta=float("inf")), "prototype.beta=inf"),
        (lambda: Signature(0.0), "prototype.temperature=0"),
        (lambda: Signature(0.1, 0.0), "prototype.beta=0"),
    ],
)
def test_invalid_values_are_rejected(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
