"""Measures how memory grows with the images (B8): `benchmarks/.venv/bin/python benchmarks/memory.py`, in minutes.

Peak resident memory of complete commands with 2,000 and with 200,000 images of 1,000 classes, and the growth per image.
Evaluating stored features (B8) and the first run, which encodes the images (B8b), are compared with `clip_benchmark
eval`. The encoder is very small, with features of width 512. The images are 2,000 small JPEGs under many names each, so
that the metrics must be equal for both sizes and both sides.
"""

import os
import tempfile
from pathlib import Path

from commands import Commands, check_metrics
from comparison import Row, save_row

FEW, MANY = 2, 200
"""Numbers of images per class."""

SIZE = (32, 32)


def main() -> None:
    """Measures and saves the rows."""
    from fixtures import MANY_NAMES, TEMPLATE, save_smallest_model, write_photos

    workers = 0  # threads of the main process, without the cost of worker processes
    peaks: dict[int, tuple[int, int, int]] = {}
    equality = ""
    expected: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        few = write_photos(work / "few", FEW, MANY_NAMES, SIZE)
        model = save_smallest_model(work / "model", few)
        for images_per_class, images in ((FEW, few), (MANY, _link_images(few, work / "many", MANY))):
            commands = Commands(work / f"runs-{images_per_class}", model, images, TEMPLATE, workers)
            first, first_metrics = commands.run_lgclip("store")
            rerun, rerun_metrics = commands.run_lgclip("store")
            peer, peer_metrics = commands.run_clip_benchmark()
            expected = expected or first_metrics
            for metrics in (first_metrics, rerun_metrics, peer_metrics):
                equality = check_metrics(expected, metrics)
            peaks[images_per_class] = (rerun.peak, first.peak, peer.peak)
    classes = len(MANY_NAMES)
    growth = [(many - few) / classes / (MANY - FEW) for few, many in zip(peaks[FEW], peaks[MANY], strict=True)]
    rows = (("B8", "evaluating stored features", "<= 0.02"), ("B8b", "first run, which encodes the images", ""))
    for (number, task, aim), value in zip(rows, growth, strict=False):
        save_row(
            Row(
                number,
                f"{task}: growth of peak memory, {classes * FEW:,} to {classes * MANY:,} images x {classes} classes",
                "`clip_benchmark eval --no_amp`",
                aim,
                "B per image",
                [value],
                [growth[-1]],
                equality,
                "benchmarks/.venv/bin/python benchmarks/memory.py",
                inverse=True,
            )
        )


def _link_images(source: Path, root: Path, images_per_class: int) -> Path:
    """Links the files of each class under further names, until it has `images_per_class`."""
    for folder in source.iterdir():
        (root / folder.name).mkdir(parents=True)
        files = sorted(folder.iterdir())
        for number in range(images_per_class):
            os.link(files[number % len(files)], root / folder.name / f"{number:04}.jpg")
    return root


if __name__ == "__main__":
    main()
