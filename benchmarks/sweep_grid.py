"""What a grid costs: `python benchmarks/sweep_grid.py`, in about ten minutes on two cores.

A sweep of 60 cells (15 numbers of prompts x 4 scale sets) over a data set of 1,200 images whose features are
stored, against separate runs without a store. Of those, `SEPARATE` cells spread over the grid are run (each
draws and encodes all it needs), and their mean stands for the 60. Figures are compared for equality with the
sweep's own before anything is printed.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = range(1, 16)
SCALES = ("single", "multi", "ten", "official_code")
SEPARATE = ((1, "single"), (4, "multi"), (8, "ten"), (11, "official_code"), (15, "single"), (15, "multi"))
COMMON = ("encoder=tiny", "dataset=shapes", "logger=none")


def evaluate(*overrides: str) -> float:
    """Seconds of one command."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "evaluate.py", *COMMON, *overrides], cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - start


def figures(folder: Path) -> dict[str, object]:
    """What a run says, in figures."""
    result = json.loads((folder / "result.json").read_text())
    return {name: result[name] for name in ("metrics", "beside", "confidence", "diagnostics")}


def main() -> None:
    """Measures and prints."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        grid = [f"prompts_per_class={','.join(map(str, PROMPTS))}", f"scales={','.join(SCALES)}", "-m"]
        store = f"paths.store={work / 'store'}"
        cold = evaluate(store, f"hydra.sweep.dir={work / 'cold'}", *grid)
        warm = [evaluate(store, f"hydra.sweep.dir={work / f'warm-{i}'}", *grid) for i in range(3)]
        again = evaluate(store, f"hydra.sweep.dir={work / 'warm-0'}", *grid)
        alone = []
        for prompts, scales in SEPARATE:
            own = work / f"{prompts}-{scales}"
            overrides = [f"prompts_per_class={prompts}", f"scales={scales}", f"paths.store={own / 'store'}"]
            alone.append(evaluate(*overrides, f"hydra.run.dir={own / 'run'}"))
            cell = work / "warm-0" / str((prompts - 1) * len(SCALES) + SCALES.index(scales))
            if figures(own / "run") != figures(cell):
                raise SystemExit(f"{own.name}: the cell of the sweep says other than the run alone")
    cells, separate = len(PROMPTS) * len(SCALES), sum(alone) / len(alone)
    print(f"{cells} cells, all stored       {sorted(warm)[1]:7.1f} s ({min(warm):.1f} - {max(warm):.1f})")
    print(f"the same sweep again       {again:7.1f} s, every job finished before")
    print(f"{cells} cells, nothing stored   {cold:7.1f} s")
    print(f"one separate run, no store {separate:7.1f} s (mean of {len(alone)}: {min(alone):.1f} - {max(alone):.1f})")
    print(f"{cells} of them would take     {cells * separate:7.0f} s: {cells * separate / sorted(warm)[1]:.0f} x")


if __name__ == "__main__":
    main()
