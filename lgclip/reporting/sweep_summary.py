"""Summarizes a sweep in one table, rebuilt from its folders."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from lgclip.reporting.costs import add_up
from lgclip.reporting.result_schema import ResultError, RunResult, from_json
from lgclip.reporting.run_folder import RESULT
from lgclip.reporting.text_tables import text_table
from lgclip.runtime.csv_cells import write_rows
from lgclip.runtime.sweep_job import FAILED, SWEEP
from lgclip.store.atomic import atomic_write

SUMMARY = "summary.csv"
_METRICS = ("method", "n", "top1", "top1_low", "top1_high", "mean_per_class", "clip_text", "seconds")
_STATES = ("finished", "failed", "unfinished")


@dataclass(frozen=True)
class SweepJob:
    """Describes a job of a sweep, whether or not it has started.

    Attributes:
        name: Name of its folder.
        values: Its overrides, by key.
        result: Its result; None if it is not finished.
        error: Why it failed; empty if it did not.
    """

    name: str
    values: Mapping[str, str]
    result: RunResult | None
    error: str

    @property
    def state(self) -> str:
        """Returns one of `finished`, `failed` and `unfinished`."""
        if self.result is not None:
            return "finished"
        return "failed" if self.error else "unfinished"


def summarize(sweep: Path) -> tuple[str, int]:
    """Writes the summary.csv of a sweep.

    Args:
        sweep: The folder of the sweep.

    Returns:
        A table for the terminal, and the number of failed jobs.

    Raises:
        ValueError: If the folder holds no sweep.
    """
    jobs = read_jobs(sweep)
    if not jobs:
        raise ValueError(f"{sweep} holds no sweep: name the folder that holds the jobs' folders 0, 1, 2, ...")
    swept = _swept_keys(jobs)
    header = ["job", "status", *swept, *_METRICS, "folder", "error"]
    with atomic_write(sweep / SUMMARY) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        rows = [_csv_row(job, swept) for job in jobs]
        write_rows(file, [header, *([row.get(name, "") for name in header] for row in rows)])
    counts = {state: sum(job.state == state for job in jobs) for state in _STATES}
    states = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    results = [job.result for job in jobs if job.result is not None]
    lines = [_table(jobs, swept), *cost_lines(results), f"{states}: {sweep / SUMMARY}"]
    return "\n".join(lines), counts["failed"]


def cost_lines(results: Sequence[RunResult]) -> list[str]:
    """Returns one line on the total cost of finished runs and what they reused; empty without a run."""
    if not results:
        return []
    cost = add_up(results)
    line = f"spent {cost.seconds:.1f} s"
    if cost.reused_seconds:
        line += f"; what was reused had cost {cost.reused_seconds:.1f} s"
    return [line]


def read_jobs(sweep: Path) -> list[SweepJob]:
    """Returns the jobs of a sweep, planned ones first; empty if the folder is not a sweep's.

    A single run is not a job: it has no overrides of a sweep.
    """
    # The plan names all jobs of a grid, even those that were not begun. A sweeper that searches plans none ahead, so
    # the folders of its jobs tell the rest.
    planned = _read_json(sweep / SWEEP).get("jobs") or []
    overrides = {str(number): list(job) for number, job in enumerate(planned)}
    begun = [path for path in sweep.glob("*") if path.is_dir() and path.name not in overrides]
    # Numbers by size, then names; a number of nine digits is more than a sweep has jobs.
    for folder in sorted(begun, key=lambda path: (not path.name.isdigit(), path.name.zfill(9))):
        result = _read_json(folder / RESULT)
        recorded = (result.get("sweep") or {}).get("overrides") or _read_json(folder / FAILED).get("overrides")
        if recorded:
            overrides[folder.name] = list(recorded)
    return [_read_job(sweep / name, job) for name, job in overrides.items()]


def _read_job(folder: Path, overrides: Sequence[str]) -> SweepJob:
    values = {}
    for override in overrides:
        key, _, value = override.partition("=")
        values[key.lstrip("+")] = value
    content = _read_json(folder / RESULT)
    # In one line, as a cell of a table cannot hold several.
    error = " ".join(str(_read_json(folder / FAILED).get("error", "")).split())
    result = None
    if content:
        try:
            result = from_json(content, folder / RESULT)
        # A result of another version of lgclip: one such job must not hide the others, so it counts as unfinished.
        except ResultError as problem:
            error = str(problem)
    return SweepJob(folder.name, values, result, error)


def _read_json(path: Path) -> dict[str, Any]:
    # A job that is at work has no file yet. A damaged one counts as none, since the job will be run again.
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return {}


def _swept_keys(jobs: Sequence[SweepJob]) -> list[str]:
    """Returns the keys in which jobs differ."""
    swept = []
    for key in dict.fromkeys(chain.from_iterable(job.values for job in jobs)):
        values = {job.values.get(key) for job in jobs}
        if len(values) > 1:
            swept.append(key)
    return swept


def _csv_row(job: SweepJob, swept: Sequence[str]) -> dict[str, Any]:
    row: dict[str, Any] = {"job": job.name, "folder": job.name, "status": job.state, "error": job.error}
    row |= {key: job.values.get(key, "") for key in swept}
    result = job.result
    if result is None:
        return row
    low, high = result.metrics.top1_ci95
    # Missing for an encoder without a text tower.
    text = result.baselines.get("clip_text")
    seconds = sum(stage.seconds for stage in result.stages)
    return row | {
        "error": "",
        "method": result.method,
        "n": result.n,
        "top1": f"{result.metrics.top1:.6f}",
        "top1_low": f"{low:.6f}",
        "top1_high": f"{high:.6f}",
        "mean_per_class": f"{result.metrics.mean_per_class:.6f}",
        "clip_text": f"{text.top1:.6f}" if text else "",
        "seconds": f"{seconds:.3f}",
    }


def _table(jobs: Sequence[SweepJob], swept: Sequence[str]) -> str:
    """Returns the jobs for the terminal, accuracies in percent."""
    rows = []
    for job in jobs:
        cells = [job.name, *(_cut(job.values.get(key, "")) for key in swept)]
        if job.result is None:
            # The state and the error take the places of the accuracy and its interval.
            rows.append([*cells, job.state, _cut(job.error, 60), ""])
            continue
        low, high = job.result.metrics.top1_ci95
        text = job.result.baselines.get("clip_text")
        interval = f"{100 * low:.1f} - {100 * high:.1f}"
        baseline = f"{100 * text.top1:.1f}" if text else ""
        rows.append([*cells, f"{100 * job.result.metrics.top1:.1f}", interval, baseline])
    return text_table(("job", *swept, "top-1", "95% interval", "clip_text"), rows, left_columns=0)


def _cut(text: str, width: int = 32) -> str:
    if len(text) <= width:
        return text
    return f"{text[: width - 1]}…"
