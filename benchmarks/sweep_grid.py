"""What a grid costs: `python benchmarks/sweep_grid.py`, in about ten minutes on two cores (B4).

A sweep of 60 cells (15 numbers of prompts x 4 scale sets) over a data set of 1,200 images. B4a: with its features
stored, against 60 separate runs without a store. B4b: with nothing stored, against one sweep in which every cell
has a store of its own, so that only the process and its imports are shared. Of the others' cells, the products of
`FEW_PROMPTS` and `FEW_SCALES` are run (each draws and encodes all it needs) and their mean stands for the 60: they use
8 prompts on average as the grid does, and 5.5 views where the grid uses 6.25. Their figures are compared for
equality with the sweep's own before anything is printed. B4d: what a cell takes whose features are stored.
"""

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from comparison import Row, measure_seconds, save_row

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "python benchmarks/sweep_grid.py"
PROMPTS = range(1, 16)
SCALES = ("single", "multi", "ten", "official_code")
FEW_PROMPTS, FEW_SCALES = (4, 12), ("single", "ten")
CELLS = len(PROMPTS) * len(SCALES)
COMMON = ("encoder=tiny", "dataset=shapes", "logger=none")


def evaluate(*overrides: str) -> float:
    """Seconds of one command."""
    command = [sys.executable, "evaluate.py", *COMMON, *overrides]
    return measure_seconds(lambda: subprocess.run(command, cwd=ROOT, check=True, capture_output=True))


def figures(folder: Path) -> dict[str, object]:
    """What a run says, in figures."""
    result = json.loads((folder / "result.json").read_text())
    return {name: result[name] for name in ("metrics", "baselines", "confidence", "diagnostics")}


def check(folder: Path, prompts: int, scales: str, grid: Path) -> None:
    """Stops unless a cell that was run alone says what the sweep's says."""
    if figures(folder) != figures(grid / str(PROMPTS.index(prompts) * len(SCALES) + SCALES.index(scales))):
        raise SystemExit(
            f"{prompts} prompts, {scales}: the cell of the sweep says other than the run without its store"
        )


def grid_of(prompts: tuple[int, ...] | range, scales: tuple[str, ...]) -> list[str]:
    """The options of a sweep."""
    return [f"prompts_per_class={','.join(map(str, prompts))}", f"scales={','.join(scales)}", "-m"]


def sweep(work: Path) -> tuple[float, list[float]]:
    """Seconds of the 60 cells, with nothing stored and with all stored."""
    whole, store = grid_of(PROMPTS, SCALES), f"paths.store={work / 'store'}"
    cold = evaluate(store, f"hydra.sweep.dir={work / 'cold'}", *whole)
    warm = [evaluate(store, "rerun=true", f"hydra.sweep.dir={work / f'warm-{number}'}", *whole) for number in range(2)]
    again = evaluate(store, f"hydra.sweep.dir={work / 'warm-0'}", *whole)
    print(f"{CELLS} cells, nothing stored: {cold:.1f} s; all stored: {min(warm):.1f} - {max(warm):.1f} s")
    print(f"the same sweep again: {again:.1f} s, every job finished before")
    return cold, warm


def cell_seconds(folder: Path) -> float:
    """Median seconds between the ends of two cells of a sweep."""
    ends = sorted((folder / str(number) / "result.json").stat().st_mtime for number in range(CELLS))
    return statistics.median(b - a for a, b in itertools.pairwise(ends))


def separately(work: Path) -> float:
    """Seconds that 60 runs without a store would take."""
    alone = []
    for prompts, scales in itertools.product(FEW_PROMPTS, FEW_SCALES):
        own = work / f"{prompts}-{scales}"
        overrides = [f"prompts_per_class={prompts}", f"scales={scales}", f"paths.store={own / 'store'}"]
        alone.append(evaluate(*overrides, f"hydra.run.dir={own / 'run'}"))
        check(own / "run", prompts, scales, work / "cold")
    print(f"one run without a store: {sum(alone) / len(alone):.1f} s ({min(alone):.1f} - {max(alone):.1f})")
    return CELLS * sum(alone) / len(alone)


def without_store(work: Path) -> float:
    """Seconds that one sweep of 60 cells, each with a store of its own, would take."""
    stores, folder = work / "own-stores" / "${hydra:job.num}", work / "without"
    few = evaluate(f"paths.store={stores}", f"hydra.sweep.dir={folder}", *grid_of(FEW_PROMPTS, FEW_SCALES))
    cells = list(itertools.product(FEW_PROMPTS, FEW_SCALES))
    for number, (prompts, scales) in enumerate(cells):
        check(folder / str(number), prompts, scales, work / "cold")
    # The start counts once in a sweep however long it is; a run with all stored is a little more than a start.
    start = evaluate(f"paths.store={work / 'store'}", f"hydra.run.dir={work / 'start'}", "rerun=true")
    print(f"{len(cells)} cells with a store each: {few:.1f} s, of that the start at most {start:.1f} s")
    return start + CELLS * (few - start) / len(cells)


def main() -> None:
    """Measures and saves the rows."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        cold, warm = sweep(work)
        cells = [cell_seconds(work / f"warm-{number}") for number in range(2)]
        torch = [
            measure_seconds(lambda: subprocess.run([sys.executable, "-c", "import torch"], check=True))
            for _ in range(3)
        ]
        separate = separately(work)
        unshared = without_store(work)
    equal = f"metrics, methods beside, confidence and diagnostics of {len(FEW_PROMPTS) * len(FEW_SCALES)} cells"
    runs = f"{CELLS} separate runs without a store, estimated from {len(FEW_PROMPTS) * len(FEW_SCALES)}"
    one = f"one sweep, a store for each cell, estimated from {len(FEW_PROMPTS) * len(FEW_SCALES)}"
    few = (f"a cell of {CELLS}, all stored, computed again", "`import torch`", "<= 0.05", "s")
    save_row(Row("B4d", *few, cells, torch[1:], "nothing: see B4a", COMMAND, inverse=True))
    save_row(
        Row("B4a", f"sweep of {CELLS} cells, all stored", runs, ">= 20", "s", warm, [separate] * 2, equal, COMMAND)
    )
    save_row(
        Row("B4b", f"sweep of {CELLS} cells, nothing stored", one, ">= 5", "s", [cold], [unshared], equal, COMMAND)
    )
    save_row(Row("B4c", f"sweep of {CELLS} cells, nothing stored", runs, "", "s", [cold], [separate], equal, COMMAND))


if __name__ == "__main__":
    main()
