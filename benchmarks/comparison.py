"""Compares two implementations on the same machine at the same time, and writes the results to RESULTS.md.

A benchmark checks first that both give equal results. Then it calls `alternate` with two functions that return a
measurement (seconds, or megabytes), and `save_row` with the outcome.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGES = ("torch", "torchvision", "lightning", "hydra-core", "open_clip_torch", "diffusers", "clip-benchmark")


@dataclass(frozen=True)
class Row:
    """Holds one row of the table.

    Attributes:
        number: Number of the row, such as `B2` or `B5b`.
        task: The task of lgclip that was measured.
        reference: The implementation, or the limit, that it is compared with.
        aim: Condition on the ratio, such as `>= 1.8`; empty if there is none.
        unit: Unit of the measurements, such as `s` or `MB`.
        measured: Measurements of the task, in the order of the rounds.
        baselines: Measurements of the reference, in the same order.
        equality: The results that were compared for equality beforehand.
        command: Command that measures the row.
        inverse: Whether the ratio is the task's value over the reference's, for aims that start with `<=`; otherwise
            it is the reference's over the task's, a speedup.
    """

    number: str
    task: str
    reference: str
    aim: str
    unit: str
    measured: Sequence[float]
    baselines: Sequence[float]
    equality: str
    command: str
    inverse: bool = False

    @property
    def ratios(self) -> list[float]:
        """Returns the ratio of each round."""
        pairs = zip(self.measured, self.baselines, strict=True)
        if self.inverse:
            return [value / baseline for value, baseline in pairs]
        return [baseline / value for value, baseline in pairs]

    @property
    def ratio(self) -> float:
        """Returns the median ratio."""
        return statistics.median(self.ratios)

    @property
    def reached(self) -> bool | None:
        """Returns whether the aim is reached; None if there is none."""
        sign, _, bound = self.aim.partition(" ")
        if not bound:
            return None
        if sign == ">=":
            return self.ratio >= float(bound)
        return self.ratio <= float(bound)


def alternate(
    measure: Callable[[], float], measure_baseline: Callable[[], float], rounds: int = 5
) -> tuple[list[float], list[float]]:
    """Measures both sides in alternation (A B A B), so that a busy machine affects both.

    Args:
        measure: Measures the task once and returns the value.
        measure_baseline: Does the same for the reference.
        rounds: Number of rounds, after one round of warm-up that is discarded.

    Returns:
        The values of the task and those of the reference, in the order of the rounds.
    """
    pairs = [(measure(), measure_baseline()) for _ in range(rounds + 1)][1:]
    return [value for value, _ in pairs], [baseline for _, baseline in pairs]


def measure_seconds(call: Callable[[], object]) -> float:
    """Returns the seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def save_row(row: Row, device: str = "") -> None:
    """Prints a row, saves it in `results/` and rewrites the table.

    Args:
        row: The measurements.
        device: Device that was used in addition to the CPU.
    """
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    machine = _describe_machine() + (f", {device}" if device else "")
    entry = {**asdict(row), "machine": machine, "versions": _list_versions()}
    (folder / f"{row.number}.json").write_text(json.dumps(entry, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(_format_row(row))
    write_table()


def write_table() -> None:
    """Writes RESULTS.md from the saved rows."""
    entries = [json.loads(path.read_text(encoding="utf-8")) for path in (HERE / "results").glob("*.json")]
    entries.sort(key=lambda entry: _sort_key(entry["number"]))
    machines = {(entry.pop("machine"), entry.pop("versions")) for entry in entries}
    rows = [Row(**entry) for entry in entries]
    text = [
        "# Speed and memory compared with peers and limits",
        "",
        "lgclip compared with a reference: a peer library, a bare loop, another setting, or a limit. Results are first",
        "checked for equality, then both sides are measured in alternation (A B A B). Cells show the median of the",
        "rounds, with the smallest and the largest value in brackets. The ratio is the median of the rounds' ratios:",
        'the speedup over the reference or, if marked "of reference", the value divided by the reference\'s. Rows',
        "without an aim are for information. Machines differ, so only ratios can be compared between rows.",
        "[MISSED.md](MISSED.md) states what limits the rows that miss their aim. The benchmarks write this file.",
        "",
        "| row | measured | reference | value | reference value | ratio | aim | |",
        "|---|---|---|---|---|---|---|---|",
        *map(_format_row, rows),
        "",
        "Results that were compared for equality, and the command of each row:",
        "",
        *(f"- **{row.number}** {row.equality}: `{row.command}`" for row in rows),
        "",
        *(f"Measured on {machine} with {versions}." for machine, versions in sorted(machines)),
    ]
    (HERE / "RESULTS.md").write_text("\n".join(text) + "\n", encoding="utf-8")


def _sort_key(number: str) -> tuple[str, int, str]:
    digits = "".join(c for c in number if c.isdigit())
    return number[0], int(digits), number


def _format_row(row: Row) -> str:
    verdict = {None: "", True: "reached", False: "**missed**"}[row.reached]
    value = _format_values(row.measured, row.unit)
    baseline = _format_values(row.baselines, row.unit)
    ratio = f"{row.ratio:.3g} ({min(row.ratios):.3g} - {max(row.ratios):.3g})"
    if row.inverse:
        ratio += " of reference"
    cells = (row.number, row.task, row.reference, value, baseline, ratio, row.aim, verdict)
    return f"| {' | '.join(map(str, cells))} |"


def _format_values(values: Sequence[float], unit: str) -> str:
    if len(set(values)) == 1:
        return f"{values[0]:.3g} {unit}"
    return f"{statistics.median(values):.3g} {unit} ({min(values):.3g} - {max(values):.3g})"


def _describe_machine() -> str:
    return f"{len(os.sched_getaffinity(0))} cores ({platform.machine()}), Python {platform.python_version()}"


def _list_versions() -> str:
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:  # a benchmark without a peer runs in the project's environment
            continue
    return ", ".join(versions)
