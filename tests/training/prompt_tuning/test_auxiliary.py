"""Tests the auxiliary classifier and its fusion with the text against NumPy, tuned on synthetic images alone."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from torch.nn.functional import normalize

from lgclip.methods.prototypes import SupportSet
from lgclip.training.prompt_tuning.auxiliary_classifier import (
    Fusion,
    auxiliary,
    centered,
    centered_support,
    choose,
    fused,
    of_classes,
    softened,
)

CLASSES = 4
PER_CLASS = 6
WIDTH = 8


def random_support(seed: int, noise: float = 1.0, per_class: int = PER_CLASS) -> tuple[SupportSet, torch.Tensor]:
    """Returns synthetic images of four classes and their centers."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(CLASSES, WIDTH, generator=generator)
    labels = torch.arange(CLASSES).repeat_interleave(per_class)
    features = centers[labels] + noise * torch.randn(len(labels), WIDTH, generator=generator)
    return SupportSet(normalize(features, dim=1), labels, CLASSES), normalize(centers, dim=1)


def units(seed: int, n: int) -> torch.Tensor:
    return normalize(torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed)), dim=1)


def reference_scores(features: np.ndarray, images: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Computes the mean cosine to the K images nearest to their class mean."""
    scores = np.zeros((len(features), CLASSES))
    for label in range(CLASSES):
        members = images[labels == label]
        mean = members.mean(axis=0) / np.linalg.norm(members.mean(axis=0))
        nearest = members[np.argsort(-(members @ mean))[:k]]
        scores[:, label] = (features @ nearest.T).mean(axis=1)
    return scores


@pytest.mark.parametrize("k", [1, 3, PER_CLASS])
def test_auxiliary_score_is_the_mean_cosine(k: int) -> None:
    support, _ = random_support(0)
    features = units(1, 9)
    expected = reference_scores(features.numpy(), support.features.numpy(), support.labels.numpy(), k)
    assert np.allclose(auxiliary(features, support, k), expected, atol=1e-6)


def test_all_images_count_by_default() -> None:
    support, _ = random_support(0)
    features = units(1, 9)
    assert torch.equal(auxiliary(features, support, None), auxiliary(features, support, PER_CLASS))
    fewer = support.take(torch.arange(CLASSES * PER_CLASS) >= PER_CLASS - 2)  # the first class has two left
    assert torch.allclose(auxiliary(features, fewer, 5)[:, 0], (features @ fewer.features[:2].T).mean(dim=1), atol=1e-6)


def test_class_subset_is_renumbered() -> None:
    support, _ = random_support(0)
    subset = of_classes(support, (3, 1))
    assert subset.num_classes == 2
    assert subset.labels.tolist() == [1] * PER_CLASS + [0] * PER_CLASS
    assert torch.equal(subset.features[PER_CLASS:], support.features[3 * PER_CLASS :])
    features = units(2, 5)
    assert torch.allclose(auxiliary(features, subset, 3), auxiliary(features, support, 3)[:, [3, 1]], atol=1e-6)


@pytest.mark.parametrize("k", [0, PER_CLASS + 1])
def test_too_large_k_is_rejected(k: int) -> None:
    with pytest.raises(ValueError, match=f"K={k} synthetic images of a class: it must be 1 to {PER_CLASS}"):
        auxiliary(units(0, 2), random_support(0)[0], k)


def test_class_without_images_is_named() -> None:
    support, _ = random_support(0)
    with pytest.raises(ValueError, match=r"classes \[2\]"):
        auxiliary(units(0, 2), support.take(support.labels != 2), 1)


@given(st.integers(0, 1000), st.floats(0.005, 10), st.floats(0, 20))
def test_fused_probabilities_match_numpy(seed: int, temperature: float, weight: float) -> None:
    first = units(seed, 7).double()
    two = units(seed + 1, 7).double()
    text = softened(first, temperature)
    aux = softened(two, 0.1)
    assert np.allclose(text, softmax(first.numpy() / temperature, axis=1))
    paper = text.numpy() + weight * aux.numpy()
    scores = fused(text, aux, weight)
    assert np.allclose(scores, paper / paper.sum(axis=1, keepdims=True))
    assert np.allclose(scores.sum(dim=1), 1)


def test_zero_weight_keeps_the_text() -> None:
    text = softened(units(0, 7), 0.1)
    aux = softened(units(1, 7), 0.1)
    assert torch.equal(fused(text, aux, 0.0), text)
    assert torch.equal(fused(text, aux, 1e6).argmax(dim=1), aux.argmax(dim=1))


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_invalid_values_are_rejected(value: float) -> None:
    scores = units(0, 3)
    with pytest.raises(ValueError, match="temperature="):
        softened(scores, value)
    if value:
        with pytest.raises(ValueError, match="lambda="):
            fused(scores, scores, value)


def test_nan_scores_are_rejected() -> None:
    scores = units(0, 3)
    scores[1, 2] = math.nan
    with pytest.raises(ValueError, match="non-finite values"):
        softened(scores, 0.1)


def likelihood(support: SupportSet, text: torch.Tensor, fusion: Fusion) -> tuple[float, float]:
    """Computes the likelihood with one image of every class left out at a time."""
    images = support.features.double().numpy()
    labels = support.labels.numpy()
    logs = []
    right = 0
    for fold in range(PER_CLASS):
        out = np.array([label * PER_CLASS + fold for label in range(CLASSES)])
        rest = np.setdiff1d(np.arange(len(labels)), out)
        by_images = reference_scores(images[out], images[rest], labels[rest], fusion.keep)
        p_text = softmax(images[out] @ text.double().numpy().T / fusion.text_temperature, axis=1)
        probs = p_text + fusion.weight * softmax(by_images / fusion.aux_temperature, axis=1)
        probs /= probs.sum(axis=1, keepdims=True)
        logs += np.log(probs[np.arange(CLASSES), np.arange(CLASSES)]).tolist()
        right += int((probs.argmax(axis=1) == np.arange(CLASSES)).sum())
    return float(np.mean(logs)), right / len(labels)


@pytest.mark.parametrize("seed", range(6))
def test_tuned_values_maximize_left_out_likelihood(seed: int) -> None:
    support, _ = random_support(seed)
    text = units(seed + 50, CLASSES)
    keeps = (1, 3, 5)
    weights = (0.0, 0.5, 2.0)
    fusion, right, _ = choose(support, text, keeps=keeps, weights=weights, text_temperature=0.2, aux_temperature=0.1)
    scores_by_choice = {
        (keep_count, weight): likelihood(support, text, Fusion(keep_count, weight, 0.2, 0.1))
        for keep_count, weight in product(keeps, weights)
    }
    best = scores_by_choice[fusion.keep, fusion.weight]
    assert best[0] == pytest.approx(max(log for log, _ in scores_by_choice.values()), abs=1.01e-4)
    assert right == pytest.approx(best[1])


def test_tuned_temperatures_are_local_optima() -> None:
    support, centers = random_support(3)
    text = normalize(centers + 0.5 * units(9, CLASSES), dim=1)
    fusion = choose(support, text, keeps=[3], weights=[0.0]).fusion
    near = [fusion._replace(text_temperature=fusion.text_temperature * factor) for factor in (0.9, 1.0, 1.1)]
    logs = [likelihood(support, text, candidate)[0] for candidate in near]
    assert logs[1] == max(logs)
    fusion = choose(support, text, keeps=[3], weights=[1e9]).fusion
    near = [fusion._replace(aux_temperature=fusion.aux_temperature * factor) for factor in (0.9, 1.0, 1.1)]
    logs = [likelihood(support, text, candidate)[0] for candidate in near]
    assert logs[1] == max(logs)


def test_better_classifier_gets_the_weight() -> None:
    support, centers = random_support(1, noise=0.6)
    noise = SupportSet(units(7, CLASSES * PER_CLASS), support.labels, CLASSES)
    useless = units(8, CLASSES)
    assert choose(support, useless, weights=(0.0, 1.0, 4.0)).fusion.weight == 4.0
    assert choose(noise, useless, weights=(0.0, 1.0)).correct < 0.6
    tight = SupportSet(normalize(centers[support.labels] + 0.1 * noise.features, dim=1), support.labels, CLASSES)
    assert choose(tight, centers).correct == 1.0


def test_ties_keep_the_first_values() -> None:
    support, centers = random_support(4, noise=0.01)
    choices = [
        choose(support, centers, keeps=keeps, weights=[w, 0.0, 1.0]).fusion
        for keeps, w in product(([4, 2], [2, 4]), (1.0, 0.5))
    ]
    assert [(fusion.keep, fusion.weight) for fusion in choices] == [(4, 1.0), (4, 0.5), (2, 1.0), (2, 0.5)]
    assert {fusion.text_temperature for fusion in choices} == {0.01}, "CLIP's own where all is right at any"


def test_fixed_values_are_kept() -> None:
    support, centers = random_support(2)
    selection = choose(support, centers, keeps=[PER_CLASS], weights=[0.7], text_temperature=0.03, aux_temperature=0.04)
    assert selection.fusion == Fusion(PER_CLASS, 0.7, 0.03, 0.04)


def test_only_a_text_that_is_nearly_always_right_is_saturated() -> None:
    support, centers = random_support(4, noise=0.01)
    selection = choose(support, centers)
    assert (selection.text_correct, selection.saturated) == (1.0, True)
    wrong = centers.roll(1, dims=0)
    selection = choose(support, wrong)
    assert selection.text_correct == 0.0
    assert not selection.saturated
    assert selection.correct == 1.0, "the images are right where the text is wrong"


def test_centering_removes_what_all_images_share() -> None:
    support, centers = random_support(5, noise=0.3)
    shift = 3 * units(60, 1)[0]
    shifted = SupportSet(normalize(support.features + shift, dim=1), support.labels, CLASSES)
    shifted_mean = shifted.means(renormalize=False).mean(dim=0)
    assert centered_support(shifted).features.mean(dim=0).norm() < 0.2 < 0.6 < shifted_mean.norm()
    torch.testing.assert_close(
        centered_support(shifted).features, normalize(shifted.features - shifted_mean, dim=1), rtol=0, atol=0
    )
    # Real images without the shift are compared with shifted ones: centers alone make them comparable.
    real = normalize(centers.repeat_interleave(20, dim=0) + 0.3 * units(61, 20 * CLASSES), dim=1)
    truth = torch.arange(CLASSES).repeat_interleave(20)
    after = auxiliary(centered(real, real.mean(dim=0)), centered_support(shifted), None).argmax(dim=1)
    before = auxiliary(real, shifted, None).argmax(dim=1)
    assert (after == truth).float().mean() >= (before == truth).float().mean()
    assert choose(shifted, centers, centering=True, keeps=[PER_CLASS], weights=[1e9]).correct >= 0.9


def test_untunable_support_is_rejected() -> None:
    support, centers = random_support(2)
    with pytest.raises(ValueError, match=r"leave one out, classes \[0\] have fewer"):
        choose(support.take(torch.arange(CLASSES * PER_CLASS) >= PER_CLASS - 1), centers)
    for keeps, weights in (([PER_CLASS + 1], [1.0]), ([0], [1.0]), ([1], [])):
        with pytest.raises(ValueError, match="nothing to choose from"):
            choose(support, centers, keeps=keeps, weights=weights)
    with pytest.raises(ValueError, match="temperature=0"):
        choose(support, centers, text_temperature=0.0)
    with pytest.raises(ValueError, match="temperature=-1"):
        choose(support, centers, aux_temperature=-1.0)
    with pytest.raises(ValueError, match="lambda=-1"):
        choose(support, centers, weights=[-1.0])
