"""Runs whose prompts are captions: on one process and two, from the real image to the synthetic one and back."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from captioners import Scripted, stages, vit_gpt2
from PIL import Image
from worlds import NAMES, World, call, picture_folder

from lgclip.datasets.folder import Folder
from lgclip.diffuser.folder import ImageFolder
from lgclip.generation import draw

pytest_plugins = ("run_fixtures",)
ROOT = Path(__file__).parents[1]


def generating(world: World, train: Path, folder: Path, *overrides: str) -> list[str]:
    return [
        "dataset=folder", f"dataset.root={world.pictures}", f"dataset.train_root={train}", "llm=vit_gpt2",
        f"llm.model={vit_gpt2(folder / 'captioner')}", "llm.revision=null", "llm.max_new_tokens=6",
        f"diffuser.model={world.diffuser}", "diffuser.size=32", "diffuser.steps=2", "prompts_per_class=3",
        f"paths.store={world.store}", "trainer.accelerator=cpu", f"hydra.run.dir={folder / 'run'}", *overrides,
    ]  # fmt: skip


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_synthetic_image_is_traced_to_its_caption_and_its_real_image(fresh_world: World, tmp_path: Path) -> None:
    """On one process and on two: the same images, prompts, captions and sources."""
    train = picture_folder(tmp_path / "train", each=4)
    real = Folder(str(train))
    call("generate", *generating(fresh_world, train, tmp_path, "images_per_prompt=2"))
    listed = lines(tmp_path / "run" / "images.jsonl")
    assert len(listed) == 3 * 3 * 2
    places = {image: at for at, image in enumerate(real.ids)}
    for line in listed:
        at = places[line["source"]]
        assert real.labels[at] == line["class"]
        assert line["source_file"] == real.where(at)
        assert line["caption"]
        assert line["prompt"] == f"a photo of {NAMES[line['class']]}, {line['caption']}"
        with Image.open(line["file"]) as image:
            assert json.loads(image.info["lgclip"])["text"] == line["prompt"]
    assert [places[line["source"]] % 4 for line in listed] == [0, 0, 1, 1, 2, 2] * 3

    other = dataclasses.replace(fresh_world, store=tmp_path / "second")
    two = generating(other, train, tmp_path, "images_per_prompt=2", "trainer.devices=2", "trainer.strategy=ddp")
    subprocess.run(
        [sys.executable, "generate.py", *two, f"hydra.run.dir={tmp_path / 'two'}"], cwd=ROOT, check=True,
        capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}, timeout=240,
    )  # fmt: skip
    again = lines(tmp_path / "two" / "images.jsonl")
    untold = [{name: value for name, value in line.items() if name != "file"} for line in listed]
    assert [{name: value for name, value in line.items() if name != "file"} for line in again] == untold
    files = [[Path(line["file"]).read_bytes() for line in one] for one in (listed, again)]
    assert files[0] == files[1]


def test_basic_prompts_are_as_many_and_name_no_source(fresh_world: World, tmp_path: Path) -> None:
    train = picture_folder(tmp_path / "train", each=4)
    call("generate", *generating(fresh_world, train, tmp_path, "llm.form=basic"))
    listed = lines(tmp_path / "run" / "images.jsonl")
    assert [(line["prompt"], line["repeat"]) for line in listed[:3]] == [("a photo of blue moon", i) for i in range(3)]
    assert {(line["caption"], line["source"], line["source_file"]) for line in listed} == {("", "", "")}
    assert not (fresh_world.store / "captions").exists()


def test_a_data_set_without_training_images_is_an_error_before_anything_is_made(
    fresh_world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = generating(fresh_world, tmp_path, tmp_path, "dataset.train_root=null")
    with pytest.raises(SystemExit):
        call("generate", *overrides)
    said = capsys.readouterr().err
    assert "has no training split" in said
    assert "dataset.train_root=DIR" in said
    assert not list(fresh_world.store.iterdir())


def test_pictures_of_some_classes_keep_what_they_go_back_to(tmp_path: Path) -> None:
    training = Folder(str(picture_folder(tmp_path / "train")))
    root = picture_folder(tmp_path / "drawn", each=4)
    pictures = draw(
        stages(), training.subjects, Scripted(), ImageFolder(str(root)), tmp_path / "store",
        prompts_per_class=2, images_per_prompt=1, seed=0,
    )  # fmt: skip
    assert set(pictures.sources) == {""}, "a folder's images go back to no caption"
    sources = [f"real {at}" for at in range(6)]
    some = dataclasses.replace(pictures, sources=sources).only([2, 0])
    assert [subject.name for subject in some.subjects] == ["red star", "blue moon"]
    assert [prompt.class_index for prompt in some.prompts] == [0, 0, 1, 1]
    assert list(some.sources) == ["real 4", "real 5", "real 0", "real 1"]
    assert list(some.paths) == [pictures.paths[at] for at in (4, 5, 0, 1)]
