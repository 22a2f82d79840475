"""Measures zero-shot classification with text (B3): `benchmarks/.venv/bin/python benchmarks/zero_shot.py`, minutes.

Complete commands from an empty store to metrics: `evaluate.py method=clip_text` compared with `clip_benchmark eval
--no_amp`, with the same weights, images, names and template. Top-1, top-5 and the mean over classes are compared in
every round: they are equal in fp32, and within a point in bf16, which `precision=auto` uses on a CPU with bf16
instructions (B3b).
"""

import tempfile
from itertools import count
from pathlib import Path

from commands import TOLERANCE, Commands, check_metrics
from comparison import Row, alternate, save_row
from fixtures import TEMPLATE, save_vit_s_32, write_photos

from lgclip.runtime.cpu_features import has_bf16_units

IMAGES_PER_CLASS = 24
ROUNDS = 3


def measure_rows(work: Path) -> list[Row]:
    """Measures B3, and B3b on a CPU with bf16 instructions."""
    workers = 0  # threads of the main process, without the cost of worker processes
    folder = write_photos(work / "photos", IMAGES_PER_CLASS)
    model = save_vit_s_32(work / "model", folder)
    commands = Commands(work / "runs", model, folder, TEMPLATE, workers)
    stores = count()
    images = sum(1 for _ in folder.rglob("*.jpg"))
    command = f"`evaluate.py method=clip_text workers={workers}`, nothing stored, {images} JPEGs, ViT-S-32"
    rows: list[Row] = []
    for number, precision, aim, tolerance in (("B3", "fp32", ">= 1.2", TOLERANCE), ("B3b", "auto", ">= 2", 0.01)):
        if precision == "auto" and not has_bf16_units():
            continue
        metrics: list[dict[str, float]] = []

        def measure(precision: str = precision, metrics: list[dict[str, float]] = metrics) -> float:
            cost, values = commands.run_lgclip(f"store-{next(stores)}", precision)
            metrics.append(values)
            return cost.seconds

        def measure_peer(metrics: list[dict[str, float]] = metrics, tolerance: float = tolerance) -> float:
            cost, values = commands.run_clip_benchmark()
            check_metrics(metrics[-1], values, tolerance)
            return cost.seconds

        measured, baselines = alternate(measure, measure_peer, rounds=ROUNDS)
        rows.append(
            Row(
                number,
                f"{command}, `precision={precision}`",
                "`clip_benchmark eval --no_amp`, otherwise its defaults",
                aim,
                "s",
                measured,
                baselines,
                check_metrics(metrics[0], metrics[-1]),
                "benchmarks/.venv/bin/python benchmarks/zero_shot.py",
            )
        )
    return rows


def main() -> None:
    """Measures and saves the rows."""
    with tempfile.TemporaryDirectory() as name:
        for row in measure_rows(Path(name)):
            save_row(row)


if __name__ == "__main__":
    main()
