"""Parameters are chosen by synthetic images alone, as a double loop would choose them."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from lgclip.calibration import Choice, LeaveOneOut, place_in_class
from lgclip.prototypes import Support
from lgclip.rules import Mean, Nearest, WeightedKNN
from lgclip.selection import First, Medoid

CLASSES, EACH = 4, 5


def support(seed: int, noise: float = 1.2) -> Support:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, 8, generator=generator)
    labels = torch.arange(CLASSES).repeat_interleave(EACH)
    return Support(
        normalize(centres[labels] + noise * torch.randn(len(labels), 8, generator=generator), dim=1), labels, CLASSES
    )


def left_out_right(choice: Choice, images: Support, text: torch.Tensor | None) -> int:
    """One image of every class at a time, written out."""
    right = 0
    for fold in range(EACH):
        rest = [c * EACH + i for c in range(CLASSES) for i in range(EACH) if i != fold]
        score = choice.fit(images.take(torch.tensor(rest)), text)
        for c in range(CLASSES):
            right += int(score(images.features[[c * EACH + fold]]).argmax()) == c
    return right


@pytest.mark.parametrize("seed", range(6))
def test_the_best_candidate_is_chosen_and_the_first_among_equals(seed: int) -> None:
    images = support(seed)
    given = Choice(Nearest(2), First(), 0.0)
    chosen, accuracy = LeaveOneOut(keeps=[1, 3]).choose(given, images, None)
    candidates = [
        Choice(rule, selection, 0.0) for rule in Nearest(2).candidates() for selection in (First(), First(1), First(3))
    ]
    counts = [left_out_right(candidate, images, None) for candidate in candidates]
    assert counts[candidates.index(chosen)] == max(counts)
    assert chosen == candidates[counts.index(max(counts))]
    assert accuracy == pytest.approx(max(counts) / (CLASSES * EACH))


def test_text_weights_are_tried_only_where_both_are_used() -> None:
    images = support(0)
    text = normalize(torch.randn(CLASSES, 8, generator=torch.Generator().manual_seed(9)), dim=1)
    weights = [0.1, 0.9]
    for given, tried in ((0.5, [0.5, *weights]), (0.0, [0.0]), (1.0, [1.0])):
        candidates = LeaveOneOut(text_weights=weights)._candidates(Choice(Mean(), First(), given))
        assert [candidate.text_weight for candidate in candidates] == tried
    chosen, _ = LeaveOneOut(text_weights=weights).choose(Choice(Mean(), First(), 0.5), images, text)
    assert chosen.text_weight == 0.1, "these sentences are noise"


def test_what_the_config_fixes_stays() -> None:
    given = Choice(WeightedKNN(3), Medoid(2), 0.0)
    chosen, _ = LeaveOneOut(rules=False).choose(given, support(1), None)
    assert chosen == given


def test_no_real_image_is_asked_for() -> None:
    """The same synthetic images give the same choice: nothing else goes in."""
    given = Choice(WeightedKNN(), First(), 0.0)
    assert LeaveOneOut().choose(given, support(2), None) == LeaveOneOut().choose(given, support(2), None)


def test_classes_of_unequal_size_are_folded_by_their_own_count() -> None:
    images = replace_labels(support(3), [0, 0, 0, 1, 1, 2, 2, 3, 3, 3])
    assert place_in_class(images).tolist() == [0, 1, 2, 0, 1, 0, 1, 0, 1, 2]
    _, accuracy = LeaveOneOut(rules=False).choose(Choice(Mean(), First(), 0.0), images, None)
    assert 0 <= accuracy <= 1


def replace_labels(images: Support, labels: list[int]) -> Support:
    return Support(images.features[: len(labels)], torch.tensor(labels), CLASSES)


def test_a_class_with_one_image_cannot_be_left_out() -> None:
    images = replace_labels(support(0), [0, 0, 1, 2, 2, 3, 3])
    with pytest.raises(ValueError, match=r"two images of each class, classes \[1\] have fewer"):
        LeaveOneOut().choose(Choice(Mean(), First(), 0.0), images, None)


@pytest.mark.parametrize("setting", [{"keeps": [0]}, {"text_weights": [1.5]}, {"text_weights": [float("nan")]}])
def test_values_out_of_range_are_refused(setting: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match=r"calibration\."):
        replace(LeaveOneOut(), **setting)  # pyright: ignore[reportArgumentType]
