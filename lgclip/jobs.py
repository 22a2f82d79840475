"""A job of a sweep: which one this process is at, and the same job as a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.types import RunMode
from omegaconf import DictConfig

SWEEP, FAILED = "sweep.json", "failed.json"
"""Names of the files in a sweep's folder, and in that of a job that failed."""

GRACE = 5.0
"""Seconds that a job has to end by itself when its sweep is stopped."""

_PAUSE = 0.05  # seconds between two looks at a process that is to end

_ENVIRONMENT = ("LGCLIP_SWEEP_DIR", "LGCLIP_SWEEP_JOB", "LGCLIP_SWEEP_OVERRIDES")
"""By which a process knows that it is a job of a sweep, though Hydra starts it as a run."""


class Job(NamedTuple):
    """A job of a sweep.

    Attributes:
        sweep: The sweep's folder.
        number: Its number in the sweep.
        overrides: What its config differs by from the defaults.
        alone: Whether it has a process of its own.
    """

    sweep: Path
    number: int
    overrides: list[str]
    alone: bool

    def described(self) -> dict[str, object]:
        """Plain values, for the report."""
        return {"dir": str(self.sweep), "job": self.number, "overrides": self.overrides}


def current_job() -> Job | None:
    """The job that this process is at; None if it runs by itself."""
    if _ENVIRONMENT[0] in os.environ:
        folder, number, overrides = (os.environ[name] for name in _ENVIRONMENT)
        return Job(Path(folder), int(number), json.loads(overrides), alone=True)
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN:
        return None
    return Job(Path(hydra.sweep.dir).absolute(), int(hydra.job.num), list(hydra.overrides.task), alone=False)


def sweep_job() -> dict[str, object] | None:
    """The job that this process is at, as a result tells it; None if it runs by itself."""
    job = current_job()
    return job.described() if job else None


def output_folder() -> Path:
    """The run's folder."""
    return Path(HydraConfig.get().runtime.output_dir)


def choices() -> dict[str, str | None]:
    """The choice of each config group in this run."""
    return {group: choice for group, choice in HydraConfig.get().runtime.choices.items() if "/" not in group}


def command_of(script: Path, hydra: Any, overrides: Sequence[str], folder: Path) -> list[str]:
    """The command of one job: a plain run of a script, from the same configs, in the job's folder.

    Args:
        script: The entry script.
        hydra: Hydra's own config of the job, `HydraConfig.get()`.
        overrides: What the job's config differs by from the defaults.
        folder: The job's folder.
    """
    sources = {source.provider: source.path for source in hydra.runtime.config_sources if source.schema == "file"}
    flags = {"--config-path": sources.get("main"), "--config-dir": sources.get("command-line")}
    same = [override for override in hydra.overrides.hydra if override not in overrides]
    return [
        sys.executable,
        str(script.absolute()),
        *(part for flag, path in flags.items() if path for part in (flag, path)),
        "--config-name",
        hydra.job.config_name,
        *(override for override in same if not override.startswith("hydra.mode=")),
        *overrides,
        "hydra.mode=RUN",
        f"hydra.run.dir={quoted(folder)}",
        f"hydra.sweep.dir={quoted(Path(str(hydra.sweep.dir)).absolute())}",
        f"hydra.job.num={hydra.job.num}",
        f"hydra.job.id={quoted(hydra.job.id)}",
    ]


def quoted(value: object) -> str:
    """A value that no override's grammar takes apart."""
    return QuotedString(str(value), Quote.single).with_quotes()


def environment_of(job: Job) -> dict[str, str]:
    """The environment of a job's process, which says which job of which sweep it is."""
    # `plain_errors` asks Hydra for whole errors to make one line of them, which the job shall do for itself.
    inherited = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}
    told = (str(job.sweep), str(job.number), json.dumps(job.overrides))
    return {**inherited, **dict(zip(_ENVIRONMENT, told, strict=True))}


def end_groups(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Ends processes and all that they have started: by asking first, by force after the time of grace.

    Args:
        processes: Each started in a session of its own.
    """
    for process in processes:
        _signal(process, signal.SIGTERM)
    until = time.monotonic() + GRACE
    while any(process.poll() is None for process in processes) and time.monotonic() < until:
        time.sleep(_PAUSE)
    for process in processes:
        _signal(process, signal.SIGKILL)  # a process's workers may outlive it
        process.wait()


def _signal(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def on_several_devices(cfg: DictConfig) -> bool:
    """Whether Lightning would start more processes for a run of this config."""
    trainer = cfg.trainer
    devices = trainer.get("devices", "auto")
    if trainer.get("num_nodes", 1) > 1:
        return True
    if devices in ("auto", -1, "-1"):
        if trainer.get("accelerator", "auto") not in ("auto", "gpu", "cuda"):
            return False
        import torch

        return torch.cuda.device_count() > 1
    if isinstance(devices, int) or str(devices).isdigit():
        return int(devices) > 1
    return len(devices.split(",") if isinstance(devices, str) else devices) > 1
