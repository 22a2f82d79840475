"""Resumes sweeps: finished jobs are not repeated, and a failing one does not stop the others.

multirun/DATE/TIME/sweep.json     the jobs, which identify a sweep
multirun/DATE/TIME/0/             a job's run folder, with result.json if it is finished
multirun/DATE/TIME/1/failed.json  why a job failed
multirun/DATE/TIME/summary.csv    one row per job
"""

import functools
import json
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write

from lgclip.cli.errors import message_of, reason_of
from lgclip.cli.run_folders import claim_folder, is_named_by_time
from lgclip.runtime.run_key import run_key, settings
from lgclip.runtime.secrets import hidden
from lgclip.runtime.signals import is_stopping
from lgclip.runtime.sweep_job import (
    FAILED,
    SWEEP,
    Job,
    command_of,
    current_job,
    end_groups,
    environment_of,
    on_several_devices,
)
from lgclip.runtime.terminal import sanitized
from lgclip.store.atomic import write_json

BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
GRID_SWEEPER = "hydra_plugins.lgclip_grid.sweeper.GridSweeper"
"""Targets of Hydra's default sweeper and of the one that takes its place."""


def objective(cfg: DictConfig, result: Mapping[str, Any]) -> float:
    """Returns the value that a sweeper maximizes, from the content of a result.json.

    Args:
        cfg: The run's config.
        result: Content of a result.json, as plain values.
    """
    if cfg.objective == "top1":
        return float(result["metrics"]["top1"])
    return float(result["predictor"][result["method"]]["leave_one_out"])


def _check(cfg: DictConfig) -> None:
    if cfg.objective not in ("top1", "leave_one_out"):
        raise ValueError(f"objective={cfg.objective}: choose top1 or leave_one_out")
    # Before the run, not after it: without left-out predictions there would be nothing to return after hours of work.
    weight = cfg.method.get("text_weight")
    if cfg.objective == "leave_one_out" and not (cfg.get("calibration") and weight is not None and weight < 1):
        raise ValueError("objective=leave_one_out needs calibration=leave_one_out and a method that uses images")


Task = Callable[[DictConfig], Any]


def resumed(task: Task) -> Task:
    """Wraps a task: in a sweep, a finished job is skipped, and a failing job does not stop the others.

    `run_key` identifies a job. A failing job leaves failed.json; in its own process it raises its error, in
    the sweep's process it returns no value, which a sweeper treats as a failed trial.
    """

    @functools.wraps(task)
    def run(cfg: DictConfig) -> Any:
        job = current_job()
        if job is None:
            _check(cfg)
            task(cfg)
            return None
        folder = Path(HydraConfig.get().runtime.output_dir)
        key = run_key(cfg)
        done = _result(folder)
        # The key covers the config and the versions, so a result of changed code or values is not taken for this one.
        if done is not None and done.get("run_key") == key and not cfg.rerun:
            print(f"job {job.number}: finished before, not run again (rerun=true runs it)", flush=True)
            return objective(cfg, done)
        # The error of an earlier attempt must not outlive it, if this one is killed without a word.
        failed = folder / FAILED
        failed.unlink(missing_ok=True)
        try:
            if done is not None and settings(done["config"]) != settings(cfg) and not cfg.rerun:
                raise ValueError(f"{folder} holds the result of another job; name another folder, hydra.sweep.dir=DIR")
            _check(cfg)
            # On one device the sweep's own process will do, which saves the start of torch for each job.
            if job.alone or not on_several_devices(cfg):
                task(cfg)
            else:
                _in_a_process(task, job, folder)
            result = _result(folder)
            if result is None:
                return None
            return objective(cfg, result)
        # Any error: one job must not end the others. Ctrl-C is no Exception and ends the sweep.
        except Exception as error:
            # A device that was stopped may fail the others before they see the signal; the job is to be resumed.
            if is_stopping():
                raise
            # If the file is there, the job's own process has written it and knew more.
            if not failed.exists():
                record = {
                    "overrides": job.overrides,
                    "error": hidden(f"{type(reason_of(error)).__name__}: {message_of(error)}"),
                    "run_key": key,
                    "trace": hidden(traceback.format_exc()),
                }
                write_json(failed, record)
            if job.alone:
                raise
            print(
                f"job {job.number} failed: {sanitized(message_of(error))}\n{failed} has the trace",
                file=sys.stderr,
                flush=True,
            )
            return None

    return run


