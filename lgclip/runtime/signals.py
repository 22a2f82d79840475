"""Stops a process on request: cleanly where possible, by force where it hangs, together with its child processes."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Signals that stop a process."""

LATEST = 8.0
"""Seconds from the signal to the end, at the latest; longer than a sweep gives its jobs (`jobs.GRACE`)."""

_PARENT = "LGCLIP_STARTED_BY"
_POLL_SECONDS = 0.25  # seconds between two looks at the parent


class Stopped(SystemExit):
    """Reports that a signal asked this process to stop. The exit status is 128 + signal, as in a shell.

    It is not a `KeyboardInterrupt`, which Lightning turns into exit status 1, and not an `Exception`, which a sweep
    turns into a failed job.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number

    @property
    def message(self) -> str:
        """Returns the message for the terminal."""
        name = signal.Signals(self.number).name
        return f"stopped by {name}; what is stored stays, and the same command goes on from there"


_heeded: list[signal.Signals] = []
_came: list[int] = []
"""Signals that stop this process, and those that were received."""


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    _came.append(number)
    sys.unraisablehook = lambda _: None  # what is half-built now, such as a loader, complains when it is taken away
    raise Stopped(number)


def heed() -> None:
    """Restores this process's signal handlers, if it is `stoppable`, after a library has replaced them.

    Lightning's own handler forwards SIGTERM by a collective, which waits forever for a busy device.
    """
    if threading.current_thread() is threading.main_thread():
        for number in _heeded:
            signal.signal(number, _stop)


@contextmanager
def stoppable() -> Iterator[None]:
    """Lets SIGINT and SIGTERM end the block by `Stopped`, even if the block catches it.

    A process whose main thread cannot be interrupted, as in a collective, is killed after `LATEST` seconds. If the
    parent process, itself in such a block, is gone, that counts as SIGTERM, so that no orphaned device or job keeps
    running. Ignored signals, as under nohup, stay ignored.

    Raises:
        Stopped: If a signal was received.
    """
    if threading.current_thread() is not threading.main_thread():  # only there Python lets signals be caught
        yield
        return
    # None is a handler that C code has set; Python could not put it back.
    before = {n: handler for n in SIGNALS if (handler := signal.getsignal(n)) not in (signal.SIG_IGN, None)}
    left = threading.Event()
    _came.clear()
    with _known_to_children() as parent, _clock(left):
        if parent is not None:
            threading.Thread(target=_watch, args=(parent, left), daemon=True).start()
        _heeded[:] = before
        heed()
        try:
            yield
        except BaseException as error:
            # What a signal leads to may look otherwise: a library wraps it, a worker process dies of it too.
            number: int | None = next(iter(_came), None)
            if isinstance(error, Stopped):
                number = error.number
            if number is None:
                raise
            # The first device reports the stop. If another one ended before it with an error, Lightning would kill
            # the first, and the user would see a crash instead.
            if parent is not None and not _first():
                _outlive(parent)
            raise Stopped(number) from error
        finally:
            left.set()
            _heeded.clear()
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _known_to_children() -> Iterator[int | None]:
    """Passes this process's id to its child processes; returns the parent's id if the parent did so and is alive."""
    inherited = os.environ.get(_PARENT)
    os.environ[_PARENT] = str(os.getpid())
    # The variable may come from a grandparent by way of a shell; then the parent must not be watched.
    parent: int | None = os.getppid()
    if inherited != str(parent):
        parent = None
    try:
        yield parent
    finally:
        if inherited is None:
            os.environ.pop(_PARENT, None)
        else:
            os.environ[_PARENT] = inherited


@contextmanager
def _clock(left: threading.Event) -> Iterator[None]:
    """Kills the process if the block does not end in time after a signal."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    # Python writes a signal's number there at once, even while the main thread waits in a library.
    old = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_force, args=(reader, left), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(old)
        writer.close()
        thread.join()


def _force(reader: socket.socket, left: threading.Event) -> None:
    with reader:
        while not _came:
            received = reader.recv(64)
            # The block has ended and the other side of the socket is closed.
            if not received:
                return
            _came.extend(number for number in received if number in SIGNALS)
    if not left.wait(LATEST):
        say(Stopped(_came[0]))
        # `sys.exit` would only end this thread; the main thread hangs and cannot clean up anyway.
        os._exit(128 + _came[0])


def _first() -> bool:
    """Checks whether this process is the first of a run's devices on its machine, or the only one."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def say(stop: Stopped) -> None:
    """Prints one line on the terminal, from the first of a run's devices."""
    if _first():
        sys.stderr.write(f"\n{stop.message}\n")
        sys.stderr.flush()


def _watch(parent: int, left: threading.Event) -> None:
    # Linux gives an orphan another parent at once. The signal goes to this process itself, so that it ends as it would
    # end on any other signal.
    while not left.wait(_POLL_SECONDS):
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
            return


def _outlive(parent: int) -> None:
    """Waits for the first device to end: if a device fails, the first one kills all the others and itself."""
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
