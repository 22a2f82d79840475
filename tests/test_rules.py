"""Each rule against its formula in NumPy."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lgclip.prototypes import Support
from lgclip.rules import Affinity, Mean, Nearest, Rule, Signature, WeightedKNN

CLASSES, WIDTH = 4, 6
RULES = [Mean(), Mean(False), Nearest(), Nearest(3), WeightedKNN(5, 0.1), Affinity(), Signature()]


def rows(seed: int, n: int) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=(n, WIDTH))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def world(seed: int, uneven: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries, images and labels; classes of unequal size if `uneven`."""
    labels = np.arange(20) % CLASSES
    if uneven:
        labels[9:] = labels[9:] // 2
    return rows(seed, 7), rows(seed + 1, 20), labels


def scored(rule: Rule, queries: np.ndarray, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    support = Support(torch.from_numpy(images), torch.from_numpy(labels), CLASSES)
    return rule.fit(support)(torch.from_numpy(queries)).numpy()


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def centroids(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    mean = np.stack([images[labels == c].mean(axis=0) for c in range(CLASSES)])
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def expected(rule: Any, queries: np.ndarray, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The formula, class by class and image by image."""
    cosines, own = queries @ images.T, [np.flatnonzero(labels == c) for c in range(CLASSES)]
    match rule:
        case Mean(renormalise=True):
            return queries @ centroids(images, labels).T
        case Mean():
            return np.stack([cosines[:, at].mean(axis=1) for at in own], axis=1)
        case Nearest(n=n):
            return np.stack([np.sort(cosines[:, at])[:, -n:].mean(axis=1) for at in own], axis=1)
        case Affinity(beta=beta):
            return np.stack([np.exp(-beta * (1 - cosines[:, at])).mean(axis=1) for at in own], axis=1)
        case Signature(temperature=t, beta=beta):
            p, q = (softmax(x @ centroids(images, labels).T / t) for x in (queries, images))
            kl = np.array([[(a * np.log(a / b)).sum() for b in q] for a in p])
            return np.stack([np.exp(-beta * kl[:, at]).mean(axis=1) for at in own], axis=1)
    raise AssertionError(rule)


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("rule", [rule for rule in RULES if not isinstance(rule, WeightedKNN)], ids=str)
def test_a_rule_is_its_formula(rule: Rule, uneven: bool) -> None:
    for seed in range(5):
        case = world(seed, uneven)
        np.testing.assert_allclose(scored(rule, *case), expected(rule, *case), atol=1e-6)


@given(st.integers(0, 999), st.integers(1, 30), st.floats(0.01, 1))
def test_votes_of_the_nearest_and_then_mean_similarity(seed: int, k: int, temperature: float) -> None:
    queries, images, labels = world(seed, uneven=True)
    scores = scored(WeightedKNN(k, temperature), queries, images, labels)
    for query, found in zip(queries, scores, strict=True):
        cosines = images @ query
        near = np.argsort(-cosines)[:k]
        weights = np.exp((cosines[near] - cosines[near].max()) / temperature)
        votes = np.bincount(labels[near], weights, minlength=CLASSES) / weights.sum()
        voted = votes > 0
        np.testing.assert_allclose(found[voted], votes[voted] + 1, atol=1e-6)
        if not voted.all():
            rest = [cosines[labels == c].mean() for c in np.flatnonzero(~voted)]
            np.testing.assert_allclose(found[~voted], np.array(rest) - 1, atol=1e-5)
            assert found[~voted].max() <= found[voted].min(), "a vote is worth more than none"


def test_the_nearest_of_all_is_the_mean_similarity() -> None:
    case = world(3, uneven=True)
    np.testing.assert_allclose(scored(Nearest(99), *case), scored(Mean(False), *case), atol=1e-9)


def test_the_two_means_can_disagree() -> None:
    """A class of scattered images has a short mean: that lowers its average cosine, not its centroid's."""
    images = np.array([[1, 0], [0, 1], [0.6, 0.8], [0.6, 0.8]], dtype=float)
    query = np.array([[0.66, 0.75]]) / np.linalg.norm([0.66, 0.75])
    support = Support(torch.from_numpy(images), torch.tensor([0, 0, 1, 1]), 2)
    centroid, average = (Mean(unit).fit(support)(torch.from_numpy(query)).argmax() for unit in (True, False))
    assert (int(centroid), int(average)) == (0, 1)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_class_without_images_is_named(rule: Rule) -> None:
    with pytest.raises(ValueError, match=r"classes \[2, 3\]"):
        rule.fit(Support(torch.from_numpy(rows(0, 2)), torch.tensor([0, 1]), CLASSES))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_candidates_differ_and_begin_with_what_the_config_says(rule: Rule) -> None:
    candidates = rule.candidates()
    assert candidates[0] == rule
    assert len(set(candidates)) == len(candidates)
    assert {type(other) for other in candidates} == {type(rule)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Nearest(0), "prototype.n=0"),
        (lambda: WeightedKNN(0), "prototype.k=0"),
        (lambda: WeightedKNN(temperature=0), "prototype.temperature=0"),
        (lambda: Affinity(-1.0), "prototype.beta=-1"),
        (lambda: Affinity(float("nan")), "prototype.beta=nan"),
        (lambda: Signature(0.0), "prototype.temperature=0"),
        (lambda: Signature(0.1, 0.0), "prototype.beta=0"),
    ],
)
def test_values_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
