"""Shows the progress of a task on stderr: a bar on a terminal, plain lines in a file or a pipe.

A bar redraws itself by a carriage return. In a log file of a batch system that is one line of many kilobytes, which
no pager shows and `tail -f` never ends. tqdm can only switch its bar off there (`disable=None`), which leaves a log
without a sign of life, so the plain lines are written here.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm import tqdm

INTERVAL = 30.0
"""Minimum number of seconds between two plain lines of a task that is still running."""


Listener = Callable[["Progress"], None]
"""Is called when a task starts, after each update, and when it ends."""

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def observed(listener: Listener) -> Iterator[None]:
    """Calls `listener` for every task that this thread starts in the block; the lines on stderr stay as they are."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


class Progress:
    """Counts the items of one task and shows the count.

    On a terminal it is a bar with the count, the rate and the remaining time. Elsewhere a task writes one line when it
    ends, and a long one also a line every `INTERVAL` seconds. No line holds a color or a control sequence.

    Args:
        title: Name of the task.
        total: Number of items.
        unit: Name of one item.
        initial: Number of items that were completed before, such as the steps before a resumed training.
        enabled: Whether to show anything; False on every device but the first.

    Attributes:
        count: Number of completed items, including the initial ones.
        title: Name of the task.
        total: Number of items.
        unit: Name of one item.
    """

    def __init__(self, title: str, total: int, unit: str, *, initial: int = 0, enabled: bool = True) -> None:
        self.count = initial
        self.title = title
        self.total = total
        self.unit = unit
        self._initial = initial
        self._metrics: dict[str, float] = {}
        self._file = sys.stderr
        has_width = _has_width(self._file)
        on_terminal = self._file.isatty()
        self._writes_lines = enabled and not on_terminal
        self._bar: Any = tqdm(
            total=total,
            initial=initial,
            desc=title,
            unit=f" {unit}",
            disable=not (enabled and on_terminal),
            file=self._file,
            mininterval=0.5,
            # A pseudo terminal has 0 columns and rows until somebody sets its size: tqdm would show nothing there.
            dynamic_ncols=has_width,
            ncols=None if has_width else 80,
            nrows=None if has_width else 24,
        )
        self._start = time.perf_counter()
        self._last_line = self._start
        self._notify = _listener.get()
        self._report()

    def update(self, count: int) -> None:
        """Adds completed items."""
        self.count += count
        self._bar.update(count)
        self._report()
        now = time.perf_counter()
        # The last item gets no line of its own: the one at the end follows.
        if self._writes_lines and self.count < self.total and now - self._last_line >= INTERVAL:
            self._last_line = now
            self._write_line(now, running=True)

    def show_metrics(self, values: Mapping[str, float]) -> None:
        """Shows the latest metrics after the count."""
        self._metrics = {name: round(value, 4) for name, value in values.items()}
        # No refresh here: the bar redraws itself at most twice a second.
        self._bar.set_postfix(self._metrics, refresh=False)

    def close(self) -> None:
        """Ends the bar, or writes the line of the completed task."""
        self._bar.close()
        if self._writes_lines:
            self._write_line(time.perf_counter(), running=False)
            self._writes_lines = False
        self._report()

    def _report(self) -> None:
        if self._notify is not None:
            self._notify(self)

    def _write_line(self, now: float, *, running: bool) -> None:
        seconds = now - self._start
        rate = (self.count - self._initial) / max(seconds, 1e-9)
        count = f"{self.count} of {self.total}" if running or self.count != self.total else str(self.count)
        parts = [f"{count} {_plural(self.unit)}", f"{seconds:.1f} s", f"{_three_digits(rate)} {_plural(self.unit)}/s"]
        parts += [f"{name}={value}" for name, value in self._metrics.items()]
        print(f"{self.title}: {', '.join(parts)}", file=self._file, flush=True)


def _has_width(file: Any) -> bool:
    """Returns whether a file is a terminal of a known width."""
    try:
        return os.get_terminal_size(file.fileno()).columns > 0
    except OSError:
        return False


def _plural(unit: str) -> str:
    return f"{unit}es" if unit.endswith("s") else f"{unit}s"


def _three_digits(rate: float) -> str:
    """Returns a rate with three significant digits, never in scientific notation."""
    if rate >= 100:
        return f"{rate:.0f}"
    return f"{rate:.3g}" if rate >= 0.001 else "0"
