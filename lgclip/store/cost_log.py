"""Records the cost of each stage in cost logs inside the store; costs are never part of a key."""

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lgclip.store.checksums import CHECKSUM, is_intact, with_checksum

log = logging.getLogger(__name__)

COST_LOG = "costs.jsonl"
"""Name of a cost log: one line for each time that a stage has added to its store."""


@dataclass(frozen=True)
class Tokens:
    """Counts tokens of a language model.

    Attributes:
        prompt: Input tokens.
        completion: Generated tokens.
    """

    prompt: int = 0
    completion: int = 0


def both(first: Tokens | None, second: Tokens | None) -> Tokens | None:
    """Adds the tokens of two responses; None if either is unknown, since a partial sum would be too low."""
    if first is None or second is None:
        return None
    return Tokens(first.prompt + second.prompt, first.completion + second.completion)


@dataclass(frozen=True)
class StoreUsage:
    """Describes a stage's use of one store.

    Attributes:
        name: `prompts`, `images`, or the stream that is encoded: `text`, `synthetic`, `real`.
        unit: Unit of the counts: `sentence`, `image`, or `view`, which is one image at one scale.
        key: Key of the store, with its folder.
        cost_log: Path of its cost log.
        used: Number of items that the run uses.
        elsewhere: What does the work if it is not the run's own device, such as a server; else empty.
        computed: Number of items that the run computed.
        seconds: Time they took, including their share of model loading and of the stage's other work.
    """

    name: str
    unit: str
    key: str
    cost_log: Path
    used: int
    elsewhere: str = ""
    computed: int = 0
    seconds: float = 0.0


@runtime_checkable
class Accounted(Protocol):
    """Defines the interface of a stage that reports which stores it adds to."""

    @property
    def tokens(self) -> Tokens | None:
        """Returns the tokens that this process has used since the stage began; None if unknown."""
        ...

    def missing(self) -> list[int]:
        """Returns the positions of items that are still to be computed."""
        ...

    def parts(self) -> list[StoreUsage]:
        """Returns the stage's use of each store, in processing order."""
        ...

    def lacking(self) -> list[int]:
        """Returns the number of missing items in each store."""
        ...


@dataclass(frozen=True)
class StageStats:
    """Reports the work of one stage.

    Attributes:
        stage: Name of the stage.
        computed: Number of items computed.
        reused: Number of items that were stored before.
        seconds: Duration including model loading; with several devices, on the first.
        unit: Unit of the counts.
        device: Device it ran on, such as `cpu` or `NVIDIA H200`.
        devices: Number of devices.
        peak_memory: Peak memory in bytes: of the first device, or of its process on a CPU.
        peak_from: `device` is the device's own value, `process` the system's exact one, `samples` the maximum
            of samples of a process that had been larger before. None if nothing was computed, or nothing is known.
        tokens: Tokens of the language model on all devices; None without a model, or if it does not report them.
    """

    stage: str
    computed: int
    reused: int
    seconds: float
    unit: str = "thing"
    device: str = "cpu"
    devices: int = 1
    peak_memory: int | None = None
    peak_from: str | None = None
    tokens: Tokens | None = None


@dataclass(frozen=True)
class Line:
    """Holds one line of a cost log.

    Attributes:
        count: Number of items computed.
        unit: Unit of the count.
        seconds: Time they took, including model loading.
        device: Device that computed them.
        devices: Number of devices.
        tokens: Tokens used; None if there are none, or they are unknown.
    """

    count: int
    unit: str
    seconds: float
    device: str
    devices: int
    tokens: Tokens | None = None


def append(path: Path, line: Line) -> None:
    """Appends a line; safe for concurrent processes.

    Args:
        path: Path of the cost log.
        line: The cost.
    """
    tokens: dict[str, int] | None = None
    if line.tokens is not None:
        tokens = vars(line.tokens)
    text = json.dumps(with_checksum({**vars(line), "tokens": tokens})) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        # A full disk may have cut the last line: it spoils no other.
        is_cut = os.pread(handle, 1, max(0, os.fstat(handle).st_size - 1)) not in (b"", b"\n")
        if is_cut:
            text = "\n" + text
        # One call on a file opened with O_APPEND: the system keeps the lines of two processes apart.
        os.write(handle, text.encode())
    finally:
        os.close(handle)


def lines_of(path: Path) -> list[Line]:
    """Returns the lines of a cost log; empty if it does not exist. Damaged lines are left out, with a warning."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    # An empty file has no lines, but splitting its text would give one.
    if not text:
        return []
    lines: list[Line] = []
    # Not `splitlines`, which also splits at separators that a damaged line may contain; numbers would be wrong.
    for number, row in enumerate(text.removesuffix("\n").split("\n"), start=1):
        try:
            record = json.loads(row)
            if not is_intact(record):
                raise ValueError("its checksum is wrong")
            del record[CHECKSUM]
            lines.append(_line(record))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            log.warning("%s: line %d is damaged; its cost is unknown", path, number)
    return lines


def _line(record: Mapping[str, Any]) -> Line:
    tokens: Tokens | None = None
    if record["tokens"] is not None:
        tokens = Tokens(**record["tokens"])
    line = Line(**{**record, "tokens": tokens})
    # JSON in Python reads NaN and Infinity too: one such line would spoil every sum.
    if not (isinstance(line.count, int) and line.count > 0 and 0 <= line.seconds < math.inf):
        raise ValueError("not what a stage writes")
    return line


def rate(lines: Sequence[Line]) -> float | None:
    """Returns the mean seconds per item over all lines; None if there are none."""
    count = sum(line.count for line in lines)
    if count == 0:
        return None
    return sum(line.seconds for line in lines) / count
