"""Tests that parameters are chosen on synthetic images alone, as a double loop would choose them."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from lgclip.methods.calibration import Choice, LeaveOneOut
from lgclip.methods.left_out import place_in_class
from lgclip.methods.prototypes import SupportSet
from lgclip.methods.scoring import GDA, Mean, Nearest, WeightedKNN
from lgclip.methods.selection import First, Medoid

CLASSES = 4
PER_CLASS = 5


def support(seed: int, noise: float = 1.2) -> SupportSet:
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(CLASSES, 8, generator=generator)
    labels = torch.arange(CLASSES).repeat_interleave(PER_CLASS)
    return SupportSet(
        normalize(centers[labels] + noise * torch.randn(len(labels), 8, generator=generator), dim=1), labels, CLASSES
    )


def left_out_right(choice: Choice, images: SupportSet, text: torch.Tensor | None) -> int:
    """Counts correct predictions with one image of every class left out at a time."""
    right = 0
    for fold in range(PER_CLASS):
        rest = [c * PER_CLASS + i for c, i in product(range(CLASSES), range(PER_CLASS)) if i != fold]
        score = choice.fit(images.take(torch.tensor(rest)), text)
        for c in range(CLASSES):
            right += int(score(images.features[[c * PER_CLASS + fold]]).argmax()) == c
    return right


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_best_candidate_is_selected(seed: int) -> None:
    images = support(seed)
    choice = Choice(Nearest(2), First(), 0.0)
    chosen, accuracy = LeaveOneOut(keeps=[1, 3]).choose(choice, images, None)
    candidates = [
        Choice(rule, selection, 0.0)
        for rule, selection in product(Nearest(2).candidates(), (First(), First(1), First(3)))
    ]
    counts = [left_out_right(candidate, images, None) for candidate in candidates]
    assert counts[candidates.index(chosen)] == max(counts)
    assert chosen == candidates[counts.index(max(counts))]
    assert accuracy == pytest.approx(max(counts) / (CLASSES * PER_CLASS))


def test_text_weights_are_tried_only_with_both() -> None:
    images = support(0)
    text = normalize(torch.randn(CLASSES, 8, generator=torch.Generator().manual_seed(9)), dim=1)
    weights = [0.1, 0.9]
    for text_weight, tried in ((0.5, [0.5, *weights]), (0.0, [0.0]), (1.0, [1.0])):
        candidates = LeaveOneOut(text_weights=weights)._candidates(Choice(Mean(), First(), text_weight))
        assert [candidate.text_weight for candidate in candidates] == tried
    chosen, _ = LeaveOneOut(text_weights=weights).choose(Choice(Mean(), First(), 0.5), images, text)
    assert chosen.text_weight == 0.1, "these sentences are noise"


def test_fixed_values_are_kept() -> None:
    choice = Choice(WeightedKNN(3), Medoid(2), 0.0)
    chosen, _ = LeaveOneOut(rules=False).choose(choice, support(1), None)
    assert chosen == choice


def test_no_real_image_is_used() -> None:
    """Checks that the same synthetic images give the same choice; nothing else is an input."""
    choice = Choice(WeightedKNN(), First(), 0.0)
    assert LeaveOneOut().choose(choice, support(2), None) == LeaveOneOut().choose(choice, support(2), None)


def test_unequal_classes_are_folded_separately() -> None:
    images = replace_labels(support(3), [0, 0, 0, 1, 1, 2, 2, 3, 3, 3])
    assert place_in_class(images).tolist() == [0, 1, 2, 0, 1, 0, 1, 0, 1, 2]
    _, accuracy = LeaveOneOut(rules=False).choose(Choice(Mean(), First(), 0.0), images, None)
    assert 0 <= accuracy <= 1


def replace_labels(images: SupportSet, labels: list[int]) -> SupportSet:
    return SupportSet(images.features[: len(labels)], torch.tensor(labels), CLASSES)


def test_single_image_class_cannot_be_left_out() -> None:
    images = replace_labels(support(0), [0, 0, 1, 2, 2, 3, 3])
    with pytest.raises(ValueError, match=r"two images of each class, classes \[1\] have fewer"):
        LeaveOneOut().choose(Choice(Mean(), First(), 0.0), images, None)


@pytest.mark.parametrize("setting", [{"keeps": [0]}, {"text_weights": [1.5]}, {"text_weights": [float("nan")]}])
def test_invalid_values_are_rejected(setting: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match=r"calibration\."):
        replace(LeaveOneOut(), **setting)  # pyright: ignore[reportArgumentType]


def test_gda_is_mixed_with_text_on_the_spread_of_cosines() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(12, 5, generator=generator), dim=1)
    text = torch.nn.functional.normalize(torch.randn(3, 5, generator=generator), dim=1)
    support = SupportSet(features, torch.arange(12) % 3, 3)
    queries = torch.nn.functional.normalize(torch.randn(7, 5, generator=generator), dim=1)
    scores = Choice(GDA(), First(), 0.25).fit(support, text)(queries).numpy()
    image = GDA().fit(support)
    factor = np.std((features @ text.T).numpy(), ddof=1) / np.std(image(features).numpy(), ddof=1)
    expected = 0.25 * (queries @ text.T).numpy() + 0.75 * factor * image(queries).numpy()
    np.testing.assert_allclose(scores, expected, atol=1e-5)
