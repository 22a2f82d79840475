"""Encoding beside its peers: `benchmarks/.venv/bin/python benchmarks/encode.py`, in five minutes on two cores (B1, B2).

B1: pixels in memory to stored features, by the encoding stage, beside a bare loop over open_clip's forward.
B2: JPEG files to features, by the encoding stage with its store, beside clip_benchmark's data set, loader and
`run_classification` with the defaults of its command line, without mixed precision. ViT-S-32, random weights, fp32;
both sides have the model in memory. Features are compared first. B2b is what B2 could be at most, if nothing but the
forward passes took time. B2c is B2 with `precision=auto` on a CPU that multiplies in bf16; left out on others, and
alone with `--bf16`. Its last projection is random too: the fitted one of B2 enlarges rounding.
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from comparison import Row, alternate, measure_seconds, save_row
from fixtures import NAMES, save_random_vit_s_32, save_vit_s_32, write_photos
from staging import stages_on
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

from lgclip.batches import ImageBatch
from lgclip.datasets.folder import Folder
from lgclip.encoder.base import Towers
from lgclip.encoder.open_clip import OpenClip
from lgclip.encoder.scales import SquareCrops
from lgclip.encoder.views import SharedViews
from lgclip.runtime.cpu_features import has_bf16_units
from lgclip.stages.extract import real_stream
from lgclip.stages.features import FeatureExtractionStage
from lgclip.stages.measured_loader import MeasuredLoader
from lgclip.stages.streams import CPU_ROWS, Stream, Streams

COMMAND = "benchmarks/.venv/bin/python benchmarks/encode.py"
EACH, IN_MEMORY, BATCH = 24, 512, 128
"""JPEGs a class, images of B1, and rows that both sides of B1 are given at once."""

THEIR_BATCH, THEIR_WORKERS = 64, 4
"""Defaults of clip_benchmark's command line."""

ROUNDS, TOLERANCE = 3, 1e-5


@dataclass(frozen=True)
class Ready(OpenClip):
    """A model that is in memory already: loading it is not what is measured."""

    key_name: ClassVar[str] = "OpenClip"

    def load(self, device: torch.device) -> Towers:
        return _towers(self.model, self.precision)


@lru_cache(maxsize=2)
def _towers(model: str, precision: str) -> Towers:
    return OpenClip(model, precision=precision).load(torch.device("cpu"))


class InMemory(Streams):
    """Streams whose pixels are preprocessed already."""

    def __init__(self, stream: Stream, batches: list[ImageBatch]) -> None:
        super().__init__([stream], 1, lambda image, image_id: torch.empty(0), BATCH)
        self._batches = batches

    def predict_dataloader(self) -> list[DataLoader[Any] | MeasuredLoader]:
        loader: DataLoader[Any] = DataLoader(self._batches, batch_size=None)  # pyright: ignore[reportArgumentType]
        return [loader]


class Ours:
    """The encoding stage, each time into a store that holds no features.

    Args:
        model: The model's folder.
        synthetic_images: The JPEGs, one folder per class.
        root: Where to put the store.
        workers: Processes that decode; None is `workers=auto`.
        precision: Of the towers.
        resize: Of the encoder.
    """

    def __init__(
        self,
        model: Path,
        synthetic_images: Path,
        root: Path,
        workers: int | None,
        precision: str = "fp32",
        resize: str = "exact",
    ) -> None:
        self._encoder = Ready(str(model), precision=precision, batch_size=BATCH, resize=resize)
        self._plain = OpenClip(str(model), precision=precision, resize=resize)
        self._dataset, self._root, self._workers = Folder(str(synthetic_images)), root, workers
        self.towers = _towers(str(model), precision)

    def files(self) -> tuple[float, Tensor]:
        """Seconds of encoding the files, and their features."""
        stream = self._stream()
        return self._timed(Streams([stream], 1, SharedViews(self._plain, SquareCrops()), BATCH, self._workers), stream)

    def memory(self, pixels: Tensor) -> tuple[float, Tensor]:
        """Seconds of encoding preprocessed pixels, and their features."""
        stream = self._stream()
        ids = [f"{at:032x}" for at in range(len(pixels))]
        stream = Stream("real", ids, [0] * len(ids), stream.views, stream.store, stream.load)
        parts = torch.arange(len(ids)).split(BATCH)
        batches = [ImageBatch([ids[at] for at in part], pixels[part[0] : part[-1] + 1, None]) for part in parts]
        return self._timed(InMemory(stream, batches), stream)

    def _stream(self) -> Stream:
        shutil.rmtree(self._root / "features", ignore_errors=True)
        return real_stream(self._dataset, self._encoder, SquareCrops(), self._root)

    def _timed(self, data: Streams, stream: Stream) -> tuple[float, Tensor]:
        stages, stage = stages_on(), FeatureExtractionStage(self._encoder, data)
        stream.store.towers.parent.mkdir(parents=True, exist_ok=True)
        stream.store.towers.write_text("{}")  # FLOPs are counted once for each encoder, not in each run
        taken = measure_seconds(lambda: stages.complete("features", stage, len(stream.ids), data))
        return taken, stream.features()[:, 0]


