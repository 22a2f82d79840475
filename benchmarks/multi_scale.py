"""Features at ten scales: `python benchmarks/multi_scale.py`, in three minutes on two cores (B6).

JPEG files of a photograph's size as real images, PNG files of 512 pixels as synthetic ones. Beside ours stands the way
of the official release of LGCLIP: for every image and every scale the file is decoded again and its crop encoded
alone. The crops are the same, so the features are compared first. B6a encodes with the package's encoder, B6b with a
ViT-S/32 of random weights, where a CPU spends nearly all its time in the forward passes of both.
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

IMAGES, SIZE, DRAWN = 96, (500, 375), (512, 512)  # so many that what starting a stage costs counts little
FRACTIONS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
SCALES = SquareCrops(FRACTIONS, tuple(range(10, 0, -1)))
VIT_S_32: dict[str, Any] = {
    "embed_dim": 384,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 384, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 384, "heads": 6, "layers": 1},
}


def encoder(folder: Path) -> OpenClip:
    """A ViT-S/32 with random weights, saved as open_clip reads it; its text tower takes no part."""
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    torch.manual_seed(0)
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": VIT_S_32, "preprocess_cfg": {}}))
    weights = CLIP(**VIT_S_32).state_dict()
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "open_clip_model.safetensors")
    return OpenClip(str(folder), precision="fp32")


def photographs(folder: Path) -> list[Path]:
    """Soft noise: JPEG files about as large as a photograph of their size, and as many PNG files."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = []
    for number in range(IMAGES):
        jpeg = number % 2 == 0
        size = SIZE if jpeg else DRAWN
        coarse = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )
        pixels = np.asarray(coarse) + rng.normal(0, 6, (size[1], size[0], 3))
        paths.append(folder / f"{number}.{'jpg' if jpeg else 'png'}")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=92)
    return paths


def ours(towers: OpenClip, paths: list[Path], root: Path) -> Float[Tensor, "n s d"]:
    """The encoding stage of a run, files to stored features."""
    ids = [path.name for path in paths]
    store = FeatureStore(root, towers.inputs(), {"source": "photographs"})
    stream = Stream("real", ids, [0] * len(ids), SCALES.views, store, lambda at: read_image(paths[at]))
    data = Streams([stream], 1, SharedViews(towers, SCALES), towers.batch_size)
    build_stages().complete("features", FeatureExtractionStage(towers, data), len(ids), data)
    return stream.features()


def one_by_one(towers: OpenClip, paths: list[Path]) -> Float[Tensor, "n s d"]:
    """A decode and a forward pass for each image and each scale."""
    loaded = towers.load(torch.device("cpu"))
    transforms = {squash: towers.transform(squash=squash) for squash in (False, True)}
    rows = []
    for fraction in FRACTIONS:
        scale = SquareCrops((fraction,), (1.0,))
        for path in paths:
            (view,) = scale.crop(read_image(path), path.name)
            rows.append(loaded.images(transforms[view.squash](view.image)[None]))
    return torch.cat(rows).unflatten(0, (len(FRACTIONS), len(paths))).transpose(0, 1)


def row(number: str, kind: str, towers: OpenClip, paths: list[Path], work: Path) -> Row:
    """One encoder."""
    fresh = (work / f"{number}-{turn}" for turn in range(1000))
    apart = (ours(towers, paths, next(fresh)) - one_by_one(towers, paths)).abs().max().item()
    print(f"{kind}: largest difference of a feature's components {apart:.1e}")
    if not apart <= 1e-5:
        raise SystemExit("the two ways give different features")
    measured, baselines = alternate(
        lambda: measure_seconds(lambda: ours(towers, paths, next(fresh))),
        lambda: measure_seconds(lambda: one_by_one(towers, paths)),
        rounds=3,
    )
    return Row(
        number=number,
        task=f"{IMAGES} files (half JPEG of 500 x 375, half PNG of 512 x 512) at ten scales, {kind}, to features",
        reference="a decode and a forward pass for each image and scale",
        aim=">= 2",
        unit="s",
        measured=measured,
        baselines=baselines,
        equality="every component of every feature, to 1e-5",
        command="python benchmarks/multi_scale.py",
    )


def main() -> None:
    """Measures and saves the rows."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        paths = photographs(work / "photographs")
        save_row(row("B6a", "the package's encoder", OpenClip("tiny:encoder", precision="fp32"), paths, work))
        save_row(row("B6b", "ViT-S/32 fp32", encoder(work / "encoder"), paths, work))


if __name__ == "__main__":
    main()
