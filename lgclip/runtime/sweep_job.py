"""Identifies the sweep job that this process runs, and builds the command to run it in its own process."""

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

SWEEP = "sweep.json"
FAILED = "failed.json"
"""Names of the files in a sweep's folder, and in that of a job that failed."""

GRACE = 5.0
"""Seconds that a job has to end by itself when its sweep is stopped."""

_PAUSE = 0.05  # seconds between two looks at a process that is to end

_ENVIRONMENT = ("LGCLIP_SWEEP_DIR", "LGCLIP_SWEEP_JOB", "LGCLIP_SWEEP_OVERRIDES")
"""Environment variable that marks a process as a job of a sweep, although Hydra starts it as a single run."""


class Job(NamedTuple):
    """Describes a job of a sweep.

    Attributes:
        sweep: Folder of the sweep.
        number: Number of the job in the sweep.
        overrides: Overrides relative to the default config.
        alone: Whether the job runs in its own process.
    """

    sweep: Path
    number: int
    overrides: list[str]
    alone: bool

    def described(self) -> dict[str, object]:
        """Returns plain values for the report."""
        return {"dir": str(self.sweep), "job": self.number, "overrides": self.overrides}


def current_job() -> Job | None:
    """Returns the job that this process runs; None outside a sweep."""
    if _ENVIRONMENT[0] in os.environ:
        folder, number, overrides = (os.environ[name] for name in _ENVIRONMENT)
        return Job(Path(folder), int(number), json.loads(overrides), alone=True)
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN:
        return None
    return Job(Path(hydra.sweep.dir).absolute(), int(hydra.job.num), list(hydra.overrides.task), alone=False)


def sweep_job() -> dict[str, object] | None:
    """Returns the job that this process runs, in the form that a result records; None outside a sweep."""
    job = current_job()
    if job is None:
        return None
    return job.described()


def output_folder() -> Path:
    """Returns the run's folder."""
    return Path(HydraConfig.get().runtime.output_dir)


def choices() -> dict[str, str | None]:
    """Returns the choice of each config group in this run."""
    return {group: choice for group, choice in HydraConfig.get().runtime.choices.items() if "/" not in group}


def command_of(script: Path, hydra: Any, overrides: Sequence[str], folder: Path) -> list[str]:
    """Returns the command of one job: a plain run of a script, with the same configs, in the job's folder.

    Args:
        script: The entry script.
        hydra: Hydra's own config of the job, `HydraConfig.get()`.
        overrides: Overrides of the job relative to the default config.
        folder: Folder of the job.
    """
    sources = {source.provider: source.path for source in hydra.runtime.config_sources if source.schema == "file"}
    command = [sys.executable, str(script.absolute())]
    for flag, provider in (("--config-path", "main"), ("--config-dir", "command-line")):
        if path := sources.get(provider):
            command += [flag, path]
    command += ["--config-name", hydra.job.config_name]
    for override in hydra.overrides.hydra:
        # Those that the sweep varies are among the overrides already.
        if override not in overrides and not override.startswith("hydra.mode="):
            command.append(override)
    # The last values win: the job runs as a single run, in the folder that the sweep would give it.
    return [
        *command,
        *overrides,
        "hydra.mode=RUN",
        f"hydra.run.dir={quoted(folder)}",
        f"hydra.sweep.dir={quoted(Path(str(hydra.sweep.dir)).absolute())}",
        f"hydra.job.num={hydra.job.num}",
        f"hydra.job.id={quoted(hydra.job.id)}",
    ]


def quoted(value: object) -> str:
    """Returns a value quoted such that the override grammar does not split it."""
    return QuotedString(str(value), Quote.single).with_quotes()


def environment_of(job: Job) -> dict[str, str]:
    """Returns the environment of a job's process, which names the sweep and the job."""
    # `plain_errors` asks Hydra for whole errors to make one line of them, which the job shall do for itself.
    inherited = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}
    values = (str(job.sweep), str(job.number), json.dumps(job.overrides))
    return {**inherited, **dict(zip(_ENVIRONMENT, values, strict=True))}


def end_groups(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Terminates processes and all of their descendants: gently first, by force after a grace period.

    Args:
        processes: Processes, each started in its own session.
    """
    # All are asked before the first is waited for, so that they share one time of grace.
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


def uses_ray(cfg: DictConfig) -> bool:
    """Checks whether a Ray cluster computes the stages of a run of this config."""
    executor = cfg.get("executor") or {}
    return str(executor.get("_target_", "")).endswith(".RayExecutor")


def on_several_devices(cfg: DictConfig) -> bool:
    """Checks whether Lightning would start more processes for a run of this config."""
    trainer = cfg.trainer
    devices = trainer.get("devices", "auto")
    # The run itself has one process then, and the cluster's workers have the devices.
    if uses_ray(cfg) and devices == "auto":
        return False
    if trainer.get("num_nodes", 1) > 1:
        return True
    if devices in ("auto", -1, "-1"):
        if trainer.get("accelerator", "auto") not in ("auto", "gpu", "cuda"):
            return False
        # Imported only here: a sweep starts many jobs from a process that needs no torch itself.
        import torch

        return torch.cuda.device_count() > 1
    # Lightning reads 2 and "2" as a number of devices, but "0,3" and [0, 3] as their indices.
    if isinstance(devices, int) or str(devices).isdigit():
        return int(devices) > 1
    if isinstance(devices, str):
        devices = devices.split(",")
    return len(devices) > 1
