"""Stops a process on request: cleanly where possible, by force where it hangs, together with its child processes."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NamedTuple, NoReturn

from lgclip.runtime import watchdog
from lgclip.runtime.watchdog import ANSWER

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Signals that stop a process."""

LATEST = 8.0
"""Seconds from the signal to the end, at the latest; longer than a sweep gives its jobs (`jobs.GRACE`)."""

STUCK = 5.0
"""Seconds from the signal to the end if a C call holds the interpreter, so that nothing can be cleaned up."""

_MARGIN = 0.5  # seconds by which the process itself is earlier than its watchdog
_PARENT = "LGCLIP_STARTED_BY"
_POLL_SECONDS = 0.25  # seconds between two looks at the parent


class Stopped(SystemExit):
    """Reports that a signal has stopped this process. The exit status is 128 + signal, as in a shell.

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


_handled_signals: list[signal.Signals] = []
_received: list[int] = []
"""Signals that stop this process, and those that were received."""


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    _received.append(number)
    sys.unraisablehook = lambda _: None  # what is half-built now, such as a loader, complains when it is taken away
    raise Stopped(number)


def is_stopping() -> bool:
    """Returns whether a signal asked this process to stop, in or since the last `stoppable` block."""
    return bool(_received)


def restore_handlers() -> None:
    """Restores this process's signal handlers, if it is `stoppable`, after a library has replaced them.

    Lightning's own handler forwards SIGTERM by a collective, which waits forever for a busy device.
    """
    if threading.current_thread() is threading.main_thread():
        for number in _handled_signals:
            signal.signal(number, _stop)


@contextmanager
def stoppable() -> Iterator[None]:
    """Lets SIGINT and SIGTERM end the block by `Stopped`, even if the block catches it.

    A process whose main thread cannot be interrupted, as in a collective, is killed after `LATEST` seconds. So is one
    whose interpreter is held by a C call, such as a slow regular expression: `watchdog` is a separate process. If the
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
    finished = threading.Event()
    _received.clear()
    with _known_to_children() as parent, _clock(finished):
        if parent is not None:
            threading.Thread(target=_watch, args=(parent, finished), daemon=True).start()
        _handled_signals[:] = before
        restore_handlers()
        try:
            yield
        except BaseException as error:
            # What a signal leads to may look otherwise: a library wraps it, a worker process dies of it too.
            number: int | None = next(iter(_received), None)
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
            finished.set()
            _handled_signals.clear()
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
def _clock(finished: threading.Event) -> Iterator[None]:
    """Kills the process if the block does not end in time after a signal."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    # Python's C handler writes a signal's number there at once, even while the main thread waits in a library.
    old = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    _wakeup.append(writer)
    # Here and not in the thread, which may never run: the block may begin with a call that holds the interpreter.
    watch = _start_watchdog(reader)
    thread = threading.Thread(target=_force, args=(reader, writer, watch, finished), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(old)
        _wakeup.remove(writer)
        # Not only `close`: the end of file must reach the readers although a forked process may hold a copy.
        writer.shutdown(socket.SHUT_RDWR)
        thread.join()
        writer.close()


_wakeup: list[socket.socket] = []
"""The sockets that signals are written to."""


def _forget_wakeup() -> None:
    """Detaches a forked process, such as a loader's worker, from the watch: its signals are not its parent's."""
    if _wakeup:
        signal.set_wakeup_fd(-1)
    while _wakeup:
        _wakeup.pop().close()


os.register_at_fork(after_in_child=_forget_wakeup)


class _Watch(NamedTuple):
    """Holds the watchdog's starter, and the socket where the watchdog repeats the signals."""

    starter: "subprocess.Popen[bytes]"
    signals: socket.socket


def _start_watchdog(reader: socket.socket) -> _Watch | None:
    """Starts the process that kills this one if the interpreter is held; None if the system cannot."""
    ours, its = socket.socketpair()
    message = ""
    if _first():
        message = "stopped by force, since it did not react to a signal; what is stored stays"
    arguments = [str(os.getpid()), str(LATEST), str(STUCK), message, *(str(int(number)) for number in SIGNALS)]
    with its:
        try:
            starter = subprocess.Popen(
                [sys.executable, "-I", "-S", watchdog.__file__, *arguments],
                stdin=reader.fileno(),
                stdout=its.fileno(),
                start_new_session=True,  # Ctrl-C and the end of a group of processes do not reach it
            )
        except OSError:
            ours.close()
            return None
    return _Watch(starter, ours)


def _force(reader: socket.socket, writer: socket.socket, watch: _Watch | None, finished: threading.Event) -> None:
    """Ends the process from inside; the watchdog ends it if not even this thread can run."""
    source = reader
    if watch is not None:
        # The starter ends at once, and the watchdog that it leaves is no child of this process.
        watch.starter.wait()
        source = watch.signals
    with reader, source:
        while not _received:
            received = source.recv(64)
            if not received:
                # The block has ended; or the watchdog was killed, and the signals are read here.
                if finished.is_set() or source is reader:
                    return
                source.close()
                source = reader
            _received.extend(number for number in received if number in SIGNALS)
        # The interpreter works, so that the watchdog gives it all of its time.
        with suppress(OSError):
            writer.send(ANSWER)
        # Before the watchdog, which can give no exit status.
        if not finished.wait(max(0.0, LATEST - _MARGIN)):
            print_stop(Stopped(_received[0]))
            # `sys.exit` would only end this thread; the main thread hangs and cannot clean up anyway.
            os._exit(128 + _received[0])


def _first() -> bool:
    """Checks whether this process is the first of a run's devices on its machine, or the only one."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def print_stop(stop: Stopped) -> None:
    """Prints one line on the terminal, from the first of a run's devices."""
    if _first():
        sys.stderr.write(f"\n{stop.message}\n")
        sys.stderr.flush()


def _watch(parent: int, finished: threading.Event) -> None:
    # Linux gives an orphan another parent at once. The signal goes to this process itself, so that it ends as it would
    # end on any other signal.
    while not finished.wait(_POLL_SECONDS):
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
            return


def _outlive(parent: int) -> None:
    """Waits for the first device to end: if a device fails, the first one kills all the others and itself."""
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
