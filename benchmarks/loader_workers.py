"""Processes that decode: `python benchmarks/loader_workers.py`, in six minutes on two cores (B21).

The encoding stage with its store, JPEG files to features, the model in memory: `workers=auto` beside fixed numbers, in
turns; features are compared first. Two models: the package's small one, for which decoding is most of the work, and
ViT-S-32 with random weights; with `--one-thread` the small one computes by one thread, so that other cores are free
(four minutes, B21e). After that the seconds until processes return a first batch, which `START_SECONDS` of
`lgclip/stages/measured_loader.py` states.
"""

import logging
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from comparison import Row, alternate, measure_seconds, save_row
from encode import Ours
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


def start_seconds(model: Path, pictures: Path, root: Path, workers: int) -> float:
    """Seconds until worker processes return a batch of one image."""
    encoder = OpenClip(str(model), precision="fp32")
    stream = real_stream(Folder(str(pictures)), encoder, SquareCrops(), root)
    images = _StreamImages(stream, range(workers), SharedViews(encoder, SquareCrops()))
    loader = DataLoader(images, batch_size=1, collate_fn=_stack, **worker_settings(workers))
    return measure_seconds(lambda: list(loader))


class Side:
    """The encoding stage with one number of workers.

    Args:
        model: The model: its folder, or its name.
        work: Folder with the pictures.
        workers: Processes that decode; None is `workers=auto`.
    """

    def __init__(self, model: str, work: Path, workers: int | None) -> None:
        self._ours = Ours(Path(model), work / "photos", work / f"store_{workers}", workers)
        self.features = torch.empty(0)

    def measure(self) -> float:
        """Seconds of encoding all files."""
        taken, self.features = self._ours.files()
        return taken


def beside(number: str, name: str, images: int, sides: tuple[Side, Side], workers: int) -> Row:
    """Measures `workers=auto` beside a fixed number.

    Raises:
        SystemExit: If a feature differs.
    """
    auto, fixed = sides
    rounds = ROUNDS if images < 2000 else 2
    measured, baselines = alternate(auto.measure, fixed.measure, rounds=rounds)
    if not torch.equal(auto.features, fixed.features):
        raise SystemExit(f"features differ by up to {(auto.features - fixed.features).abs().max():.1e}")
    return Row(
        number, f"encoding stage with its store, {images} JPEGs, {name}, workers=auto", f"workers={workers}", "", "s",
        measured, baselines, "features, equal in all bits",
        COMMAND + f" {ONE_THREAD}" * (number == "B21e"),
    )  # fmt: skip


def main() -> None:
    """Measures and saves the rows."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        if ONE_THREAD in sys.argv:
            torch.set_num_threads(1)
            write_photos(work / "photos", 48)
            sides = (Side("tiny:encoder", work, None), Side("tiny:encoder", work, 0))
            save_row(beside("B21e", "the small encoder on one thread", 48 * len(NAMES), sides, 0))
            return
        large = save_random_vit_s_32(work / "random")
        models = {"the small encoder": ("tiny:encoder", 24), "ViT-S-32 fp32": (str(large), 12)}
        numbers = iter(("B21a", "B21b", "B21c", "B21d"))
        for name, (model, each) in models.items():
            shutil.rmtree(work / "photos", ignore_errors=True)
            write_photos(work / "photos", each)
            for workers in (0, 2):
                sides = (Side(model, work, None), Side(model, work, workers))
                save_row(beside(next(numbers), name, each * len(NAMES), sides, workers))
        for workers in (1, 2):
            print(f"start of {workers}: {start_seconds(large, work / 'pictures', work / 'start', workers):.2f} s")


if __name__ == "__main__":
    main()
