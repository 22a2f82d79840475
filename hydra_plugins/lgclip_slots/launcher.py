"""The launcher itself: which process is which job of the sweep."""

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

from hydra_plugins.lgclip_slots.processes import LOG, Process, how_ended, last_line, run_jobs, slots_of, visible_gpus
from lgclip.runtime.cores import usable_cores
from lgclip.runtime.sweep_job import FAILED, Job, command_of, environment_of, quoted
from lgclip.store.atomic import write_json

log = logging.getLogger(__name__)


class SlotLauncher(Launcher):
    """Runs the jobs of a sweep side by side: `python evaluate.py -m hydra/launcher=slots`.

    A job is the same command with its own overrides, so nothing is forked and nothing pickled. What it prints
    goes to `output.log` in its folder. A job that fails stops no other and has no value, which a sweeper takes
    for a failed trial.

    Args:
        slots: `auto` is a slot for each GPU, or one on the CPU; a number is so many slots, which share the
            GPUs if there are fewer; a list of GPUs, `[0,3]`, is a slot for each.

    Raises:
        ValueError: If `slots` is none of these.
    """

    def __init__(self, slots: str | int | Sequence[int | str] = "auto") -> None:
        slots = slots if isinstance(slots, str | int) else list(slots)
        number = isinstance(slots, int) and not isinstance(slots, bool) and slots > 0
        if not (slots == "auto" or number or (isinstance(slots, list) and slots)):
            raise ValueError(f"hydra.launcher.slots={slots}: give auto, a number from 1, or GPUs as in [0,3]")
        self.slots = slots
        self.config: DictConfig = OmegaConf.create()
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        del task_function  # a job's process finds its own
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        try:
            slots = slots_of(self.slots, visible_gpus())
        except ValueError as error:
            raise HydraException(str(error)) from error
        log.info(f"{len(job_overrides)} jobs, {len(slots)} at once: {self.config.hydra.sweep.dir}")
        composed: dict[int, DictConfig] = {}
        with TemporaryDirectory(prefix="lgclip-slots-") as values:
            jobs = self._jobs(job_overrides, initial_job_idx, len(slots), Path(values), composed)
            codes = run_jobs(jobs, slots)
            returns = [_returned(config, codes[number], Path(values)) for number, config in composed.items()]
        failed = [number for number in composed if codes[number] != 0]
        if failed:
            log.error(f"{len(failed)} of {len(codes)} jobs failed: {', '.join(f'#{number}' for number in failed)}")
        return returns

    def _jobs(
        self,
        overrides: Sequence[Sequence[str]],
        first: int,
        at_once: int,
        values: Path,
        composed: dict[int, DictConfig],
    ) -> Iterator[Process]:
        """Each job when its turn comes; what it is composed to is kept."""
        assert self.hydra_context is not None
        same = set.intersection(*(set(given) for given in overrides)) if len(overrides) > 1 else set[str]()
        for number, given in enumerate(overrides, start=first):
            config = self.hydra_context.config_loader.load_sweep_config(self.config, list(given))
            with open_dict(config):
                config.hydra.job.num, config.hydra.job.id = number, str(number)
            composed[number] = config
            own = list(filter_overrides(given))
            told = " ".join(override for override in own if override not in same)
            command, environment = _command(config, given, values), _environment(config, own, at_once)
            yield Process(number, told, _folder(config), command, environment)


def _folder(config: DictConfig) -> Path:
    return Path(str(config.hydra.sweep.dir), str(config.hydra.sweep.subdir)).absolute()


def _command(config: DictConfig, overrides: Sequence[str], values: Path) -> list[str]:
    """This very command for one job, which also brings its value back."""
    value = quoted(values / f"{config.hydra.job.num}.json")
    back = f"{{_target_:hydra_plugins.lgclip_slots.returned.Returned,path:{value}}}"
    command = command_of(Path(sys.argv[0]), config.hydra, overrides, _folder(config))
    return [*command, f"++hydra.callbacks.lgclip_slots={back}"]


def _environment(config: DictConfig, overrides: list[str], at_once: int) -> dict[str, str]:
    """Which job of which sweep a process is; and its share of the cores, or all would ask for all of them."""
    threads = {"OMP_NUM_THREADS": str(max(1, usable_cores() // at_once))} if at_once > 1 else {}
    sweep = Path(str(config.hydra.sweep.dir)).absolute()
    return {**threads, **environment_of(Job(sweep, config.hydra.job.num, overrides, alone=True))}


def _returned(config: DictConfig, code: int, values: Path) -> JobReturn:
    """What Hydra's own launcher would have returned of a job."""
    task = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    done = JobReturn(
        overrides=list(config.hydra.overrides.task), cfg=task, hydra_cfg=OmegaConf.masked_copy(config, "hydra"),
        working_dir=config.hydra.runtime.cwd, task_name=config.hydra.job.name, status=JobStatus.COMPLETED,
    )  # fmt: skip
    done.return_value = _value(values / f"{config.hydra.job.num}.json") if code == 0 else None
    if code != 0:
        _note_failure(config, code)
    return done


def _value(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _note_failure(config: DictConfig, code: int) -> None:
    """A job that was killed could not say so itself."""
    folder = _folder(config)
    path = folder / FAILED
    if code > 0 and path.exists():  # it has told its error itself
        return
    why = f"{how_ended(code)}; the last line of {LOG}: {last_line(folder / LOG)}"
    content = {"overrides": list(config.hydra.overrides.task), "error": why, "run_key": None, "trace": ""}
    write_json(path, content)
