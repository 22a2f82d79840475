"""Tests the threshold attack against scikit-learn, an exhaustive search, and known distributions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstwobign, norm
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import Tensor

from lgclip.evaluation.membership_inference import attack


def sides(m: int, n: int, shift: float, seed: int, digits: int = 12) -> tuple[Tensor, Tensor]:
    """Returns normal values, shifted for members; few digits make ties."""
    rng = np.random.default_rng(seed)
    values = [np.round(rng.normal(by, 1, size), digits) for by, size in ((shift, m), (0.0, n))]
    return torch.from_numpy(values[0]), torch.from_numpy(values[1])


def searched(members: list[float], non_members: list[float]) -> float:
    """Returns the best balanced accuracy over all thresholds, one by one."""
    label = [1] * len(members) + [0] * len(non_members)
    values = [*members, *non_members]
    return max(float(balanced_accuracy_score(label, [v >= t for v in values])) for t in [*values, math.inf])


values = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(members=values, non_members=values)
def test_auroc_and_threshold_handle_ties(members: list[float], non_members: list[float]) -> None:
    result = attack(torch.tensor(members).double(), torch.tensor(non_members).double())
    label = [1] * len(members) + [0] * len(non_members)
    assert result["auroc"] == pytest.approx(roc_auc_score(label, [*members, *non_members]))
    assert result["balanced_accuracy"] == pytest.approx(searched(members, non_members))
    threshold = result["threshold"]
    accuracies = [np.mean([v >= threshold for v in members]), np.mean([v < threshold for v in non_members])]
    assert result["balanced_accuracy"] == pytest.approx(np.mean(accuracies)), "the threshold gives what is said"
    assert result["balanced_accuracy"] >= 0.5
    for name in ("auroc", "balanced_accuracy", "held_out_balanced_accuracy"):
        if result[f"{name}_ci95"] is not None:
            low, high = result[f"{name}_ci95"]
            assert 0 <= low <= high <= 1


def test_auroc_interval_is_delong() -> None:
    """Compares with the definition: a table of each member with each non-member."""
    members, non_members = sides(60, 45, 0.6, 1, digits=1)
    table = (members[:, None] > non_members).double() + 0.5 * (members[:, None] == non_members)
    variance = table.mean(1).var() / 60 + table.mean(0).var() / 45
    half = norm.ppf(0.975) * float(variance) ** 0.5
    result = attack(members, non_members)
    assert result["auroc"] == pytest.approx(float(table.mean()))
    assert result["auroc_ci95"] == pytest.approx([result["auroc"] - half, result["auroc"] + half], abs=1e-6)


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.5])
def test_intervals_have_nominal_coverage(shift: float) -> None:
    """Checks coverage on normal values: more than 20 misses in 200 samples would happen once in 500 runs."""
    auroc = norm.cdf(shift / 2**0.5)
    best = norm.cdf(shift / 2)
    missed = np.zeros(3, dtype=int)
    for seed in range(200):
        result = attack(*sides(150, 200, shift, seed))
        for i, (name, truth) in enumerate((("auroc", auroc), ("balanced_accuracy", best))):
            low, high = result[f"{name}_ci95"]
            missed[i] += not low <= truth <= high
        # A threshold found on half of the images is no better than the best, and may be worse.
        missed[2] += result["held_out_balanced_accuracy_ci95"][0] > best
    assert max(missed) <= 20, missed


def test_held_out_threshold_is_unbiased() -> None:
    results = [attack(*sides(40, 40, 0.0, seed)) for seed in range(60)]
    best = np.mean([comparison["balanced_accuracy"] for comparison in results])
    held_out = np.mean([comparison["held_out_balanced_accuracy"] for comparison in results])
    assert best > 0.54
    assert held_out == pytest.approx(0.5, abs=0.02)


def test_held_out_halves_are_swapped() -> None:
    """Checks separated values: any half finds the threshold, so all are correct, and the interval is no point."""
    result = attack(torch.arange(10.0) + 100, torch.arange(20.0))
    assert (result["auroc"], result["balanced_accuracy"], result["threshold"]) == (1.0, 1.0, 100.0)
    assert result["held_out_balanced_accuracy"] >= 0.9, "a threshold is a member of its half, not the lowest of all"
    low, high = result["held_out_balanced_accuracy_ci95"]
    assert low < result["held_out_balanced_accuracy"] <= high
    assert result["auroc_ci95"] is None
    band = kstwobign.isf(0.05) * (1 / 10 + 1 / 20) ** 0.5 / 2
    assert result["balanced_accuracy_ci95"] == pytest.approx([1 - band, 1.0], abs=1e-3)


def test_attack_depends_on_the_seed_not_the_order() -> None:
    members, non_members = sides(80, 90, 0.3, 3)
    shuffled = members[torch.randperm(80, generator=torch.Generator().manual_seed(0))]
    assert attack(members, non_members) == attack(shuffled, non_members.flip(0))
    again = attack(members, non_members, seed=0)
    reseeded = attack(members, non_members, seed=1)
    assert again == attack(members, non_members)
    assert reseeded["held_out_balanced_accuracy"] != again["held_out_balanced_accuracy"]
    assert all(reseeded[name] == again[name] for name in again if not name.startswith("held_out"))


def test_attack_is_invariant_to_the_logarithm() -> None:
    members, non_members = (torch.sigmoid(side) for side in sides(70, 60, 0.4, 4))
    plain = attack(members, non_members)
    log = attack(members.log(), non_members.log())
    assert math.log(plain.pop("threshold")) == pytest.approx(log.pop("threshold"))
    assert plain == log


def test_attack_scales_to_a_million_members() -> None:
    members, non_members = sides(1_000_000, 50_000, 0.5, 5)
    result = attack(members.float(), non_members.float())
    assert result["members"] == 1_000_000
    assert result["auroc"] == pytest.approx(norm.cdf(0.5 / 2**0.5), abs=0.005)
    low, high = result["balanced_accuracy_ci95"]
    assert high - low < 0.02
    assert low < norm.cdf(0.25) < high


def test_single_image_has_a_wide_interval() -> None:
    result = attack(torch.tensor([0.5]), torch.tensor([0.5, 0.1]))
    assert (result["auroc"], result["balanced_accuracy"]) == (0.75, 0.75)
    assert result["balanced_accuracy_ci95"] == [0.5, 1.0]
    assert (
        result["auroc_ci95"]
        is result["held_out_balanced_accuracy"]
        is result["held_out_balanced_accuracy_ci95"]
        is None
    )


@pytest.mark.parametrize(
    ("members", "non_members", "message"),
    [
        ([], [0.1], "no members to attack with"),
        ([0.1], [], "no non_members to attack with"),
        ([0.1, math.nan], [0.1], "1 of 2 values of members are not finite"),
        ([0.1], [-math.inf, 0.2], "1 of 2 values of non_members are not finite: pass log-probabilities"),
    ],
)
def test_attack_rejects_invalid_values(members: list[float], non_members: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attack(torch.tensor(members), torch.tensor(non_members))
