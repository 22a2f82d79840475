"""Measures a sweep (B4): `python benchmarks/sweep_grid.py`, about ten minutes on two cores.

A sweep of 60 cells (15 numbers of prompts x 4 sets of scales) over a data set of 1,200 images.

- B4a: with everything stored, compared with 60 separate runs without a store.
- B4b: with nothing stored, compared with one sweep in which every cell has a separate store, so that only the process
  and its imports are shared. B4c: with nothing stored, compared with the separate runs.
- B4d: time of a cell whose features are stored.

Of the reference's cells only the products of `FEW_PROMPTS` and `FEW_SCALES` are run, each of which generates and
encodes all it needs. Their mean stands for the 60: they use 8 prompts on average, as the grid does, and 5.5 views,
where the grid uses 6.25. Their metrics must be equal to those of the sweep.
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
    """Runs evaluate.py and returns its seconds."""
    command = [sys.executable, "evaluate.py", *COMMON, *overrides]
    return measure_seconds(lambda: subprocess.run(command, cwd=ROOT, check=True, capture_output=True))


def read_results(folder: Path) -> dict[str, object]:
    """Returns the metrics, baselines, confidence and diagnostics of a run."""
    result = json.loads((folder / "result.json").read_text())
    return {name: result[name] for name in ("metrics", "baselines", "confidence", "diagnostics")}


def check_cell(folder: Path, prompts: int, scales: str, grid: Path) -> None:
    """Checks that a separate run gives the results of its cell in the sweep.

    Raises:
        SystemExit: If a result differs.
    """
    if read_results(folder) != read_results(grid / str(PROMPTS.index(prompts) * len(SCALES) + SCALES.index(scales))):
        raise SystemExit(f"{prompts} prompts, {scales}: the cell of the sweep differs from the run without its store")


def build_overrides(prompts: tuple[int, ...] | range, scales: tuple[str, ...]) -> list[str]:
    """Returns the overrides of a sweep."""
    return [f"prompts_per_class={','.join(map(str, prompts))}", f"scales={','.join(scales)}", "-m"]


def run_sweeps(work: Path) -> tuple[float, list[float]]:
    """Returns the seconds of the 60 cells, with nothing stored and, twice, with everything stored."""
    overrides = build_overrides(PROMPTS, SCALES)
    store = f"paths.store={work / 'store'}"
    cold = evaluate(store, f"hydra.sweep.dir={work / 'cold'}", *overrides)
    warm = [
        evaluate(store, "rerun=true", f"hydra.sweep.dir={work / f'warm-{number}'}", *overrides) for number in range(2)
    ]
    repeat = evaluate(store, f"hydra.sweep.dir={work / 'warm-0'}", *overrides)
    print(f"{CELLS} cells, nothing stored: {cold:.1f} s; all stored: {min(warm):.1f} - {max(warm):.1f} s")
    print(f"the same sweep repeated: {repeat:.1f} s, every job already finished")
    return cold, warm


def measure_cell(folder: Path) -> float:
    """Returns the median seconds between the ends of two cells of a sweep."""
    ends = sorted((folder / str(number) / "result.json").stat().st_mtime for number in range(CELLS))
    return statistics.median(b - a for a, b in itertools.pairwise(ends))


def estimate_separate_runs(work: Path) -> float:
    """Returns the estimated seconds of 60 runs without a store."""
    times = []
    for prompts, scales in itertools.product(FEW_PROMPTS, FEW_SCALES):
        folder = work / f"{prompts}-{scales}"
        overrides = [f"prompts_per_class={prompts}", f"scales={scales}", f"paths.store={folder / 'store'}"]
        times.append(evaluate(*overrides, f"hydra.run.dir={folder / 'run'}"))
        check_cell(folder / "run", prompts, scales, work / "cold")
    print(f"one run without a store: {sum(times) / len(times):.1f} s ({min(times):.1f} - {max(times):.1f})")
    return CELLS * sum(times) / len(times)


def estimate_unshared_sweep(work: Path) -> float:
    """Returns the estimated seconds of one sweep of 60 cells, each with a separate store."""
    stores = work / "separate-stores" / "${hydra:job.num}"
    folder = work / "without"
    few = evaluate(f"paths.store={stores}", f"hydra.sweep.dir={folder}", *build_overrides(FEW_PROMPTS, FEW_SCALES))
    cells = list(itertools.product(FEW_PROMPTS, FEW_SCALES))
    for number, (prompts, scales) in enumerate(cells):
        check_cell(folder / str(number), prompts, scales, work / "cold")
    # A sweep starts once, whatever its length; a run with everything stored takes little more than the startup.
    start = evaluate(f"paths.store={work / 'store'}", f"hydra.run.dir={work / 'start'}", "rerun=true")
    print(f"{len(cells)} cells with a store each: {few:.1f} s, of which at most {start:.1f} s for startup")
    return start + CELLS * (few - start) / len(cells)


def main() -> None:
    """Measures and saves the rows."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        cold, warm = run_sweeps(work)
        cells = [measure_cell(work / f"warm-{number}") for number in range(2)]
        command = [sys.executable, "-c", "import torch"]
        imports = [measure_seconds(lambda: subprocess.run(command, check=True)) for _ in range(3)]
        separate = estimate_separate_runs(work)
        unshared = estimate_unshared_sweep(work)
    few = len(FEW_PROMPTS) * len(FEW_SCALES)
    equality = f"metrics, baselines, confidence and diagnostics of {few} cells"
    runs = f"{CELLS} separate runs without a store, estimated from {few}"
    unshared_sweep = f"one sweep with a separate store for each cell, estimated from {few}"
    task = f"one cell of {CELLS}, all stored, recomputed"
    save_row(
        Row(
            "B4d", task, "`import torch`", "<= 0.05", "s", cells, imports[1:], "nothing: see B4a", COMMAND, inverse=True
        )
    )
    task = f"sweep of {CELLS} cells, all stored"
    save_row(Row("B4a", task, runs, ">= 20", "s", warm, [separate] * 2, equality, COMMAND))
    task = f"sweep of {CELLS} cells, nothing stored"
    save_row(Row("B4b", task, unshared_sweep, ">= 5", "s", [cold], [unshared], equality, COMMAND))
    save_row(Row("B4c", task, runs, "", "s", [cold], [separate], equality, COMMAND))


if __name__ == "__main__":
    main()
