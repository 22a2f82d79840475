"""What starting costs: `python benchmarks/cold_start.py`, in four minutes on two cores (B7).

B7a is `--help`, beside `import torch`; B7b the default run again, computed with all stored, beside `import torch,
open_clip`; B7c is the bound of B7e, Lightning's and Hydra's imports alone; B7d is the same command again, which copies
the finished run; B7e is another rule over stored features. Whole processes are measured, from start to end. The runs'
figures are compared with those of the run that made the store.
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


def taken(*command: str) -> float:
    """Seconds of a Python command."""
    return measure_seconds(
        lambda: subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
    )


def main() -> None:
    """Measures and saves the rows."""
    a = alternate(lambda: taken("evaluate.py", "--help"), lambda: taken("-c", "import torch"))
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        runs = (work / str(number) for number in range(1000))

        def evaluate(*overrides: str) -> float:
            folder = next(runs)
            return taken("evaluate.py", f"paths.store={work / 'store'}", f"hydra.run.dir={folder}", *overrides)

        evaluate()
        b = alternate(lambda: evaluate("rerun=true"), lambda: taken("-c", IMPORTS))
        d = alternate(evaluate, lambda: taken("-c", "import torch"))
        metrics = [json.loads(path.read_text())["metrics"] for path in sorted(work.glob("*/result.json"))]
        e = alternate(lambda: evaluate("prototype=knn", "rerun=true"), lambda: taken("-c", "import torch"))
    if any(values != metrics[0] for values in metrics):
        raise SystemExit("the same command gave another result")
    save_row(
        Row(
            number="B7a",
            task="`evaluate.py --help`",
            reference="`import torch`",
            aim="<= 0.4",
            unit="s",
            measured=a[0],
            baselines=a[1],
            equality="nothing: there is no result",
            command=COMMAND,
            inverse=True,
        )
    )
    lazy = "from lgclip.runtime.lazy_torchmetrics import make_lazy; make_lazy(); import lightning, hydra"
    c = alternate(lambda: taken("-c", lazy), lambda: taken("-c", "import torch"))
    baselines = f"`{IMPORTS}`"
    ours = "`import lightning, hydra` alone: the bound of B7e"
    save_row(Row("B7c", ours, "`import torch`", "", "s", *c, "nothing: there is no result", COMMAND, inverse=True))
    ours = "the same command again, nothing changed"
    save_row(Row("B7d", ours, "`import torch`", "<= 0.5", "s", *d, "the metrics of every run", COMMAND, inverse=True))
    ours = "`evaluate.py prototype=knn`, features stored"
    save_row(Row("B7e", ours, "`import torch`", "<= 2.0", "s", *e, "nothing: another rule", COMMAND, inverse=True))
    save_row(
        Row(
            number="B7b",
            task="`evaluate.py rerun=true`, all stored",
            reference=baselines,
            aim="<= 1.15",
            unit="s",
            measured=b[0],
            baselines=b[1],
            equality="the metrics of every run",
            command=COMMAND,
            inverse=True,
        )
    )


if __name__ == "__main__":
    main()
