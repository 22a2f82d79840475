"""The threshold attack against scikit-learn, a search through every threshold, and known distributions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstwobign, norm
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import Tensor

from lgclip.membership import attack


def sides(m: int, n: int, shift: float, seed: int, digits: int = 12) -> tuple[Tensor, Tensor]:
    """Normal values, of members higher by a shift; few digits make ties."""
    rng = np.random.default_rng(seed)
    values = [np.round(rng.normal(by, 1, size), digits) for by, size in ((shift, m), (0.0, n))]
    return torch.from_numpy(values[0]), torch.from_numpy(values[1])


def searched(members: list[float], others: list[float]) -> float:
    """The best balanced accuracy of every threshold there is, tried one by one."""
    label = [1] * len(members) + [0] * len(others)
    values = [*members, *others]
    return max(float(balanced_accuracy_score(label, [v >= t for v in values])) for t in [*values, math.inf])


values = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(members=values, others=values)
def test_auroc_and_best_threshold_are_those_of_an_oracle_with_ties(members: list[float], others: list[float]) -> None:
    found = attack(torch.tensor(members).double(), torch.tensor(others).double())
    label = [1] * len(members) + [0] * len(others)
    assert found["auroc"] == pytest.approx(roc_auc_score(label, [*members, *others]))
    assert found["balanced_accuracy"] == pytest.approx(searched(members, others))
    at = found["threshold"]
    own = [np.mean([v >= at for v in members]), np.mean([v < at for v in others])]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(own)), "the threshold gives what is said"
    assert found["balanced_accuracy"] >= 0.5
    for name in ("auroc", "balanced_accuracy", "held_out_balanced_accuracy"):
        if found[f"{name}_ci95"] is not None:
            low, high = found[f"{name}_ci95"]
            assert 0 <= low <= high <= 1


def test_the_interval_of_auroc_is_delongs() -> None:
    """By the definition: each member with each other image, in a table."""
    members, others = sides(60, 45, 0.6, 1, digits=1)
    table = (members[:, None] > others).double() + 0.5 * (members[:, None] == others)
    variance = table.mean(1).var() / 60 + table.mean(0).var() / 45
    half = norm.ppf(0.975) * float(variance) ** 0.5
    found = attack(members, others)
    assert found["auroc"] == pytest.approx(float(table.mean()))
    assert found["auroc_ci95"] == pytest.approx([found["auroc"] - half, found["auroc"] + half], abs=1e-6)


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.5])
def test_intervals_hold_the_truth_about_as_often_as_they_say(shift: float) -> None:
    """Of normal values the truth is known; of 200 samples 95% intervals miss more than 20 by chance once in 500."""
    auroc, best = norm.cdf(shift / 2**0.5), norm.cdf(shift / 2)
    missed = np.zeros(3, dtype=int)
    for seed in range(200):
        found = attack(*sides(150, 200, shift, seed))
        for i, (name, truth) in enumerate((("auroc", auroc), ("balanced_accuracy", best))):
            low, high = found[f"{name}_ci95"]
            missed[i] += not low <= truth <= high
        # A threshold found on half of the images is no better than the best, and may be worse.
        missed[2] += found["held_out_balanced_accuracy_ci95"][0] > best
    assert max(missed) <= 20, missed


def test_the_best_threshold_flatters_and_a_held_out_one_does_not() -> None:
    found = [attack(*sides(40, 40, 0.0, seed)) for seed in range(60)]
    best = np.mean([one["balanced_accuracy"] for one in found])
    held_out = np.mean([one["held_out_balanced_accuracy"] for one in found])
    assert best > 0.54
    assert held_out == pytest.approx(0.5, abs=0.02)


def test_what_is_held_out_judges_each_image_by_the_other_half() -> None:
    """Far apart, any half finds the threshold, so all are right; the interval is not a point all the same."""
    found = attack(torch.arange(10.0) + 100, torch.arange(20.0))
    assert (found["auroc"], found["balanced_accuracy"], found["threshold"]) == (1.0, 1.0, 100.0)
    assert found["held_out_balanced_accuracy"] >= 0.9, "a threshold is a member of its half, not the lowest of all"
    low, high = found["held_out_balanced_accuracy_ci95"]
    assert low < found["held_out_balanced_accuracy"] <= high
    assert found["auroc_ci95"] is None
    band = kstwobign.isf(0.05) * (1 / 10 + 1 / 20) ** 0.5 / 2
    assert found["balanced_accuracy_ci95"] == pytest.approx([1 - band, 1.0], abs=1e-3)


def test_the_order_does_not_count_and_the_seed_alone_changes_the_halves() -> None:
    members, others = sides(80, 90, 0.3, 3)
    shuffled = members[torch.randperm(80, generator=torch.Generator().manual_seed(0))]
    assert attack(members, others) == attack(shuffled, others.flip(0))
    again, other = attack(members, others, seed=0), attack(members, others, seed=1)
    assert again == attack(members, others)
    assert other["held_out_balanced_accuracy"] != again["held_out_balanced_accuracy"]
    assert all(other[name] == again[name] for name in again if not name.startswith("held_out"))


def test_a_probability_and_its_logarithm_are_attacked_alike() -> None:
    members, others = (torch.sigmoid(side) for side in sides(70, 60, 0.4, 4))
    plain, log = attack(members, others), attack(members.log(), others.log())
    assert math.log(plain.pop("threshold")) == pytest.approx(log.pop("threshold"))
    assert plain == log


def test_a_million_members_are_searched_threshold_by_threshold() -> None:
    members, others = sides(1_000_000, 50_000, 0.5, 5)
    found = attack(members.float(), others.float())
    assert found["members"] == 1_000_000
    assert found["auroc"] == pytest.approx(norm.cdf(0.5 / 2**0.5), abs=0.005)
    low, high = found["balanced_accuracy_ci95"]
    assert high - low < 0.02
    assert low < norm.cdf(0.25) < high


def test_a_single_image_has_figures_but_hardly_an_interval() -> None:
    found = attack(torch.tensor([0.5]), torch.tensor([0.5, 0.1]))
    assert (found["auroc"], found["balanced_accuracy"]) == (0.75, 0.75)
    assert found["balanced_accuracy_ci95"] == [0.5, 1.0]
    assert (
        found["auroc_ci95"] is found["held_out_balanced_accuracy"] is found["held_out_balanced_accuracy_ci95"] is None
    )


@pytest.mark.parametrize(
    ("members", "others", "said"),
    [
        ([], [0.1], "no members to attack with"),
        ([0.1], [], "no others to attack with"),
        ([0.1, math.nan], [0.1], "1 of 2 values of members are not finite"),
        ([0.1], [-math.inf, 0.2], "1 of 2 values of others are not finite: pass log-probabilities"),
    ],
)
def test_what_cannot_be_attacked_is_said(members: list[float], others: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        attack(torch.tensor(members), torch.tensor(others))
