"""Measures encoding (B1, B2): `benchmarks/.venv/bin/python benchmarks/encode.py`, five minutes on two cores.

- B1: preprocessed pixels in memory to stored features by the encoding stage, compared with a bare loop over open_clip's
  forward pass.
- B2: JPEG files to features by the encoding stage with its store, compared with clip_benchmark's data set, loader and
  `run_classification` with the defaults of its command line, without mixed precision. ViT-S-32, random weights, fp32.
- B2b: the forward passes only, the upper bound of B2.
- B2c: B2 with `precision=auto` on a CPU with bf16 instructions. It is skipped on others, and measured alone with
  `--bf16`. The last projection is random too, because the fitted one of B2 amplifies rounding.

Both sides have the model in memory. Features are compared first.
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
from staging import build_stages
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize
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
IMAGES_PER_CLASS = 24
MEMORY_IMAGES = 512
"""Images of B1."""

BATCH = 128
"""Batch size of both sides of B1."""

PEER_BATCH, PEER_WORKERS = 64, 4
"""Defaults of clip_benchmark's command line."""

ROUNDS, TOLERANCE = 3, 1e-5


@dataclass(frozen=True)
class PreloadedOpenClip(OpenClip):
    """Holds a model that is already in memory, because loading is not measured."""

    key_name: ClassVar[str] = "OpenClip"

    def load(self, device: torch.device) -> Towers:
        return _load_towers(self.model, self.precision)


@lru_cache(maxsize=2)
def _load_towers(model: str, precision: str) -> Towers:
    return OpenClip(model, precision=precision).load(torch.device("cpu"))


class PreprocessedStreams(Streams):
    """Yields batches of pixels that are already preprocessed."""

    def __init__(self, stream: Stream, batches: list[ImageBatch]) -> None:
        super().__init__([stream], 1, lambda image, image_id: torch.empty(0), BATCH)
        self._batches = batches

    def predict_dataloader(self) -> list[DataLoader[Any] | MeasuredLoader]:
        loader: DataLoader[Any] = DataLoader(self._batches, batch_size=None)  # pyright: ignore[reportArgumentType]
        return [loader]


class StageEncoder:
    """Encodes by the encoding stage, each time into a store without features.

    Args:
        model: Folder of the model.
        images: Folder of the JPEGs, with one folder per class.
        root: Folder of the store.
        workers: Number of processes that decode; None is `workers=auto`.
        precision: Precision of the towers.
        resize: Resizing method of the encoder.
    """

    def __init__(
        self,
        model: Path,
        images: Path,
        root: Path,
        workers: int | None,
        precision: str = "fp32",
        resize: str = "exact",
    ) -> None:
        self._encoder = PreloadedOpenClip(str(model), precision=precision, batch_size=BATCH, resize=resize)
        self._plain = OpenClip(str(model), precision=precision, resize=resize)
        self._dataset = Folder(str(images))
        self._root = root
        self._workers = workers
        self.towers = _load_towers(str(model), precision)

    def encode_files(self) -> tuple[float, Tensor]:
        """Encodes the files; returns the seconds and the features (n, d)."""
        stream = self._stream()
        return self._run(Streams([stream], 1, SharedViews(self._plain, SquareCrops()), BATCH, self._workers), stream)

    def encode_pixels(self, pixels: Tensor) -> tuple[float, Tensor]:
        """Encodes preprocessed pixels (n, 3, h, w); returns the seconds and the features (n, d)."""
        stream = self._stream()
        ids = [f"{index:032x}" for index in range(len(pixels))]
        stream = Stream("real", ids, [0] * len(ids), stream.views, stream.store, stream.load)
        parts = torch.arange(len(ids)).split(BATCH)
        batches = [ImageBatch([ids[index] for index in part], pixels[part[0] : part[-1] + 1, None]) for part in parts]
        return self._run(PreprocessedStreams(stream, batches), stream)

    def _stream(self) -> Stream:
        shutil.rmtree(self._root / "features", ignore_errors=True)
        return real_stream(self._dataset, self._encoder, SquareCrops(), self._root)

    def _run(self, data: Streams, stream: Stream) -> tuple[float, Tensor]:
        stages = build_stages()
        stage = FeatureExtractionStage(self._encoder, data)
        stream.store.towers.parent.mkdir(parents=True, exist_ok=True)
        stream.store.towers.write_text("{}")  # FLOPs are counted once for each encoder, not in each run
        elapsed = measure_seconds(lambda: stages.complete("features", stage, len(stream.ids), data))
        return elapsed, stream.features()[:, 0]


