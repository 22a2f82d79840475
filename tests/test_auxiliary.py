"""The auxiliary classifier and what it adds to the text: against NumPy, and chosen on synthetic images alone."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from torch.nn.functional import normalize

from lgclip.auxiliary import Fusion, auxiliary, choose, fused, of_classes, softened
from lgclip.prototypes import Support

CLASSES, EACH, WIDTH = 4, 6, 8


def worlds(seed: int, noise: float = 1.0, each: int = EACH) -> tuple[Support, torch.Tensor]:
    """Synthetic images of four classes, and the directions that they lie around."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, WIDTH, generator=generator)
    labels = torch.arange(CLASSES).repeat_interleave(each)
    features = centres[labels] + noise * torch.randn(len(labels), WIDTH, generator=generator)
    return Support(normalize(features, dim=1), labels, CLASSES), normalize(centres, dim=1)


def units(seed: int, n: int) -> torch.Tensor:
    return normalize(torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed)), dim=1)


def by_hand(features: np.ndarray, images: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """The K images nearest to their class mean, then the mean of the cosines to them."""
    scores = np.zeros((len(features), CLASSES))
    for label in range(CLASSES):
        own = images[labels == label]
        mean = own.mean(axis=0) / np.linalg.norm(own.mean(axis=0))
        nearest = own[np.argsort(-(own @ mean))[:k]]
        scores[:, label] = (features @ nearest.T).mean(axis=1)
    return scores


@pytest.mark.parametrize("k", [1, 3, EACH])
def test_a_score_is_the_mean_cosine_to_the_images_nearest_to_their_class_mean(k: int) -> None:
    support, _ = worlds(0)
    features = units(1, 9)
    expected = by_hand(features.numpy(), support.features.numpy(), support.labels.numpy(), k)
    assert np.allclose(auxiliary(features, support, k), expected, atol=1e-6)


def test_without_a_number_all_images_count_and_a_small_class_keeps_what_it_has() -> None:
    support, _ = worlds(0)
    features = units(1, 9)
    assert torch.equal(auxiliary(features, support, None), auxiliary(features, support, EACH))
    fewer = support.take(torch.arange(CLASSES * EACH) >= EACH - 2)  # the first class has two left
    assert torch.allclose(auxiliary(features, fewer, 5)[:, 0], (features @ fewer.features[:2].T).mean(dim=1), atol=1e-6)


def test_the_images_of_some_classes_are_numbered_anew() -> None:
    support, _ = worlds(0)
    some = of_classes(support, (3, 1))
    assert some.num_classes == 2
    assert some.labels.tolist() == [1] * EACH + [0] * EACH
    assert torch.equal(some.features[EACH:], support.features[3 * EACH :])
    features = units(2, 5)
    assert torch.allclose(auxiliary(features, some, 3), auxiliary(features, support, 3)[:, [3, 1]], atol=1e-6)


@pytest.mark.parametrize("k", [0, EACH + 1])
def test_more_images_than_there_are_cannot_be_kept(k: int) -> None:
    with pytest.raises(ValueError, match=f"K={k} synthetic images of a class: it must be 1 to {EACH}"):
        auxiliary(units(0, 2), worlds(0)[0], k)


def test_a_class_without_an_image_is_named() -> None:
    support, _ = worlds(0)
    with pytest.raises(ValueError, match=r"classes \[2\]"):
        auxiliary(units(0, 2), support.take(support.labels != 2), 1)


@given(st.integers(0, 1000), st.floats(0.005, 10), st.floats(0, 20))
def test_probabilities_and_their_sum_are_numpys(seed: int, temperature: float, weight: float) -> None:
    one, two = units(seed, 7).double(), units(seed + 1, 7).double()
    text, aux = softened(one, temperature), softened(two, 0.1)
    assert np.allclose(text, softmax(one.numpy() / temperature, axis=1))
    paper = text.numpy() + weight * aux.numpy()
    got = fused(text, aux, weight)
    assert np.allclose(got, paper / paper.sum(axis=1, keepdims=True))
    assert np.allclose(got.sum(dim=1), 1)


def test_without_weight_the_text_stays_as_it_is() -> None:
    text, aux = softened(units(0, 7), 0.1), softened(units(1, 7), 0.1)
    assert torch.equal(fused(text, aux, 0.0), text)
    assert torch.equal(fused(text, aux, 1e6).argmax(dim=1), aux.argmax(dim=1))


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_values_out_of_range_are_refused(value: float) -> None:
    scores = units(0, 3)
    with pytest.raises(ValueError, match="temperature="):
        softened(scores, value)
    if value:
        with pytest.raises(ValueError, match="lambda="):
            fused(scores, scores, value)


def test_scores_that_are_no_numbers_are_refused() -> None:
    scores = units(0, 3)
    scores[1, 2] = math.nan
    with pytest.raises(ValueError, match="no finite number"):
        softened(scores, 0.1)


def likelihood(support: Support, text: torch.Tensor, fusion: Fusion) -> tuple[float, float]:
    """One image of every class at a time, written out."""
    images, labels = support.features.double().numpy(), support.labels.numpy()
    logs, right = [], 0
    for fold in range(EACH):
        out = np.array([label * EACH + fold for label in range(CLASSES)])
        rest = np.setdiff1d(np.arange(len(labels)), out)
        by_images = by_hand(images[out], images[rest], labels[rest], fusion.keep)
        p_text = softmax(images[out] @ text.double().numpy().T / fusion.text_temperature, axis=1)
        chances = p_text + fusion.weight * softmax(by_images / fusion.aux_temperature, axis=1)
        chances /= chances.sum(axis=1, keepdims=True)
        logs += np.log(chances[np.arange(CLASSES), np.arange(CLASSES)]).tolist()
        right += int((chances.argmax(axis=1) == np.arange(CLASSES)).sum())
    return float(np.mean(logs)), right / len(labels)


@pytest.mark.parametrize("seed", range(6))
def test_what_is_chosen_makes_left_out_images_likeliest(seed: int) -> None:
    support, _ = worlds(seed)
    text = units(seed + 50, CLASSES)
    keeps, weights = (1, 3, 5), (0.0, 0.5, 2.0)
    fusion, right = choose(support, text, keeps=keeps, weights=weights, text_temperature=0.2, aux_temperature=0.1)
    found = {
        (keep, weight): likelihood(support, text, Fusion(keep, weight, 0.2, 0.1))
        for keep in keeps
        for weight in weights
    }
    best = found[fusion.keep, fusion.weight]
    assert best[0] == pytest.approx(max(log for log, _ in found.values()), abs=1.01e-4)
    assert right == pytest.approx(best[1])


def test_chosen_temperatures_beat_their_neighbours() -> None:
    support, centres = worlds(3)
    text = normalize(centres + 0.5 * units(9, CLASSES), dim=1)
    fusion, _ = choose(support, text, keeps=[3], weights=[0.0])
    near = [fusion._replace(text_temperature=fusion.text_temperature * factor) for factor in (0.9, 1.0, 1.1)]
    logs = [likelihood(support, text, each)[0] for each in near]
    assert logs[1] == max(logs)
    fusion, _ = choose(support, text, keeps=[3], weights=[1e9])
    near = [fusion._replace(aux_temperature=fusion.aux_temperature * factor) for factor in (0.9, 1.0, 1.1)]
    logs = [likelihood(support, text, each)[0] for each in near]
    assert logs[1] == max(logs)


def test_the_better_of_the_two_gets_the_weight() -> None:
    support, centres = worlds(1, noise=0.6)
    noise = Support(units(7, CLASSES * EACH), support.labels, CLASSES)
    useless = units(8, CLASSES)
    assert choose(support, useless, weights=(0.0, 1.0, 4.0))[0].weight == 4.0
    assert choose(noise, useless, weights=(0.0, 1.0))[1] < 0.6
    own = Support(normalize(centres[support.labels] + 0.1 * noise.features, dim=1), support.labels, CLASSES)
    assert choose(own, centres)[1] == 1.0


def test_among_equals_the_first_values_are_chosen() -> None:
    support, centres = worlds(4, noise=0.01)
    found = [
        choose(support, centres, keeps=keeps, weights=[w, 0.0, 1.0])[0]
        for keeps in ([4, 2], [2, 4])
        for w in (1.0, 0.5)
    ]
    assert [(fusion.keep, fusion.weight) for fusion in found] == [(4, 1.0), (4, 0.5), (2, 1.0), (2, 0.5)]
    assert {fusion.text_temperature for fusion in found} == {0.01}, "CLIP's own where all is right at any"


def test_given_values_stay() -> None:
    support, centres = worlds(2)
    fusion, _ = choose(support, centres, keeps=[EACH], weights=[0.7], text_temperature=0.03, aux_temperature=0.04)
    assert fusion == Fusion(EACH, 0.7, 0.03, 0.04)


def test_what_cannot_be_chosen_is_refused() -> None:
    support, centres = worlds(2)
    with pytest.raises(ValueError, match=r"leave one out, classes \[0\] have fewer"):
        choose(support.take(torch.arange(CLASSES * EACH) >= EACH - 1), centres)
    for keeps, weights in (([EACH + 1], [1.0]), ([0], [1.0]), ([1], [])):
        with pytest.raises(ValueError, match="nothing to choose from"):
            choose(support, centres, keeps=keeps, weights=weights)
    with pytest.raises(ValueError, match="temperature=0"):
        choose(support, centres, text_temperature=0.0)
    with pytest.raises(ValueError, match="temperature=-1"):
        choose(support, centres, aux_temperature=-1.0)
    with pytest.raises(ValueError, match="lambda=-1"):
        choose(support, centres, weights=[-1.0])
