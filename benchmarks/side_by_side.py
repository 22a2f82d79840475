"""Two ways to the same thing, in turns, on the same machine at the same time; results go to RESULTS.md.

A benchmark asserts that both give equal results, then calls `compare` with two functions that return
what they measured (seconds, or megabytes), and `keep` with the outcome.
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
    """One line of the table.

    Attributes:
        number: Its place there, such as `B2`, or `B5b`.
        ours: What of ours was measured.
        against: What it was measured against.
        aim: What the ratio must reach, such as `>= 1.8`; empty if it is only told.
        unit: Of what was measured: `s`, `MB`.
        measured: Ours, in the order of the rounds.
        baselines: The other's, in the same order.
        inverse: Whether the ratio is ours to theirs, for aims that start with `<=`; else theirs to ours.
        equal: What was compared for equality before.
        command: What makes this row.
    """

    number: str
    ours: str
    against: str
    aim: str
    unit: str
    measured: Sequence[float]
    baselines: Sequence[float]
    equal: str
    command: str
    inverse: bool = False

    @property
    def ratios(self) -> list[float]:
        """The ratio of each round."""
        pairs = list(zip(self.measured, self.baselines, strict=True))
        return [ours / theirs if self.inverse else theirs / ours for ours, theirs in pairs]

    @property
    def ratio(self) -> float:
        """The median ratio."""
        return statistics.median(self.ratios)

    @property
    def reached(self) -> bool | None:
        """Whether the aim is reached; None if there is none."""
        sign, _, bound = self.aim.partition(" ")
        if not bound:
            return None
        return self.ratio >= float(bound) if sign == ">=" else self.ratio <= float(bound)


def in_turns(
    ours: Callable[[], float], theirs: Callable[[], float], rounds: int = 5
) -> tuple[list[float], list[float]]:
    """What each measured: A B A B, after one round of each that does not count.

    Args:
        ours: Measures once and returns it.
        theirs: The same of the other.
        rounds: How many of each count.
    """
    pairs = [(ours(), theirs()) for _ in range(rounds + 1)][1:]
    return [a for a, _ in pairs], [b for _, b in pairs]


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def keep(row: Row, device: str = "") -> None:
    """Prints a row, keeps it under `results/` and writes the table anew.

    Args:
        row: What was measured.
        device: What it was measured on besides the machine's cores.
    """
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    kept = {**asdict(row), "machine": _machine() + (f", {device}" if device else ""), "versions": _versions()}
    (folder / f"{row.number}.json").write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(_line(row))
    write_table()


def write_table() -> None:
    """Writes RESULTS.md from what is kept."""
    kept = [json.loads(path.read_text(encoding="utf-8")) for path in (HERE / "results").glob("*.json")]
    kept.sort(key=lambda entry: _place(entry["number"]))
    where = {(entry.pop("machine"), entry.pop("versions")) for entry in kept}
    rows = [Row(**entry) for entry in kept]
    text = [
        "# Measured against peers and limits",
        "",
        "Each row is one run of its command: results compared for equality first, then both sides in turns (A B A B),",
        "median of the rounds, smallest and largest in brackets. The ratio is the median of the rounds' ratios: how",
        "many times faster ours is, or, where the aim is `<=`, ours as a share of the other's. Machines differ, so the",
        "ratio is what counts. What bounds the missed ones: [MISSED.md](MISSED.md). The benchmarks write this file.",
        "",
        "| | ours | against | ours | theirs | ratio | aim | |",
        "|---|---|---|---|---|---|---|---|",
        *map(_line, rows),
        "",
        "What was compared first, and the command:",
        "",
        *(f"- **{row.number}** {row.equal}: `{row.command}`" for row in rows),
        "",
        *(f"Measured on {machine} with {versions}." for machine, versions in sorted(where)),
    ]
    (HERE / "RESULTS.md").write_text("\n".join(text) + "\n", encoding="utf-8")


def _place(number: str) -> tuple[str, int, str]:
    digits = "".join(c for c in number if c.isdigit())
    return number[0], int(digits), number


def _line(row: Row) -> str:
    verdict = {None: "", True: "reached", False: "**missed**"}[row.reached]
    sides = [_spread(side, row.unit) for side in (row.measured, row.baselines)]
    ratio = f"{row.ratio:.3g} ({min(row.ratios):.3g} - {max(row.ratios):.3g})"
    cells = (row.number, row.ours, row.against, sides[0], sides[1], ratio, row.aim, verdict)
    return f"| {' | '.join(map(str, cells))} |"


def _spread(values: Sequence[float], unit: str) -> str:
    if len(set(values)) == 1:
        return f"{values[0]:.3g} {unit}"
    return f"{statistics.median(values):.3g} {unit} ({min(values):.3g} - {max(values):.3g})"


def _machine() -> str:
    return f"{len(os.sched_getaffinity(0))} cores ({platform.machine()}), Python {platform.python_version()}"


def _versions() -> str:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:  # a benchmark without a peer runs in the project's own environment
            continue
    return ", ".join(found)
