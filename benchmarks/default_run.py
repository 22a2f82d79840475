"""Measures the default run (B10): `python benchmarks/default_run.py`, six minutes on two cores.

Prints the seconds and peak memory of the first run and of its rerun, and the seconds of their bare imports; the seconds
of a sweep's cached cell; and those of `--help`, compared with a bare Hydra app. The metrics of the runs are compared
before anything is printed.

B10 is the time of a rerun with everything stored as a fraction of the first run's. The default run makes 300 images in
half a minute, and its rerun spends most of its time on imports (B10b, without an aim). The aim therefore applies to a
larger job, still far smaller than one with real models: 1,200 synthetic images, encoded with the 1,200 real ones at
ten scales.
"""

import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from comparison import Row, save_row

ROOT = Path(__file__).resolve().parent.parent
IMPORTS = (
    "import lgclip.stages.extract, lgclip.stages.generate, lgclip.reporting.result, "
    "lgclip.reporting.contact_sheet, lgclip.reporting.wandb.tracking, "
    "lgclip.methods.zero_shot, lgclip.stages.runner"
)
LARGER = ("images_per_prompt=4", "scales=ten", "logger=none")
BARE_APP = """
import hydra
@hydra.main(version_base="1.3", config_path={conf!r}, config_name="evaluate")
def app(cfg): pass
app()
"""


def run(*command: str) -> tuple[float, float]:
    """Runs a command; returns its seconds, and the peak memory in GB of the largest child process so far."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6


def read_metrics(folder: Path) -> dict[str, object]:
    """Returns the metrics of a run."""
    return json.loads((folder / "result.json").read_text())["metrics"]


def build_rerun_row(number: str, job: str, aim: str, first: float, reruns: list[float]) -> Row:
    """Returns the row that compares reruns of a job with its first run."""
    return Row(
        number=number,
        task=f"{job}: rerun, all stored",
        reference="first run",
        aim=aim,
        unit="s",
        measured=reruns,
        baselines=[first] * len(reruns),
        equality="metrics of every run",
        command="python benchmarks/default_run.py",
        inverse=True,
    )


def measure_larger_job(work: Path) -> Row:
    """Measures B10."""
    command = ["evaluate.py", f"paths.store={work / 'larger'}", *LARGER]
    first, *reruns = (
        run(*command, "rerun=true", f"hydra.run.dir={work / f'larger-{number}'}")[0] for number in range(4)
    )
    if any(read_metrics(work / "larger-0") != read_metrics(work / f"larger-{number}") for number in range(1, 4)):
        raise SystemExit("the same command gives different metrics")
    job = f"1,200 generated images, ten scales (`{' '.join(LARGER)}`)"
    return build_rerun_row("B10", job, "<= 0.05", first, reruns)


def main() -> None:
    """Measures, prints and saves the rows."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        store = f"paths.store={work / 'store'}"
        first, memory = run("evaluate.py", store, f"hydra.run.dir={work / 'first'}")
        repeat = ["evaluate.py", store, "rerun=true"]
        reruns = [run(*repeat, f"hydra.run.dir={work / f'rerun-{i}'}")[0] for i in range(3)]
        if any(read_metrics(work / "first") != read_metrics(work / f"rerun-{i}") for i in range(3)):
            raise SystemExit("the same command gives different metrics")
        imports = [run("-c", IMPORTS)[0] for _ in range(3)]
        for sweep in ("cold", "warm"):  # every cell of the second sweep is cached
            run("evaluate.py", "-m", store, "rerun=true", f"hydra.sweep.dir={work / sweep}")
        stamps = sorted((work / "warm" / str(job) / "result.json").stat().st_mtime for job in range(8))
        cells = [b - a for a, b in itertools.pairwise(stamps)]
        app = work / "app.py"
        app.write_text(BARE_APP.format(conf=str(ROOT / "conf")))
        bare_seconds = statistics.median(run(str(app), "--help")[0] for _ in range(5))
        help_seconds = statistics.median(run("evaluate.py", "--help")[0] for _ in range(5))
        larger = measure_larger_job(work)
    print(f"first run         {first:6.1f} s, peak memory {memory:.2f} GB")
    print(f"rerun             {statistics.median(reruns):6.1f} s; its imports {statistics.median(imports):.1f} s")
    print(f"cached cell       {statistics.median(cells):6.2f} s, the slowest {max(cells):.2f} s")
    print(f"--help            {help_seconds:6.2f} s, {help_seconds / bare_seconds:.2f} x a bare Hydra app")
    save_row(larger)
    save_row(build_rerun_row("B10b", "default run", "", first, reruns))


if __name__ == "__main__":
    main()
