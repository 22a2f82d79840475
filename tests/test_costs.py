"""What a result cost: the same from a cold store and a warm one, once for a sweep, and paid back or not."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import IMAGES_PER_CLASS, NAMES, FirstRun, World, judge, tree

from lgclip.costs import add_up, cost_of
from lgclip.ledger import LEDGER, Account, Line, Part, Tokens, append, lines_of

pytest_plugins = ("run_fixtures",)

N, DRAWN = IMAGES_PER_CLASS * len(NAMES), 3 * len(NAMES)
TOWERS = {
    "image": {"parameters": 88, "flops": 1000, "seconds": 0.5, "device": "cpu"},
    "text": {"parameters": 63, "flops": 500, "seconds": 0.036, "device": "cpu"},
}


def ledgers(root: Path) -> dict[str, list[Line]]:
    """The lines of every ledger below a store, by its place."""
    return {path.relative_to(root).as_posix(): lines_of(path) for path in sorted(root.rglob(f"*{LEDGER}"))}


def seconds(result: dict[str, Any], stage: str) -> float:
    return next(one["seconds"] for one in result["cost"]["stages"] if one["stage"] == stage)


def test_a_first_run_writes_a_line_for_each_store_and_they_add_up_to_its_stages(first_run: FirstRun) -> None:
    found, cost = ledgers(first_run.world.store), first_run.result["cost"]
    assert all(len(lines) == 1 for lines in found.values())
    counts = {
        kind: sorted((lines[0].count, lines[0].unit) for place, lines in found.items() if place.startswith(kind))
        for kind in ("prompts", "images", "features")
    }
    sentences, views = (len(NAMES), "sentence"), [(DRAWN, "view"), (N, "view")]
    assert counts == {"prompts": [(DRAWN, "sentence")], "images": [(DRAWN, "image")], "features": [sentences, *views]}
    for kind in counts:
        told = sum(lines[0].seconds for place, lines in found.items() if place.startswith(kind))
        assert told == pytest.approx(seconds(first_run.result, kind), abs=1e-5)
    assert {stage["seconds"] for stage in cost["made_before"].values()} == {0.0}
    assert cost["seconds"] == cost["total_seconds"] == pytest.approx(sum(one["seconds"] for one in cost["stages"]))
    assert cost["stages"] == first_run.result["stages"]
    assert cost["towers"]["image"]["flops"] > 0 < cost["towers"]["text"]["parameters"]


def test_a_cached_run_costs_in_all_what_the_first_one_did(first_run: FirstRun, world: World, tmp_path: Path) -> None:
    before = tree(world.store)
    again, first = judge(world, tmp_path / "run"), first_run.result
    assert tree(world.store) == before, "nothing made, nothing written"
    kinds = {"prompts": DRAWN, "images": DRAWN, "features": len(NAMES) + DRAWN + N}
    for kind, count in kinds.items():
        told = again["cost"]["made_before"][kind]
        assert (told["count"], told["device"]) == (count, "cpu")
        assert told["seconds"] == pytest.approx(seconds(first, kind), abs=1e-5)
    looking = again["cost"]["seconds"]
    judging = seconds(first, "judging")
    assert again["cost"]["total_seconds"] - looking == pytest.approx(first["cost"]["seconds"] - judging, abs=1e-4)
    assert again["cost"]["payback"] == first["cost"]["payback"]
    assert again["cost"]["towers"] == first["cost"]["towers"]


def test_a_smaller_run_re_uses_its_share_and_a_larger_one_pays_for_the_rest(world: World, tmp_path: Path) -> None:
    all_, third = (judge(world, tmp_path / f"{k}", f"prompts_per_class={k}")["cost"] for k in (3, 1))
    for kind in ("prompts", "images"):
        assert third["made_before"][kind]["seconds"] == pytest.approx(
            all_["made_before"][kind]["seconds"] / 3, abs=1e-5
        )
    more = judge(world, tmp_path / "4", "prompts_per_class=4", "scales=multi")["cost"]
    assert (more["made_before"]["images"]["count"], more["payback"]["views"]) == (DRAWN, 4)
    parts = more["made_before"]["features"]["parts"]
    assert {name: (part["used"], part["made"]) for name, part in parts.items()} == {
        "text": (3, 0), "synthetic": (4 * 12, 4 * 12), "real": (4 * N, 4 * N)
    }, "whoever lacks a view gets all of them"  # fmt: skip


def test_a_store_without_ledgers_gives_the_same_result_at_an_unknown_cost(
    first_run: FirstRun, world: World, tmp_path: Path
) -> None:
    for path in [*world.store.rglob(f"*{LEDGER}"), *world.store.rglob("towers.json")]:
        path.unlink()
    again = judge(world, tmp_path / "run")
    assert (again["metrics"], again["store"]) == (first_run.result["metrics"], first_run.result["store"])
    cost = again["cost"]
    assert all(stage["seconds"] is None for stage in cost["made_before"].values())
    assert (cost["total_seconds"], cost["towers"]) == (None, None)
    assert cost["payback"]["text_tower_per_image"]["pays_back"] is None
    with pytest.raises(ValueError, match="does not tell its cost: run it again"):
        add_up([again, {**again, "cost": None}])


def test_a_sweep_costs_what_it_makes_and_a_second_one_what_that_cost_once(world: World, tmp_path: Path) -> None:
    def sweep(name: str) -> dict[str, Any]:
        cells = [(k, scales) for k in (1, 5, 4) for scales in ("single", "multi")]
        return add_up([
            judge(world, tmp_path / name / f"{k}{scales}", "seed=1", f"prompts_per_class={k}", f"scales={scales}")
            for k, scales in cells
        ])  # fmt: skip

    cold, warm = sweep("cold"), sweep("warm")
    known = {part["name"]: part["count"] for part in cold["made_before"]["parts"]}
    assert known == {"prompts": 0, "images": 0, "text": 3, "synthetic": 0, "real": 0}
    assert cold["stages"]["images"]["made"] == 5 * len(NAMES)
    assert warm["stages"]["images"] == {"unit": "image", "made": 0, "seconds": pytest.approx(0, abs=2), "tokens": None}
    once = {part["name"]: part for part in warm["made_before"]["parts"]}
    assert (once["prompts"]["count"], once["images"]["count"]) == (15, 15), "six runs use them, and they count once"
    assert (once["synthetic"]["count"], once["real"]["count"]) == (4 * 15, 4 * N)
    (line, *more) = [line for lines in ledgers(world.store / "images").values() for line in lines]
    rate = sum(one.seconds for one in (line, *more)) / sum(one.count for one in (line, *more))
    assert once["images"]["seconds"] == pytest.approx(15 * rate, abs=1e-5)
    assert warm["total_seconds"] == pytest.approx(warm["seconds"] + warm["made_before"]["seconds"], abs=1e-4)


@pytest.mark.parametrize("change", ["method=clip_text", "diffuser=folder"])
def test_without_images_or_with_images_from_elsewhere_nothing_is_said_that_is_not_known(
    first_run: FirstRun, fresh_world: World, tmp_path: Path, change: str
) -> None:
    fewer = [part for part in fresh_world.evaluating() if not part.startswith("diffuser.")]
    elsewhere = [*fewer, change, f"diffuser.root={fresh_world.pictures}"]
    cost = judge(elsewhere if change == "diffuser=folder" else [*fresh_world.evaluating(), change], tmp_path)["cost"]
    if change == "diffuser=folder":
        assert cost["made_before"]["images"] == {"seconds": None, "count": DRAWN, "device": None, "parts": {}}
        assert cost["total_seconds"] is None
        assert cost["payback"]["text_tower_per_image"]["images"] is None
    else:
        assert cost["payback"] is None
        assert cost["made_before"].keys() == {"features"}


def parts_of(folder: Path, text: bool = True) -> dict[str, list[Part]]:
    """Stages of a run that used everything twice as much as it made."""
    names = {"prompts": ["prompts"], "images": ["images"], "features": ["text"] * text + ["synthetic", "real"]}
    return {
        stage: [Part(name, "thing", name, folder / name, 20) for name in own]
        for stage, own in names.items()
    }  # fmt: skip


def accounts() -> list[Account]:
    return [Account(name, 0, 20, 0.25) for name in ("prompts", "images", "features")]


def test_payback_is_the_work_once_over_what_an_image_saves(tmp_path: Path) -> None:
    spent = {"prompts": 6.0, "images": 50.0, "text": 0.4, "synthetic": 4.0, "real": 8.0}
    for name, took in spent.items():
        append(tmp_path / name, Line(10, "thing", took, "cpu", 1, Tokens(1, 2)))
    cost = cost_of(accounts(), parts_of(tmp_path), towers=TOWERS, views=2)
    assert cost["total_seconds"] == pytest.approx(3 * 0.25 + 2 * sum(spent.values()))
    told = cost["payback"]
    assert told["once"]["seconds"] == {"prompts": 12.0, "images": 100.0, "encoding": 8.0, "all": 120.0}
    assert told["once"]["flops"] == {"encoding": 20 * 1000, "all": None}
    assert told["each"]["one_tower"] == {"seconds": 2 * 0.5, "flops": 2000}
    assert told["each"]["two_towers"] == {"seconds": 1.036, "flops": 2500}
    per_image, kept = told["text_tower_per_image"], told["text_features_kept"]
    assert per_image["saved"] == {"seconds": 0.036, "flops": 500}
    assert (per_image["pays_back"], per_image["images"]) == (True, math.ceil(120 / 0.036))
    assert kept == {
        "saved": {"seconds": 0.0, "flops": 0}, "text_once_seconds": 0.8, "pays_back": False, "images": None
    }  # fmt: skip
    assert cost_of(accounts(), parts_of(tmp_path, text=False), towers=None, views=1)["payback"] is None


def test_prototypes_that_cost_less_than_the_sentences_have_paid_back_at_once(tmp_path: Path) -> None:
    for name in ("prompts", "images", "synthetic", "real"):
        append(tmp_path / name, Line(10, "thing", 0.1, "cpu", 1))
    append(tmp_path / "text", Line(10, "thing", 5.0, "cpu", 1))
    kept = cost_of(accounts(), parts_of(tmp_path), towers=None, views=1)["payback"]["text_features_kept"]
    assert (kept["pays_back"], kept["images"]) == (True, 0)


def test_several_devices_are_named(tmp_path: Path) -> None:
    for device, devices in (("cpu", 1), ("NVIDIA H200", 4), ("cpu", 1)):
        append(tmp_path / "images", Line(10, "image", 1.0, device, devices))
    told = cost_of(accounts(), parts_of(tmp_path), towers=None, views=1)["made_before"]["images"]
    assert (told["device"], told["seconds"]) == ("cpu, 4 x NVIDIA H200", pytest.approx(20 * 0.1))


runs = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 20), st.floats(0, 100)), min_size=1, max_size=6)


@given(runs, st.randoms())
def test_runs_one_after_the_other_cost_together_what_they_spent(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[int, int, float]], chance: Any
) -> None:
    """Whatever the runs of a store that begins empty ask for, in whatever order they are added up."""
    folder, there, results = tmp_path_factory.mktemp("store"), [0, 0, 0], []
    for seed, used, took in runs:
        made = max(0, used - there[seed])
        there[seed] = max(there[seed], used)
        part = Part("images", "image", "images/1", folder / "1", used)
        account = Account("images", made, used - made, round(took, 3), tokens=Tokens(made, 2) if made else None)
        if made:
            append(part.ledger, Line(made, "image", took, "cpu", 1))
        cost = cost_of([account], {"images": [replace(part, made=made, seconds=took)]}, towers=None, views=1)
        results.append(json.loads(json.dumps({"dataset": {}, "llm": None, "seed": seed, "cost": cost})))
    chance.shuffle(results)
    total = add_up(results)
    assert total["runs"] == len(runs)
    assert total["total_seconds"] == total["seconds"] == pytest.approx(sum(round(run[2], 3) for run in runs), abs=0.01)
    assert total["stages"]["images"]["made"] == total["stages"]["images"]["tokens"]["prompt"] == sum(there)
    assert total["made_before"]["seconds"] == 0
