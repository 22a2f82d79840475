"""Tests that worker processes of loaders are silent when the main process is stopped, and only then."""

import subprocess
import sys

import pytest

SHARER = """
import sys, time
from multiprocessing.connection import Client
from multiprocessing.resource_sharer import DupFd, stop
from lgclip.runtime.loader_workers import ignore_cut_connections
if "ignore" in sys.argv:
    ignore_cut_connections(0)
address, _ = DupFd(0)._id
Client(address).close()  # before the greeting is over, as by a signal
stop(timeout=20)
"""


@pytest.mark.parametrize(("argument", "traces"), [("print", 1), ("ignore", 0)])
def test_cut_connection_is_silent(argument: str, traces: int) -> None:
    completed = subprocess.run([sys.executable, "-c", SHARER, argument], capture_output=True, text=True, check=True)
    assert completed.stderr.count("Traceback") == traces, completed.stderr


def test_other_errors_are_printed() -> None:
    code = (
        "from lgclip.runtime.loader_workers import ignore_cut_connections as ignore; ignore(0); raise OSError('disk')"
    )
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "OSError: disk" in completed.stderr
