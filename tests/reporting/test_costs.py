"""Tests the cost of a result: equal from a cold and a warm store, counted once in a sweep, and its payback."""

import json
import math
from dataclasses import replace
from itertools import chain, product
from pathlib import Path
from typing import Any

import pytest
from factories import IMAGES_PER_CLASS, NAMES, FirstRun, Sandbox, evaluate_run, read_tree
from hypothesis import given
from hypothesis import strategies as st
from run_factories import build_result

from lgclip.reporting.costs import TotalCost, add_up, cost_of
from lgclip.reporting.result_schema import from_json
from lgclip.store.cost_log import COST_LOG, Line, StageStats, StoreUsage, Tokens, append, append_start, lines_of

pytest_plugins = ("run_fixtures",)

N = IMAGES_PER_CLASS * len(NAMES)
DRAWN = 3 * len(NAMES)
TOWERS = {
    "image": {"parameters": 88, "flops": 1000, "seconds": 0.5, "device": "cpu"},
    "text": {"parameters": 63, "flops": 500, "seconds": 0.036, "device": "cpu"},
}


def ledgers(root: Path) -> dict[str, list[Line]]:
    """Returns the lines of every cost log below a store, by path."""
    return {path.relative_to(root).as_posix(): lines_of(path) for path in sorted(root.rglob(f"*{COST_LOG}"))}


def seconds(result: dict[str, Any], stage: str) -> float:
    return next(stage_cost["seconds"] for stage_cost in result["cost"]["stages"] if stage_cost["stage"] == stage)


def test_first_run_logs_every_store(first_run: FirstRun) -> None:
    cost_logs = ledgers(first_run.sandbox.store)
    cost = first_run.result["cost"]
    assert all(len(lines) == 1 for lines in cost_logs.values())
    counts = {
        kind: sorted((lines[0].count, lines[0].unit) for place, lines in cost_logs.items() if place.startswith(kind))
        for kind in ("prompts", "images", "features")
    }
    sentences = (len(NAMES), "sentence")
    views = [(DRAWN, "view"), (N, "view")]
    assert counts == {"prompts": [(DRAWN, "sentence")], "images": [(DRAWN, "image")], "features": [sentences, *views]}
    for kind in counts:
        total = sum(lines[0].seconds for place, lines in cost_logs.items() if place.startswith(kind))
        assert total == pytest.approx(seconds(first_run.result, kind), abs=1e-5)
    assert {stage["seconds"] for stage in cost["computed_before"].values()} == {0.0}
    assert (
        cost["seconds"]
        == cost["total_seconds"]
        == pytest.approx(sum(stage_cost["seconds"] for stage_cost in cost["stages"]))
    )
    assert cost["stages"] == first_run.result["stages"]
    assert cost["towers"]["image"]["flops"] > 0 < cost["towers"]["text"]["parameters"]


def test_cached_run_has_the_same_total_cost(first_run: FirstRun, sandbox: Sandbox, tmp_path: Path) -> None:
    before = read_tree(sandbox.store)
    again = evaluate_run(sandbox, tmp_path / "run")
    first = first_run.result
    assert read_tree(sandbox.store) == before, "nothing made, nothing written"
    kinds = {"prompts": DRAWN, "images": DRAWN, "features": len(NAMES) + DRAWN + N}
    for kind, count in kinds.items():
        earlier = again["cost"]["computed_before"][kind]
        assert (earlier["count"], earlier["device"]) == (count, "cpu")
        assert earlier["seconds"] == pytest.approx(seconds(first, kind), abs=1e-5)
    looking = again["cost"]["seconds"]
    evaluation = seconds(first, "evaluation")
    assert again["cost"]["total_seconds"] - looking == pytest.approx(first["cost"]["seconds"] - evaluation, abs=1e-4)
    assert again["cost"]["payback"] == first["cost"]["payback"]
    assert again["cost"]["towers"] == first["cost"]["towers"]


@pytest.mark.slow
def test_partial_reuse_costs_its_fraction(sandbox: Sandbox, tmp_path: Path) -> None:
    all_, third = (evaluate_run(sandbox, tmp_path / f"{k}", f"prompts_per_class={k}")["cost"] for k in (3, 1))
    for kind in ("prompts", "images"):
        assert third["computed_before"][kind]["seconds"] == pytest.approx(
            all_["computed_before"][kind]["seconds"] / 3, abs=1e-5
        )
    larger = evaluate_run(sandbox, tmp_path / "4", "prompts_per_class=4", "scales=multi")["cost"]
    assert (larger["computed_before"]["images"]["count"], larger["payback"]["views"]) == (DRAWN, 4)
    parts = larger["computed_before"]["features"]["parts"]
    assert {name: (part["used"], part["computed"]) for name, part in parts.items()} == {
        "text": (3, 0), "synthetic": (4 * 12, 4 * 12), "real": (4 * N, 4 * N)
    }, "whoever lacks a view gets all of them"  # fmt: skip


