"""The main job, end to end: real libraries, random weights, a few pictures."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from PIL import Image
from worlds import IMAGES_PER_CLASS, NAMES, SENTENCES, FirstRun, World, call, judge, made, rows, tree

from lgclip.diffuser.pipeline import Diffuser
from lgclip.encoder.open_clip import OpenClip
from lgclip.image_store import ImageStore
from lgclip.prompts.template import Templates

pytest_plugins = ("run_fixtures",)

ROOT = Path(__file__).parents[1]
N = IMAGES_PER_CLASS * len(NAMES)
NOTHING = {"prompts": 0, "images": 0, "features": 0}


@pytest.fixture
def no_model_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever loads a model fails."""

    def load(part: object, device: object) -> NoReturn:
        raise AssertionError(f"{part} was loaded")

    for part in (Templates, Diffuser, OpenClip):
        monkeypatch.setattr(part, "load", load)


def pictures(world: World) -> dict[str, bytes]:
    """The drawn images of a world, by their place."""
    return {name: data for name, data in tree(world.store / "images").items() if name.endswith(".png")}


def test_a_run_from_an_empty_store_makes_everything_and_leaves_its_files(first_run: FirstRun) -> None:
    assert made(first_run.result) == {"prompts": 3, "images": 9, "features": 3 + 9 + N}
    assert {p.name for p in first_run.folder.iterdir()} >= {
        "result.json", "per_class.csv", "predictions.csv", "prototypes.png"
    }  # fmt: skip
    assert first_run.result["n"] == N == len(rows(first_run.folder / "predictions.csv"))
    with Image.open(first_run.folder / "prototypes.png") as sheet:
        assert sheet.size[0] > 4 * 64


def test_a_second_run_makes_nothing_loads_nothing_and_says_the_same(
    first_run: FirstRun, world: World, no_model_loads: None, tmp_path: Path
) -> None:
    before = tree(world.store)
    again = judge(world, tmp_path / "run")
    assert made(again) == NOTHING
    assert [stage["reused"] for stage in again["stages"]] == [3, 9, 3 + 9 + N, 0]
    assert (again["metrics"], again["beside"]) == (first_run.result["metrics"], first_run.result["beside"])
    assert tree(world.store) == before
    for name in ("predictions.csv", "per_class.csv", "diagnostics.csv", "prototypes.png"):
        assert (tmp_path / "run" / name).read_bytes() == (first_run.folder / name).read_bytes()


def test_fewer_prompts_are_the_first_of_more(world: World, no_model_loads: None, tmp_path: Path) -> None:
    assert made(judge(world, tmp_path / "run", "prompts_per_class=1")) == NOTHING


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
def test_a_change_makes_again_what_depends_on_it_and_nothing_else(
    world: World, tmp_path: Path, change: str, expected: dict[str, int]
) -> None:
    assert made(judge(world, tmp_path / "run", change)) == expected


def test_deleted_images_alone_are_drawn_again_byte_for_byte(world: World, tmp_path: Path) -> None:
    before = pictures(world)
    for name in list(before)[2:7:2]:
        (world.store / "images" / name).unlink()
    # Features are keyed by what an image was made from, so they outlive it.
    assert made(judge(world, tmp_path / "run")) == {"prompts": 0, "images": 3, "features": 0}
    assert pictures(world) == before


