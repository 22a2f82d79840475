"""The launcher: composes each job of a sweep, runs it in a process and reads its return value."""

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, setup_globals
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from hydra_plugins.lgclip_slots.processes import (
    LOG,
    JobProcess,
    assign_gpus,
    describe_status,
    last_line,
    run_jobs,
    visible_gpus,
)
from lgclip.runtime.cores import usable_cores
from lgclip.runtime.sweep_job import FAILED, Job, command_of, environment_of, quoted
from lgclip.store.atomic import write_json

log = logging.getLogger(__name__)


class SlotLauncher(Launcher):
    """Runs the jobs of a sweep in parallel: `python evaluate.py -m hydra/launcher=slots`.

    A job is the command of the sweep with the job's overrides, so nothing is forked or pickled. Its output goes to
    `output.log` in its folder. A failing job does not stop the others; it returns no value, which a sweeper treats
    as a failed trial.

    Args:
        slots: `auto` is one slot for each GPU, or one on the CPU. A number is that many slots, which share the
            GPUs if there are fewer. A list of GPUs, `[0,3]`, is one slot for each.

    Raises:
        ValueError: If `slots` is none of these.
    """

    def __init__(self, slots: str | int | Sequence[int | str] = "auto") -> None:
        if not isinstance(slots, str | int):
            slots = list(slots)
        is_number = isinstance(slots, int) and not isinstance(slots, bool) and slots > 0
        is_list = isinstance(slots, list) and bool(slots)
        if not (slots == "auto" or is_number or is_list):
            raise ValueError(f"hydra.launcher.slots={slots}: give auto, a number from 1, or GPUs as in [0,3]")
        self.slots = slots
        self.config: DictConfig = OmegaConf.create()
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Stores what `launch` needs; called by Hydra."""
        del task_function  # the process of a job imports it from the script
        self.hydra_context = hydra_context
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs a batch of jobs and returns their results in order; called by the sweeper."""
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        try:
            gpus = assign_gpus(self.slots, visible_gpus())
        except ValueError as error:
            raise HydraException(str(error)) from error
        log.info(f"{len(job_overrides)} jobs, {len(gpus)} at once: {self.config.hydra.sweep.dir}")
        configs: dict[int, DictConfig] = {}
        with TemporaryDirectory(prefix="lgclip-slots-") as values:
            jobs = self._compose(job_overrides, initial_job_idx, len(gpus), Path(values), configs)
            statuses = run_jobs(jobs, gpus)
            returns = [_job_return(config, statuses[number], Path(values)) for number, config in configs.items()]
        failed = [number for number in configs if statuses[number] != 0]
        if failed:
            log.error(f"{len(failed)} of {len(statuses)} jobs failed: {', '.join(f'#{number}' for number in failed)}")
        return returns

    def _compose(
        self,
        job_overrides: Sequence[Sequence[str]],
        first: int,
        slots: int,
        values: Path,
        configs: dict[int, DictConfig],
    ) -> Iterator[JobProcess]:
        """Composes each job when a slot is free for it, and adds its config to `configs`."""
        assert self.hydra_context is not None
        # The terminal shows only the overrides that differ between the jobs.
        common: set[str] = set()
        if len(job_overrides) > 1:
            common = set.intersection(*(set(overrides) for overrides in job_overrides))
        for number, overrides in enumerate(job_overrides, start=first):
            config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
            with open_dict(config):
                config.hydra.job.num = number
                config.hydra.job.id = str(number)
            configs[number] = config
            task_overrides = list(filter_overrides(overrides))
            yield JobProcess(
                number=number,
                label=" ".join(override for override in task_overrides if override not in common),
                folder=_folder(config),
                command=_command(config, overrides, values),
                environment=_environment(config, task_overrides, slots),
            )


def _folder(config: DictConfig) -> Path:
    return Path(str(config.hydra.sweep.dir), str(config.hydra.sweep.subdir)).absolute()


def _command(config: DictConfig, overrides: Sequence[str], values: Path) -> list[str]:
    """Returns the command of one job, with a callback that writes its return value to a file."""
    value = quoted(_value_path(config, values))
    callback = f"{{_target_:hydra_plugins.lgclip_slots.return_value.ReturnValue,path:{value}}}"
    command = command_of(Path(sys.argv[0]), config.hydra, overrides, _folder(config))
    return [*command, f"++hydra.callbacks.lgclip_slots={callback}"]


def _environment(config: DictConfig, overrides: list[str], slots: int) -> dict[str, str]:
    """Returns the environment of a job's process: the job it runs and its share of the cores."""
    sweep = Path(str(config.hydra.sweep.dir)).absolute()
    environment = environment_of(Job(sweep, config.hydra.job.num, overrides, alone=True))
    if slots == 1:
        return environment
    # Without a share each job would use all cores, and they would wait for each other.
    return {"OMP_NUM_THREADS": str(max(1, usable_cores() // slots)), **environment}


def _job_return(config: DictConfig, status: int, values: Path) -> JobReturn:
    """Returns what Hydra's basic launcher returns for a job."""
    result = JobReturn(
        overrides=list(config.hydra.overrides.task),
        cfg=OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]),
        hydra_cfg=OmegaConf.masked_copy(config, "hydra"),
        working_dir=config.hydra.runtime.cwd,
        task_name=config.hydra.job.name,
        status=JobStatus.COMPLETED,
    )
    if status == 0:
        result.return_value = _read_value(_value_path(config, values))
    else:
        result.return_value = None
        _record_failure(config, status)
    return result


def _value_path(config: DictConfig, values: Path) -> Path:
    return values / f"{config.hydra.job.num}.json"


def _read_value(path: Path) -> Any:
    if not path.exists():
        return None
    return json.loads(path.read_text(encoding="utf-8"))


def _record_failure(config: DictConfig, status: int) -> None:
    """Writes failed.json for a job that was killed and could not write it."""
    folder = _folder(config)
    path = folder / FAILED
    # A process that ended by itself has written its error, with more detail than is known here.
    if status > 0 and path.exists():
        return
    reason = f"{describe_status(status)}; the last line of {LOG}: {last_line(folder / LOG)}"
    overrides = list(config.hydra.overrides.task)
    write_json(path, {"overrides": overrides, "error": reason, "run_key": None, "trace": ""})
