"""Runs processes in slots: as many in parallel as there are slots; none outlives the sweep."""

import functools
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
from types import FrameType

from lgclip.runtime.sweep_job import end_groups

log = logging.getLogger(__name__)

LOG = "output.log"
"""Name of the file in a job's folder that receives the job's output."""

_POLL_INTERVAL = 0.05
"""Seconds between two checks of the processes; short against the start of one."""

_COUNT_GPUS = "import torch; print(torch.cuda.device_count())"


@dataclass(frozen=True)
class JobProcess:
    """Describes the process of one job.

    Attributes:
        number: The job's number in the sweep.
        label: Overrides that tell the job from the others, for the terminal.
        folder: The job's folder, which receives its log.
        command: Program and arguments.
        environment: All environment variables; the slot adds its GPU.
    """

    number: int
    label: str
    folder: Path
    command: Sequence[str]
    environment: dict[str, str]


@dataclass(frozen=True)
class _Running:
    job: JobProcess
    process: subprocess.Popen[bytes]
    start: float


@functools.lru_cache(maxsize=1)  # a sweeper launches one batch after another
def visible_gpus() -> list[str]:
    """Returns the GPUs that this process may use, by the names that `CUDA_VISIBLE_DEVICES` takes."""
    # Torch counts them in another process: importing it here would take seconds at every start.
    output = subprocess.run([sys.executable, "-c", _COUNT_GPUS], capture_output=True, text=True, check=True)
    count = int(output.stdout)
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    if names is None:
        return [str(index) for index in range(count)]
    return [name.strip() for name in names.split(",")][:count]


def assign_gpus(slots: str | int | Sequence[int | str], gpus: Sequence[str]) -> list[str | None]:
    """Returns the GPU of each slot; None is a slot on the CPU.

    Args:
        slots: `auto` is one slot for each GPU, or one on the CPU. A number is that many slots, which share the
            GPUs if there are fewer. A list of GPUs is one slot for each.
        gpus: The GPUs that may be used.

    Raises:
        ValueError: If `slots` names a GPU that may not be used.
    """
    if isinstance(slots, int):
        return [gpus[index % len(gpus)] if gpus else None for index in range(slots)]
    if isinstance(slots, str):
        return list(gpus) or [None]
    names = [str(name) for name in slots]
    unknown = [name for name in names if name not in gpus]
    if unknown:
        available = f"there are {', '.join(gpus)}" if gpus else "there is none: give a number of slots instead"
        raise ValueError(f"hydra.launcher.slots: GPU {', '.join(unknown)} cannot be used, {available}")
    return list(names)


def describe_status(status: int) -> str:
    """Returns a process's exit status in words; a negative one is the number of the signal that killed it."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def last_line(path: Path) -> str:
    """Returns the last line of a log that is not empty; a progress bar counts as its last state."""
    lines = path.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def run_jobs(jobs: Iterable[JobProcess], gpus: Sequence[str | None]) -> dict[int, int]:
    """Runs jobs, each as soon as a slot is free. A failing job does not stop the others.

    If this process is interrupted or terminated, the process group of every job is ended first.

    Args:
        jobs: The jobs; the next one is requested when a slot is free.
        gpus: The GPU of each slot.

    Returns:
        Exit status of each job by its number; minus the signal if one killed it.

    Raises:
        SystemExit: If a signal ended the sweep; the status is 128 + signal, as in a shell.
    """
    waiting = iter(jobs)
    statuses: dict[int, int] = {}
    running: dict[int, _Running] = {}
    with _stop_signals() as signals:
        try:
            while not signals:
                for slot in range(len(gpus)):
                    if slot in running:
                        continue
                    job = next(waiting, None)
                    if job is not None:
                        running[slot] = _start(job, gpus[slot])
                if not running:
                    return statuses
                time.sleep(_POLL_INTERVAL)
                for slot, active in list(running.items()):
                    status = active.process.poll()
                    if status is not None:
                        statuses[active.job.number] = status
                        del running[slot]
                        _log_end(active, status)
        finally:
            end_groups([active.process for active in running.values()])
            if running:
                unfinished = ", ".join(f"#{active.job.number}" for active in running.values())
                log.error(f"stopped, with jobs {unfinished} unfinished")
    raise SystemExit(128 + signals[0])


def _start(job: JobProcess, gpu: str | None) -> _Running:
    device = "" if gpu is None else f" on GPU {gpu}"
    log.info(f"#{job.number} starts{device}: {job.label}")
    job.folder.mkdir(parents=True, exist_ok=True)
    environment = job.environment if gpu is None else {**job.environment, "CUDA_VISIBLE_DEVICES": gpu}
    # A resumed job appends to its log.
    with (job.folder / LOG).open("ab") as output:
        # In its own session: its group can be ended with all descendants, and only this process receives Ctrl-C.
        process = subprocess.Popen(
            list(job.command),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return _Running(job, process, time.monotonic())


def _log_end(active: _Running, status: int) -> None:
    job = active.job
    seconds = time.monotonic() - active.start
    if status == 0:
        log.info(f"#{job.number} finished in {seconds:.1f} s: {job.folder}")
        return
    path = job.folder / LOG
    log.error(f"#{job.number} failed after {seconds:.1f} s ({describe_status(status)}): {last_line(path)}; {path}")


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in a list, so that the jobs are ended before this process."""
    signals: list[int] = []
    # Python allows signal handlers in the main thread only.
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return

    def collect(number: int, _: FrameType | None) -> None:
        signals.append(number)

    previous = {number: signal.signal(number, collect) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
