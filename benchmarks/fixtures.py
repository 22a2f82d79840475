"""What is benchmarked on: photo-like JPEGs by class, and models of open_clip with random weights, made on the spot."""

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
"""47 names of textures."""

_WORDS = (CLASSNAMES / "imagenet.clip.txt").read_text(encoding="utf-8").splitlines()
MANY_NAMES = [f"{name} {number}".replace("/", "or") for number, name in enumerate(_WORDS)]
"""1000 names that folders can have; the number keeps those apart that ImageNet calls alike."""

TEMPLATE = "a photo of a {}."
SIZE, QUALITY, OCTAVES = (500, 375), 90, 8
"""Width, height and JPEG quality of ImageNet's usual photo; sizes of grain in a picture, each twice the last."""


def write_photos(root: Path, each: int, names: Sequence[str] = NAMES, size: tuple[int, int] = SIZE) -> Path:
    """An ImageFolder tree of JPEGs: noise of all grain sizes, each class with its own colors and roughness.

    The spectrum falls as a photo's does, so that a file is about as long, and takes as long to decode.

    Args:
        root: Where to make it.
        each: Images a class.
        names: Name of each class.
        size: Width and height.
    """
    rng = np.random.default_rng(0)
    grains = [_grain(rng, 2**octave, size) for octave in range(OCTAVES)]
    for name in names:
        folder = root / name.replace(" ", "_")
        folder.mkdir(parents=True)
        weights = 2.0 ** (np.arange(OCTAVES) * rng.uniform(0.1, 0.4)) * rng.uniform(0.3, 1.7, OCTAVES)
        colors = rng.normal(size=(3, 3)) * 0.3 + np.ones((3, 3)) / 2
        mean = rng.uniform(80, 175, 3)
        for number in range(each):
            shifts = rng.integers(0, 2**20, (OCTAVES, 2))
            cuts = [w * _cut(g, at, size) for w, g, at in zip(weights, grains, shifts, strict=True)]
            field = np.sum(cuts, axis=0)
            pixels = (field / field.std() * 50) @ colors.astype(np.float32) + mean
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:04}.jpg", quality=QUALITY)
    return root


def _grain(rng: np.random.Generator, side: int, size: tuple[int, int]) -> NDArray[np.float32]:
    """Noise of one grain size, of variance about 1, a half larger than a picture."""
    width, height = (3 * length // 2 for length in size)
    coarse = rng.normal(size=(3, max(2, height // side), max(2, width // side))).astype(np.float32)
    planes = [Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC) for plane in coarse]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


def _cut(grain: NDArray[np.float32], at: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.float32]:
    top, left = (
        int(place) % (length - own + 1) for place, length, own in zip(at, grain.shape, size[::-1], strict=False)
    )
    return grain[top : top + size[1], left : left + size[0]]


def save_vit_s_32(folder: Path, synthetic_images: Path) -> Path:
    """ViT-S-32 in a folder of open_clip's layout.

    Args:
        folder: Where to make it.
        synthetic_images: What will be evaluated: see `_fitted`.
    """
    config = get_model_config("ViT-S-32")
    assert config is not None
    return _fitted(folder, config, synthetic_images)


def save_random_vit_s_32(folder: Path) -> Path:
    """ViT-S-32 with random weights alone, in a folder of open_clip's layout.

    Args:
        folder: Where to make it.
    """
    config = get_model_config("ViT-S-32")
    assert config is not None
    torch.manual_seed(0)
    return _saved(folder, CLIP(**config).eval(), config)


def save_smallest_model(folder: Path, synthetic_images: Path) -> Path:
    """A model with features of usual width that takes next to no time: two tokens, one layer.

    Args:
        folder: Where to make it.
        synthetic_images: What will be evaluated: see `_fitted`.
    """
    tower = {"width": 64, "layers": 1}
    config: dict[str, Any] = {
        "embed_dim": 512,
        "vision_cfg": {"image_size": 32, "patch_size": 32, "head_width": 32, **tower},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "heads": 2, **tower},
    }
    return _fitted(folder, config, synthetic_images)


def _fitted(folder: Path, config: dict[str, Any], synthetic_images: Path) -> Path:
    """A model whose weights tell the pictures apart a little, so that equal figures mean something.

    They are random but for the last projection of its image tower, which is fitted by least squares to the sentences
    of every fourth picture.
    """
    torch.manual_seed(0)
    model: Any = CLIP(**config).eval()
    read: Any = image_transform_v2(PreprocessCfg(size=config["vision_cfg"]["image_size"]), is_train=False)
    classes = sorted(synthetic_images.iterdir())
    files = [sorted(path.iterdir())[::4] for path in classes]
    with torch.inference_mode():
        model.visual.proj, projection = None, model.visual.proj
        pixels = torch.stack([read(Image.open(file)) for group in files for file in group])
        pooled = torch.cat([model.encode_image(part) for part in pixels.split(32)]).double()
        sentences = SimpleTokenizer()([TEMPLATE.replace("{}", path.name.replace("_", " ")) for path in classes])
        texts = torch.cat([normalize(model.encode_text(part), dim=-1) for part in sentences.split(32)]).double()
    wanted = texts.repeat_interleave(torch.tensor([len(group) for group in files]), dim=0)
    ridge = 1e-3 * pooled.square().mean() * len(pooled) * torch.eye(pooled.shape[1], dtype=torch.float64)
    projection.data = torch.linalg.solve(pooled.T @ pooled + ridge, pooled.T @ wanted).float()
    model.visual.proj = projection
    return _saved(folder, model, config)


def _saved(folder: Path, model: Any, config: dict[str, Any]) -> Path:
    """A model as a folder that both `encoder.model=FOLDER` and open_clip's `local-dir:FOLDER` read."""
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder
