"""Tests the first commands of a new user: the paper's six data sets, real loaders and precomputed images."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_trees import build_tree, load_dataset
from factories import Sandbox, evaluate_run, make_encoder, read_csv
from imagenet_trees import class_folders
from PIL import Image

from lgclip.datasets.imagenet_classes import wordnet_ids

SIX = ("cub", "eurosat", "flowers102", "food101", "pets", "imagenet")
TEXT = {"eurosat": "a centered satellite photo of {}.", "cub": "a photo of a {}, a type of bird."}


def data(name: str, root: Path) -> Path:
    if name == "imagenet":
        class_folders(root / "val", wordnet_ids())
        return root
    return build_tree(name, root)


def generated(root: Path, names: Sequence[str], per_class: int = 1) -> Path:
    """Creates images in the layout of LGCLIP's release; classes that share a name differ by their index."""
    rng = np.random.default_rng(0)
    for index, name in enumerate(names):
        folder = root / (f"{index:04}-{name}" if names.count(name) > 1 else name.replace("/", "_"))
        folder.mkdir(parents=True)
        for i in range(per_class):
            patches = Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8))
            patches.resize((40, 40)).save(folder / f"{i}_{folder.name}.jpg")
    return root


def random_vit_b16(folder: Path) -> Path:
    """Creates open_clip's ViT-B/16 with random weights, 32 px and one text layer, small enough for a CPU."""
    import open_clip
    from safetensors.torch import save_file

    config: Any = open_clip.get_model_config("ViT-B-16")
    config["vision_cfg"]["image_size"] = 32
    config["text_cfg"]["layers"] = 1
    torch.manual_seed(0)
    model = open_clip.CLIP(**config)
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


def run(name: str, tmp_path: Path, encoder: Path, *overrides: str) -> dict[str, Any]:
    root = data(name, tmp_path / "data")
    names = load_dataset(name, root).class_names
    (tmp_path / "prompts.json").write_text(json.dumps([[f"a photo of a {class_name}"] for class_name in names]))
    sandbox = Sandbox(root, encoder, tmp_path / "unused", tmp_path / "store")
    values = [
        f"dataset={name}", f"dataset.root={root}", "dataset.counts=false",
        f"encoder.model={encoder}", "llm=file", f"llm.path={tmp_path / 'prompts.json'}",
        "diffuser=folder", f"diffuser.root={generated(tmp_path / 'drawn', names)}",
        "prompts_per_class=1", f"paths.store={sandbox.store}", "trainer.accelerator=cpu", "logger=none",
    ]  # fmt: skip
    return evaluate_run(values, tmp_path / "run", *overrides)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIX)
def test_paper_datasets_are_evaluated(name: str, tmp_path: Path) -> None:
    result = run(name, tmp_path, make_encoder(tmp_path / "encoder"))
    assert result["dataset"]["name"] == name
    assert result["dataset"]["templates"] == [TEXT.get(name, result["dataset"]["templates"][0])]
    assert result["num_classes"] == {"cub": 200, "eurosat": 10, "flowers102": 102, "food101": 101, "pets": 37}.get(
        name, 1000
    )
    assert re.search(r"\d of [\d,]+ images", result["dataset"]["split"]), "a part of the data set says that it is one"
    assert result["llm"] is None, "images that are there need no prompts"
    assert result["n"] == len(read_csv(tmp_path / "run" / "predictions.csv"))
    # CLIP published an ensemble for these two, so the single template is a baseline too.
    single = {"clip_text_template"} if name in ("eurosat", "imagenet") else set()
    assert set(result["baselines"]) == {"clip_text", "clip_text_waffle", "fusion", *single}
    assert result["text"]["text"]["sentences"] == [{"eurosat": 3, "imagenet": 80}.get(name, 1)] * 2


@pytest.mark.slow
def test_paper_datasets_are_evaluated_with_vit_b16(tmp_path: Path) -> None:
    result = run("eurosat", tmp_path, random_vit_b16(tmp_path / "encoder"), "encoder.batch_size=64")
    assert result["num_classes"] == 10
    assert result["n"] == len(read_csv(tmp_path / "run" / "predictions.csv")) > 0
    assert result["encoder"]["model"].startswith("sha256:")
    assert 0 <= result["metrics"]["top1"] <= 1
