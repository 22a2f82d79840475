"""Processes on slots: as many at once as there are slots, and none left behind."""

import functools
import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lgclip.runtime.sweep_job import end_groups

log = logging.getLogger(__name__)

LOG = "output.log"
"""Name of the file in a job's folder that takes what the job prints."""

_PAUSE = 0.05  # seconds between two looks at the processes: cheap, and short beside the start of one
_COUNT = "import torch; print(torch.cuda.device_count())"


@dataclass(frozen=True)
class Process:
    """A process to start.

    Attributes:
        number: Its number in the sweep.
        told: What it is, for the terminal.
        folder: Its folder, which takes its log.
        command: Program and arguments.
        environment: The whole environment; the slot adds its GPU.
    """

    number: int
    told: str
    folder: Path
    command: Sequence[str]
    environment: dict[str, str]


@dataclass(frozen=True)
class _Running:
    job: Process
    process: subprocess.Popen[bytes]
    since: float


@functools.lru_cache(maxsize=1)  # a sweeper launches again and again
def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by the names that `CUDA_VISIBLE_DEVICES` takes."""
    # Torch itself is asked, in a process of its own: to import it here would cost every start seconds.
    found = subprocess.run([sys.executable, "-c", _COUNT], capture_output=True, text=True, check=True)
    count = int(found.stdout)
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(i) for i in range(count)] if named is None else [name.strip() for name in named.split(",")][:count]


def slots_of(wanted: str | int | Sequence[int | str], gpus: Sequence[str]) -> list[str | None]:
    """The GPU of each slot; None is a slot on the CPU.

    Args:
        wanted: `auto` is a slot for each GPU, or one on the CPU; a number is so many slots, which share the
            GPUs if there are fewer; names of GPUs are a slot each.
        gpus: The GPUs that may be used.

    Raises:
        ValueError: If a GPU is named that may not be used.
    """
    if isinstance(wanted, int):
        return [gpus[i % len(gpus)] if gpus else None for i in range(wanted)]
    if isinstance(wanted, str):
        return list(gpus) or [None]
    unknown = [str(name) for name in wanted if str(name) not in gpus]
    if unknown:
        there = f"there are {', '.join(gpus)}" if gpus else "there is none: give a number of slots instead"
        raise ValueError(f"hydra.launcher.slots: GPU {', '.join(unknown)} cannot be used, {there}")
    return [str(name) for name in wanted]


def how_ended(code: int) -> str:
    """A process's exit status in words."""
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def last_line(path: Path) -> str:
    """The last line of a log that says something; progress bars write over their line."""
    lines = path.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def run_jobs(jobs: Iterable[Process], slots: Sequence[str | None]) -> dict[int, int]:
    """Runs jobs, each as soon as a slot is free. One that fails stops no other.

    If this process is interrupted or asked to end, every job's process group is ended first.

    Args:
        jobs: The jobs, taken one by one.
        slots: The GPU of each slot.

    Returns:
        Exit status of each job by its number; minus the signal if one killed it.

    Raises:
        SystemExit: If a signal ended the sweep; status 128 + signal, as of a shell.
    """
    waiting, codes = iter(jobs), dict[int, int]()
    running: dict[int, _Running] = {}
    with _asked_to_stop() as asked:
        try:
            while not asked:
                for slot in (s for s in range(len(slots)) if s not in running):
                    for job in itertools.islice(waiting, 1):
                        running[slot] = _start(job, slots[slot])
                if not running:
                    return codes
                time.sleep(_PAUSE)
                for slot, one in list(running.items()):
                    code = one.process.poll()
                    if code is not None:
                        codes[one.job.number] = code
                        del running[slot]
                        _tell(one, code)
        finally:
            end_groups([one.process for one in running.values()])
            if running:
                unfinished = ", ".join(f"#{one.job.number}" for one in running.values())
                log.error(f"stopped, with jobs {unfinished} unfinished")
    raise SystemExit(128 + asked[0])


def _start(job: Process, gpu: str | None) -> _Running:
    log.info(f"#{job.number} starts{'' if gpu is None else f' on GPU {gpu}'}: {job.told}")
    job.folder.mkdir(parents=True, exist_ok=True)
    environment = job.environment if gpu is None else {**job.environment, "CUDA_VISIBLE_DEVICES": gpu}
    with (job.folder / LOG).open("ab") as output:  # a job that is taken up again adds to its log
        # A session of its own: its group can be ended with all that it starts, and Ctrl-C comes to us alone.
        process = subprocess.Popen(
            list(job.command), env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    return _Running(job, process, time.monotonic())


def _tell(one: _Running, code: int) -> None:
    seconds, path = time.monotonic() - one.since, one.job.folder / LOG
    if code == 0:
        log.info(f"#{one.job.number} finished in {seconds:.1f} s: {one.job.folder}")
    else:
        log.error(f"#{one.job.number} failed after {seconds:.1f} s ({how_ended(code)}): {last_line(path)}; {path}")


@contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """Fills a list with the signals that ask this process to stop, instead of stopping it anywhere."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only there Python lets signals be caught
        yield asked
        return
    before = {n: signal.signal(n, lambda got, _: asked.append(got)) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
