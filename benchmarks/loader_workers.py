"""Measures the number of decoding processes (B21): `python benchmarks/loader_workers.py`, six minutes on two cores.

The encoding stage with its store, JPEG files to features, the model in memory: `workers=auto` is compared with fixed
numbers. Features are compared first. Two models are used: the package's small one, which spends most of its time on
decoding, and ViT-S-32 with random weights. With `--one-thread` the small model uses one thread, so that other cores are
free (B21e, four minutes). Finally prints the seconds until worker processes return a first batch, which
`START_SECONDS` of `lgclip/stages/measured_loader.py` states.
"""

import logging
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from comparison import Row, alternate, measure_seconds, save_row
from encode import StageEncoder
from fixtures import NAMES, save_random_vit_s_32, write_photos
from torch.utils.data import DataLoader

from lgclip.datasets.folder import Folder
from lgclip.encoder.open_clip import OpenClip
from lgclip.encoder.scales import SquareCrops
from lgclip.encoder.views import SharedViews
from lgclip.runtime.loader_workers import worker_settings
from lgclip.stages.extract import real_stream
from lgclip.stages.streams import _stack, _StreamImages

COMMAND = "python benchmarks/loader_workers.py"
ROUNDS = 3
ONE_THREAD = "--one-thread"


def measure_start(model: Path, folder: Path, root: Path, workers: int) -> float:
    """Returns the seconds until worker processes return batches of one image."""
    encoder = OpenClip(str(model), precision="fp32")
    stream = real_stream(Folder(str(folder)), encoder, SquareCrops(), root)
    images = _StreamImages(stream, range(workers), SharedViews(encoder, SquareCrops()))
    loader = DataLoader(images, batch_size=1, collate_fn=_stack, **worker_settings(workers))
    return measure_seconds(lambda: list(loader))


class WorkerBenchmark:
    """Measures the encoding stage with one number of workers.

    Args:
        model: Folder or name of the model.
        work: Folder that contains the photos.
        workers: Number of processes that decode; None is `workers=auto`.
    """

    def __init__(self, model: str, work: Path, workers: int | None) -> None:
        self._encoder = StageEncoder(Path(model), work / "photos", work / f"store_{workers}", workers)
        self.features = torch.empty(0)

    def measure(self) -> float:
        """Returns the seconds of encoding all files."""
        elapsed, self.features = self._encoder.encode_files()
        return elapsed


def compare_workers(number: str, name: str, images: int, work: Path, model: str, workers: int) -> Row:
    """Compares `workers=auto` with a fixed number.

    Raises:
        SystemExit: If a feature differs.
    """
    auto = WorkerBenchmark(model, work, None)
    fixed = WorkerBenchmark(model, work, workers)
    rounds = ROUNDS if images < 2000 else 2
    measured, baselines = alternate(auto.measure, fixed.measure, rounds=rounds)
    if not torch.equal(auto.features, fixed.features):
        raise SystemExit(f"features differ by up to {(auto.features - fixed.features).abs().max():.1e}")
    return Row(
        number, f"encoding stage with its store, {images} JPEGs, {name}, workers=auto", f"workers={workers}", "", "s",
        measured, baselines, "features, bitwise",
        COMMAND + f" {ONE_THREAD}" * (number == "B21e"),
    )  # fmt: skip


def main() -> None:
    """Measures and saves the rows."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if ONE_THREAD in sys.argv:
            torch.set_num_threads(1)
            write_photos(work / "photos", 48)
            images = 48 * len(NAMES)
            save_row(compare_workers("B21e", "the small encoder on one thread", images, work, "tiny:encoder", 0))
            return
        large = save_random_vit_s_32(work / "random")
        models = {"the small encoder": ("tiny:encoder", 24), "ViT-S-32 fp32": (str(large), 12)}
        numbers = iter(("B21a", "B21b", "B21c", "B21d"))
        for name, (model, images_per_class) in models.items():
            shutil.rmtree(work / "photos", ignore_errors=True)
            write_photos(work / "photos", images_per_class)
            for workers in (0, 2):
                images = images_per_class * len(NAMES)
                save_row(compare_workers(next(numbers), name, images, work, model, workers))
        for workers in (1, 2):
            print(f"start of {workers} workers: {measure_start(large, work / 'photos', work / 'start', workers):.2f} s")


if __name__ == "__main__":
    main()
