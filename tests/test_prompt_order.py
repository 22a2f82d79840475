"""Other orders of the same prompts give a spread for few of them, and nothing new is drawn."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import World, judge, made, rows

from lgclip.generation import places, whole_numbers

pytest_plugins = ("run_fixtures",)

NOTHING = {"prompts": 0, "images": 0, "features": 0}
POOL = "prompt_pool=3"


@given(st.integers(0, 50), st.integers(1, 40), st.integers(0, 1000))
def test_an_order_is_a_permutation_that_depends_on_class_and_seed_alone(class_index: int, pool: int, seed: int) -> None:
    assert sorted(places(class_index, pool, seed)) == list(range(pool))
    assert places(class_index, pool, seed) == places(class_index, pool, seed)
    assert places(class_index, pool, None) == list(range(pool))


def test_classes_and_seeds_have_orders_of_their_own() -> None:
    assert len({tuple(places(c, 10, 0)) for c in range(20)}) == 20
    assert len({tuple(places(0, 10, seed)) for seed in range(20)}) == 20
    firsts = [places(c, 10, seed)[0] for c in range(30) for seed in range(30)]
    assert min(firsts.count(place) for place in range(10)) > 50, "every prompt comes first about as often: 90 of 900"


def test_another_order_draws_nothing_new_and_judges_by_other_images(world: World, tmp_path: Path) -> None:
    orders = [
        judge(world, tmp_path / str(seed), "prompts_per_class=1", POOL, f"prompt_order_seed={seed}")
        for seed in range(4)
    ]
    assert [{stage: made(result)[stage] for stage in NOTHING} for result in orders] == [NOTHING] * 4
    said = {(tmp_path / str(seed) / "predictions.csv").read_text("utf-8") for seed in range(4)}
    assert len(said) > 1


def test_all_prompts_in_any_order_judge_alike(world: World, tmp_path: Path) -> None:
    judge(world, tmp_path / "plain", "prompts_per_class=3")
    judge(world, tmp_path / "order", "prompts_per_class=3", POOL, "prompt_order_seed=5")
    plain, other = (
        [(row["label"], row["prediction"]) for row in rows(tmp_path / name / "predictions.csv")]
        for name in ("plain", "order")
    )
    assert plain == other


def test_images_of_a_prompt_stay_together(world: World, tmp_path: Path) -> None:
    """Two images a prompt: the pool is drawn once, and no order needs an image that is not in it."""
    judge(world, tmp_path / "all", "prompts_per_class=3", "images_per_prompt=2")
    result = judge(
        world, tmp_path / "some", "prompts_per_class=2", "images_per_prompt=2", POOL, "prompt_order_seed=1"
    )  # fmt: skip
    assert {stage: made(result)[stage] for stage in NOTHING} == NOTHING


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"prompts_per_class": 5, "prompt_pool": 4, "prompt_order_seed": 0}, "prompt_pool=4: .* prompts_per_class=5"),
        ({"prompts_per_class": 5, "prompt_pool": 10, "prompt_order_seed": -1}, "prompt_order_seed=-1"),
        ({"prompts_per_class": 5, "prompt_pool": 10, "prompt_order_seed": "a"}, "prompt_order_seed=a"),
        ({"prompts_per_class": 5, "prompt_pool": 0, "prompt_order_seed": None}, "prompt_pool=0"),
    ],
)
def test_an_order_that_cannot_be_is_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        whole_numbers(values)


def test_a_pool_without_an_order_limits_nothing() -> None:
    given = {"prompts_per_class": 50, "prompt_pool": 10, "prompt_order_seed": None, "workers": 2}
    assert whole_numbers(given) == {"prompts_per_class": 50, "prompt_pool": 10}
