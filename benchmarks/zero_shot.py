"""Text zero-shot beside its peer (B3): `benchmarks/.venv/bin/python benchmarks/zero_shot.py`, minutes on two cores.

Whole commands from nothing stored to figures: `evaluate.py method=clip_text` beside `clip_benchmark eval --no_amp`,
with the same weights, images, names and template. Top-1, top-5 and mean per class are compared in every round.
"""

import tempfile
from pathlib import Path

from commands import Commands, check
from side_by_side import Row, in_turns, keep

EACH, ROUNDS = 24, 3


def main() -> None:
    """Measures and keeps."""
    from pictures import TEMPLATE, picture_folder, vit_s_32

    workers = 0  # threads of the main process: nothing to start, nothing to pass on
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        synthetic_images = picture_folder(work / "pictures", EACH)
        commands = Commands(
            work / "runs", vit_s_32(work / "model", synthetic_images), synthetic_images, TEMPLATE, workers
        )
        found: list[dict[str, float]] = []

        def ours() -> float:
            spent, figures = commands.ours(f"store-{len(found)}")
            found.append(figures)
            return spent.seconds

        def theirs() -> float:
            spent, figures = commands.theirs()
            check(found[-1], figures)
            return spent.seconds

        measured, baselines = in_turns(ours, theirs, rounds=ROUNDS)
        images = sum(1 for _ in synthetic_images.rglob("*.jpg"))
    keep(
        Row(
            "B3",
            f"`evaluate.py method=clip_text workers={workers}`, nothing stored, {images} JPEGs, ViT-S-32",
            "`clip_benchmark eval --no_amp`, else its defaults",
            ">= 1.2",
            "s",
            measured,
            baselines,
            check(found[0], found[-1]),
            "benchmarks/.venv/bin/python benchmarks/zero_shot.py",
        )
    )


if __name__ == "__main__":
    main()
