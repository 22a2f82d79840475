"""What starting costs: `python benchmarks/cold_start.py`, in three minutes on two cores (B7).

B7a is `--help`, beside `import torch`; B7b the default run again, all stored, beside `import torch, open_clip`; B7c is
what B7b could be at least, if nothing but Lightning's and Hydra's imports came to it. Whole processes are measured,
from start to end. The run's figures are compared with those of the run that made the store.
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

        def evaluate() -> float:
            return taken("evaluate.py", f"paths.store={work / 'store'}", f"hydra.run.dir={next(runs)}")

        evaluate()
        b = in_turns(evaluate, lambda: taken("-c", IMPORTS))
        said = [json.loads(path.read_text())["metrics"] for path in sorted(work.glob("*/result.json"))]
    if any(one != said[0] for one in said):
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
    c = in_turns(lambda: taken("-c", f"{IMPORTS}, lightning, hydra"), lambda: taken("-c", IMPORTS))
    baselines = f"`{IMPORTS}`"
    ours = f"`{IMPORTS}, lightning, hydra`: the bound of B7b"
    keep(Row("B7c", ours, baselines, "", "s", *c, "nothing: there is no result", COMMAND, inverse=True))
    keep(
        Row(
            number="B7b",
            ours="`evaluate.py`, all stored",
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
