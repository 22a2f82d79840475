"""Measures features at ten scales (B6): `python benchmarks/multi_scale.py`, three minutes on two cores.

JPEG files of a photo's size stand for real images, PNG files of 512 pixels for synthetic ones. The reference is the
procedure of the official release of LGCLIP: for every image and every scale, the file is decoded again and its crop is
encoded alone. The crops are the same, so the features are compared first. B6a uses the package's encoder, B6b a
ViT-S/32 with random weights, which spends nearly all its time on forward passes.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comparison import Row, alternate, measure_seconds, save_row
from jaxtyping import Float
from PIL import Image
from staging import build_stages
from torch import Tensor

from lgclip.datasets.image_decoding import read_image
from lgclip.encoder.open_clip import OpenClip
from lgclip.encoder.scales import SquareCrops
from lgclip.encoder.views import SharedViews
from lgclip.stages.features import FeatureExtractionStage
from lgclip.stages.streams import Stream, Streams
from lgclip.store.features import FeatureStore

IMAGES = 96
"""Number of images, so many that the startup of a stage is a small fraction."""

REAL_SIZE, SYNTHETIC_SIZE = (500, 375), (512, 512)
"""Width and height in pixels."""

FRACTIONS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
SCALES = SquareCrops(FRACTIONS, tuple(range(10, 0, -1)))
VIT_S_32: dict[str, Any] = {
    "embed_dim": 384,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 384, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 384, "heads": 6, "layers": 1},
}


def save_encoder(folder: Path) -> OpenClip:
    """Saves a ViT-S/32 with random weights in the layout of open_clip; the text tower is not used."""
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    torch.manual_seed(0)
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": VIT_S_32, "preprocess_cfg": {}}))
    weights = CLIP(**VIT_S_32).state_dict()
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "open_clip_model.safetensors")
    return OpenClip(str(folder), precision="fp32")


def write_images(folder: Path) -> list[Path]:
    """Writes smooth noise: JPEG files with about the bytes of a photo, and as many PNG files."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = []
    for number in range(IMAGES):
        jpeg = number % 2 == 0
        size = REAL_SIZE if jpeg else SYNTHETIC_SIZE
        coarse = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )
        pixels = np.asarray(coarse) + rng.normal(0, 6, (size[1], size[0], 3))
        paths.append(folder / f"{number}.{'jpg' if jpeg else 'png'}")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=92)
    return paths


def encode_by_stage(encoder: OpenClip, paths: list[Path], root: Path) -> Float[Tensor, "n s d"]:
    """Encodes files by the encoding stage of a run, and returns the stored features."""
    ids = [path.name for path in paths]
    store = FeatureStore(root, encoder.inputs(), {"source": "photographs"})
    stream = Stream("real", ids, [0] * len(ids), SCALES.views, store, lambda index: read_image(paths[index]))
    data = Streams([stream], 1, SharedViews(encoder, SCALES), encoder.batch_size)
    build_stages().complete("features", FeatureExtractionStage(encoder, data), len(ids), data)
    return stream.features()


def encode_individually(encoder: OpenClip, paths: list[Path]) -> Float[Tensor, "n s d"]:
    """Decodes a file and runs a forward pass for each image and each scale."""
    towers = encoder.load(torch.device("cpu"))
    transforms = {squash: encoder.transform(squash=squash) for squash in (False, True)}
    rows = []
    for fraction in FRACTIONS:
        scale = SquareCrops((fraction,), (1.0,))
        for path in paths:
            (view,) = scale.crop(read_image(path), path.name)
            rows.append(towers.images(transforms[view.squash](view.image)[None]))
    return torch.cat(rows).unflatten(0, (len(FRACTIONS), len(paths))).transpose(0, 1)


def measure_encoder(number: str, name: str, encoder: OpenClip, paths: list[Path], work: Path) -> Row:
    """Measures one encoder.

    Raises:
        SystemExit: If the features differ.
    """
    roots = (work / f"{number}-{turn}" for turn in range(1000))
    difference = (encode_by_stage(encoder, paths, next(roots)) - encode_individually(encoder, paths)).abs().max().item()
    print(f"{name}: maximum difference of a feature component {difference:.1e}")
    if not difference <= 1e-5:
        raise SystemExit("the features of the two procedures differ")
    measured, baselines = alternate(
        lambda: measure_seconds(lambda: encode_by_stage(encoder, paths, next(roots))),
        lambda: measure_seconds(lambda: encode_individually(encoder, paths)),
        rounds=3,
    )
    return Row(
        number=number,
        task=f"{IMAGES} files (half JPEG of 500 x 375, half PNG of 512 x 512) at ten scales, {name}, to features",
        reference="one decode and one forward pass per image and scale",
        aim=">= 2",
        unit="s",
        measured=measured,
        baselines=baselines,
        equality="every feature component, within 1e-5",
        command="python benchmarks/multi_scale.py",
    )


def main() -> None:
    """Measures and saves the rows."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        paths = write_images(work / "photographs")
        save_row(
            measure_encoder("B6a", "the package's encoder", OpenClip("tiny:encoder", precision="fp32"), paths, work)
        )
        save_row(measure_encoder("B6b", "ViT-S/32 fp32", save_encoder(work / "encoder"), paths, work))


if __name__ == "__main__":
    main()
