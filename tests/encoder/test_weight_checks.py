"""Tests that weights which do not fit, and towers that take no image, are refused before anything is generated."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import make_encoder
from safetensors.torch import load_file, save_file

from lgclip.encoder.open_clip import OpenClip
from lgclip.encoder.timm import Timm
from lgclip.encoder.weight_comparison import mismatch, stored_shapes

EXPECTED = {"a.weight": (2, 3), "a.bias": (2,), "b.weight": (4, 2)}


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (EXPECTED, None),
        (dict(reversed(EXPECTED.items())), None),
        ({"a.weight": (2, 3)}, "2 of the model's 3 weights are missing (a.bias, b.weight)"),
        (
            {**EXPECTED, "c": (1,), "d": (1,), "e": (1,), "f": (1,)},
            "4 of the file's 7 are unknown to the model (c, d, e, ...)",
        ),
        (
            {**EXPECTED, "b.weight": (5, 2)},
            "1 have another shape (b.weight: [5, 2] in the file, [4, 2] in the model)",
        ),
        (
            {f"net.{name}": shape for name, shape in EXPECTED.items()},
            "only the names differ: 3 of the model's 3 weights have another name in the file, and all shapes fit; the "
            "model has a.weight, a.bias, b.weight, the file net.a.weight, net.a.bias, net.b.weight; rename them in "
            "the file",
        ),
        ({}, "3 of the model's 3 weights are missing (a.weight, a.bias, b.weight)"),
    ],
)
def test_mismatch_gives_counts_and_first_names(stored: dict[str, tuple[int, ...]], message: str | None) -> None:
    assert mismatch(EXPECTED, stored) == message


@pytest.mark.parametrize("nested", [False, True])
def test_shapes_of_a_pickle_are_those_of_safetensors(nested: bool, tmp_path: Path) -> None:
    weights = {"a": torch.zeros(2, 3), "b": torch.zeros(())}
    save_file(weights, tmp_path / "a.safetensors")
    content: Any = weights
    if nested:
        content = {"state_dict": {f"module.{name}": value for name, value in weights.items()}, "epoch": 3}
    torch.save(content, tmp_path / "a.pt")
    assert stored_shapes(tmp_path / "a.pt") == stored_shapes(tmp_path / "a.safetensors") == {"a": (2, 3), "b": ()}


@pytest.fixture
def open_clip_folder(tmp_path: Path) -> Path:
    return make_encoder(tmp_path / "open_clip")


@pytest.fixture
def timm_folder(tmp_path: Path) -> Path:
    import timm

    folder = tmp_path / "timm"
    folder.mkdir()
    size: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    model: Any = timm.create_model("vit_tiny_patch16_224", num_classes=4, **size)
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": "vit_tiny_patch16_224", "num_classes": 4, "model_args": size,
        "pretrained_cfg": {"input_size": [3, 32, 32], "num_classes": 4, "classifier": "head", "fixed_input_size": True},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records each time that an encoder loads its weights."""
    record: list[str] = []
    for kind in (OpenClip, Timm):
        load = kind.load

        def recorded(self: Any, device: torch.device, load: Any = load) -> Any:
            record.append(type(self).__name__)
            return load(self, device)

        monkeypatch.setattr(kind, "load", recorded)
    return record


def test_fitting_weights_are_not_loaded(open_clip_folder: Path, timm_folder: Path, loads: list[str]) -> None:
    OpenClip(str(open_clip_folder)).check_weights()
    Timm(str(timm_folder)).check_weights()
    Timm(str(timm_folder), pooling="avg").check_weights()
    OpenClip("tiny:encoder").check_weights()
    assert loads == []


@pytest.mark.parametrize("library", ["open_clip", "timm"])
def test_wrong_weights_are_named(library: str, open_clip_folder: Path, timm_folder: Path) -> None:
    folder, name, build = {
        "open_clip": (open_clip_folder, "open_clip_model.safetensors", OpenClip),
        "timm": (timm_folder, "model.safetensors", Timm),
    }[library]
    weights = load_file(folder / name)
    first, second, *_ = [key for key in weights if key.endswith("mlp.fc1.weight") or key.endswith("bias")]
    save_file({key: value for key, value in weights.items() if key not in (first, second)}, folder / name)
    with pytest.raises(ValueError, match=r"cannot be built from .*: 2 of the model's \d+ weights are missing") as error:
        build(str(folder)).check_weights()
    assert first in str(error.value)
    save_file({f"net.{key}": value for key, value in weights.items()}, folder / name)
    with pytest.raises(ValueError, match=r"only the names differ: .* net\."):
        build(str(folder)).check_weights()
    save_file({**weights, first: torch.zeros(7)}, folder / name)
    with pytest.raises(ValueError, match=r"1 have another shape .*\[7\] in the file"):
        build(str(folder)).check_weights()


def test_tower_that_takes_no_image_is_refused(open_clip_folder: Path, tmp_path: Path) -> None:
    config = json.loads((open_clip_folder / "open_clip_config.json").read_text())
    copy = Path(shutil.copytree(open_clip_folder, tmp_path / "copy"))
    config["preprocess_cfg"] = {"mean": [0.5], "std": [0.5, 0.5]}
    (copy / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"encoder .OpenClip.: its preprocessing takes no image"):
        OpenClip(str(copy)).check_weights()


def test_tower_of_other_channels_is_refused(timm_folder: Path) -> None:
    import timm

    config = json.loads((timm_folder / "config.json").read_text())
    config["model_args"]["in_chans"] = 5
    model: Any = timm.create_model(config["architecture"], num_classes=4, **config["model_args"])
    save_file(model.state_dict(), timm_folder / "model.safetensors")
    (timm_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"encoder .Timm.: its vision tower takes no image of 3x32x32"):
        Timm(str(timm_folder)).check_weights()
