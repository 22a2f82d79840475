"""Text zero-shot beside its peer (B3): `benchmarks/.venv/bin/python benchmarks/zero_shot.py`, minutes on two cores.

Whole commands from nothing stored to figures: `evaluate.py method=clip_text` beside `clip_benchmark eval --no_amp`,
with the same weights, images, names and template. Top-1, top-5 and mean per class are compared in every round: they are
equal in fp32, and within a point in bf16, which `precision=auto` is on a CPU that multiplies in it (B3b).
"""

import tempfile
from itertools import count
from pathlib import Path

from commands import EQUAL, Commands, check
from comparison import Row, alternate, save_row
from fixtures import TEMPLATE, save_vit_s_32, write_photos

from lgclip.runtime.cpu_features import has_bf16_units

EACH, ROUNDS = 24, 3


def rows(work: Path) -> list[Row]:
    """B3, and B3b where the CPU multiplies in bf16."""
    workers = 0  # threads of the main process: nothing to start, nothing to pass on
    synthetic_images = write_photos(work / "photos", EACH)
    commands = Commands(
        work / "runs", save_vit_s_32(work / "model", synthetic_images), synthetic_images, TEMPLATE, workers
    )
    stores = count()
    images = sum(1 for _ in synthetic_images.rglob("*.jpg"))
    command = f"`evaluate.py method=clip_text workers={workers}`, nothing stored, {images} JPEGs, ViT-S-32"
    rows: list[Row] = []
    for number, precision, aim, tolerance in (("B3", "fp32", ">= 1.2", EQUAL), ("B3b", "auto", ">= 2", 0.01)):
        if precision == "auto" and not has_bf16_units():
            continue
        figures: list[dict[str, float]] = []

        def ours(precision: str = precision, figures: list[dict[str, float]] = figures) -> float:
            spent, values = commands.ours(f"store-{next(stores)}", precision)
            figures.append(values)
            return spent.seconds

        def theirs(figures: list[dict[str, float]] = figures, tolerance: float = tolerance) -> float:
            spent, values = commands.theirs()
            check(figures[-1], values, tolerance)
            return spent.seconds

        measured, baselines = alternate(ours, theirs, rounds=ROUNDS)
        rows.append(
            Row(
                number,
                f"{command}, `precision={precision}`",
                "`clip_benchmark eval --no_amp`, else its defaults",
                aim,
                "s",
                measured,
                baselines,
                check(figures[0], figures[-1]),
                "benchmarks/.venv/bin/python benchmarks/zero_shot.py",
            )
        )
    return rows


def main() -> None:
    """Measures and saves the rows."""
    with tempfile.TemporaryDirectory() as name:
        for row in rows(Path(name)):
            save_row(row)


if __name__ == "__main__":
    main()
