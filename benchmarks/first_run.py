"""Measures the first default run (B15): `python benchmarks/first_run.py`, eight minutes on two cores.

From an empty store, `precision=auto` is compared with `precision=fp32`. On a CPU without bf16 instructions both are the
same. The accuracies must be within two points, the spread over seeds.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from comparison import Row, alternate, measure_seconds, save_row

ROOT = Path(__file__).resolve().parent.parent
SPREAD = 0.02
"""Largest allowed difference of top-1 accuracies."""


def main() -> None:
    """Measures and saves the rows."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        numbers = iter(range(100))

        def first_run(precision: str) -> float:
            folder = work / f"{next(numbers)}-{precision}"
            command = [
                sys.executable, "evaluate.py", f"precision={precision}", f"paths.store={folder / 'store'}",
                f"hydra.run.dir={folder / 'run'}",
            ]  # fmt: skip
            return measure_seconds(lambda: subprocess.run(command, cwd=ROOT, check=True, capture_output=True))

        measured, baselines = alternate(lambda: first_run("auto"), lambda: first_run("fp32"), rounds=3)
        accuracies = {
            precision: {
                json.loads(path.read_text(encoding="utf-8"))["metrics"]["top1"]
                for path in work.glob(f"*-{precision}/run/result.json")
            }
            for precision in ("auto", "fp32")
        }
    lowest, highest = (choose(choose(values) for values in accuracies.values()) for choose in (min, max))
    if highest - lowest > SPREAD:
        raise SystemExit(f"accuracies differ: {accuracies}")
    auto, fp32 = (sorted(values)[0] for values in accuracies.values())
    save_row(
        Row(
            "B15",
            "first default run, `precision=auto`",
            "first default run, `precision=fp32`",
            ">= 2",
            "s",
            measured,
            baselines,
            f"top-1 {auto:.4f} and {fp32:.4f}",
            "python benchmarks/first_run.py",
        )
    )


if __name__ == "__main__":
    main()
