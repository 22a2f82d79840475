"""Tests that other orders of the same prompts give a spread for few of them and generate nothing new."""

from itertools import product
from pathlib import Path

import pytest
from factories import Sandbox, computed_counts, evaluate_run, read_csv
from hypothesis import given
from hypothesis import strategies as st

from lgclip.stages.counts import ImageCounts
from lgclip.stages.generate import places
from lgclip.types import TargetClass

pytest_plugins = ("run_fixtures",)

NOTHING = {"prompts": 0, "images": 0, "features": 0}
POOL = "prompt_pool=3"


@given(st.integers(0, 50), st.integers(1, 40), st.integers(0, 1000))
def test_order_is_a_permutation_per_class_and_seed(class_index: int, pool: int, seed: int) -> None:
    target_class = TargetClass(class_index, "red star")
    assert sorted(places(target_class, pool, seed)) == list(range(pool))
    assert places(target_class, pool, seed) == places(target_class._replace(class_index=51), pool, seed)
    assert places(target_class, pool, None) == list(range(pool))


def test_orders_differ_by_class_and_seed() -> None:
    classes = [TargetClass(0, f"class {number}") for number in range(30)]
    assert len({tuple(places(target_class, 10, 0)) for target_class in classes[:20]}) == 20
    assert len({tuple(places(classes[0]._replace(occurrence=n), 10, 0)) for n in range(20)}) == 20
    assert len({tuple(places(classes[0], 10, seed)) for seed in range(20)}) == 20
    firsts = [places(target_class, 10, seed)[0] for target_class, seed in product(classes, range(30))]
    assert min(firsts.count(place) for place in range(10)) > 50, "every prompt comes first about as often: 90 of 900"


@pytest.mark.slow
def test_other_order_reuses_generated_images(sandbox: Sandbox, tmp_path: Path) -> None:
    orders = [
        evaluate_run(sandbox, tmp_path / str(seed), "prompts_per_class=1", POOL, f"prompt_order_seed={seed}")
        for seed in range(4)
    ]
    assert [{stage: computed_counts(result)[stage] for stage in NOTHING} for result in orders] == [NOTHING] * 4
    predictions = {(tmp_path / str(seed) / "predictions.csv").read_text("utf-8") for seed in range(4)}
    assert len(predictions) > 1


def test_order_of_all_prompts_changes_nothing(sandbox: Sandbox, tmp_path: Path) -> None:
    evaluate_run(sandbox, tmp_path / "plain", "prompts_per_class=3")
    evaluate_run(sandbox, tmp_path / "order", "prompts_per_class=3", POOL, "prompt_order_seed=5")
    plain, ordered = (
        [(row["label"], row["prediction"]) for row in read_csv(tmp_path / name / "predictions.csv")]
        for name in ("plain", "order")
    )
    assert plain == ordered


@pytest.mark.slow
def test_images_of_a_prompt_stay_together(sandbox: Sandbox, tmp_path: Path) -> None:
    """Checks two images per prompt: the pool is generated once, and no order needs another image."""
    evaluate_run(sandbox, tmp_path / "all", "prompts_per_class=3", "images_per_prompt=2")
    result = evaluate_run(
        sandbox, tmp_path / "some", "prompts_per_class=2", "images_per_prompt=2", POOL, "prompt_order_seed=1"
    )  # fmt: skip
    assert {stage: computed_counts(result)[stage] for stage in NOTHING} == NOTHING


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompts_per_class": 5, "prompt_pool": 4, "prompt_order_seed": 0}, "prompt_pool=4: .* prompts_per_class=5"),
        ({"prompts_per_class": 5, "prompt_pool": 10, "prompt_order_seed": -1}, "prompt_order_seed=-1"),
        ({"prompts_per_class": 5, "prompt_pool": 10, "prompt_order_seed": "a"}, "prompt_order_seed=a"),
        ({"prompts_per_class": 5, "prompt_pool": 0, "prompt_order_seed": None}, "prompt_pool=0"),
    ],
)
def test_invalid_order_is_rejected(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageCounts.from_values(values)


def test_pool_requires_an_order() -> None:
    values = {"prompts_per_class": 50, "prompt_pool": 10, "prompt_order_seed": None, "workers": 2}
    counts = ImageCounts.from_values(values)
    assert (counts.prompts_per_class, counts.prompt_pool, counts.written_prompts) == (50, 10, 50)
