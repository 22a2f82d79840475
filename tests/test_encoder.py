import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from worlds import encoder_folder

from lgclip.encoder.base import Towers
from lgclip.encoder.open_clip import OpenClip

CPU = torch.device("cpu")
SENTENCES = ["a photo of a red star.", "", "🦙 " * 100, "a photo of a red star."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_folder(tmp_path_factory.mktemp("model") / "encoder")


@pytest.fixture(scope="module")
def towers(folder: Path) -> Towers:
    return OpenClip(str(folder)).load(CPU)


def picture(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(noise)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_1_is_refused(batch_size: int) -> None:
    with pytest.raises(ValueError, match=rf"encoder\.batch_size={batch_size}: it must be at least 1"):
        OpenClip("ViT-B-32", batch_size=batch_size)


@pytest.mark.parametrize(
    "preprocessing",
    [{}, {"mean": [0.5] * 3, "std": [0.5] * 3}, {"interpolation": "bilinear"}, {"resize_mode": "squash"}],
    ids=["default", "mean", "interpolation", "resize"],
)
@pytest.mark.parametrize("size", [(64, 64), (50, 31), (20, 90)])
def test_the_preprocessing_is_open_clip_s_own(
    preprocessing: dict[str, Any], size: tuple[int, int], folder: Path
) -> None:
    path = folder / "open_clip_config.json"
    written = path.read_text()
    try:
        path.write_text(json.dumps({**json.loads(written), "preprocess_cfg": preprocessing}))
        _, _, expected = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        ours = OpenClip(str(folder)).transform()
    finally:
        path.write_text(written)
    image = picture(*size)
    assert torch.equal(ours(image), expected(image))  # pyright: ignore


@pytest.mark.parametrize(
    ("model", "tag", "mean", "std"),
    [
        ("ViT-B-32", "openai", open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD),
        ("ViT-B-16-SigLIP", "webli", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ],
)
def test_the_preprocessing_of_a_named_architecture_is_its_weights_own(
    model: str, tag: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    image = picture(300, 300)
    small = np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC)) / 255
    ours = OpenClip(model, tag).transform()(image)
    np.testing.assert_allclose(ours, ((small - mean) / std).transpose(2, 0, 1), atol=1e-5)


def test_features_are_open_clip_s_own_at_unit_length(folder: Path, towers: Towers) -> None:
    model: Any
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer: Any = open_clip.get_tokenizer(f"local-dir:{folder}")
    pixels: Any = torch.stack([transform(picture(40, n)) for n in (40, 50)])  # pyright: ignore
    with torch.no_grad():
        for ours, theirs in (
            (towers.images(pixels), model.eval().encode_image(pixels).numpy()),
            (towers.texts(SENTENCES), model.encode_text(tokenizer(SENTENCES)).numpy()),
        ):
            lengths = np.linalg.norm(theirs, axis=1, keepdims=True)
            np.testing.assert_allclose(ours, theirs / lengths, atol=1e-6)


def test_a_feature_does_not_depend_on_its_batch(towers: Towers) -> None:
    pixels = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(towers.images(pixels)[3:4], towers.images(pixels[3:4]), atol=1e-6, rtol=0)
    texts = towers.texts(SENTENCES)
    torch.testing.assert_close(texts[:1], towers.texts(SENTENCES[:1]), atol=1e-6, rtol=0)
    torch.testing.assert_close(texts[0], texts[3], atol=1e-6, rtol=0)
    assert (texts[0] - texts[1]).norm() > 1e-3


def test_weights_in_half_precision_encode_in_single(folder: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    half = shutil.copytree(folder, tmp_path / "half")
    weights = half / "open_clip_model.safetensors"
    save_file({k: v.half() for k, v in load_file(weights).items()}, weights)
    features = OpenClip(str(half)).load(CPU).images(torch.randn(2, 3, 32, 32))
    assert features.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2), atol=1e-6, rtol=0)  # half would be off by 1e-3


def test_no_gradient_is_kept(towers: Towers) -> None:
    assert not towers.images(torch.randn(1, 3, 32, 32)).requires_grad
    assert not towers.texts(["a"]).requires_grad


def test_a_folder_without_a_model_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises((ValueError, OSError), match=r"open_clip_config\.json"):
        OpenClip(str(tmp_path)).transform()
