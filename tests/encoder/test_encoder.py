import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from factories import HUB_COMMIT, make_encoder
from PIL import Image
from safetensors.torch import load_file, save_file

from lgclip.encoder.base import Towers
from lgclip.encoder.open_clip import OpenClip
from lgclip.encoder.precision import decided
from lgclip.store.keys import content_key, key_inputs

CPU = torch.device("cpu")
SENTENCES = ["a photo of a red star.", "", "🦙 " * 100, "a photo of a red star."]


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides the GPU, so that `auto` is fp32 everywhere."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("model") / "encoder")


@pytest.fixture(scope="module")
def towers(folder: Path) -> Towers:
    return OpenClip(str(folder), precision="fp32").load(CPU)


def picture(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(noise)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_size_below_1_is_rejected(batch_size: int) -> None:
    with pytest.raises(ValueError, match=rf"encoder\.batch_size={batch_size}: it must be at least 1"):
        OpenClip("ViT-B-32", batch_size=batch_size)


@pytest.mark.parametrize(
    "preprocessing",
    [{}, {"mean": [0.5] * 3, "std": [0.5] * 3}, {"interpolation": "bilinear"}, {"resize_mode": "squash"}],
    ids=["default", "mean", "interpolation", "resize"],
)
@pytest.mark.parametrize("size", [(64, 64), (50, 31), (20, 90)])
def test_preprocessing_matches_open_clip(preprocessing: dict[str, Any], size: tuple[int, int], folder: Path) -> None:
    path = folder / "open_clip_config.json"
    written = path.read_text()
    try:
        path.write_text(json.dumps({**json.loads(written), "preprocess_cfg": preprocessing}))
        _, _, expected = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        actual = OpenClip(str(folder)).transform()
    finally:
        path.write_text(written)
    image = picture(*size)
    assert torch.equal(actual(image), expected(image))  # pyright: ignore


@pytest.mark.parametrize(
    ("model", "tag", "mean", "std"),
    [
        ("ViT-B-32-quickgelu", "openai", open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD),
        ("ViT-B-16-SigLIP", "webli", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ],
)
def test_preprocessing_follows_the_weights(
    model: str, tag: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    image = picture(300, 300)
    small = np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC)) / 255
    actual = OpenClip(model, tag).transform()(image)
    np.testing.assert_allclose(actual, ((small - mean) / std).transpose(2, 0, 1), atol=1e-5)


def test_features_match_open_clip(folder: Path, towers: Towers) -> None:
    model: Any
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer: Any = open_clip.get_tokenizer(f"local-dir:{folder}")
    pixels: Any = torch.stack([transform(picture(40, n)) for n in (40, 50)])  # pyright: ignore
    with torch.no_grad():
        for actual, expected in (
            (towers.images(pixels), model.eval().encode_image(pixels).numpy()),
            (towers.texts(SENTENCES), model.encode_text(tokenizer(SENTENCES)).numpy()),
        ):
            lengths = np.linalg.norm(expected, axis=1, keepdims=True)
            np.testing.assert_allclose(actual, expected / lengths, atol=1e-6)


def test_feature_does_not_depend_on_its_batch(towers: Towers) -> None:
    pixels = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(towers.images(pixels)[3:4], towers.images(pixels[3:4]), atol=1e-6, rtol=0)
    texts = towers.texts(SENTENCES)
    torch.testing.assert_close(texts[:1], towers.texts(SENTENCES[:1]), atol=1e-6, rtol=0)
    torch.testing.assert_close(texts[0], texts[3], atol=1e-6, rtol=0)
    assert (texts[0] - texts[1]).norm() > 1e-3


def test_half_precision_weights_encode_in_fp32(folder: Path, tmp_path: Path) -> None:
    half = shutil.copytree(folder, tmp_path / "half")
    weights = half / "open_clip_model.safetensors"
    save_file({k: v.half() for k, v in load_file(weights).items()}, weights)
    features = OpenClip(str(half)).load(CPU).images(torch.randn(2, 3, 32, 32))
    assert features.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2), atol=1e-6, rtol=0)  # half would be off by 1e-3


def test_no_gradient_is_stored(towers: Towers) -> None:
    assert not towers.images(torch.randn(1, 3, 32, 32)).requires_grad
    assert not towers.texts(["a"]).requires_grad