class ClipBenchmarkEncoder:
    """Encodes by clip_benchmark, as `clip_benchmark eval --no_amp` does.

    Args:
        model: Folder of the model.
        images: Folder of the JPEGs, with one folder per class.
    """

    def __init__(self, model: Path, images: Path) -> None:
        from clip_benchmark.datasets.builder import build_dataset, get_dataset_collate_fn  # pyright: ignore[reportMissingImports]
        from clip_benchmark.models import load_clip  # pyright: ignore[reportMissingImports]

        self.model, transform, _ = load_clip("open_clip", f"local-dir:{model}", "", "", "cpu")
        self.model.eval()
        # This data set is read as an ImageFolder, whatever its contents are.
        dataset = build_dataset("imagenet_sketch", root=str(images), transform=transform)
        self._loader = lambda: DataLoader(
            dataset, batch_size=PEER_BATCH, shuffle=False, num_workers=PEER_WORKERS,
            collate_fn=get_dataset_collate_fn("imagenet_sketch"),
        )  # fmt: skip

    def encode_files(self) -> tuple[float, Tensor]:
        """Encodes the files; returns the seconds and the features (n, d)."""
        from clip_benchmark.metrics.zeroshot_classification import run_classification  # pyright: ignore[reportMissingImports]

        width = self.model.visual.output_dim
        start = time.perf_counter()
        scores, _ = run_classification(self.model, torch.eye(width), self._loader(), "cpu", amp=False)
        return time.perf_counter() - start, scores / 100  # the scores are 100 times the product with the classifier

    def encode_pixels(self, pixels: Tensor) -> tuple[float, Tensor]:
        """Encodes preprocessed pixels (n, 3, h, w) by a bare loop; returns the seconds and the features (n, d)."""
        start = time.perf_counter()
        with torch.inference_mode():
            features = torch.cat([normalize(self.model.encode_image(part), dim=-1) for part in pixels.split(BATCH)])
        return time.perf_counter() - start, features


def compare_features(
    encode: Callable[[], tuple[float, Tensor]],
    encode_reference: Callable[[], tuple[float, Tensor]],
    check: Callable[[Tensor, Tensor], float],
) -> tuple[list[float], list[float], list[float]]:
    """Measures two encoders in alternation, and checks their features in every round.

    Args:
        encode: Encodes, and returns the seconds and the features.
        encode_reference: Does the same for the reference.
        check: Returns how much two sets of features agree or differ.

    Returns:
        Seconds of both in the order of the rounds, and the result of each check.
    """
    features = [torch.empty(0)]
    checks: list[float] = []

    def measure() -> float:
        elapsed, features[0] = encode()
        return elapsed

    def measure_reference() -> float:
        elapsed, reference = encode_reference()
        checks.append(check(features[0], reference))
        return elapsed

    return *alternate(measure, measure_reference, rounds=ROUNDS), checks


def max_difference(features: Tensor, reference: Tensor) -> float:
    """Returns the largest difference of two sets of features.

    Raises:
        SystemExit: If it is larger than rounding.
    """
    if features.shape != reference.shape:
        raise SystemExit(f"features differ in shape: {tuple(features.shape)} and {tuple(reference.shape)}")
    difference = (features - reference).abs().max().item()
    if not difference <= TOLERANCE:
        raise SystemExit(f"features differ by up to {difference:.1e}")
    return difference


