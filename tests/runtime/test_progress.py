"""Tests that progress is a bar on a terminal, and plain lines without control sequences in a file or a pipe."""

import io
import os
import pty
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lgclip.runtime import progress
from lgclip.runtime.progress import Progress

ROOT = Path(__file__).parents[2]
COLOR = re.compile(rb"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;\d+)*m")
"""Control sequence that sets a color of the text or its background."""

STAGES = """
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from lgclip.stages.runner import StageBar, Stages, quiet


class CountingStage(LightningModule):
    unit = "class"

    def __init__(self):
        super().__init__()
        self.stored = set()

    def missing(self):
        return [n for n in range(6) if n not in self.stored]

    def predict_dataloader(self):
        return DataLoader(self.missing(), batch_size=2, collate_fn=list)

    def predict_step(self, batch, batch_idx):
        self.stored.update(batch)


quiet()
stages = Stages(Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False,
                        callbacks=[StageBar()]))
stages.complete("first", CountingStage(), 6)
stages.complete("second", CountingStage(), 6)
"""


class FakeClock:
    """Returns a time that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


def run_on_terminal(command: list[str], environment: Mapping[str, str]) -> bytes:
    """Returns what a command writes to a pseudo terminal, which is its stdout and stderr."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL, env=environment)
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux's sign of a terminal that nobody holds open any more
            break
        if not part:
            break
        written += part
    os.close(ours)
    assert process.wait(timeout=300) == 0, written.decode()
    return written


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1", **more}


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_stage_is_one_line_in_a_pipe() -> None:
    completed = subprocess.run(
        [sys.executable, "-c", STAGES], capture_output=True, env=environment(), timeout=300, check=True
    )
    assert b"\r" not in completed.stderr
    assert b"\x1b" not in completed.stderr
    lines = [line for line in completed.stderr.decode().splitlines() if line.startswith(("first", "second"))]
    assert [line.partition(":")[0] for line in lines] == ["first", "second"]
    for line in lines:
        assert re.fullmatch(r"\w+: 6 classes, \d+\.\d s, [\d.]+ classes/s", line)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_stage_is_a_bar_on_a_terminal_without_color() -> None:
    written = run_on_terminal([sys.executable, "-c", STAGES], environment(NO_COLOR="1", TERM="xterm-256color"))
    assert b"\r" in written
    assert b"6/6" in written
    assert not COLOR.search(written)


@pytest.mark.multiprocess
def test_a_table_on_a_terminal_has_no_color_with_no_color() -> None:
    script = (
        "from lgclip.reporting.text_tables import build_table, print_table\n"
        "print_table(build_table(['method', 'top-1'], [['a', '1%']], bold={(0, 1)}))\n"
    )
    written = run_on_terminal([sys.executable, "-c", script], environment(NO_COLOR="1", TERM="xterm-256color"))
    assert b"top-1" in written
    assert not COLOR.search(written)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    fake = FakeClock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=fake.perf_counter))
    return fake


def test_long_task_writes_a_line_every_interval(clock: FakeClock, capsys: pytest.CaptureFixture[str]) -> None:
    bar = Progress("images", 1000, "image")
    for _ in range(1000):
        clock.now += 0.125
        bar.update(1)
    bar.close()
    assert capsys.readouterr().err.splitlines() == [
        "images: 240 of 1000 images, 30.0 s, 8 images/s",
        "images: 480 of 1000 images, 60.0 s, 8 images/s",
        "images: 720 of 1000 images, 90.0 s, 8 images/s",
        "images: 960 of 1000 images, 120.0 s, 8 images/s",
        "images: 1000 images, 125.0 s, 8 images/s",
    ]


def test_resumed_task_counts_from_where_it_stopped(clock: FakeClock, capsys: pytest.CaptureFixture[str]) -> None:
    bar = Progress("student", 30, "step", initial=10)
    clock.now = 2.0
    bar.update(20)
    bar.show_metrics({"loss": 0.123456})
    bar.close()
    assert bar.count == 30
    assert capsys.readouterr().err == "student: 30 steps, 2.0 s, 10 steps/s, loss=0.1235\n"


def test_incomplete_task_names_its_total(clock: FakeClock, capsys: pytest.CaptureFixture[str]) -> None:
    bar = Progress("features", 30, "image")
    clock.now = 3.0
    bar.update(20)
    bar.close()
    assert capsys.readouterr().err == "features: 20 of 30 images, 3.0 s, 6.67 images/s\n"


@pytest.mark.parametrize("enabled", [True, False])
def test_closing_twice_writes_one_line(clock: FakeClock, capsys: pytest.CaptureFixture[str], enabled: bool) -> None:
    bar = Progress("features", 1, "image", enabled=enabled)
    clock.now = 1e9  # so slow that the rate has no digit
    bar.update(1)
    bar.close()
    bar.close()
    expected = "features: 1 images, 1000000000.0 s, 0 images/s\n" if enabled else ""
    assert capsys.readouterr().err == expected


def test_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    file: Any = Terminal()
    monkeypatch.setattr(sys, "stderr", file)
    bar = Progress("features", 2, "image")
    bar.update(2)
    bar.close()
    assert "\r" in file.getvalue()
    assert "2/2" in file.getvalue()
