"""Compares launchers of a sweep on one machine (B24): `python benchmarks/launchers.py`, five minutes on two cores.

A sweep of 12 cells with stored features is recomputed by two workers. `hydra/launcher=slots`, which starts a process
for each job, is compared with joblib's pool of two processes (B24a), with Hydra's basic launcher in one process (B24b)
and
with the basic launcher and `executor=ray` with two workers (B24c). The launchers take turns. The metrics and
predictions of all cells are compared before anything is saved. Needs `lgclip[sweeps,ray]`.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from comparison import Row, measure_seconds, save_row

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "python benchmarks/launchers.py"
PROMPTS = range(1, 7)
SCALES = ("single", "multi")
CELLS = len(PROMPTS) * len(SCALES)
GRID = (f"prompts_per_class={','.join(map(str, PROMPTS))}", f"scales={','.join(SCALES)}")
LAUNCHERS = {
    "slots": ("hydra/launcher=slots", "hydra.launcher.slots=2"),
    "joblib": ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    "basic": (),
    "ray": ("executor=ray", "executor.actors=2"),
}
ROUNDS = 2


def run_sweep(store: Path, folder: Path, *overrides: str) -> float:
    """Runs a sweep and returns its seconds."""
    command = [
        sys.executable, "evaluate.py", "-m", *GRID, "logger=none", "rerun=true", f"paths.store={store}",
        f"hydra.sweep.dir={folder}", *overrides,
    ]  # fmt: skip
    # Starts a cluster for each job, even where another one is running.
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    return measure_seconds(lambda: subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True))


def read_cells(folder: Path) -> list[tuple[object, str]]:
    """Returns the metrics and the predictions of each cell."""
    cells: list[tuple[object, str]] = []
    for number in range(CELLS):
        result = json.loads((folder / str(number) / "result.json").read_text(encoding="utf-8"))
        cells.append((result["metrics"], (folder / str(number) / "predictions.csv").read_text(encoding="utf-8")))
    return cells


def main() -> None:
    """Measures and saves the rows."""
    times: dict[str, list[float]] = {name: [] for name in LAUNCHERS}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        first = run_sweep(work / "store", work / "first")
        print(f"{CELLS} cells, nothing stored: {first:.1f} s", flush=True)
        for number in range(ROUNDS):
            for launcher, overrides in LAUNCHERS.items():
                folder = work / f"{launcher}-{number}"
                times[launcher].append(run_sweep(work / "store", folder, *overrides))
                print(f"{launcher}: {times[launcher][-1]:.1f} s", flush=True)
                if read_cells(folder) != read_cells(work / "first"):
                    raise SystemExit(f"{launcher}: metrics or predictions differ from those of Hydra's basic launcher")
    task = f"sweep of {CELLS} cells, all stored, recomputed, `hydra/launcher=slots`, 2 slots"
    references = {
        "B24a": ("joblib", "`hydra/launcher=joblib`, 2 processes"),
        "B24b": ("basic", "`hydra/launcher=basic`, one process"),
        "B24c": ("ray", "`executor=ray`, 2 workers, `hydra/launcher=basic`"),
    }
    for number, (launcher, description) in references.items():
        save_row(
            Row(
                number=number,
                task=task,
                reference=description,
                aim="",
                unit="s",
                measured=times["slots"],
                baselines=times[launcher],
                equality=f"metrics and predictions of {CELLS} cells",
                command=COMMAND,
                inverse=True,
            )
        )


if __name__ == "__main__":
    main()
