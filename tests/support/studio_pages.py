"""Starts the page of `lgclip studio` in a process of its own, as a user does."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONSOLE_NOISE = ("Method not implemented.",)
"""What Gradio's own script writes to the console in each page."""

needs_gradio = pytest.mark.skipif(find_spec("gradio") is None, reason="gradio is not installed: lgclip[studio]")


@contextmanager
def started(*command: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Starts Python with a command that serves the page; yields its process and address."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    assert process.stdout is not None
    output: list[str] = []
    reader: threading.Thread | None = None
    try:
        for line in process.stdout:
            output.append(line)
            address = re.match(r"(http://\S+) is ready", line)
            if address:
                # A full pipe would stop the page.
                reader = threading.Thread(target=output.extend, args=(process.stdout,), daemon=True)
                reader.start()
                yield process, address[1]
                return
        raise AssertionError("the page did not start: " + "".join(output))
    finally:
        process.terminate()
        process.wait(timeout=60)
        if reader is not None:
            reader.join(timeout=60)
        process.stdout.close()
        print("".join(output))


def studio(*arguments: str) -> tuple[str, ...]:
    """Returns the command of `lgclip studio`."""
    return ("-m", "lgclip", "studio", *arguments, "--no-browser")
