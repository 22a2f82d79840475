"""A process that is asked to stop does so: cleanly where it can, by force where it hangs, with all that it started."""

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
"""What asks a process to stop."""

LATEST = 8.0
"""Seconds from the signal to the end, at the latest; longer than a sweep gives its jobs (`jobs.GRACE`)."""

_PARENT = "LGCLIP_STARTED_BY"
_LOOK = 0.25  # seconds between two looks at the parent


class Stopped(SystemExit):
    """A signal asked this process to stop. The exit status is 128 + signal, as of a shell.

    It is no `KeyboardInterrupt`, of which Lightning makes exit status 1, and no `Exception`, of which a sweep makes
    a failed job.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number

    @property
    def told(self) -> str:
        """What to say of it."""
        name = signal.Signals(self.number).name
        return f"stopped by {name}; what is stored stays, and the same command goes on from there"


_heeded: list[signal.Signals] = []
_came: list[int] = []
"""Which signals stop this process, and which have come."""


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    _came.append(number)
    sys.unraisablehook = lambda _: None  # what is half-built now, such as a loader, complains when it is taken away
    raise Stopped(number)


def heed() -> None:
    """Lets the signals stop this process again, if it is `stoppable`, after a library has put its handlers there.

    Lightning's own sends SIGTERM on by a collective, which waits for ever for a device that is at work.
    """
    if threading.current_thread() is threading.main_thread():
        for number in _heeded:
            signal.signal(number, _stop)


@contextmanager
def stoppable() -> Iterator[None]:
    """Lets SIGINT and SIGTERM end the block by `Stopped`, whatever the block makes of it.

    A process whose main thread cannot be interrupted, as in a collective, is ended after `LATEST` seconds. If the
    process that started this one, itself in such a block, is gone, that counts as SIGTERM: no device and no job works
    on for nobody. Signals that are ignored, as by nohup, stay so.

    Raises:
        Stopped: If a signal came.
    """
    if threading.current_thread() is not threading.main_thread():  # only there Python lets signals be caught
        yield
        return
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
            number = error.number if isinstance(error, Stopped) else next(iter(_came), None)
            if number is None:
                raise
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
    """Tells the processes that are started within who started them; gives who told this one, and is still there."""
    told = os.environ.get(_PARENT)
    os.environ[_PARENT] = str(os.getpid())
    try:
        yield os.getppid() if told == str(os.getppid()) else None
    finally:
        if told is None:
            os.environ.pop(_PARENT, None)
        else:
            os.environ[_PARENT] = told


@contextmanager
def _clock(left: threading.Event) -> Iterator[None]:
    """Ends the process if it lives on in the block for too long after a signal."""
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
            said = reader.recv(64)
            if not said:
                return
            _came.extend(number for number in said if number in SIGNALS)
    if not left.wait(LATEST):
        say(Stopped(_came[0]))
        os._exit(128 + _came[0])


def _first() -> bool:
    """Whether this process is the first of a run's devices on its machine, or the only one."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def say(stop: Stopped) -> None:
    """One line on the terminal, from the first of a run's devices."""
    if _first():
        sys.stderr.write(f"\n{stop.told}\n")
        sys.stderr.flush()


def _watch(parent: int, left: threading.Event) -> None:
    while not left.wait(_LOOK):
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
            return


def _outlive(parent: int) -> None:
    """Waits for the first device to end: it kills all the others, and itself, if one of them ends with an error."""
    while os.getppid() == parent:
        time.sleep(_LOOK)
