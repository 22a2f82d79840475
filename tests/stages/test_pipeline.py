"""Tests the main job end to end: real libraries, random weights, a few images."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from factories import (
    IMAGES_PER_CLASS,
    NAMES,
    SENTENCES,
    FirstRun,
    Sandbox,
    computed_counts,
    evaluate_run,
    read_csv,
    read_tree,
    run_command,
)
from PIL import Image

from lgclip.diffuser.pipeline import Diffuser
from lgclip.encoder.open_clip import OpenClip
from lgclip.prompts.template import Templates
from lgclip.store.images import ImageStore

pytest_plugins = ("run_fixtures",)

ROOT = Path(__file__).parents[2]
N = IMAGES_PER_CLASS * len(NAMES)
NOTHING = {"prompts": 0, "images": 0, "features": 0}


@pytest.fixture
def no_model_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every loading of a model fail."""

    def load(part: object, device: object) -> NoReturn:
        raise AssertionError(f"{part} was loaded")

    for part in (Templates, Diffuser, OpenClip):
        monkeypatch.setattr(part, "load", load)


def synthetic_images(sandbox: Sandbox) -> dict[str, bytes]:
    """Returns the generated images of a sandbox by path."""
    return {name: data for name, data in read_tree(sandbox.store / "images").items() if name.endswith(".png")}


def test_first_run_computes_everything(first_run: FirstRun) -> None:
    assert computed_counts(first_run.result) == {"prompts": 3, "images": 9, "features": 3 + 9 + N}
    assert {p.name for p in first_run.folder.iterdir()} >= {
        "result.json", "per_class.csv", "predictions.csv", "prototypes.png"
    }  # fmt: skip
    assert first_run.result["n"] == N == len(read_csv(first_run.folder / "predictions.csv"))
    with Image.open(first_run.folder / "prototypes.png") as sheet:
        assert sheet.size[0] > 4 * 64


def test_second_run_computes_nothing(
    first_run: FirstRun, sandbox: Sandbox, no_model_loads: None, tmp_path: Path
) -> None:
    before = read_tree(sandbox.store)
    again = evaluate_run(sandbox, tmp_path / "run")
    assert computed_counts(again) == NOTHING
    assert [stage["reused"] for stage in again["stages"]] == [3, 9, 3 + 9 + N, 0]
    assert (again["metrics"], again["baselines"]) == (first_run.result["metrics"], first_run.result["baselines"])
    assert read_tree(sandbox.store) == before
    for name in ("predictions.csv", "per_class.csv", "diagnostics.csv", "prototypes.png"):
        assert (tmp_path / "run" / name).read_bytes() == (first_run.folder / name).read_bytes()


def test_fewer_prompts_are_a_prefix(sandbox: Sandbox, no_model_loads: None, tmp_path: Path) -> None:
    assert computed_counts(evaluate_run(sandbox, tmp_path / "run", "prompts_per_class=1")) == NOTHING


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("prompts_per_class=4", {"prompts": 3, "images": 3, "features": 3}),
        ("images_per_prompt=2", {"prompts": 0, "images": 9, "features": 9}),
        ("scales=multi", {"prompts": 0, "images": 0, "features": 9 + N}),
        ("seed=1", {"prompts": 3, "images": 9, "features": 9}),
        ("diffuser.guidance=1", {"prompts": 0, "images": 9, "features": 9}),
        ("llm.templates=['the {}']", {"prompts": 3, "images": 9, "features": 9}),
        ("diffuser.batch_size=2", NOTHING),
        ("encoder.batch_size=5", NOTHING),
    ],
)
def test_change_recomputes_only_its_dependents(
    sandbox: Sandbox, tmp_path: Path, change: str, expected: dict[str, int]
) -> None:
    assert computed_counts(evaluate_run(sandbox, tmp_path / "run", change)) == expected


def test_deleted_images_are_regenerated_exactly(sandbox: Sandbox, tmp_path: Path) -> None:
    before = synthetic_images(sandbox)
    for name in list(before)[2:7:2]:
        (sandbox.store / "images" / name).unlink()
    # Features are keyed by what an image was made from, so they outlive it.
    assert computed_counts(evaluate_run(sandbox, tmp_path / "run")) == {"prompts": 0, "images": 3, "features": 0}
    assert synthetic_images(sandbox) == before


