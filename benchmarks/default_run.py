"""What the default run costs: `python benchmarks/default_run.py`, in six minutes on two cores (B10).

Prints seconds and peak memory of the first run and of the same run again, beside what their bare
imports cost; the seconds of a sweep's cached cell; and `--help` beside a bare Hydra app. Results of
the runs are compared for equality before anything is printed.

B10 is the same command computed again, all stored, as a share of its first run. The default run makes 300 images and
is done in half a minute, most of which its imports take the second time (B10b, only told). So the aim is
held against a larger job, which is still far smaller than one with real models: 1,200 images drawn, they and
the 1,200 real ones at ten scales.
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
    """Seconds and peak memory (GB, of the largest child so far) of a command."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6


def metrics(folder: Path) -> dict[str, object]:
    """Metrics of a run."""
    return json.loads((folder / "result.json").read_text())["metrics"]


def again_row(number: str, kind: str, aim: str, first: float, again: list[float]) -> Row:
    """The same command again, beside its first run."""
    return Row(
        number=number,
        task=f"{kind} again, all stored",
        reference="its first run",
        aim=aim,
        unit="s",
        measured=again,
        baselines=[first] * len(again),
        equality="the metrics of every run",
        command="python benchmarks/default_run.py",
        inverse=True,
    )


def larger_row(work: Path) -> Row:
    """B10."""
    job = ["evaluate.py", f"paths.store={work / 'larger'}", *LARGER]
    first, *again = (run(*job, "rerun=true", f"hydra.run.dir={work / f'larger-{number}'}")[0] for number in range(4))
    if any(metrics(work / "larger-0") != metrics(work / f"larger-{number}") for number in range(1, 4)):
        raise SystemExit("the same command gave another result")
    return again_row("B10", f"1,200 images drawn, ten scales (`{' '.join(LARGER)}`),", "<= 0.05", first, again)


def main() -> None:
    """Measures, prints and keeps."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        store = f"paths.store={work / 'store'}"
        first, memory = run("evaluate.py", store, f"hydra.run.dir={work / 'first'}")
        repeat = ["evaluate.py", store, "rerun=true"]
        again = [run(*repeat, f"hydra.run.dir={work / f'again-{i}'}")[0] for i in range(3)]
        if any(metrics(work / "first") != metrics(work / f"again-{i}") for i in range(3)):
            raise SystemExit("the same command gave another result")
        imports = [run("-c", IMPORTS)[0] for _ in range(3)]
        for sweep in ("cold", "warm"):  # the second time, every cell is cached
            run("evaluate.py", "-m", store, "rerun=true", f"hydra.sweep.dir={work / sweep}")
        stamps = sorted((work / "warm" / str(job) / "result.json").stat().st_mtime for job in range(8))
        cells = [b - a for a, b in itertools.pairwise(stamps)]
        app = work / "app.py"
        app.write_text(BARE_APP.format(conf=str(ROOT / "conf")))
        bare = statistics.median(run(str(app), "--help")[0] for _ in range(5))
        helped = statistics.median(run("evaluate.py", "--help")[0] for _ in range(5))
        larger = larger_row(work)
    print(f"first run         {first:6.1f} s, peak memory {memory:.2f} GB")
    print(f"the same again    {statistics.median(again):6.1f} s; its imports alone {statistics.median(imports):.1f} s")
    print(f"cached cell       {statistics.median(cells):6.2f} s, the slowest {max(cells):.2f} s")
    print(f"--help            {helped:6.2f} s, {helped / bare:.2f} x a bare Hydra app")
    save_row(larger)
    save_row(again_row("B10b", "the default run", "", first, again))


if __name__ == "__main__":
    main()
