"""What a researcher types on the first day: the paper's six data sets, real loaders, images made elsewhere."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixture_trees import opened, tree
from imagenet_trees import class_folders
from PIL import Image
from worlds import World, encoder_folder, judge, rows

from lgclip.datasets.imagenet_classes import wordnet_ids

SIX = ("cub", "eurosat", "flowers102", "food101", "pets", "imagenet")
TEXT = {"eurosat": "a centered satellite photo of {}.", "cub": "a photo of a {}, a type of bird."}


def data(name: str, root: Path) -> Path:
    if name == "imagenet":
        class_folders(root / "val", wordnet_ids())
        return root
    return tree(name, root)


def drawn(root: Path, names: Sequence[str], each: int = 1) -> Path:
    """Images in the layout of LGCLIP's release; classes that share a name are told apart by their index."""
    rng = np.random.default_rng(0)
    for index, name in enumerate(names):
        folder = root / (f"{index:04}-{name}" if names.count(name) > 1 else name.replace("/", "_"))
        folder.mkdir(parents=True)
        for i in range(each):
            patches = Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8))
            patches.resize((40, 40)).save(folder / f"{i}_{folder.name}.jpg")
    return root


def random_vit_b16(folder: Path) -> Path:
    """open_clip's own ViT-B/16 with random weights; 32 px and one text layer, so that a CPU is enough."""
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
    names = opened(name, root).class_names
    (tmp_path / "prompts.json").write_text(json.dumps([[f"a photo of a {one}"] for one in names]))
    world = World(root, encoder, tmp_path / "unused", tmp_path / "store")
    given = [
        f"dataset={name}", f"dataset.root={root}", "dataset.counts=false",
        f"encoder.model={encoder}", "llm=file", f"llm.path={tmp_path / 'prompts.json'}",
        "diffuser=folder", f"diffuser.root={drawn(tmp_path / 'drawn', names)}",
        "prompts_per_class=1", f"paths.store={world.store}", "trainer.accelerator=cpu", "logger=none",
    ]  # fmt: skip
    return judge(given, tmp_path / "run", *overrides)


@pytest.mark.parametrize("name", SIX)
def test_each_of_the_papers_data_sets_is_judged(name: str, tmp_path: Path) -> None:
    result = run(name, tmp_path, encoder_folder(tmp_path / "encoder"))
    assert result["dataset"]["name"] == name
    assert result["dataset"]["templates"] == [TEXT.get(name, result["dataset"]["templates"][0])]
    assert result["num_classes"] == {"cub": 200, "eurosat": 10, "flowers102": 102, "food101": 101, "pets": 37}.get(
        name, 1000
    )
    assert re.search(r"\d of [\d,]+ images", result["dataset"]["split"]), "a part of the data set says that it is one"
    assert result["llm"] is None, "images that are there need no prompts"
    assert result["n"] == len(rows(tmp_path / "run" / "predictions.csv"))
    assert set(result["beside"]) == {"clip_text", "fusion"}


def test_the_six_are_judged_by_a_vit_b16(tmp_path: Path) -> None:
    result = run("cub", tmp_path, random_vit_b16(tmp_path / "encoder"), "encoder.batch_size=64")
    assert result["n"] == 400
    assert result["encoder"]["model"].startswith("sha256:")
    assert 0 <= result["metrics"]["top1"] <= 1
