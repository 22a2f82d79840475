"""Tests pseudo-labels: how many, of which images, which sets; each against ten lines of code."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lgclip.training.prompt_tuning.pseudo_labels import candidates, check_k, confident, k_of, leaderboard


def random_probs(seed: int, images: int, classes: int, sharpness: float = 2.0) -> torch.Tensor:
    scores = torch.randn(images, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (sharpness * scores).softmax(dim=1)


pools = st.tuples(st.integers(0, 10_000), st.integers(1, 40), st.integers(2, 7))
"""Seed, images and classes: one class alone would make all equal."""


@given(st.integers(1, 20_000), st.integers(1, 250), st.integers(1, 20))
def test_k_grows_as_in_the_release(unlabelled: int, classes: int, rounds: int) -> None:
    if unlabelled < classes:
        return
    num_samples = int(unlabelled / rounds)
    labels = []
    for n in range(1, rounds + 1):
        per_class = int(n * num_samples / classes)
        if per_class * classes > unlabelled:
            per_class = math.floor(unlabelled / classes)
        labels.append(k_of(n, rounds, unlabelled, classes))
        assert labels[-1] == max(1, per_class)
        assert labels[-1] * classes <= unlabelled
    assert labels == sorted(labels)


def test_k_of_resisc45_in_ten_rounds() -> None:
    assert [k_of(n, 10, 6300, 45) for n in range(1, 11)] == [14 * n for n in range(1, 11)]
    assert [k_of(n, 10, 2040, 102) for n in range(1, 11)] == [2 * n for n in range(1, 11)]
    assert [k_of(n, 3, 10, 4) for n in (1, 2, 3)] == [1, 1, 2]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 10, 100, 5), "round 0: rounds are 1 to 10"),
        ((11, 10, 100, 5), "round 11"),
        ((1, 10, 4, 5), "4 unlabelled images for 5 classes"),
        ((1, 10, 4, 0), "for 0 classes"),
    ],
)
def test_invalid_round_is_rejected(values: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        k_of(*values)


def greedy(probs: np.ndarray, allowed: np.ndarray, k: int) -> dict[int, int]:
    """Assigns the highest remaining pair repeatedly."""
    left = np.where(allowed, probs, -1.0)
    assigned = {}
    while left.max() >= 0:
        place, label = divmod(int(left.argmax()), left.shape[1])
        assigned[place] = label
        left[place] = -1
        if list(assigned.values()).count(label) == k:
            left[:, label] = -1
    return assigned


def assign_in_turn(probs: np.ndarray, allowed: np.ndarray, k: int) -> dict[int, int]:
    """Assigns as CPL's release: each image tries its candidates in turn; a full class drops its worst."""
    wishes = []
    for row, may in zip(probs, allowed, strict=True):
        wishes.append([int(c) for c in np.argsort(-row) if may[c]])
    pools: dict[int, list[int]] = {label: [] for label in range(probs.shape[1])}
    asking = list(range(len(probs)))
    while asking:
        place = asking.pop()
        if wishes[place]:
            label = wishes[place].pop(0)
            pools[label] = sorted([*pools[label], place], key=lambda p, c=label: -probs[p, c])
            asking += pools[label][k:]
            pools[label] = pools[label][:k]
    return {place: label for label, members in pools.items() for place in members}


@given(pools, st.integers(1, 40))
def test_most_confident_pairs_are_first(pool: tuple[int, int, int], k: int) -> None:
    probs = random_probs(*pool)
    k = min(k, len(probs))
    places, labels = confident(probs, k)
    everything = np.ones(probs.shape, dtype=bool)
    expected = greedy(probs.numpy(), everything, k)
    assert dict(zip(places.tolist(), labels.tolist(), strict=True)) == expected
    assert expected == assign_in_turn(probs.numpy(), everything, k)
    assert places.tolist() == sorted(set(places.tolist())), "no image twice"
    counts = torch.bincount(labels, minlength=probs.shape[1])
    assert int(counts.max()) <= k
    if k * probs.shape[1] <= len(probs):
        assert counts.tolist() == [k] * probs.shape[1]


def test_unlimited_k_assigns_the_most_likely_class() -> None:
    probs = random_probs(1, 30, 5)
    places, labels = confident(probs, 30)
    assert places.tolist() == list(range(30))
    assert torch.equal(labels, probs.argmax(dim=1))


def test_pool_order_changes_no_label() -> None:
    probs = random_probs(2, 50, 6)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    places, labels = confident(probs, 4)
    moved, unchanged = confident(probs[order], 4)
    assert dict(zip(order[moved].tolist(), unchanged.tolist(), strict=True)) == dict(
        zip(places.tolist(), labels.tolist(), strict=True)
    )


def test_ties_prefer_earlier_images_and_classes() -> None:
    places, labels = confident(torch.full((5, 2), 0.5), 2)
    assert (places.tolist(), labels.tolist()) == ([0, 1, 2, 3], [0, 0, 1, 1])


