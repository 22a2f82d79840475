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

from side_by_side import Row, in_turns, keep, seconds

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "python benchmarks/cold_start.py"
IMPORTS = "import torch, open_clip"


def taken(*command: str) -> float:
    """Seconds of a Python command."""
    return seconds(lambda: subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True))


def main() -> None:
    """Measures and keeps."""
    a = in_turns(lambda: taken("evaluate.py", "--help"), lambda: taken("-c", "import torch"))
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        runs = (work / str(number) for number in range(1000))

        def evaluate(*overrides: str) -> float:
            folder = next(runs)
            return taken("evaluate.py", f"paths.store={work / 'store'}", f"hydra.run.dir={folder}", *overrides)

        evaluate()
        b = in_turns(lambda: evaluate("rerun=true"), lambda: taken("-c", IMPORTS))
        d = in_turns(evaluate, lambda: taken("-c", "import torch"))
        metrics = [json.loads(path.read_text())["metrics"] for path in sorted(work.glob("*/result.json"))]
        e = in_turns(lambda: evaluate("prototype=knn", "rerun=true"), lambda: taken("-c", "import torch"))
    if any(values != metrics[0] for values in metrics):
        raise SystemExit("the same command gave another result")
    keep(
        Row(
            number="B7a",
            ours="`evaluate.py --help`",
            against="`import torch`",
            aim="<= 0.4",
            unit="s",
            measured=a[0],
            baselines=a[1],
            equal="nothing: there is no result",
            command=COMMAND,
            inverse=True,
        )
    )
    lazy = "from lgclip.runtime.lazy_torchmetrics import make_lazy; make_lazy(); import lightning, hydra"
    c = in_turns(lambda: taken("-c", lazy), lambda: taken("-c", "import torch"))
    baselines = f"`{IMPORTS}`"
    ours = "`import lightning, hydra` alone: the bound of B7e"
    keep(Row("B7c", ours, "`import torch`", "", "s", *c, "nothing: there is no result", COMMAND, inverse=True))
    ours = "the same command again, nothing changed"
    keep(Row("B7d", ours, "`import torch`", "<= 0.5", "s", *d, "the metrics of every run", COMMAND, inverse=True))
    ours = "`evaluate.py prototype=knn`, features stored"
    keep(Row("B7e", ours, "`import torch`", "<= 2.0", "s", *e, "nothing: another rule", COMMAND, inverse=True))
    keep(
        Row(
            number="B7b",
            ours="`evaluate.py rerun=true`, all stored",
            against=baselines,
            aim="<= 1.15",
            unit="s",
            measured=b[0],
            baselines=b[1],
            equal="the metrics of every run",
            command=COMMAND,
            inverse=True,
        )
    )


if __name__ == "__main__":
    main()
