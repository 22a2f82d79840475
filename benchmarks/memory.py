"""Memory that grows with the images (B8): `benchmarks/.venv/bin/python benchmarks/memory.py`, minutes on two cores.

Peak resident memory of whole commands with 2,000 and with 200,000 images of 1,000 classes; the difference by image.
Ours is evaluation what is stored (B8) and the first run, which encodes it (B8b); beside them `clip_benchmark eval`. The
encoder is a very small one with 512-wide features; the images are 2,000 small JPEGs, each there under many names, so
that top-1 and the rest must be the same for both sizes and both sides.
"""

import os
import tempfile
from pathlib import Path

from commands import Commands, check
from comparison import Row, save_row

FEW, MANY = 2, 200
"""Images of a class."""

SIZE = (32, 32)


def main() -> None:
    """Measures and saves the rows."""
    from fixtures import MANY_NAMES, TEMPLATE, save_smallest_model, write_photos

    workers = 0  # threads of the main process: nothing to start, nothing to pass on
    peaks: dict[int, tuple[int, int, int]] = {}
    equal = ""
    seen: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        few = write_photos(work / "few", FEW, MANY_NAMES, SIZE)
        model = save_smallest_model(work / "model", few)
        for each, synthetic_images in ((FEW, few), (MANY, _again(few, work / "many", MANY))):
            commands = Commands(work / f"runs-{each}", model, synthetic_images, TEMPLATE, workers)
            (first, figures), (again, same) = commands.ours("store"), commands.ours("store")
            baselines, other = commands.theirs()
            seen = seen or figures
            for further in (figures, same, other):
                equal = check(seen, further)
            peaks[each] = (again.peak, first.peak, baselines.peak)
    classes = len(MANY_NAMES)
    growth = [(many - few) / classes / (MANY - FEW) for few, many in zip(peaks[FEW], peaks[MANY], strict=True)]
    rows = (("B8", "evaluation what is stored", "<= 0.02"), ("B8b", "the first run, which encodes it", ""))
    for (number, what, aim), grown in zip(rows, growth, strict=False):
        save_row(
            Row(
                number,
                f"{what}: growth of peak memory, {classes * FEW:,} to {classes * MANY:,} images x {classes} classes",
                "`clip_benchmark eval --no_amp`",
                aim,
                "B an image",
                [grown],
                [growth[-1]],
                equal,
                "benchmarks/.venv/bin/python benchmarks/memory.py",
                inverse=True,
            )
        )


def _again(few: Path, root: Path, each: int) -> Path:
    """The same images, so often that every class has `each`: further names of the same files."""
    for folder in few.iterdir():
        (root / folder.name).mkdir(parents=True)
        files = sorted(folder.iterdir())
        for number in range(each):
            os.link(files[number % len(files)], root / folder.name / f"{number:04}.jpg")
    return root


if __name__ == "__main__":
    main()
