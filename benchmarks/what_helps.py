"""Compares scoring rules, alignment and transduction over worlds and seeds: `python benchmarks/what_helps.py`.

Prints one table of top-1 by world: each row with the data that it uses, an interval over five seeds of prompts and
images, and a paired test against image prototypes. Runs are sweeps of evaluate.py, so a second call only reads them.
Takes less than 10 minutes on two cores once prompts and images are stored; `--store DIR` names a store that has them.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t, ttest_1samp

from lgclip.evaluation.metrics import holm
from lgclip.reporting.run_folder import Run, find_runs

ROOT = Path(__file__).parents[1]
WORLDS = ("shapes", "shapes_noisy", "digits")
SEEDS = (0, 1, 2, 3, 4)
RULES = ("offset", "stata", "transclip", "em", "inmap", "zlap", "tda")
REFERENCE = "image prototypes"
NOTE = (
    "Mean and 95% interval over five seeds; in brackets the difference to image prototypes, p of a paired t test over "
    "the seeds, and a star where p stays below 0.05 with Holm's correction for all tests of the table."
)


@dataclass(frozen=True)
class Sweep:
    """Describes a sweep over worlds and seeds, and the table rows of its runs.

    Attributes:
        name: Folder of the sweep.
        overrides: Overrides of all its runs.
        rows: Names of rows by the name of a method or baseline; `{}` stands for the transductive rule.
    """

    name: str
    overrides: Sequence[str]
    rows: Mapping[str, str]


SWEEPS = (
    Sweep("default", [], {"lgclip": REFERENCE, "clip_text": "text", "fusion": "fusion"}),
    Sweep("gda", ["prototype=gda"], {"lgclip": "GDA", "fusion": "fusion, GDA"}),
    Sweep("cache", ["method=fusion", "prototype=cache"], {"fusion": "text + cache (Tip-Adapter)"}),
    Sweep(
        "aligned",
        ["align=pool"],
        {"lgclip": f"{REFERENCE}, aligned", "clip_text": "text, aligned", "fusion": "fusion, aligned"},
    ),
    Sweep("aligned_gda", ["align=pool", "prototype=gda"], {"lgclip": "GDA, aligned", "fusion": "fusion, GDA, aligned"}),
    Sweep("transduction", [f"transduction={','.join(RULES)}"], {"lgclip": f"{REFERENCE}, {{}}"}),
    Sweep("transduction_fusion", [f"transduction={','.join(RULES)}", "method=fusion"], {"fusion": "fusion, {}"}),
    Sweep("aligned_em", ["align=pool", "transduction=em", "method=fusion"], {"fusion": "fusion, aligned, {}"}),
)
"""Sweeps in the order of the table; alternatives of text are baselines of the first one, see `_text_rows`."""


def run(sweep: Sweep, folder: Path, store: Path) -> None:
    """Runs a sweep; finished jobs are not run again."""
    command = [
        sys.executable, "evaluate.py", "-m", f"dataset={','.join(WORLDS)}", f"seed={','.join(map(str, SEEDS))}",
        "prompts_per_class=10", "scales=single", "logger=none", f"paths.store={store}",
        f"hydra.sweep.dir={folder / sweep.name}", *sweep.overrides,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)


def _text_rows(run: Run) -> Iterator[tuple[str, str]]:
    """Yields name and row of each alternative text that a run of the first sweep has evaluated."""
    for name in run.result.baselines:
        if name.startswith("clip_text_"):
            yield name, f"text, {name.removeprefix('clip_text_')}"


class Table:
    """Collects top-1 by row, world and seed."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
        self.data_seen: dict[str, str] = {}

    def add(self, sweep: Sweep, folder: Path) -> None:
        for finished in find_runs([folder / sweep.name]):
            result = finished.result
            rule = result.choices.get("transduction") or ""
            rows = dict(sweep.rows)
            if sweep.name == "default":
                rows |= dict(_text_rows(finished))
            for name, row in rows.items():
                label = row.replace("{}", rule)
                self.values[label][result.dataset.name][result.seed] = 100 * result.metrics_of(name).top1
                self.data_seen[label] = result.seen[name].kind

    def lines(self) -> Iterator[str]:
        yield f"| row | data seen | {' | '.join(WORLDS)} |"
        yield "|---" * (2 + len(WORLDS)) + "|"
        tests = self._tests()
        corrected = dict(zip(tests, holm([p for _, p in tests.values()]), strict=True))
        order = {data: index for index, data in enumerate(dict.fromkeys(self.data_seen.values()))}
        for row in sorted(self.values, key=lambda row: order[self.data_seen[row]]):
            cells = [self._cell(row, world, tests, corrected) for world in WORLDS]
            yield f"| {row} | {self.data_seen[row]} | {' | '.join(cells)} |"

    def _tests(self) -> dict[tuple[str, str], tuple[float, float]]:
        """Returns mean difference to the reference, and p of the paired t test over seeds, by row and world."""
        tests: dict[tuple[str, str], tuple[float, float]] = {}
        for row, worlds in self.values.items():
            for world, by_seed in worlds.items():
                reference = self.values[REFERENCE][world]
                differences = np.array([by_seed[seed] - reference[seed] for seed in sorted(by_seed)])
                if row != REFERENCE and len(differences) > 1 and np.ptp(differences) > 1e-9:
                    test: Any = ttest_1samp(differences, 0.0)
                    tests[row, world] = (float(differences.mean()), float(test.pvalue))
        return tests

    def _cell(
        self,
        row: str,
        world: str,
        tests: Mapping[tuple[str, str], tuple[float, float]],
        corrected: Mapping[tuple[str, str], float],
    ) -> str:
        values = np.array(list(self.values[row][world].values()))
        if not len(values):
            return "-"
        half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
        text = f"{values.mean():.1f} ± {half:.1f}"
        if (row, world) not in tests:
            return text
        difference, p = tests[row, world]
        mark = " \\*" if corrected[row, world] < 0.05 else ""
        return f"{text} ({difference:+.1f}, p = {p:.2g}{mark})"


def main() -> None:
    """Runs the sweeps and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, help="store with prompts and images (default: a new one)")
    parser.add_argument("--out", type=Path, help="folder of the runs (default: a new one)")
    options = parser.parse_args()
    folder = options.out or Path(tempfile.mkdtemp(prefix="what-helps-"))
    table = Table()
    for sweep in SWEEPS:
        run(sweep, folder, options.store or folder / "store")
        table.add(sweep, folder)
        print(f"{sweep.name}: done", file=sys.stderr)
    print("\n".join(table.lines()))
    print(f"\n{NOTE}")


if __name__ == "__main__":
    main()