class Theirs:
    """clip_benchmark, as `clip_benchmark eval --no_amp` goes about it.

    Args:
        model: The model's folder.
        synthetic_images: The JPEGs, one folder per class.
    """

    def __init__(self, model: Path, synthetic_images: Path) -> None:
        from clip_benchmark.datasets.builder import build_dataset, get_dataset_collate_fn  # pyright: ignore[reportMissingImports]
        from clip_benchmark.models import load_clip  # pyright: ignore[reportMissingImports]

        self.model, transform, _ = load_clip("open_clip", f"local-dir:{model}", "", "", "cpu")
        self.model.eval()
        # One of the data sets that it reads as an ImageFolder of whatever lies there.
        dataset = build_dataset("imagenet_sketch", root=str(synthetic_images), transform=transform)
        self._loader = lambda: DataLoader(
            dataset, batch_size=THEIR_BATCH, shuffle=False, num_workers=THEIR_WORKERS,
            collate_fn=get_dataset_collate_fn("imagenet_sketch"),
        )  # fmt: skip

    def files(self) -> tuple[float, Tensor]:
        """Seconds of encoding the files, and their features."""
        from clip_benchmark.metrics.zeroshot_classification import run_classification  # pyright: ignore[reportMissingImports]

        width = self.model.visual.output_dim
        start = time.perf_counter()
        scores, _ = run_classification(self.model, torch.eye(width), self._loader(), "cpu", amp=False)
        return time.perf_counter() - start, scores / 100  # its scores are 100 times the product with the classifier

    def memory(self, pixels: Tensor) -> tuple[float, Tensor]:
        """Seconds of a bare loop over preprocessed pixels, and their features."""
        start = time.perf_counter()
        with torch.inference_mode():
            features = torch.cat([normalize(self.model.encode_image(part), dim=-1) for part in pixels.split(BATCH)])
        return time.perf_counter() - start, features


def in_turns_alike(
    ours: Callable[[], tuple[float, Tensor]], theirs: Callable[[], tuple[float, Tensor]]
) -> tuple[list[float], list[float], float]:
    """Seconds of each in the order of the rounds, and how far apart the features were at most in any of them."""
    found, apart = [torch.empty(0)], [0.0]

    def mine() -> float:
        seconds, found[0] = ours()
        return seconds

    def other() -> float:
        seconds, features = theirs()
        apart.append(check(found[0], features))
        return seconds

    return *alternate(mine, other, rounds=ROUNDS), max(apart)


def check(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of two sets of features.

    Raises:
        SystemExit: If it is no rounding.
    """
    apart = (ours - theirs).abs().max().item()
    if ours.shape != theirs.shape or not apart <= TOLERANCE:
        raise SystemExit(f"features differ by up to {apart:.1e}")
    return apart


def from_memory(ours: Ours, theirs: Theirs) -> Row:
    """B1."""
    torch.manual_seed(0)
    pixels = torch.randn(IN_MEMORY, 3, 224, 224)
    measured, baselines, apart = in_turns_alike(lambda: ours.memory(pixels), lambda: theirs.memory(pixels))
    return Row(
        "B1", f"encoding stage with its store, {IN_MEMORY} images in memory",
        f"bare loop of open_clip's forward, batches of {BATCH}", ">= 0.97", "s", measured, baselines,
        f"features, apart by {apart:.0e} at most", COMMAND,
    )  # fmt: skip


def from_files(ours: Ours, theirs: Theirs, workers: int) -> Row:
    """B2."""
    measured, baselines, apart = in_turns_alike(ours.files, theirs.files)
    return Row(
        "B2", f"encoding stage with its store, {len(NAMES) * EACH} JPEGs, workers={workers}",
        f"clip_benchmark's loader and loop, {THEIR_WORKERS} workers, batches of {THEIR_BATCH}, no amp", ">= 1.8", "s",
        measured, baselines, f"features, apart by {apart:.0e} at most", COMMAND,
    )  # fmt: skip


def in_bf16(ours: Ours, theirs: Theirs) -> Row:
    """B2c.

    Raises:
        SystemExit: If a feature's cosine to the peer's is below 0.9995.
    """
    cosines: list[float] = []
    features = [torch.empty(0)]

    def mine() -> float:
        taken, features[0] = ours.files()
        return taken

    def other() -> float:
        taken, exact = theirs.files()
        cosines.append(torch.nn.functional.cosine_similarity(features[0], exact).min().item())
        return taken

    measured, baselines = alternate(mine, other, rounds=ROUNDS)
    if min(cosines) < 0.9995:
        raise SystemExit(f"cosine of features {min(cosines):.5f}")
    return Row(
        "B2c", "as B2, `precision=auto` on a CPU that multiplies in bf16", "as B2", ">= 2.5", "s", measured, baselines,
        f"features, cosine at least {min(cosines):.5f}", COMMAND,
    )  # fmt: skip


def bound(ours: Ours, theirs: Theirs) -> Row:
    """B2b."""
    torch.manual_seed(0)
    pixels = torch.randn(CPU_ROWS, 3, 224, 224)
    passes = range(-(-len(NAMES) * EACH // CPU_ROWS))

    def forwards() -> None:
        for _ in passes:
            ours.towers.images(pixels)

    measured, baselines = alternate(lambda: measure_seconds(forwards), lambda: theirs.files()[0], rounds=ROUNDS)
    return Row(
        "B2b", f"forward passes of {len(NAMES) * EACH} images alone: the bound of B2", "as B2", "", "s",
        measured, baselines, "nothing: forwards alone read no file", COMMAND,
    )  # fmt: skip


def main() -> None:
    """Measures and saves the rows."""
    workers = 0  # threads of the main process: nothing to start, nothing to pass on
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        model = save_vit_s_32(work / "model", write_photos(work / "photos", EACH))
        ours = Ours(model, work / "photos", work / "store", workers)
        theirs = Theirs(model, work / "photos")
        if "--bf16" not in sys.argv:
            save_row(from_memory(ours, theirs))
            save_row(from_files(ours, theirs, workers))
            save_row(bound(ours, theirs))
        if has_bf16_units():
            model = save_random_vit_s_32(work / "random")
            ours = Ours(model, work / "photos", work / "store", workers, "bf16")
            save_row(in_bf16(ours, Theirs(model, work / "photos")))


if __name__ == "__main__":
    main()