@pytest.mark.slow
def test_interrupted_generation_resumes(
    first_run: FirstRun, fresh_sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = ImageStore.put
    calls = []

    def put_four(*args: object) -> None:
        calls.append(args)
        if len(calls) > 4:
            raise RuntimeError("power cut")
        put(*args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(ImageStore, "put", put_four)
    with pytest.raises(RuntimeError, match="power cut"):
        evaluate_run(fresh_sandbox, tmp_path / "cut", "diffuser.batch_size=3")
    monkeypatch.setattr(ImageStore, "put", put)
    assert not (tmp_path / "cut" / "result.json").exists()
    assert len(synthetic_images(fresh_sandbox)) == 4
    assert not list(fresh_sandbox.store.rglob(".*")), "half-written files"
    assert computed_counts(evaluate_run(fresh_sandbox, tmp_path / "run"))["images"] == 5
    assert synthetic_images(fresh_sandbox).keys() == synthetic_images(first_run.sandbox).keys()


def test_text_baseline_generates_no_image(first_run: FirstRun, fresh_sandbox: Sandbox, tmp_path: Path) -> None:
    result = evaluate_run(fresh_sandbox, tmp_path / "run", "method=clip_text")
    assert computed_counts(result) == {"features": len(NAMES) + N}
    assert not (fresh_sandbox.store / "images").exists()
    assert result["llm"] is result["diffuser"] is None
    assert result["metrics"] == first_run.result["baseline"] == first_run.result["baselines"]["clip_text"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fusion", "lgclip"])
def test_method_equals_its_baseline_result(
    first_run: FirstRun, sandbox: Sandbox, no_model_loads: None, tmp_path: Path, name: str
) -> None:
    result = evaluate_run(sandbox, tmp_path / "run", f"method={name}")
    figures = {first_run.result["method"]: first_run.result["metrics"], **first_run.result["baselines"]}
    assert result["method"] == name
    assert {name: result["metrics"], **result["baselines"]} == figures


def test_zero_weight_scales_change_nothing(first_run: FirstRun, sandbox: Sandbox, tmp_path: Path) -> None:
    evaluate_run(sandbox, tmp_path / "run", "scales=multi", "scales.weights=[7,0,0,0]")
    predictions = (first_run.folder / "predictions.csv").read_text()
    assert (tmp_path / "run" / "predictions.csv").read_text() == predictions


@pytest.mark.slow
def test_sweep_matches_single_runs(sandbox: Sandbox, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    grid = [(k, scales) for k, scales in product((1, 2), ("single", "multi"))]
    alone = [evaluate_run(sandbox, tmp_path / f"{k}{s}", f"prompts_per_class={k}", f"scales={s}") for k, s in grid]
    request.getfixturevalue("no_model_loads")
    sweep = [f"hydra.sweep.dir={tmp_path / 'sweep'}", "prompts_per_class=1,2", "scales=single,multi", "-m"]
    run_command("evaluate", *sandbox.evaluate_overrides(), "rerun=true", *sweep)
    cells = [json.loads((tmp_path / "sweep" / str(i) / "result.json").read_text()) for i in range(len(grid))]
    for cell, single in zip(cells, alone, strict=True):
        assert computed_counts(cell) == NOTHING
        shared = ("metrics", "baselines", "prompts_per_class", "scales", "store")
        assert {key: cell[key] for key in shared} == {key: single[key] for key in shared}
    assert len({json.dumps(cell["store"]) + str(cell["prompts_per_class"]) for cell in cells}) > 1


def test_unusual_names_are_evaluated(fresh_sandbox: Sandbox, tmp_path: Path) -> None:
    names = ["a/b", "..", "🦜 parrot", "long " * 60]
    root = tmp_path / "odd"
    for i in range(len(names)):
        (root / str(i)).mkdir(parents=True)
        Image.fromarray(np.full((9, 30, 3), 60 * i, np.uint8)).save(root / str(i) / "only.png")
    (tmp_path / "names.txt").write_text("\n".join(names), encoding="utf-8")
    result = evaluate_run(
        fresh_sandbox, tmp_path / "run", f"dataset.root={root}", f"dataset.names={tmp_path / 'names.txt'}",
        "prompts_per_class=1",
    )  # fmt: skip
    assert result["n"] == 4
    class_names = [row["name"] for row in read_csv(tmp_path / "run" / "per_class.csv")]
    assert class_names == [*names[:3], names[3].strip()]
    stored = {p.relative_to(fresh_sandbox.store).parts[0] for p in fresh_sandbox.store.rglob("*")}
    assert stored == {"prompts", "images", "features"}, "a name is never a path"


def test_generated_images_are_listed(first_run: FirstRun, fresh_sandbox: Sandbox, tmp_path: Path) -> None:
    run_command("generate", *fresh_sandbox.generate_overrides(), f"hydra.run.dir={tmp_path / 'drawn'}")
    listed = [json.loads(line) for line in (tmp_path / "drawn" / "images.jsonl").read_text("utf-8").splitlines()]
    assert [(line["class"], line["name"], line["prompt"]) for line in listed] == [
        (c, name, sentence.replace("{}", name)) for (c, name), sentence in product(enumerate(NAMES), SENTENCES[:3])
    ]
    for line in listed:
        assert line["repeat"] == 0
        with Image.open(line["file"]) as image:
            assert image.size == (32, 32)
            about = json.loads(image.text["lgclip"])  # pyright: ignore[reportAttributeAccessIssue]
        assert (about["text"], about["class"], about["occurrence"]) == (line["prompt"], line["name"], 0)
        assert about["seed"] == 0
    assert synthetic_images(fresh_sandbox) == synthetic_images(first_run.sandbox)
    result = evaluate_run(fresh_sandbox, tmp_path / "run")
    assert (computed_counts(result)["images"], result["metrics"]) == (0, first_run.result["metrics"])


def test_locations_do_not_change_images(first_run: FirstRun, tmp_path: Path) -> None:
    """Checks that the location of store and models is no input."""
    moved = tmp_path / "moved"
    moved.symlink_to(first_run.sandbox.diffuser)
    sandbox = replace(first_run.sandbox, store=tmp_path / "store", diffuser=moved)
    run_command("generate", *sandbox.generate_overrides(), f"hydra.run.dir={tmp_path / 'drawn'}")
    assert synthetic_images(sandbox) == synthetic_images(first_run.sandbox)


def in_a_process(sandbox: Sandbox, folder: Path, *overrides: str) -> list[str]:
    """Evaluates in a separate process; returns the libraries that it loaded."""
    look = (
        "import runpy, sys\n"
        "runpy.run_path('evaluate.py', run_name='__main__')\n"
        "print(*{name.partition('.')[0] for name in sys.modules})\n"
    )
    arguments = [*sandbox.evaluate_overrides(), f"hydra.run.dir={folder}", *overrides]
    completed = subprocess.run(
        [sys.executable, "-c", look, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout.splitlines()[-1].split()


@pytest.mark.slow
def test_cached_run_imports_no_model_library(first_run: FirstRun, sandbox: Sandbox, tmp_path: Path) -> None:
    loaded = in_a_process(sandbox, tmp_path / "run")
    assert "torch" in loaded
    # transformers is not among them: torchmetrics imports it, though none of its models.
    assert not {"diffusers", "open_clip", "timm", "wandb"} & set(loaded)
    predictions = (first_run.folder / "predictions.csv").read_text()
    assert (tmp_path / "run" / "predictions.csv").read_text() == predictions


@pytest.mark.multiprocess
def test_two_processes_match_one(first_run: FirstRun, fresh_sandbox: Sandbox, tmp_path: Path) -> None:
    two = ["trainer.devices=2", "trainer.strategy=ddp"]
    arguments = [*fresh_sandbox.evaluate_overrides(), f"hydra.run.dir={tmp_path / 'two'}", *two]
    completed = subprocess.run(
        [sys.executable, "evaluate.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.count("\nlgclip ") == 1, "one table, not one a process"
    result = json.loads((tmp_path / "two" / "result.json").read_text(encoding="utf-8"))
    assert computed_counts(result) == computed_counts(first_run.result)
    assert result["n"] == N
    assert synthetic_images(fresh_sandbox).keys() == synthetic_images(first_run.sandbox).keys()
    alone = evaluate_run(fresh_sandbox, tmp_path / "one")
    assert computed_counts(alone) == NOTHING
    assert (alone["metrics"], alone["baselines"]) == (result["metrics"], result["baselines"])
    for name in ("predictions.csv", "per_class.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.multiprocess
def test_two_processes_complete_one_shard(sandbox: Sandbox, tmp_path: Path) -> None:
    """Checks one missing image, feature file and prompt file, so that the other process has nothing to do."""
    next(iter(sorted((sandbox.store / "prompts").glob("*.json")))).unlink()
    next(iter(sorted((sandbox.store / "images").rglob("*.png")))).unlink()
    for chunk in (sandbox.store / "features").rglob("*.safetensors"):
        chunk.unlink()
    arguments = [
        *sandbox.evaluate_overrides(),
        f"hydra.run.dir={tmp_path / 'two'}",
        "trainer.devices=2",
        "trainer.strategy=ddp",
    ]
    completed = subprocess.run(
        [sys.executable, "evaluate.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert completed.returncode == 0, completed.stderr
    result = json.loads((tmp_path / "two" / "result.json").read_text(encoding="utf-8"))
    assert (computed_counts(result)["prompts"], computed_counts(result)["images"]) == (1, 1)
