"""A sweep in one table, rebuilt from its folders."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lgclip.costs import add_up
from lgclip.jobs import FAILED, SWEEP
from lgclip.whole import write_whole

SUMMARY = "summary.csv"
_FIGURES = ("method", "n", "top1", "top1_low", "top1_high", "mean_per_class", "clip_text", "seconds")


def summarise(sweep: Path) -> tuple[str, int]:
    """Writes a sweep's summary.csv.

    Args:
        sweep: The sweep's folder.

    Returns:
        A table for the terminal, and how many jobs failed.

    Raises:
        ValueError: If the folder holds no sweep.
    """
    jobs = _overrides(sweep)
    swept = _swept(list(jobs.values()))
    rows = [_row(sweep / name, name, _named(overrides), swept) for name, overrides in jobs.items()]
    header = ["job", "status", *swept, *_FIGURES, "folder", "error"]
    with write_whole(sweep / SUMMARY) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, header, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(rows)
    counts = {status: sum(row["status"] == status for row in rows) for status in ("finished", "failed", "unfinished")}
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    spent = _spent([_json(sweep / name / "result.json") for name in jobs])
    return f"{_table(rows, swept)}\n{spent}{told}: {sweep / SUMMARY}", counts["failed"]


def _spent(results: Sequence[Mapping[str, Any]]) -> str:
    """What the finished jobs cost together, and what they re-used."""
    known = [result for result in results if result.get("cost")]
    if not known:
        return ""
    cost = add_up(known)
    before = cost["made_before"]["seconds"]
    return f"spent {cost['seconds']:.1f} s" + (f"; what was re-used had cost {before:.1f} s\n" if before else "\n")


def _overrides(sweep: Path) -> dict[str, list[str]]:
    """The overrides of each job, by the name of its folder, whether or not it was begun."""
    try:
        planned = json.loads((sweep / SWEEP).read_text(encoding="utf-8"))["jobs"]
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError, KeyError):
        planned = []
    jobs = {str(number): overrides for number, overrides in enumerate(planned)}
    begun = (path for path in sweep.glob("*") if path.is_dir() and path.name not in jobs)
    for folder in sorted(begun, key=lambda path: (not path.name.isdigit(), path.name.zfill(9))):
        if found := _said(folder):
            jobs[folder.name] = found
    if not jobs:
        raise ValueError(f"{sweep} holds no sweep: name the folder that holds the jobs' folders 0, 1, 2, ...")
    return jobs


def _said(folder: Path) -> list[str]:
    """What a job's own files say that it was; nothing of a run by itself."""
    for name in ("result.json", FAILED):
        content = _json(folder / name)
        if found := (content.get("sweep") or content).get("overrides"):
            return list(found)
    return []


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return {}


def _named(overrides: Sequence[str]) -> dict[str, str]:
    return {key.lstrip("+"): value for key, _, value in (override.partition("=") for override in overrides)}


def _swept(jobs: Sequence[Sequence[str]]) -> list[str]:
    """The keys in which jobs differ."""
    named = [_named(job) for job in jobs]
    keys = dict.fromkeys(key for values in named for key in values)
    return [key for key in keys if len({values.get(key) for values in named}) > 1]


def _row(folder: Path, name: str, values: Mapping[str, str], swept: Sequence[str]) -> dict[str, Any]:
    row: dict[str, Any] = {"job": name, "folder": name, **{key: values.get(key, "") for key in swept}}
    if result := _json(folder / "result.json"):
        m, text = result["metrics"], result["beside"].get("clip_text")
        low, high = m["top1_ci95"]
        figures = (m["top1"], low, high, m["mean_per_class"], text["top1"] if text else None)
        seconds = sum(stage["seconds"] for stage in result["stages"])
        shown = ["" if figure is None else f"{figure:.6f}" for figure in figures]
        told = (result["method"], result["n"], *shown, f"{seconds:.3f}")
        return {**row, "status": "finished", **dict(zip(_FIGURES, told, strict=True))}
    if failed := _json(folder / FAILED):
        return {**row, "status": "failed", "error": " ".join(failed["error"].split())}
    return {**row, "status": "unfinished"}


def _table(rows: Sequence[Mapping[str, Any]], swept: Sequence[str]) -> str:
    """The rows for the eye, in percent."""
    lines = [["job", *swept, "top-1", "95% interval", "clip_text"]]
    for row in rows:
        shown = [str(row["job"]), *(_cut(row[key]) for key in swept)]
        if row["status"] == "finished":
            top1, low, high, text = (
                f"{100 * float(row[name]):.1f}" if row[name] else ""
                for name in ("top1", "top1_low", "top1_high", "clip_text")
            )
            lines.append([*shown, top1, f"{low} - {high}", text])
        else:
            lines.append([*shown, row["status"], _cut(row.get("error", ""), 60), ""])
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def _cut(text: str, width: int = 32) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