def test_cost_of_killed_stage_is_incomplete(first_run: FirstRun, sandbox: Sandbox, tmp_path: Path) -> None:
    assert first_run.result["cost"]["complete"] is True
    (path,) = sandbox.store.glob(f"images/*/{COST_LOG}")
    start = append_start(path)
    assert evaluate_run(sandbox, tmp_path / "killed")["cost"]["complete"] is False
    append(path, Line(0, "image", 3.0, "cpu", 1, start=start))
    assert evaluate_run(sandbox, tmp_path / "ended")["cost"]["complete"] is True


def test_store_without_cost_logs_has_unknown_cost(first_run: FirstRun, sandbox: Sandbox, tmp_path: Path) -> None:
    for path in [*sandbox.store.rglob(f"*{COST_LOG}"), *sandbox.store.rglob("towers.json")]:
        path.unlink()
    again = evaluate_run(sandbox, tmp_path / "run")
    assert (again["metrics"], again["store"]) == (first_run.result["metrics"], first_run.result["store"])
    cost = again["cost"]
    assert all(stage["seconds"] is None for stage in cost["computed_before"].values())
    assert (cost["total_seconds"], cost["towers"]) == (None, None)
    assert cost["payback"]["text_tower_per_image"]["pays_back"] is None


@pytest.mark.slow
def test_sweep_cost_is_counted_once(sandbox: Sandbox, tmp_path: Path) -> None:
    def sweep(name: str) -> TotalCost:
        cells = [(k, scales) for k, scales in product((1, 5, 4), ("single", "multi"))]
        results = [
            evaluate_run(
                sandbox, tmp_path / name / f"{k}{scales}", "seed=1", f"prompts_per_class={k}", f"scales={scales}"
            )
            for k, scales in cells
        ]
        return add_up([from_json(result) for result in results])

    cold = sweep("cold")
    warm = sweep("warm")
    known = {part.name: part.count for part in cold.reused}
    assert known == {"prompts": 0, "images": 0, "text": 3, "synthetic": 0, "real": 0}
    assert cold.stages["images"].computed == 5 * len(NAMES)
    images = warm.stages["images"]
    assert (images.unit, images.computed, images.seconds, images.tokens) == ("image", 0, pytest.approx(0, abs=2), None)
    once = {part.name: part for part in warm.reused}
    assert (once["prompts"].count, once["images"].count) == (15, 15), "six runs use them, and they count once"
    assert (once["synthetic"].count, once["real"].count) == (4 * 15, 4 * N)
    (line, *rest) = list(chain.from_iterable(ledgers(sandbox.store / "images").values()))
    rate = sum(record.seconds for record in (line, *rest)) / sum(record.count for record in (line, *rest))
    assert once["images"].seconds == pytest.approx(15 * rate, abs=1e-5)
    assert warm.total_seconds == pytest.approx(warm.seconds + (warm.reused_seconds or 0), abs=1e-4)


@pytest.mark.parametrize("change", ["method=clip_text", "diffuser=folder"])
def test_external_images_have_unknown_cost(
    first_run: FirstRun, fresh_sandbox: Sandbox, tmp_path: Path, change: str
) -> None:
    fewer = [part for part in fresh_sandbox.evaluate_overrides() if not part.startswith("diffuser.")]
    elsewhere = [*fewer, change, f"diffuser.root={fresh_sandbox.synthetic_images}"]
    cost = evaluate_run(
        elsewhere if change == "diffuser=folder" else [*fresh_sandbox.evaluate_overrides(), change], tmp_path
    )["cost"]
    if change == "diffuser=folder":
        assert cost["computed_before"]["images"] == {"seconds": None, "count": DRAWN, "device": None, "parts": {}}
        assert cost["total_seconds"] is None
        assert cost["payback"]["text_tower_per_image"]["images"] is None
    else:
        assert cost["payback"] is None
        assert cost["computed_before"].keys() == {"features"}


