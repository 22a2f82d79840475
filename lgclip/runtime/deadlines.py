"""Bounds the time of a call that blocks: clients limit each read, and a server can send its headers byte by byte."""

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

_GRACE_S = 0.25
"""Seconds by which a call may exceed its limit, so that a limit of its own, which knows more, is reported first."""

_Result = TypeVar("_Result")


class OvertimeError(Exception):
    """Reports that a call did not end within its time."""


def call_within(seconds: float, function: Callable[[], _Result]) -> _Result:
    """Returns the result of a call that blocks, if it ends in time; the call is abandoned otherwise.

    Args:
        seconds: Limit of time.
        function: The call. An abandoned one goes on in its thread, which does not keep the process alive.

    Raises:
        OvertimeError: If it takes longer.
    """
    outcomes: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcomes.put((True, function()))
        except BaseException as error:
            outcomes.put((False, error))

    # A daemon and no executor, which would wait for the abandoned call when the process ends.
    threading.Thread(target=run, daemon=True).start()
    try:
        is_done, outcome = outcomes.get(timeout=seconds + _GRACE_S)
    except queue.Empty:
        raise OvertimeError from None
    if not is_done:
        raise outcome
    return outcome