def min_cosine(features: Tensor, reference: Tensor) -> float:
    """Returns the smallest cosine of two sets of features."""
    return cosine_similarity(features, reference).min().item()


def measure_pixels(encoder: StageEncoder, peer: ClipBenchmarkEncoder) -> Row:
    """Measures B1."""
    torch.manual_seed(0)
    pixels = torch.randn(MEMORY_IMAGES, 3, 224, 224)
    measured, baselines, differences = compare_features(
        lambda: encoder.encode_pixels(pixels), lambda: peer.encode_pixels(pixels), max_difference
    )
    return Row(
        "B1", f"encoding stage with its store, {MEMORY_IMAGES} images in memory",
        f"bare loop of open_clip's forward, batches of {BATCH}", ">= 0.97", "s", measured, baselines,
        f"features, maximum difference {max(differences):.0e}", COMMAND,
    )  # fmt: skip


def measure_files(encoder: StageEncoder, peer: ClipBenchmarkEncoder, workers: int) -> Row:
    """Measures B2."""
    measured, baselines, differences = compare_features(encoder.encode_files, peer.encode_files, max_difference)
    return Row(
        "B2", f"encoding stage with its store, {len(NAMES) * IMAGES_PER_CLASS} JPEGs, workers={workers}",
        f"clip_benchmark's loader and loop, {PEER_WORKERS} workers, batches of {PEER_BATCH}, no amp", ">= 1.8", "s",
        measured, baselines, f"features, maximum difference {max(differences):.0e}", COMMAND,
    )  # fmt: skip


def measure_bf16(encoder: StageEncoder, peer: ClipBenchmarkEncoder) -> Row:
    """Measures B2c.

    Raises:
        SystemExit: If the cosine of a feature to the peer's is below 0.9995.
    """
    measured, baselines, cosines = compare_features(encoder.encode_files, peer.encode_files, min_cosine)
    if min(cosines) < 0.9995:
        raise SystemExit(f"features have a cosine of only {min(cosines):.5f}")
    return Row(
        "B2c", "as B2, `precision=auto` on a CPU with bf16 instructions", "as B2", ">= 2.5", "s", measured, baselines,
        f"features, minimum cosine {min(cosines):.5f}", COMMAND,
    )  # fmt: skip


def measure_forward_passes(encoder: StageEncoder, peer: ClipBenchmarkEncoder) -> Row:
    """Measures B2b."""
    torch.manual_seed(0)
    pixels = torch.randn(CPU_ROWS, 3, 224, 224)
    passes = range(-(-len(NAMES) * IMAGES_PER_CLASS // CPU_ROWS))

    def run_forward_passes() -> None:
        for _ in passes:
            encoder.towers.images(pixels)

    measured, baselines = alternate(
        lambda: measure_seconds(run_forward_passes), lambda: peer.encode_files()[0], rounds=ROUNDS
    )
    return Row(
        "B2b", f"forward passes of {len(NAMES) * IMAGES_PER_CLASS} images only: upper bound of B2", "as B2", "", "s",
        measured, baselines, "nothing: forward passes only read no file", COMMAND,
    )  # fmt: skip


def main() -> None:
    """Measures and saves the rows."""
    workers = 0  # threads of the main process, without the cost of worker processes
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        model = save_vit_s_32(work / "model", write_photos(work / "photos", IMAGES_PER_CLASS))
        encoder = StageEncoder(model, work / "photos", work / "store", workers)
        peer = ClipBenchmarkEncoder(model, work / "photos")
        if "--bf16" not in sys.argv:
            save_row(measure_pixels(encoder, peer))
            save_row(measure_files(encoder, peer, workers))
            save_row(measure_forward_passes(encoder, peer))
        if has_bf16_units():
            model = save_random_vit_s_32(work / "random")
            encoder = StageEncoder(model, work / "photos", work / "store", workers, "bf16")
            save_row(measure_bf16(encoder, ClipBenchmarkEncoder(model, work / "photos")))


if __name__ == "__main__":
    main()
