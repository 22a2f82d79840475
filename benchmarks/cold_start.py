"""Measures startup time (B7): `python benchmarks/cold_start.py`, four minutes on two cores.

- B7a: `--help`, compared with `import torch`.
- B7b: the default run recomputed with everything stored, compared with `import torch, open_clip`.
- B7c: the imports of Lightning and Hydra only, the lower bound of B7e.
- B7d: the same command repeated, which copies the finished run.
- B7e: a different scoring rule over stored features.

Complete processes are measured. The metrics are compared with those of the run that filled the store.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from comparison import Row, alternate, measure_seconds, save_row

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "python benchmarks/cold_start.py"
IMPORTS = "import torch, open_clip"


def measure_python(*command: str) -> float:
    """Returns the seconds that a Python command takes."""
    return measure_seconds(
        lambda: subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
    )


def measure_torch_import() -> float:
    """Returns the seconds of a process that imports torch."""
    return measure_python("-c", "import torch")


def main() -> None:
    """Measures and saves the rows."""
    help_seconds = alternate(lambda: measure_python("evaluate.py", "--help"), measure_torch_import)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        runs = (work / str(number) for number in range(1000))

        def evaluate(*overrides: str) -> float:
            folder = next(runs)
            return measure_python("evaluate.py", f"paths.store={work / 'store'}", f"hydra.run.dir={folder}", *overrides)

        evaluate()
        rerun_seconds = alternate(lambda: evaluate("rerun=true"), lambda: measure_python("-c", IMPORTS))
        repeat_seconds = alternate(evaluate, measure_torch_import)
        metrics = [json.loads(path.read_text())["metrics"] for path in sorted(work.glob("*/result.json"))]
        knn_seconds = alternate(lambda: evaluate("prototype=knn", "rerun=true"), measure_torch_import)
    if any(values != metrics[0] for values in metrics):
        raise SystemExit("the same command gives different metrics")
    save_row(
        Row(
            number="B7a",
            task="`evaluate.py --help`",
            reference="`import torch`",
            aim="<= 0.4",
            unit="s",
            measured=help_seconds[0],
            baselines=help_seconds[1],
            equality="nothing: no result to compare",
            command=COMMAND,
            inverse=True,
        )
    )
    imports = "from lgclip.runtime.lazy_torchmetrics import make_lazy; make_lazy(); import lightning, hydra"
    import_seconds = alternate(lambda: measure_python("-c", imports), measure_torch_import)
    task = "`import lightning, hydra` only: lower bound of B7e"
    equality = "nothing: no result to compare"
    save_row(Row("B7c", task, "`import torch`", "", "s", *import_seconds, equality, COMMAND, inverse=True))
    task = "same command repeated, nothing changed"
    equality = "metrics of every run"
    save_row(Row("B7d", task, "`import torch`", "<= 0.5", "s", *repeat_seconds, equality, COMMAND, inverse=True))
    task = "`evaluate.py prototype=knn`, features stored"
    equality = "nothing: a different scoring rule"
    save_row(Row("B7e", task, "`import torch`", "<= 2.0", "s", *knn_seconds, equality, COMMAND, inverse=True))
    save_row(
        Row(
            number="B7b",
            task="`evaluate.py rerun=true`, all stored",
            reference=f"`{IMPORTS}`",
            aim="<= 1.15",
            unit="s",
            measured=rerun_seconds[0],
            baselines=rerun_seconds[1],
            equality="metrics of every run",
            command=COMMAND,
            inverse=True,
        )
    )


if __name__ == "__main__":
    main()