def parts_of(folder: Path, text: bool = True) -> dict[str, list[StoreUsage]]:
    """Returns stages of a run that used twice as much as it computed."""
    names = {"prompts": ["prompts"], "images": ["images"], "features": ["text"] * text + ["synthetic", "real"]}
    return {
        stage: [StoreUsage(name, "thing", name, folder / name, 20) for name in names_of_stage]
        for stage, names_of_stage in names.items()
    }  # fmt: skip


def stage_stats() -> list[StageStats]:
    return [StageStats(name, 0, 20, 0.25) for name in ("prompts", "images", "features")]


def test_payback_is_cost_over_saving(tmp_path: Path) -> None:
    spent = {"prompts": 6.0, "images": 50.0, "text": 0.4, "synthetic": 4.0, "real": 8.0}
    for name, took in spent.items():
        append(tmp_path / name, Line(10, "thing", took, "cpu", 1, Tokens(1, 2)))
    cost = cost_of(stage_stats(), parts_of(tmp_path), towers=TOWERS, views=2)
    assert cost["total_seconds"] == pytest.approx(3 * 0.25 + 2 * sum(spent.values()))
    payback = cost["payback"]
    assert payback["once"]["seconds"] == {"prompts": 12.0, "images": 100.0, "encoding": 8.0, "all": 120.0}
    assert payback["once"]["flops"] == {"encoding": 20 * 1000, "all": None}
    assert payback["each"]["one_tower"] == {"seconds": 2 * 0.5, "flops": 2000}
    assert payback["each"]["two_towers"] == {"seconds": 1.036, "flops": 2500}
    per_image = payback["text_tower_per_image"]
    amortized = payback["text_features_kept"]
    assert per_image["saved"] == {"seconds": 0.036, "flops": 500}
    assert (per_image["pays_back"], per_image["images"]) == (True, math.ceil(120 / 0.036))
    assert amortized == {
        "saved": {"seconds": 0.0, "flops": 0}, "text_once_seconds": 0.8, "pays_back": False, "images": None
    }  # fmt: skip
    assert cost_of(stage_stats(), parts_of(tmp_path, text=False), towers=None, views=1)["payback"] is None


def test_cheap_prototypes_pay_back_immediately(tmp_path: Path) -> None:
    for name in ("prompts", "images", "synthetic", "real"):
        append(tmp_path / name, Line(10, "thing", 0.1, "cpu", 1))
    append(tmp_path / "text", Line(10, "thing", 5.0, "cpu", 1))
    amortized = cost_of(stage_stats(), parts_of(tmp_path), towers=None, views=1)["payback"]["text_features_kept"]
    assert (amortized["pays_back"], amortized["images"]) == (True, 0)


def test_several_devices_are_named(tmp_path: Path) -> None:
    for device, devices in (("cpu", 1), ("NVIDIA H200", 4), ("cpu", 1)):
        append(tmp_path / "images", Line(10, "image", 1.0, device, devices))
    images_cost = cost_of(stage_stats(), parts_of(tmp_path), towers=None, views=1)["computed_before"]["images"]
    assert (images_cost["device"], images_cost["seconds"]) == ("cpu, 4 x NVIDIA H200", pytest.approx(20 * 0.1))


runs = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 20), st.floats(0, 100)), min_size=1, max_size=6)


@given(runs, st.randoms())
def test_sequential_runs_sum_to_their_cost(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[int, int, float]], chance: Any
) -> None:
    """Checks the total cost for any runs on an initially empty store, added in any order."""
    folder = tmp_path_factory.mktemp("store")
    stored_counts = [0, 0, 0]
    results = []
    for seed, used, took in runs:
        computed = max(0, used - stored_counts[seed])
        stored_counts[seed] = max(stored_counts[seed], used)
        part = StoreUsage("images", "image", "images/1", folder / "1", used)
        stats = StageStats(
            "images", computed, used - computed, round(took, 3), tokens=Tokens(computed, 2) if computed else None
        )
        if computed:
            append(part.cost_log, Line(computed, "image", took, "cpu", 1))
        cost = cost_of([stats], {"images": [replace(part, computed=computed, seconds=took)]}, towers=None, views=1)
        written = build_result(NAMES, (0, 1, 2), (0, 1, 2), {}, "pictures")
        results.append(from_json(json.loads(json.dumps({**written, "seed": seed, "cost": cost}))))
    chance.shuffle(results)
    total = add_up(results)
    assert total.runs == len(runs)
    assert total.total_seconds == total.seconds == pytest.approx(sum(round(run[2], 3) for run in runs), abs=0.01)
    images = total.stages["images"]
    assert images.tokens is not None
    assert images.computed == images.tokens["prompt"] == sum(stored_counts)
    assert total.reused_seconds == 0