def test_folder_without_model_names_the_file(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no open_clip_config\.json in it"):
        OpenClip(str(tmp_path)).transform()
    shutil.copy(folder / "open_clip_config.json", tmp_path)
    with pytest.raises(ValueError, match=r"no weights in it; expected open_clip_model\.safetensors"):
        OpenClip(str(tmp_path)).load(CPU)
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {}}')
    with pytest.raises(ValueError, match="has no model_cfg with a vision_cfg"):
        OpenClip(str(tmp_path)).transform()
    (tmp_path / "open_clip_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"open_clip_config\.json is damaged"):
        OpenClip(str(tmp_path)).transform()


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1"])
@pytest.mark.parametrize("size", [(33, 47), (640, 480), (32, 32), (700, 9)])
def test_squash_resizes_to_the_input(mode: str, size: tuple[int, int], folder: Path) -> None:
    image = picture(*size).convert(mode).convert("RGB")
    gray = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC), np.float32) / 255
    expected = (gray - np.array(open_clip.OPENAI_DATASET_MEAN, np.float32)) / np.array(
        open_clip.OPENAI_DATASET_STD, np.float32
    )
    actual = OpenClip(str(folder)).transform(squash=True)(image)
    np.testing.assert_allclose(actual.permute(1, 2, 0), expected, atol=1e-6)


def test_squash_keeps_interpolation_and_normalization() -> None:
    image = picture(301, 211)
    for model, tag in (
        ("MobileCLIP2-S4", "dfndr2b"),
        ("ViT-B-16-SigLIP", "webli"),
        ("ViT-L-14-336-quickgelu", "openai"),
    ):
        listed: Any = open_clip.get_model_config(model)
        config = open_clip.get_pretrained_cfg(model, tag)
        size = listed["vision_cfg"]["image_size"]
        modes = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
        gray = np.asarray(image.resize((size, size), modes[config["interpolation"]]), np.float32) / 255
        expected = (gray - np.float32(config["mean"])) / np.float32(config["std"])
        actual = OpenClip(model, tag).transform(squash=True)(image)
        np.testing.assert_allclose(actual.permute(1, 2, 0), expected, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_features_are_close_and_unit(precision: str, folder: Path, towers: Towers) -> None:
    pixels = torch.randn(4, 3, 32, 32)
    low = OpenClip(str(folder), precision=precision).load(CPU)
    for actual, exact in ((low.images(pixels), towers.images(pixels)), (low.texts(SENTENCES), towers.texts(SENTENCES))):
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual.norm(dim=1), torch.ones(4), atol=1e-6, rtol=0)  # bf16 would be off by 1e-3
        assert (actual * exact).sum(dim=1).min() > 0.999
        assert not torch.equal(actual, exact)


def test_precision_is_resolved_and_in_the_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def key(precision: str) -> str:
        return content_key(OpenClip(str(folder), precision=precision).inputs())

    assert len({key("fp32"), key("bf16"), key("fp16")}) == 3
    assert key("auto") == key("fp32")
    auto = OpenClip(str(folder))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    assert key("auto") == key("bf16")
    assert auto.on(CPU).precision == "fp32", "a run on the CPU of a machine with a GPU"
    assert auto.on(torch.device("cuda", 0)).precision == "bf16"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert decided("auto") == "fp32", "a GPU that only emulates bf16"
    with pytest.raises(ValueError, match=r"encoder\.precision=int8: choose auto, fp32, bf16, fp16"):
        OpenClip(str(folder), precision="int8")


def test_key_includes_every_declared_field(folder: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copy(folder / "open_clip_model.safetensors", tmp_path / "a.safetensors")
    other_file = tmp_path / "b.safetensors"
    save_file({"x": torch.zeros(1)}, other_file)
    part = OpenClip("ViT-B-32-quickgelu", "openai", checkpoint=str(checkpoint))
    changes: dict[str, Any] = {
        "model": "ViT-B-16-quickgelu", "pretrained": "metaclip_400m", "revision": HUB_COMMIT, "checkpoint":
        str(other_file), "allow_pickle": True, "precision": "bf16", "resize": "fast", "batch_size": 1,
    }  # fmt: skip
    assert set(changes) == {field.name for field in dataclasses.fields(part)}
    for field in dataclasses.fields(part):
        changed = dataclasses.replace(part, **{field.name: changes[field.name]})
        assert (content_key(changed.inputs()) == content_key(part.inputs())) == (
            not field.metadata.get("input", True)
        ), field.name
        assert (field.name in key_inputs(part)) == field.metadata.get("input", True)
