"""Kills a process that does not end after a signal, from outside, since a C call may hold Python's interpreter lock.

`signals` runs this file as a program of its own, without the package and its imports:

    python watchdog.py PARENT LATEST STUCK MESSAGE SIGNAL...

Standard input is the other end of the parent's wakeup socket: Python's C handler writes the number of each signal
there, also while a regular expression holds the interpreter. The parent answers with a zero byte as soon as it can. The
socket's end of file means that the parent has ended, or that it wants no watch any longer.
"""

import os
import select
import signal
import sys
import time

ANSWER = b"\0"
"""Byte by which the parent shows that its interpreter still works; no signal has the number 0."""


def wait_for_signal(numbers: set[int]) -> int | None:
    """Waits for one of the signals; returns None if the parent ends before."""
    while received := os.read(0, 64):
        for number in received:
            if number in numbers:
                return number
    return None


def has_ended(latest: float, stuck: float) -> bool:
    """Waits for the end of the parent, at most `latest` seconds, or `stuck` if it does not even answer."""
    start = time.monotonic()
    deadline = start + min(latest, stuck)
    while (remaining := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select([0], [], [], remaining)
        if not ready:
            continue
        received = os.read(0, 64)
        if not received:
            return True
        if ANSWER in received:
            deadline = start + latest
    return False


def main(parent: int, latest: float, stuck: float, message: str, numbers: set[int]) -> None:
    """Watches the parent until it ends, or kills it."""
    # Not a child of the watched process, which may count its children or wait for all of them.
    if os.fork():
        return
    # A signal to the group of processes, as Ctrl-C is, is not for the watchdog.
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)
    # Held from the beginning, so that another process that gets the same id later is never killed.
    handle: int | None = None
    if sys.platform == "linux":
        try:
            handle = os.pidfd_open(parent)
        except OSError:
            # The parent has ended already, or the kernel is older than 5.3; the end of file tells which.
            handle = None
    received = wait_for_signal(numbers)
    if received is None:
        return
    try:
        os.write(1, bytes([received]))
    except BrokenPipeError:
        return
    if has_ended(latest, stuck):
        return
    if message:
        os.write(2, f"\n{message}\n".encode())
    try:
        if sys.platform == "linux" and handle is not None:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        else:
            os.kill(parent, signal.SIGKILL)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), sys.argv[4], {int(n) for n in sys.argv[5:]})
