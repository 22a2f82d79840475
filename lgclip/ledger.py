"""What a stage spent, and the files in the store that remember it: figures only, never part of a key."""

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

log = logging.getLogger(__name__)

LEDGER = "costs.jsonl"
"""Name of a ledger: one line for each time that a stage has added to its store."""


@dataclass(frozen=True)
class Tokens:
    """Tokens of a language model.

    Attributes:
        prompt: Read by it.
        completion: Written by it.
    """

    prompt: int = 0
    completion: int = 0


def both(first: Tokens | None, second: Tokens | None) -> Tokens | None:
    """The tokens of two replies; unknown if those of one are: a sum that leaves some out says too little."""
    if first is None or second is None:
        return None
    return Tokens(first.prompt + second.prompt, first.completion + second.completion)


@dataclass(frozen=True)
class Part:
    """A stage's share in one store.

    Attributes:
        name: `prompts`, `images`, or the stream that is encoded: `text`, `synthetic`, `real`.
        unit: What is counted: `sentence`, `image`, or `view`, which is one image at one scale.
        key: The store's key, with its folder.
        ledger: Where its lines are.
        used: How many the run uses.
        elsewhere: What does the work if it is not the run's own device, such as a server; else empty.
        made: How many of them the run made.
        seconds: What they took, with their share of loading the model and of all that the stage did besides.
    """

    name: str
    unit: str
    key: str
    ledger: Path
    used: int
    elsewhere: str = ""
    made: int = 0
    seconds: float = 0.0


@runtime_checkable
class Accounted(Protocol):
    """A stage that says which stores it adds to."""

    @property
    def tokens(self) -> Tokens | None:
        """Tokens that this process has spent since the stage began; None if they are not known."""
        ...

    def missing(self) -> list[int]:
        """Places of what is still to be made."""
        ...

    def parts(self) -> list[Part]:
        """Its share in each store, in the order in which it works on them."""
        ...

    def lacking(self) -> list[int]:
        """How many each of them lacks."""
        ...


@dataclass(frozen=True)
class Account:
    """What one stage did.

    Attributes:
        stage: Its name.
        made: How many things it made.
        reused: How many were there before.
        seconds: How long it took, loading its model included; of several devices, on the first.
        unit: What is counted.
        device: What it ran on, such as `cpu` or `NVIDIA H200`.
        devices: How many of them.
        peak_memory: The most memory that was in use, in bytes: of the first device, or of its process on a CPU.
        peak_from: `device` is the device's own figure, `process` the system's exact one, `samples` the largest
            of samples of a process that had once been larger. None if nothing was made, or nothing is known.
        tokens: Tokens of the language model on all devices; None if there is none, or it does not tell.
    """

    stage: str
    made: int
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
    """One line of a ledger.

    Attributes:
        count: How many things were made.
        unit: What they are.
        seconds: What they took, loading a model included.
        device: What made them.
        devices: How many of them.
        tokens: Tokens that they took; None if there are none, or they are not known.
    """

    count: int
    unit: str
    seconds: float
    device: str
    devices: int
    tokens: Tokens | None = None


def append(path: Path, line: Line) -> None:
    """Adds a line; several processes may do so at once.

    Args:
        path: The ledger.
        line: What was spent.
    """
    tokens = None if line.tokens is None else vars(line.tokens)
    text = json.dumps({**vars(line), "tokens": tokens}) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        # A full disk may have cut the last line: it spoils no other.
        cut = os.pread(handle, 1, max(0, os.fstat(handle).st_size - 1)) not in (b"", b"\n")
        # One call: the system keeps the lines of two processes apart.
        os.write(handle, (b"\n" if cut else b"") + text.encode())
    finally:
        os.close(handle)


def lines_of(path: Path) -> list[Line]:
    """The lines of a ledger; none where it is not there. A damaged line is left out, with a warning."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    found = []
    for number, row in enumerate(text.removesuffix("\n").split("\n") if text else (), start=1):
        try:
            found.append(_line(json.loads(row)))
        except (ValueError, KeyError, TypeError, RecursionError):
            log.warning("%s: line %d is damaged; what it cost is not known any more", path, number)
    return found


def _line(said: Mapping[str, Any]) -> Line:
    tokens = None if said["tokens"] is None else Tokens(**said["tokens"])
    line = Line(**{**said, "tokens": tokens})
    if not (isinstance(line.count, int) and line.count > 0 and 0 <= line.seconds < math.inf):
        raise ValueError("not what a stage writes")
    return line


def rate(lines: Sequence[Line]) -> float | None:
    """Seconds a thing over all lines; None without one."""
    count = sum(line.count for line in lines)
    return sum(line.seconds for line in lines) / count if count else None
