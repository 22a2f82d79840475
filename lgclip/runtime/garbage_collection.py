"""Spares a command the garbage collections that free nothing."""

import atexit
import gc

_YOUNGEST = 10_000
"""New objects before a collection, for Python's 700."""


def collect_less() -> None:
    """Collects garbage less often, and not at the end of the process.

    Importing torch, Lightning and diffusers makes a million objects that stay. Python looks through them a thousand
    times, for one second of an import of seven, and once more at the end, for 1.5 s, to free what the system frees
    anyway. What is registered to run at the end still runs, and so does the finalizer of every object that is not part
    of a cycle.
    """
    gc.set_threshold(_YOUNGEST, *gc.get_threshold()[1:])
    atexit.unregister(gc.freeze)  # a process may run several commands
    atexit.register(gc.freeze)
