"""Records the cost of each stage in cost logs inside the store; costs are never part of a key."""

import json
import logging
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from lgclip.runtime.regular_files import read_text, regular_stat
from lgclip.store.atomic import WAY_OUT, WriteError, refusal
from lgclip.store.checksums import CHECKSUM, is_intact, with_checksum
from lgclip.store.remote import note_written

log = logging.getLogger(__name__)

COST_LOG = "costs.jsonl"
"""Name of a cost log: two lines for each time that a stage has added to its store, one at its start, one at its end.

A process that is killed writes no end: what it has added is in the store, and its cost is unknown.
"""


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
        server: Name of the server that does the work; empty if the run's own device does.
        computed: Number of items that the run computed.
        seconds: Time they took, including their share of model loading and of the stage's other work.
    """

    name: str
    unit: str
    key: str
    cost_log: Path
    used: int
    server: str = ""
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
        workers: Number of processes that decoded images, on the first device; None where no image was decoded.
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
    workers: int | None = None


@dataclass(frozen=True)
class Line:
    """Holds one line of a cost log that states a cost.

    Attributes:
        count: Number of items computed; 0 for a stage that was interrupted before the first.
        unit: Unit of the count.
        seconds: Time they took, including model loading.
        device: Device that computed them.
        devices: Number of devices.
        tokens: Tokens used; None if there are none, or they are unknown.
        start: Id of the line at the start of the work; empty without one.
    """

    count: int
    unit: str
    seconds: float
    device: str
    devices: int
    tokens: Tokens | None = None
    start: str = field(default="", compare=False)


class CostLog(NamedTuple):
    """Holds the content of a cost log.

    Attributes:
        lines: The stated costs.
        unfinished: Number of starts without an end: of stages that were killed, or still run in another process.
    """

    lines: list[Line]
    unfinished: int


def append(path: Path, line: Line) -> None:
    """Appends a cost; safe for concurrent processes.

    Args:
        path: Path of the cost log.
        line: The cost.
    """
    tokens: dict[str, int] | None = None
    if line.tokens is not None:
        tokens = vars(line.tokens)
    record = {**vars(line), "tokens": tokens}
    if not line.start:
        del record["start"]
    _append(path, record)


def append_start(path: Path) -> str:
    """Appends the start of a stage's work, and returns its id; safe for concurrent processes.

    Args:
        path: Path of the cost log.
    """
    # From the system's generator, so that two processes have two ids whatever their seed.
    start = secrets.token_hex(8)
    _append(path, {"start": start})
    return start


def _append(path: Path, record: Mapping[str, object]) -> None:
    text = json.dumps(with_checksum(record)) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        # To a pipe the line would be lost, or waited for.
        regular_stat(path)
    try:
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
    except OSError as error:
        # The system names no file where a descriptor is written to.
        raise WriteError(f"{path}: {refusal(error) or error.strerror}; {WAY_OUT}") from error
    note_written(path)


def read_cost_log(path: Path) -> CostLog:
    """Reads a cost log; empty if it does not exist. Damaged lines are left out, with a warning."""
    try:
        text = read_text(path, errors="replace")
    except FileNotFoundError:
        return CostLog([], 0)
    # An empty file has no lines, but splitting its text would give one.
    if not text:
        return CostLog([], 0)
    lines: list[Line] = []
    starts: set[str] = set()
    # Not `splitlines`, which also splits at separators that a damaged line may contain; numbers would be wrong.
    for number, row in enumerate(text.removesuffix("\n").split("\n"), start=1):
        try:
            parsed = parse_row(row)
        except ValueError:
            log.warning("%s: line %d is damaged; its cost is unknown", path, number)
            continue
        if isinstance(parsed, str):
            starts.add(parsed)
        else:
            lines.append(parsed)
    return CostLog(lines, len(starts - {line.start for line in lines}))


def lines_of(path: Path) -> list[Line]:
    """Returns the costs in a cost log, as `read_cost_log`."""
    return read_cost_log(path).lines


def parse_row(row: str) -> Line | str:
    """Returns the cost that a row of a cost log states, or the id of a start.

    Raises:
        ValueError: If it is neither.
    """
    try:
        record = json.loads(row)
        if not is_intact(record):
            raise ValueError("its checksum is wrong")
        del record[CHECKSUM]
        if record.keys() == {"start"}:
            return str(record["start"])
        return _line(record)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("it is no line of a cost log") from error


def _line(record: Mapping[str, Any]) -> Line:
    tokens: Tokens | None = None
    if record["tokens"] is not None:
        tokens = Tokens(**record["tokens"])
    line = Line(**{**record, "tokens": tokens})
    # JSON in Python reads NaN and Infinity too: one such line would spoil every sum.
    is_valid = isinstance(line.count, int) and line.count >= 0 and 0 <= line.seconds < math.inf
    if not is_valid or not isinstance(line.start, str):
        raise ValueError("not what a stage writes")
    return line


def rate(lines: Sequence[Line]) -> float | None:
    """Returns the mean seconds per item over all lines; None if there are none."""
    count = sum(line.count for line in lines)
    if count == 0:
        return None
    return sum(line.seconds for line in lines) / count