def _result(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def _in_a_process(task: Task, job: Job, folder: Path) -> None:
    """Runs a job in its own process.

    Lightning starts the other devices of a run by its command line, which for a sweep's job is the whole sweep; and
    if one of them fails, it kills the process that started it, which would be the sweep.

    If this process is stopped, the job and all its devices are ended first.

    Raises:
        RuntimeError: If it failed.
    """
    command = command_of(Path(task.__code__.co_filename), HydraConfig.get(), job.overrides, folder)
    # Its own session: its group can be ended with all descendants, and only we receive Ctrl-C.
    process = subprocess.Popen(command, env=environment_of(job), stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        status = process.wait()
    except BaseException:
        end_groups([process])
        raise
    if status:
        raise RuntimeError(f"its process ended with status {status}")


class Sweeps(Callback):
    """Finds the folder of a sweep that was started before, and reports at the end how its jobs ended.

    It also replaces Hydra's basic sweeper by `GridSweeper`, for all entry scripts. An override of the group in a config
    would also win over the sweeper of `experiment=search`.

    Hydra turns a callback's errors into warnings, so an error ends the process instead.
    """

    def on_multirun_start(self, config: DictConfig, config_name: str | None = None, **_: Any) -> None:
        # Only the basic sweeper knows its jobs ahead; a search cannot be found again by them.
        if config.hydra.sweeper.get("_target_") != BASIC_SWEEPER:
            return
        with read_write(config):
            config.hydra.sweeper._target_ = GRID_SWEEPER
        if config_name != "evaluate":
            return
        try:
            jobs = _jobs(config)
        except HydraException:  # the sweeper reports what is wrong with them
            return
        is_named = any(str(override).startswith("hydra.sweep.dir=") for override in config.hydra.overrides.hydra)
        folder = Path(config.hydra.sweep.dir)
        if is_named and (previous := _recorded_jobs(folder)) not in (None, jobs):
            raise SystemExit(
                f"error: {folder} holds another sweep, of {len(previous or [])} jobs: name another folder, "
                "hydra.sweep.dir=DIR, or none; stored results are reused"
            )
        # Hydra's default folder is the time of the start, so the same command would never find its earlier jobs.
        if not is_named and not config.rerun:
            folder = next((old for old in _earlier_sweeps(folder) if _recorded_jobs(old) == jobs), folder)
        if is_named_by_time(config.hydra.sweep) and _recorded_jobs(folder) != jobs:
            folder = claim_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / SWEEP, {"jobs": jobs})
        done = sum((folder / str(number) / "result.json").is_file() for number in range(len(jobs)))
        if done:
            print(f"{folder} was started before: {done} of {len(jobs)} jobs have a result", flush=True)
        # The override too: a launcher on a cluster composes the config again from the overrides.
        if not is_named:
            with read_write(config), open_dict(config):
                config.hydra.sweep.dir = str(folder)
                config.hydra.overrides.hydra.append(f"hydra.sweep.dir={folder}")

    def on_multirun_end(self, config: DictConfig, config_name: str | None = None, **_: Any) -> None:
        from lgclip.reporting.sweep_summary import summarize

        folder = Path(config.hydra.sweep.dir)
        # The other scripts leave no results to summarize, but their jobs may fail too.
        failed = len(list(folder.glob(f"*/{FAILED}")))
        if config_name == "evaluate":
            text, failed = summarize(folder)
            print(text, flush=True)
        if failed:
            noun = "jobs" if failed > 1 else "job"
            raise SystemExit(f"error: {failed} {noun} failed; the same command runs what failed again, nothing else")


def _jobs(config: DictConfig) -> list[list[str]]:
    """Returns the overrides of each job, as Hydra's sweeper will generate them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    params = config.hydra.sweeper.get("params") or {}
    overrides = [*(f"{key}={value}" for key, value in params.items()), *config.hydra.overrides.task]
    parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(overrides)
    (jobs,) = BasicSweeper.split_arguments(parsed, None)
    return [_without_rerun(job) for job in jobs]


def _without_rerun(job: Sequence[str]) -> list[str]:
    """Drops `rerun=`: a repeated sweep is still the same sweep."""
    return [override for override in job if not override.startswith("rerun=")]


def _recorded_jobs(folder: Path) -> list[list[str]] | None:
    """Returns the jobs of the sweep in a folder; None if there is none."""
    try:
        return json.loads((folder / SWEEP).read_text(encoding="utf-8"))["jobs"]
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError, KeyError):
        return None


def _earlier_sweeps(folder: Path) -> list[Path]:
    """Returns the folders of earlier sweeps, the latest first: `folder` is DATE/TIME among them."""
    return sorted((path.parent for path in folder.parent.parent.glob(f"*/*/{SWEEP}")), reverse=True)