def test_an_interrupted_drawing_leaves_whole_images_and_goes_on(
    first_run: FirstRun, fresh_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, calls = ImageStore.put, []

    def put_four(*args: object) -> None:
        calls.append(args)
        if len(calls) > 4:
            raise RuntimeError("power cut")
        put(*args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(ImageStore, "put", put_four)
    with pytest.raises(RuntimeError, match="power cut"):
        judge(fresh_world, tmp_path / "cut", "diffuser.batch_size=3")
    monkeypatch.setattr(ImageStore, "put", put)
    assert not (tmp_path / "cut" / "result.json").exists()
    assert len(pictures(fresh_world)) == 4
    assert not list(fresh_world.store.rglob(".*")), "half-written files"
    assert made(judge(fresh_world, tmp_path / "run"))["images"] == 5
    assert pictures(fresh_world).keys() == pictures(first_run.world).keys()


def test_the_text_baseline_draws_no_image_and_says_what_stands_beside_lgclip(
    first_run: FirstRun, fresh_world: World, tmp_path: Path
) -> None:
    result = judge(fresh_world, tmp_path / "run", "method=clip_text")
    assert made(result) == {"features": len(NAMES) + N}
    assert not (fresh_world.store / "images").exists()
    assert result["llm"] is result["diffuser"] is None
    assert result["metrics"] == first_run.result["baseline"] == first_run.result["beside"]["clip_text"]


@pytest.mark.parametrize("name", ["fusion", "lgclip"])
def test_a_method_alone_says_what_it_says_beside_another(
    first_run: FirstRun, world: World, no_model_loads: None, tmp_path: Path, name: str
) -> None:
    result = judge(world, tmp_path / "run", f"method={name}")
    figures = {first_run.result["method"]: first_run.result["metrics"], **first_run.result["beside"]}
    assert result["method"] == name
    assert {name: result["metrics"], **result["beside"]} == figures


def test_scales_that_weigh_nothing_change_nothing(first_run: FirstRun, world: World, tmp_path: Path) -> None:
    judge(world, tmp_path / "run", "scales=multi", "scales.weights=[7,0,0,0]")
    same = (first_run.folder / "predictions.csv").read_text()
    assert (tmp_path / "run" / "predictions.csv").read_text() == same


def test_a_sweep_says_what_its_cells_say_alone_and_loads_no_model_once_cached(
    world: World, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    grid = [(k, scales) for k in (1, 2) for scales in ("single", "multi")]
    alone = [judge(world, tmp_path / f"{k}{s}", f"prompts_per_class={k}", f"scales={s}") for k, s in grid]
    request.getfixturevalue("no_model_loads")
    sweep = [f"hydra.sweep.dir={tmp_path / 'sweep'}", "prompts_per_class=1,2", "scales=single,multi", "-m"]
    call("evaluate", *world.evaluating(), *sweep)
    cells = [json.loads((tmp_path / "sweep" / str(i) / "result.json").read_text()) for i in range(len(grid))]
    for cell, single in zip(cells, alone, strict=True):
        assert made(cell) == NOTHING
        shared = ("metrics", "beside", "prompts_per_class", "scales", "store")
        assert {key: cell[key] for key in shared} == {key: single[key] for key in shared}
    assert len({json.dumps(cell["store"]) + str(cell["prompts_per_class"]) for cell in cells}) > 1


def test_names_of_any_kind_are_drawn_and_judged(fresh_world: World, tmp_path: Path) -> None:
    names = ["a/b", "..", "🦜 parrot", "long " * 60]
    root = tmp_path / "odd"
    for i in range(len(names)):
        (root / str(i)).mkdir(parents=True)
        Image.fromarray(np.full((9, 30, 3), 60 * i, np.uint8)).save(root / str(i) / "only.png")
    (tmp_path / "names.txt").write_text("\n".join(names), encoding="utf-8")
    result = judge(
        fresh_world, tmp_path / "run", f"dataset.root={root}", f"dataset.names={tmp_path / 'names.txt'}",
        "prompts_per_class=1",
    )  # fmt: skip
    assert result["n"] == 4
    shown = [row["name"] for row in rows(tmp_path / "run" / "per_class.csv")]
    assert shown == [*names[:3], names[3].strip()]
    stored = {p.relative_to(fresh_world.store).parts[0] for p in fresh_world.store.rglob("*")}
    assert stored == {"prompts", "images", "features"}, "a name is never a path"


def test_generated_images_are_listed_and_are_those_that_evaluation_uses(
    first_run: FirstRun, fresh_world: World, tmp_path: Path
) -> None:
    call("generate", *fresh_world.generating(), f"hydra.run.dir={tmp_path / 'drawn'}")
    listed = [json.loads(line) for line in (tmp_path / "drawn" / "images.jsonl").read_text("utf-8").splitlines()]
    assert [(line["class"], line["name"], line["prompt"]) for line in listed] == [
        (c, name, sentence.replace("{}", name)) for c, name in enumerate(NAMES) for sentence in SENTENCES[:3]
    ]
    for line in listed:
        assert line["repeat"] == 0
        with Image.open(line["file"]) as image:
            assert image.size == (32, 32)
            about = json.loads(image.text["lgclip"])  # pyright: ignore[reportAttributeAccessIssue]
        assert (about["text"], about["class_index"], about["seed"]) == (line["prompt"], line["class"], 0)
    assert pictures(fresh_world) == pictures(first_run.world)
    result = judge(fresh_world, tmp_path / "run")
    assert (made(result)["images"], result["metrics"]) == (0, first_run.result["metrics"])


def test_two_stores_and_two_places_give_the_same_pictures(first_run: FirstRun, tmp_path: Path) -> None:
    """Where things lie is no input: neither the store's place nor that of the models."""
    moved = tmp_path / "moved"
    moved.symlink_to(first_run.world.diffuser)
    world = replace(first_run.world, store=tmp_path / "store", diffuser=moved)
    call("generate", *world.generating(), f"hydra.run.dir={tmp_path / 'drawn'}")
    assert pictures(world) == pictures(first_run.world)


def in_a_process(world: World, folder: Path, *overrides: str) -> list[str]:
    """Evaluates in a process of its own; returns the libraries that it has loaded."""
    look = (
        "import runpy, sys\n"
        "runpy.run_path('evaluate.py', run_name='__main__')\n"
        "print(*{name.partition('.')[0] for name in sys.modules})\n"
    )
    arguments = [*world.evaluating(), f"hydra.run.dir={folder}", *overrides]
    done = subprocess.run(
        [sys.executable, "-c", look, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()


def test_a_cached_run_imports_no_model_library(first_run: FirstRun, world: World, tmp_path: Path) -> None:
    loaded = in_a_process(world, tmp_path / "run")
    assert "torch" in loaded
    # transformers is not among them: torchmetrics imports it, though none of its models.
    assert not {"diffusers", "open_clip", "timm", "wandb"} & set(loaded)
    same = (first_run.folder / "predictions.csv").read_text()
    assert (tmp_path / "run" / "predictions.csv").read_text() == same


def test_two_processes_share_the_work_and_say_what_one_says(
    first_run: FirstRun, fresh_world: World, tmp_path: Path
) -> None:
    two = ["trainer.devices=2", "trainer.strategy=ddp"]
    arguments = [*fresh_world.evaluating(), f"hydra.run.dir={tmp_path / 'two'}", *two]
    done = subprocess.run(
        [sys.executable, "evaluate.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("lgclip ") == 1, "one table, not one a process"
    result = json.loads((tmp_path / "two" / "result.json").read_text(encoding="utf-8"))
    assert made(result) == made(first_run.result)
    assert result["n"] == N
    assert pictures(fresh_world).keys() == pictures(first_run.world).keys()
    alone = judge(fresh_world, tmp_path / "one")
    assert made(alone) == NOTHING
    assert (alone["metrics"], alone["beside"]) == (result["metrics"], result["beside"])
    for name in ("predictions.csv", "per_class.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_two_processes_make_what_is_missing_of_one_share(world: World, tmp_path: Path) -> None:
    """One image is gone, and so are its features' file and one class's prompts: the other process has nothing to do."""
    next(iter(sorted((world.store / "prompts").glob("*.json")))).unlink()
    next(iter(sorted((world.store / "images").rglob("*.png")))).unlink()
    for chunk in (world.store / "features").rglob("*.safetensors"):
        chunk.unlink()
    arguments = [*world.evaluating(), f"hydra.run.dir={tmp_path / 'two'}", "trainer.devices=2", "trainer.strategy=ddp"]
    done = subprocess.run(
        [sys.executable, "evaluate.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "two" / "result.json").read_text(encoding="utf-8"))
    assert (made(result)["prompts"], made(result)["images"]) == (1, 1)
