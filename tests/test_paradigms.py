"""Which labels may be known: the release's draws are met, and a division tells no hidden label."""

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from scipy.stats import hmean

from lgclip.identity import inputs_of
from lgclip.paradigms import KINDS, Division, Paradigm, harmonic

CONF = Path(__file__).parents[1] / "conf" / "paradigm"
SEEDS = (500, 0, 200)
UNSEEN = {  # of EuroSAT's 10, RESISC45's 45 and Flowers102's 102 classes
    (10, 500): [1, 6, 7, 8],
    (10, 0): [0, 3, 5, 7],
    (10, 200): [0, 2, 4, 9],
    (45, 500): [1, 6, 7, 8, 13, 14, 15, 17, 18, 19, 21, 23, 26, 31, 36, 37, 39, 42],
    (45, 0): [0, 1, 3, 6, 7, 9, 12, 19, 21, 23, 24, 26, 33, 34, 36, 39, 42, 44],
    (45, 200): [1, 4, 6, 7, 9, 11, 12, 14, 15, 16, 19, 25, 26, 27, 36, 38, 39, 41],
    (102, 500): [2, 10, 13, 14, 15, 16, 17, 18, 19, 28, 29, 31, 34, 37, 41, 42, 46, 47, 55, 56, 57, 59, 60, 61,
        62, 65, 68, 70, 71, 72, 74, 77, 78, 83, 85, 90, 91, 98, 100],
    (102, 0): [9, 12, 14, 19, 20, 21, 25, 29, 32, 36, 37, 39, 44, 46, 47, 49, 57, 58, 63, 64, 65, 67, 69, 70,
        71, 72, 77, 78, 81, 83, 85, 86, 87, 88, 90, 96, 98, 99, 100],
    (102, 200): [1, 6, 7, 11, 14, 15, 16, 20, 22, 23, 24, 26, 27, 31, 32, 35, 42, 45, 50, 51, 54, 55, 56, 57,
        59, 61, 68, 70, 73, 76, 79, 84, 85, 89, 91, 94, 98, 99, 100],
}  # fmt: skip


def places(division: Division) -> tuple[list[int], list[int]]:
    return division.labelled.tolist(), division.unlabelled.tolist()


@pytest.mark.parametrize(("num_classes", "seed"), UNSEEN)
def test_the_unseen_classes_of_the_published_seeds_are_these(num_classes: int, seed: int) -> None:
    seen = Paradigm("trzsl", split_seed=seed).seen_classes(num_classes)
    assert [label for label in range(num_classes) if label not in seen] == UNSEEN[num_classes, seed]
    assert len(seen) == {10: 6, 45: 27, 102: 63}[num_classes]


@given(st.integers(2, 300), st.integers(0, 2**32 - 1))
def test_seen_classes_are_drawn_as_the_release_draws_them_and_no_global_number_is_used(classes: int, seed: int) -> None:
    state = np.random.get_state()
    try:
        np.random.seed(1)
        got = Paradigm("trzsl", split_seed=seed).seen_classes(classes)
        after = np.random.random()
        np.random.seed(1)
        assert after == np.random.random()
        np.random.seed(seed)
        drawn = np.random.choice(range(classes), size=int(classes * 0.62), replace=False)
    finally:
        np.random.set_state(state)
    assert got == tuple(sorted(drawn.tolist()))


def test_two_images_of_each_class_are_drawn_as_the_release_draws_them() -> None:
    labels = np.random.default_rng(3).integers(0, 7, 200)
    chosen = []
    state = np.random.get_state()
    for label in range(7):
        np.random.seed(0)
        chosen += np.random.choice(np.where(labels == label)[0], size=2, replace=False).tolist()
    np.random.set_state(state)
    division = Paradigm("ssl").divide(labels.tolist(), 7)
    assert division.labelled.tolist() == chosen, "class by class, in the order of the draw"
    assert sorted(chosen + division.unlabelled.tolist()) == list(range(200))
    assert division.seen == division.targets == tuple(range(7))
    assert division.unseen == ()


def test_the_few_labelled_images_of_a_sorted_pool_are_these() -> None:
    division = Paradigm("ssl").divide([label for label in range(3) for _ in range(20)], 3)
    assert division.labelled.tolist() == [18, 1, 38, 21, 58, 41]
    assert (
        Paradigm("ssl", shots_seed=1).divide([0] * 20 + [1] * 20, 2).labelled.tolist() != division.labelled[:4].tolist()
    )


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_without_labels_a_division_is_the_same_whatever_they_are(labels: list[int]) -> None:
    division = Paradigm("ul").divide(labels, 5)
    assert places(division) == ([], list(range(len(labels))))
    assert (division.seen, division.unseen, division.targets) == ((), tuple(range(5)), tuple(range(5)))


@given(st.lists(st.integers(0, 9), min_size=40, max_size=80), st.randoms(use_true_random=False))
def test_hidden_labels_of_unseen_classes_change_nothing(labels: list[int], random: Random) -> None:
    paradigm = Paradigm("trzsl")
    seen = set(paradigm.seen_classes(10))
    labels = [*labels, *range(10)]
    hidden = [label for label in labels if label not in seen]
    random.shuffle(hidden)
    others = iter(hidden)
    changed = [label if label in seen else next(others) for label in labels]
    one, other = paradigm.divide(labels, 10), paradigm.divide(changed, 10)
    assert places(one) == places(other)
    assert one[2:] == other[2:]
    assert {labels[place] for place in one.labelled.tolist()} == seen == set(one.seen)
    assert not seen & {labels[place] for place in one.unlabelled.tolist()}
    assert one.targets == one.unseen == tuple(sorted(set(range(10)) - seen))