def test_candidate_sets_match_a_manual_example() -> None:
    probs = torch.tensor([[0.9, 0.1, 0.0], [0.5, 0.4, 0.1], [0.4, 0.35, 0.25]])
    # maxima 0.9 0.5 0.4: their median is 0.5, which the first two reach at once and the third with two classes
    assert candidates(probs, 0.5, 0.0, 3)[1].tolist() == [
        [True, False, False],
        [True, False, False],
        [True, True, False],
    ]
    # tau 0.9: the second reaches it with two, the third with all
    places, sets = candidates(probs, 1.0, 0.0, 3)
    assert sets.tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    # medians of the columns: 0.5, 0.35, 0.1, so the third image loses the first class
    places, sets = candidates(probs, 1.0, 0.5, 3)
    assert places.tolist() == [0, 1, 2]
    assert sets.tolist() == [[True, False, False], [True, True, False], [False, True, True]]


def sets_of(probs: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    tau = np.quantile(probs.max(axis=1), alpha)
    least = np.quantile(probs, beta, axis=0)
    allowed = np.zeros(probs.shape, dtype=bool)
    for place, row in enumerate(probs):
        reached = 0.0
        for label in np.argsort(-row):
            if reached >= tau:
                break
            allowed[place, label] = row[label] >= least[label]
            reached += row[label]
    return allowed


@given(pools, st.sampled_from([0.0, 0.6, 0.75, 0.9]), st.sampled_from([0.0, 0.5, 0.8, 0.95]), st.integers(1, 40))
def test_candidate_sets_match_numpy(pool: tuple[int, int, int], alpha: float, beta: float, k: int) -> None:
    probs = random_probs(*pool, sharpness=1.0)
    k = min(k, len(probs))
    allowed = sets_of(probs.numpy(), alpha, beta)
    if not allowed.any():
        with pytest.raises(ValueError, match="leave no image a candidate"):
            candidates(probs, alpha, beta, k)
        return
    places, sets = candidates(probs, alpha, beta, k)
    assert places.tolist() == sorted(assign_in_turn(probs.numpy(), allowed, k))
    assert np.array_equal(sets.numpy(), allowed[places.numpy()]), "an image keeps all its candidates"
    assert bool(sets.any(dim=1).all()), "and has one at least"


def test_lowest_quantiles_give_single_labels() -> None:
    probs = random_probs(5, 40, 4)
    places, sets = candidates(probs, 0.0, 0.0, 40)
    assert places.tolist() == list(range(40))
    assert torch.equal(sets, torch.nn.functional.one_hot(probs.argmax(dim=1), 4).bool())


def test_saturated_probabilities_have_candidates() -> None:
    probs = (200 * torch.randn(30, 4, generator=torch.Generator().manual_seed(0))).softmax(dim=1)
    assert float(probs.max()) == 1
    places, sets = candidates(probs, 1.0, 0.0, 30)
    assert len(places) == 30
    assert bool(sets.gather(1, probs.argmax(dim=1)[:, None]).all())


def test_release_can_assign_two_labels() -> None:
    probs = torch.tensor([[0.9, 0.06, 0.04], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1]], dtype=torch.float64)
    # Room for one a class: the second image is not better than the first, so it stands for both other classes, until
    # the third pushes it off one of them.
    places, labels = leaderboard(probs, 1)
    assert (places.tolist(), labels.tolist()) == ([0, 2, 1], [0, 1, 2])
    places, labels = leaderboard(probs[:2], 1)
    assert (places.tolist(), labels.tolist()) == ([0, 1, 1], [0, 1, 2])
    # The other way round the second image is pushed off its board and tries no other.
    places, labels = leaderboard(probs[[1, 0]], 1)
    assert (places.tolist(), labels.tolist()) == ([1], [0])
    assert confident(probs[:2], 1)[1].tolist() == [0, 1]


def test_release_compares_with_the_last_entry() -> None:
    probs = torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.8, 0.2]], dtype=torch.float64)
    places, labels = leaderboard(probs, 2)  # 0.8 is above 0.6, but the last on the board is 0.9
    assert [p for p, c in zip(places.tolist(), labels.tolist(), strict=True) if c == 0] == [0, 1]
    assert [p for p, c in zip(places.tolist(), labels.tolist(), strict=True) if c == 1] == [2]


@given(pools)
def test_unlimited_release_is_consistent(pool: tuple[int, int, int]) -> None:
    probs = random_probs(*pool)
    clean, release = (
        set(zip(*(part.tolist() for part in rule(probs, len(probs))), strict=True)) for rule in (confident, leaderboard)
    )
    assert clean == release


@pytest.mark.parametrize("rule", [confident, leaderboard, lambda c, k: candidates(c, 0.5, 0.5, k)])
def test_invalid_probabilities_are_rejected(rule: Callable[[torch.Tensor, int], object]) -> None:
    probs = random_probs(0, 6, 3)
    for k in (0, 7):
        with pytest.raises(ValueError, match=f"K={k} pseudo-labels of a class: it must be 1 to 6"):
            rule(probs, k)
    for bad in (math.nan, math.inf, -0.1):
        probs[2, 1] = bad
        with pytest.raises(ValueError, match="probabilities contain NaN"):
            rule(probs, 2)
    with pytest.raises(ValueError, match="it must be 1 to 0"):
        check_k(1, 0)


@pytest.mark.parametrize(
    ("alpha", "beta", "name"), [(1.5, 0.5, "alpha=1.5"), (0.5, -0.1, "beta"), (math.nan, 0.5, "alpha=nan")]
)
def test_invalid_quantiles_are_rejected(alpha: float, beta: float, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        candidates(random_probs(0, 6, 3), alpha, beta, 2)
