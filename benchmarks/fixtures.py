"""Writes the inputs of benchmarks: photo-like JPEGs by class, and open_clip models with random weights."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip import get_model_config
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file
from torch.nn.functional import normalize

from lgclip.datasets.image_files import CLASSNAMES

NAMES = (CLASSNAMES / "dtd.clip.txt").read_text(encoding="utf-8").splitlines()
"""47 names of textures, from DTD."""

_IMAGENET_NAMES = (CLASSNAMES / "imagenet.clip.txt").read_text(encoding="utf-8").splitlines()
MANY_NAMES = [f"{name} {number}".replace("/", "or") for number, name in enumerate(_IMAGENET_NAMES)]
"""1000 valid folder names; the number distinguishes ImageNet classes of the same name."""

TEMPLATE = "a photo of a {}."
SIZE = (500, 375)
"""Width and height of a typical ImageNet photo."""

QUALITY = 90
"""JPEG quality of a typical ImageNet photo."""

OCTAVES = 8
"""Number of grain sizes in an image, each twice the previous one."""


def write_photos(root: Path, images_per_class: int, names: Sequence[str] = NAMES, size: tuple[int, int] = SIZE) -> Path:
    """Writes an ImageFolder tree of JPEGs: noise of several grain sizes, with colors and roughness by class.

    The spectrum falls as a photo's does, so that file size and decoding time are similar.

    Args:
        root: Output folder.
        images_per_class: Number of images per class.
        names: Name of each class.
        size: Width and height in pixels.

    Returns:
        The output folder.
    """
    rng = np.random.default_rng(0)
    grains = [_make_grain(rng, 2**octave, size) for octave in range(OCTAVES)]
    for name in names:
        folder = root / name.replace(" ", "_")
        folder.mkdir(parents=True)
        weights = 2.0 ** (np.arange(OCTAVES) * rng.uniform(0.1, 0.4)) * rng.uniform(0.3, 1.7, OCTAVES)
        colors = rng.normal(size=(3, 3)) * 0.3 + np.ones((3, 3)) / 2
        mean = rng.uniform(80, 175, 3)
        for number in range(images_per_class):
            shifts = rng.integers(0, 2**20, (OCTAVES, 2))
            layers = [w * _crop_grain(g, shift, size) for w, g, shift in zip(weights, grains, shifts, strict=True)]
            field = np.sum(layers, axis=0)
            pixels = (field / field.std() * 50) @ colors.astype(np.float32) + mean
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:04}.jpg", quality=QUALITY)
    return root


def _make_grain(rng: np.random.Generator, grain_size: int, size: tuple[int, int]) -> NDArray[np.float32]:
    """Returns noise of one grain size with a variance of about 1, half as large again as an image."""
    width, height = (3 * length // 2 for length in size)
    coarse = rng.normal(size=(3, max(2, height // grain_size), max(2, width // grain_size))).astype(np.float32)
    planes = [Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC) for plane in coarse]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


def _crop_grain(grain: NDArray[np.float32], shift: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.float32]:
    width, height = size
    top = int(shift[0]) % (grain.shape[0] - height + 1)
    left = int(shift[1]) % (grain.shape[1] - width + 1)
    return grain[top : top + height, left : left + width]


def save_vit_s_32(folder: Path, images: Path) -> Path:
    """Saves a ViT-S-32 with a fitted projection in the layout of open_clip.

    Args:
        folder: Output folder.
        images: Images to evaluate, see `_save_fitted`.

    Returns:
        The output folder.
    """
    config = get_model_config("ViT-S-32")
    assert config is not None
    return _save_fitted(folder, config, images)


def save_random_vit_s_32(folder: Path) -> Path:
    """Saves a ViT-S-32 with random weights only, in the layout of open_clip.

    Args:
        folder: Output folder.

    Returns:
        The output folder.
    """
    config = get_model_config("ViT-S-32")
    assert config is not None
    torch.manual_seed(0)
    return _save_model(folder, CLIP(**config).eval(), config)


def save_smallest_model(folder: Path, images: Path) -> Path:
    """Saves a very fast model with features of the usual width: two tokens, one layer.

    Args:
        folder: Output folder.
        images: Images to evaluate, see `_save_fitted`.

    Returns:
        The output folder.
    """
    tower = {"width": 64, "layers": 1}
    config: dict[str, Any] = {
        "embed_dim": 512,
        "vision_cfg": {"image_size": 32, "patch_size": 32, "head_width": 32, **tower},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "heads": 2, **tower},
    }
    return _save_fitted(folder, config, images)


def _save_fitted(folder: Path, config: dict[str, Any], images: Path) -> Path:
    """Saves a model that separates the classes a little, so that equal metrics are meaningful.

    The weights are random, except for the last projection of the image tower, which is fitted by least squares to the
    sentences of every fourth image.
    """
    torch.manual_seed(0)
    model: Any = CLIP(**config).eval()
    transform: Any = image_transform_v2(PreprocessCfg(size=config["vision_cfg"]["image_size"]), is_train=False)
    classes = sorted(images.iterdir())
    files = [sorted(path.iterdir())[::4] for path in classes]
    with torch.inference_mode():
        model.visual.proj, projection = None, model.visual.proj
        pixels = torch.stack([transform(Image.open(file)) for group in files for file in group])
        pooled = torch.cat([model.encode_image(part) for part in pixels.split(32)]).double()
        sentences = SimpleTokenizer()([TEMPLATE.replace("{}", path.name.replace("_", " ")) for path in classes])
        texts = torch.cat([normalize(model.encode_text(part), dim=-1) for part in sentences.split(32)]).double()
    targets = texts.repeat_interleave(torch.tensor([len(group) for group in files]), dim=0)
    ridge = 1e-3 * pooled.square().mean() * len(pooled) * torch.eye(pooled.shape[1], dtype=torch.float64)
    projection.data = torch.linalg.solve(pooled.T @ pooled + ridge, pooled.T @ targets).float()
    model.visual.proj = projection
    return _save_model(folder, model, config)


def _save_model(folder: Path, model: Any, config: dict[str, Any]) -> Path:
    """Saves a model in a folder that `encoder.model=FOLDER` and open_clip's `local-dir:FOLDER` read."""
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder
