"""Tests how realistic pools are drawn, and how rules are compared over them."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor
from unlabeled_pools import random_pool

from lgclip.evaluation.metrics import wilson
from lgclip.evaluation.pools import (
    ALL,
    NO_RULE,
    PoolKind,
    compare_pools,
    draw_pools,
    pool_kinds,
)
from lgclip.methods.transduction.base import Transduction, UnlabeledPool
from lgclip.methods.transduction.stata import StatA
from lgclip.reporting.pool_table import pool_table

LABELS = torch.arange(300) % 12


@dataclass(frozen=True)
class Rolled(Transduction):
    """Gives each image the scores of the next class: wrong wherever the start is correct."""

    key_name: ClassVar[str] = "Rolled"

    def logits(self, pool: UnlabeledPool) -> Float[Tensor, "n c"]:
        return pool.scores.roll(1, dims=1)


@given(st.integers(0, 99), st.integers(1, 12), st.integers(0, 11), st.integers(1, 400))
def test_pools_hold_distinct_images_of_few_classes(seed: int, low: int, more: int, size: int) -> None:
    kind = PoolKind("few", (low, min(low + more, 12)), size)
    for pool in draw_pools(LABELS, kind, seed, 5):
        classes = LABELS[pool].unique()
        assert len(pool.unique()) == len(pool) <= size
        assert len(classes) <= min(low + more, 12)
        # With 25 images a class the pool is full, unless its classes have fewer images.
        assert len(pool) == size or len(pool) >= 25 * low


def test_numbers_of_classes_cover_the_bounds() -> None:
    kind = PoolKind("1-4", (1, 4), 200)
    numbers = [len(LABELS[pool].unique()) for pool in draw_pools(LABELS, kind, 0, 200)]
    assert sorted(set(numbers)) == [1, 2, 3, 4]
    assert min(numbers.count(n) for n in (1, 2, 3, 4)) > 30, "each of them a quarter"


def test_pools_depend_on_seed_and_place_alone() -> None:
    kind = PoolKind("few", (2, 10), 64)
    first, again, more, other = (
        draw_pools(LABELS, kind, seed, count) for seed, count in ((0, 3), (0, 3), (0, 5), (1, 3))
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, more[:3], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not torch.equal(first[0], first[1])


def test_pools_of_all_classes() -> None:
    complete = draw_pools(LABELS, ALL, 0, 9)
    assert len(complete) == 1
    assert torch.equal(complete[0], torch.arange(300))
    batches = draw_pools(LABELS, PoolKind("batch", size=100), 0, 2)
    assert [len(batch) for batch in batches] == [100, 100]
    assert all(len(LABELS[batch].unique()) == 12 for batch in batches)


def test_bounds_are_cut_and_named() -> None:
    assert [(kind.name, kind.classes) for kind in pool_kinds(10)][:3] == [
        ("1-4 classes, 64 images", (1, 4)),
        ("2-10 classes, 64 images", (2, 10)),
        ("5-10 classes, 64 images (cut from 5-25)", (5, 10)),
    ]
    assert [kind.classes for kind in pool_kinds(1)] == [(1, 1), (1, 1), None]
    assert [kind.size for kind in pool_kinds(100)] == [64, 64, 64, 200, 200, 200, None]
    names = [kind.name for kind in pool_kinds(3)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("classes", [(0, 2), (3, 2)])
def test_wrong_bounds_are_refused(classes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="the lower number first"):
        PoolKind("wrong", classes)


def test_impossible_pools_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pools of 25 classes, but 12 have an image; use pool_kinds\(12\)"):
        draw_pools(LABELS, PoolKind("5-25", (5, 25), 64), 0, 2)
    with pytest.raises(ValueError, match="2 pools of 0 images"):
        draw_pools(LABELS[:0], ALL, 0, 2)
    with pytest.raises(ValueError, match="size=0"):
        PoolKind("none", (1, 2), 0)
    with pytest.raises(ValueError, match="no class has a test image"):
        pool_kinds(0)


def test_comparison_by_hand() -> None:
    """Checks perfect starting scores and a rule that gets every image wrong."""
    scores = torch.nn.functional.one_hot(LABELS, 12).double()
    starts = {"perfect": UnlabeledPool(scores, scores, 1.0, None)}
    kinds = [PoolKind("few", (1, 4), 64), ALL]
    none_few, rolled_few, none_all, rolled_all = compare_pools(starts, LABELS, {"rolled": Rolled()}, kinds, count=5)
    assert (none_few.rule, none_few.top1, none_few.difference) == (NO_RULE, 1.0, 0.0)
    assert (rolled_few.rule, rolled_few.top1, rolled_few.difference) == ("rolled", 0.0, -1.0)
    assert rolled_few.difference_ci95 == (-1.0, -1.0)
    assert (rolled_few.pools, rolled_all.pools, rolled_all.images) == (5, 1, 300.0)
    assert none_all.ci95 == wilson(300, 300)
    assert rolled_all.difference_ci95 == (-1.0, -1.0)


def test_means_and_intervals_are_over_pools() -> None:
    """Checks the mean over pools of different sizes against NumPy, and that its interval narrows with their number."""
    pool = random_pool(0, n=300, c=12, d=4)
    kind = PoolKind("few", (1, 4), 60)
    few, many = (compare_pools({"cosine": pool}, LABELS, {}, [kind], count=count)[0] for count in (10, 90))
    right = (pool.scores.argmax(dim=1) == LABELS).double().numpy()
    accuracies = np.array([right[rows.numpy()].mean() for rows in draw_pools(LABELS, kind, 0, 90)])
    assert many.top1 == pytest.approx(accuracies.mean())
    half = 1.96 * accuracies.std() / np.sqrt(90)
    assert many.ci95 == pytest.approx((accuracies.mean() - half, accuracies.mean() + half), abs=0.2 * half)
    assert few.ci95[1] - few.ci95[0] > many.ci95[1] - many.ci95[0]


def test_rules_see_the_images_of_a_pool_alone() -> None:
    """Checks a row of the comparison against the rule applied to each pool."""
    pool = random_pool(1, n=120, c=4)
    labels = pool.scores.argmax(dim=1)
    kind = PoolKind("few", (1, 3), 20)
    result = compare_pools({"cosine": pool}, labels, {"stata": StatA()}, [kind], count=4)[1]
    accuracies = []
    for rows in draw_pools(labels, kind, 0, 4):
        logits = StatA().refine(pool._replace(features=pool.features[rows], scores=pool.scores[rows]))
        accuracies.append(float((logits.argmax(dim=1) == labels[rows]).double().mean()))
    assert result.top1 == pytest.approx(np.mean(accuracies))


def test_table_names_the_largest_loss_of_each_rule() -> None:
    pool = random_pool(1, n=120, c=4)
    labels = pool.scores.argmax(dim=1)
    rules = {"rolled": Rolled(), "stata": StatA()}
    results = compare_pools({"cosine": pool}, labels, rules, [PoolKind("few", (1, 3), 20), ALL], count=3)
    stata = 100 * min(row.difference for row in results if row.rule == "stata")
    assert pool_table(results).splitlines()[-1] == f"largest loss: rolled -100.0, stata {stata:+.1f}"


def test_names_and_numbers_of_a_comparison_are_checked() -> None:
    pool = random_pool(0)
    labels = pool.scores.argmax(dim=1)
    with pytest.raises(ValueError, match="a rule has the name none"):
        compare_pools({"a": pool}, labels, {NO_RULE: StatA()}, [ALL])
    with pytest.raises(ValueError, match="count=1 pools"):
        compare_pools({"a": pool}, labels, {}, [ALL], count=1)


def test_table_has_a_column_for_each_rule() -> None:
    scores = torch.nn.functional.one_hot(LABELS, 12).double()
    starts = {"perfect": UnlabeledPool(scores, scores, 1.0, None)}
    lines = pool_table(compare_pools(starts, LABELS, {"rolled": Rolled()}, [ALL])).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "transduction in pools: points more than none, with half of the 95% interval",
        "pool start pools images top-1 rolled",
        "all perfect 1 300 100.0% -100.0 ± 0.0",
        "largest loss: rolled -100.0",
    ]
