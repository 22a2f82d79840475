"""Tests runs whose prompts are captions, from the real image to the synthetic one, on one and two processes."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from captioners import ScriptedCaptioner, stages, vit_gpt2
from factories import NAMES, Sandbox, make_image_folder, run_command
from PIL import Image

from lgclip.datasets.folder import Folder
from lgclip.datasets.splits import DatasetSplits
from lgclip.diffuser.image_folder import ImageFolder
from lgclip.stages.context import RunContext
from lgclip.stages.counts import ImageCounts
from lgclip.stages.generate import generate_images
from lgclip.stages.parts import GenerationParts

pytest_plugins = ("run_fixtures",)
ROOT = Path(__file__).parents[2]


def generate_overrides(sandbox: Sandbox, train: Path, folder: Path, *overrides: str) -> list[str]:
    return [
        "dataset=folder", f"dataset.root={sandbox.synthetic_images}", f"dataset.train_root={train}", "llm=vit_gpt2",
        f"llm.model={vit_gpt2(folder / 'captioner')}", "llm.revision=null", "llm.max_new_tokens=6",
        f"diffuser.model={sandbox.diffuser}", "diffuser.size=32", "diffuser.steps=2", "prompts_per_class=3",
        f"paths.store={sandbox.store}", "trainer.accelerator=cpu", f"hydra.run.dir={folder / 'run'}", *overrides,
    ]  # fmt: skip


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.multiprocess
def test_synthetic_images_are_traced_to_captions(fresh_sandbox: Sandbox, tmp_path: Path) -> None:
    """Compares images, prompts, captions and sources on one and two processes."""
    train = make_image_folder(tmp_path / "train", per_class=4)
    real = Folder(str(train))
    run_command("generate", *generate_overrides(fresh_sandbox, train, tmp_path, "images_per_prompt=2"))
    listed = lines(tmp_path / "run" / "images.jsonl")
    assert len(listed) == 3 * 3 * 2
    places = {image: index for index, image in enumerate(real.ids)}
    for line in listed:
        index = places[line["source"]]
        assert real.labels[index] == line["class"]
        assert line["source_file"] == real.where(index)
        assert line["caption"]
        assert line["prompt"] == f"a photo of {NAMES[line['class']]}, {line['caption']}"
        with Image.open(line["file"]) as image:
            assert json.loads(image.info["lgclip"])["text"] == line["prompt"]
    assert [places[line["source"]] % 4 for line in listed] == [0, 0, 1, 1, 2, 2] * 3

    other_sandbox = dataclasses.replace(fresh_sandbox, store=tmp_path / "second")
    two = generate_overrides(
        other_sandbox, train, tmp_path, "images_per_prompt=2", "trainer.devices=2", "trainer.strategy=ddp"
    )
    subprocess.run(
        [sys.executable, "generate.py", *two, f"hydra.run.dir={tmp_path / 'two'}"], cwd=ROOT, check=True,
        capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}, timeout=240,
    )  # fmt: skip
    again = lines(tmp_path / "two" / "images.jsonl")
    without_files = [{name: value for name, value in line.items() if name != "file"} for line in listed]
    assert [{name: value for name, value in line.items() if name != "file"} for line in again] == without_files
    files = []
    for records in (listed, again):
        files.append([Path(line["file"]).read_bytes() for line in records])
    assert files[0] == files[1]


@pytest.mark.slow
def test_basic_prompts_have_no_source(fresh_sandbox: Sandbox, tmp_path: Path) -> None:
    train = make_image_folder(tmp_path / "train", per_class=4)
    run_command("generate", *generate_overrides(fresh_sandbox, train, tmp_path, "llm.form=basic"))
    listed = lines(tmp_path / "run" / "images.jsonl")
    assert [(line["prompt"], line["repeat"]) for line in listed[:3]] == [("a photo of blue moon", i) for i in range(3)]
    assert {(line["caption"], line["source"], line["source_file"]) for line in listed} == {("", "", "")}
    assert not (fresh_sandbox.store / "captions").exists()


@pytest.mark.slow
def test_dataset_without_training_images_is_rejected(
    fresh_sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = generate_overrides(fresh_sandbox, tmp_path, tmp_path, "dataset.train_root=null")
    with pytest.raises(SystemExit):
        run_command("generate", *overrides)
    stderr = capsys.readouterr().err
    assert "has no training split" in stderr
    assert "dataset.train_root=DIR" in stderr
    assert not list(fresh_sandbox.store.iterdir())


def test_class_subset_keeps_sources(tmp_path: Path) -> None:
    training = Folder(str(make_image_folder(tmp_path / "train")))
    root = make_image_folder(tmp_path / "drawn", per_class=4)
    context = RunContext(tmp_path / "store", stages())
    data = DatasetSplits(lambda **_: training)
    parts = GenerationParts(data, ScriptedCaptioner(), ImageFolder(str(root)), ImageCounts(2))
    synthetic_images = generate_images(context, parts)
    assert set(synthetic_images.sources) == {""}, "a folder's images go back to no caption"
    sources = [f"real {index}" for index in range(6)]
    subset = dataclasses.replace(synthetic_images, sources=sources).only([2, 0])
    assert [target_class.name for target_class in subset.target_classes] == ["red star", "blue moon"]
    assert [prompt.class_index for prompt in subset.prompts] == [0, 0, 1, 1]
    assert list(subset.sources) == ["real 4", "real 5", "real 0", "real 1"]
    assert list(subset.paths) == [synthetic_images.paths[index] for index in (4, 5, 0, 1)]
