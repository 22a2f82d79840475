"""Counts the processor cores that this process may use; needs no torch."""

import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Time limit of a container or a batch job, in microseconds: `LIMIT PERIOD`, or `max PERIOD` for none."""


# joblib.cpu_count was considered: joblib comes with an optional package only.
def usable_cores() -> int:
    """Returns the number of cores that this process may use, at least one.

    A batch system binds a process to some cores, a container limits its time: of 64 cores it may have 4.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux can bind processes
        cores = os.cpu_count() or 1
    try:
        limit, period = _QUOTA.read_text(encoding="ascii").split()
        return max(1, min(cores, int(limit) // int(period)))
    except (OSError, ValueError):  # no such limit, or none that this system states there
        return cores