@pytest.mark.parametrize("kind", KINDS)
def test_a_division_holds_places_and_classes_and_no_label_of_an_unlabelled_image(kind: str) -> None:
    """The unlabelled images are what the labelled ones leave, in the pool's order: neither tells a class."""
    labels = np.random.default_rng(0).integers(0, 10, 120).tolist()
    division = Paradigm(kind).divide(labels, 10)
    assert division._fields == ("labelled", "unlabelled", "seen", "unseen", "targets")
    left = sorted(set(range(120)) - set(division.labelled.tolist()))
    assert division.unlabelled.tolist() == left
    assert division.labelled.dtype == division.unlabelled.dtype == torch.long


def test_seen_classes_can_be_given() -> None:
    paradigm = Paradigm("trzsl", seen=[3, 0, 3])
    division = paradigm.divide([0, 1, 2, 3, 3, 0], 4)
    assert (division.seen, division.unseen) == ((0, 3), (1, 2))
    assert places(division) == ([0, 3, 4, 5], [1, 2])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "zsl"}, r"paradigm\.kind=zsl: choose ul, ssl, trzsl"),
        ({"seen_share": 1.0}, "below 1"),
        ({"seen_share": 0.0}, "above 0"),
        ({"seen_share": float("nan")}, "paradigm.seen_share=nan"),
        ({"shots": 0}, "paradigm.shots=0"),
        ({"shots": True}, "paradigm.shots=True"),
        ({"split_seed": -1}, "paradigm.split_seed=-1"),
        ({"shots_seed": 2**32}, "paradigm.shots_seed=4294967296"),
    ],
)
def test_values_out_of_range_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Paradigm(**values)


@pytest.mark.parametrize(
    ("paradigm", "labels", "num_classes", "message"),
    [
        (Paradigm("ul"), [], 3, "the pool has no image"),
        (Paradigm("ul"), [0, 3], 3, "labels from 0 to 3, and 3 classes"),
        (Paradigm("ul"), [-1, 0], 3, "labels from -1 to 0"),
        (Paradigm("ssl"), [0, 0, 0, 1], 2, r"paradigm\.shots=2: class 1 has 1 images"),
        (Paradigm("ssl"), [0, 0, 1, 1], 2, "all 4 images of the pool would be labelled"),
        (Paradigm("trzsl"), [0, 0], 1, "of 1 classes 0 would be seen"),
        (
            Paradigm("trzsl", seen=[0, 1]),
            [0, 1],
            2,
            r"paradigm\.seen=\[0, 1\]: of 2 classes 2 would be seen and 0 unseen",
        ),
        (Paradigm("trzsl", seen=[]), [0, 1], 2, "0 would be seen"),
        (Paradigm("trzsl", seen=[5]), [0, 1], 2, "classes are 0 to 1"),
        (Paradigm("trzsl", seen=[0]), [0, 0], 2, "none is left for pseudo-labels"),
        (Paradigm("trzsl", seen=[0]), [1, 1], 2, "no image of the 1 seen classes"),
    ],
)
def test_a_pool_that_cannot_be_divided_is_refused(
    paradigm: Paradigm, labels: list[int], num_classes: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        paradigm.divide(labels, num_classes)


def test_a_key_holds_what_the_paradigm_uses_and_nothing_else() -> None:
    used = {"ul": set(), "ssl": {"shots", "shots_seed"}, "trzsl": {"split_seed", "seen_share", "seen"}}
    others = {"split_seed": 0, "seen_share": 0.5, "seen": [1], "shots": 3, "shots_seed": 4}
    for kind, names in used.items():
        plain = inputs_of(Paradigm(kind))
        assert {name for name, value in others.items() if inputs_of(Paradigm(kind, **{name: value})) != plain} == names
    given = [inputs_of(Paradigm("trzsl", split_seed=seed, seen=seen)) for seed, seen in ((0, [2, 1]), (500, [1, 2]))]
    assert given[0] == given[1], "given classes are not drawn"


@pytest.mark.parametrize("kind", KINDS)
def test_a_choice_says_what_the_constructor_says(kind: str) -> None:
    assert instantiate(OmegaConf.load(CONF / f"{kind}.yaml"), _convert_="all") == Paradigm(kind)


@given(st.floats(0.001, 1), st.floats(0.001, 1))
def test_the_harmonic_mean_is_scipys(seen: float, unseen: float) -> None:
    assert harmonic(seen, unseen) == pytest.approx(hmean([seen, unseen]))


def test_the_harmonic_mean_is_nothing_where_one_is_nothing() -> None:
    assert harmonic(0.0, 0.9) == harmonic(0.9, 0.0) == harmonic(0.0, 0.0) == 0.0
    for seen, unseen in ((1.2, 0.5), (0.5, -0.1), (float("nan"), 0.5)):
        with pytest.raises(ValueError, match=r"accuracy .* must be in \[0, 1\]"):
            harmonic(seen, unseen)
