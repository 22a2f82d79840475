"""A sweep goes on where it stopped: finished jobs are not run again, and one that fails loses no other.

multirun/DATE/TIME/sweep.json     the jobs, which are what tells a sweep from another
multirun/DATE/TIME/0/             a job's run folder, with result.json if it is finished
multirun/DATE/TIME/1/failed.json  why a job failed
multirun/DATE/TIME/summary.csv    a row a job
"""

import functools
import hashlib
import json
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from lgclip.credentials import hidden
from lgclip.jobs import FAILED, SWEEP, Job, command_of, current_job, end_groups, environment_of, on_several_devices
from lgclip.shown import shown
from lgclip.summary import summarise
from lgclip.whole import write_json

_BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def run_key(cfg: DictConfig) -> str:
    """32 hexadecimal digits of a run's whole config and of the code: what makes two jobs the same."""
    text = json.dumps([_settings(cfg), _code()], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _settings(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """The whole config but for whether it is run again."""
    plain: Any = OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else cfg
    return {key: value for key, value in plain.items() if key != "rerun"}


@functools.lru_cache(maxsize=1)
def _code() -> str:
    """Hash of the package's source: another code may judge otherwise."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(here.rglob("*.py")):
        digest.update(path.relative_to(here).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def objective(cfg: DictConfig, result: Mapping[str, Any]) -> float:
    """What a sweeper is to make large, from the content of a result.json."""
    if cfg.objective == "top1":
        return float(result["metrics"]["top1"])
    return float(result["judged_by"][result["method"]]["leave_one_out"])


def _check(cfg: DictConfig) -> None:
    if cfg.objective not in ("top1", "leave_one_out"):
        raise ValueError(f"objective={cfg.objective}: choose top1 or leave_one_out")
    weight = cfg.method.get("text_weight")
    if cfg.objective == "leave_one_out" and not (cfg.get("calibration") and weight is not None and weight < 1):
        raise ValueError("objective=leave_one_out needs calibration=leave_one_out and a method that uses images")


Task = Callable[[DictConfig], Any]


def resumed(task: Task) -> Task:
    """Wraps a task: in a sweep, a finished job is not run again, and a job that fails says so and is no more.

    What decides is `run_key`. A job that fails leaves failed.json; in a process of its own it passes its error on, in
    the sweep's it has no value, which a sweeper takes for a failed trial.
    """

    @functools.wraps(task)
    def run(cfg: DictConfig) -> Any:
        job = current_job()
        if job is None:
            _check(cfg)
            return task(cfg)
        folder, key = Path(HydraConfig.get().runtime.output_dir), run_key(cfg)
        done = _result(folder)
        if done is not None and done.get("run_key") == key and not cfg.rerun:
            print(f"job {job.number}: finished before, not run again (rerun=true runs it)", flush=True)
            return objective(cfg, done)
        failed = folder / FAILED
        failed.unlink(missing_ok=True)
        try:
            if done is not None and _settings(done["config"]) != _settings(cfg) and not cfg.rerun:
                raise ValueError(f"{folder} holds the result of another job; name another folder, hydra.sweep.dir=DIR")
            _check(cfg)
            if job.alone or not on_several_devices(cfg):
                return task(cfg)
            _in_a_process(task, job, folder)
            made = _result(folder)
            return None if made is None else objective(cfg, made)
        except Exception as error:
            if not failed.exists():  # else the job's own process has said more than we know
                told = {"overrides": job.overrides, "error": hidden(f"{type(error).__name__}: {error}"), "run_key": key}
                write_json(failed, {**told, "trace": hidden(traceback.format_exc())})
            if job.alone:
                raise
            print(f"job {job.number} failed: {shown(str(error))}\n{failed} has the trace", file=sys.stderr, flush=True)
            return None

    return run


def _result(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def _in_a_process(task: Task, job: Job, folder: Path) -> None:
    """Runs a job as a process of its own.

    Lightning starts the other devices of a run by its command line, which of a sweep's job is the whole sweep; and
    if one of them fails, it kills the process that started it, which would be the sweep.

    If this process is stopped, the job and all its devices are ended first.

    Raises:
        RuntimeError: If it failed.
    """
    command = command_of(Path(task.__code__.co_filename), HydraConfig.get(), job.overrides, folder)
    # A session of its own: its group can be ended with all that it starts, and Ctrl-C comes to us alone.
    process = subprocess.Popen(command, env=environment_of(job), stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        status = process.wait()
    except BaseException:
        end_groups([process])
        raise
    if status:
        raise RuntimeError(f"its process ended with status {status}")


class Sweeps(Callback):
    """Finds the folder of a sweep that was begun before, and tells at the end how its jobs ended.

    Hydra turns a callback's errors into warnings, so what is refused ends the process instead.
    """

    def on_multirun_start(self, config: DictConfig, config_name: str | None = None, **_: Any) -> None:
        if config_name != "evaluate" or config.hydra.sweeper.get("_target_") != _BASIC:
            return
        try:
            jobs = _jobs(config)
        except HydraException:  # the sweeper says what is wrong with them
            return
        told = any(str(o).startswith("hydra.sweep.dir=") for o in config.hydra.overrides.hydra)
        folder = Path(config.hydra.sweep.dir)
        if told and (before := _begun(folder)) not in (None, jobs):
            raise SystemExit(
                f"error: {folder} holds another sweep, of {len(before or [])} jobs: name another folder, "
                "hydra.sweep.dir=DIR, or none; what is stored is not made again"
            )
        if not told and not config.rerun:
            folder = next((old for old in _earlier(folder) if _begun(old) == jobs), folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / SWEEP, {"jobs": jobs})
        done = sum((folder / str(number) / "result.json").is_file() for number in range(len(jobs)))
        if done:
            print(f"{folder} was begun before: {done} of {len(jobs)} jobs have a result", flush=True)
        if not told:
            with read_write(config), open_dict(config):
                config.hydra.sweep.dir = str(folder)
                config.hydra.overrides.hydra.append(f"hydra.sweep.dir={folder}")

    def on_multirun_end(self, config: DictConfig, config_name: str | None = None, **_: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        failed = len(list(folder.glob(f"*/{FAILED}")))
        if config_name == "evaluate":
            text, failed = summarise(folder)
            print(text, flush=True)
        if failed:
            many = "jobs" if failed > 1 else "job"
            raise SystemExit(f"error: {failed} {many} failed; the same command runs what failed again, nothing else")


def _jobs(config: DictConfig) -> list[list[str]]:
    """The overrides of each job, as Hydra's sweeper will make them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    params = config.hydra.sweeper.get("params") or {}
    given = [*(f"{key}={value}" for key, value in params.items()), *config.hydra.overrides.task]
    parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(given)
    (jobs,) = BasicSweeper.split_arguments(parsed, None)
    return [[one for one in job if not one.startswith("rerun=")] for job in jobs]


def _begun(folder: Path) -> list[list[str]] | None:
    """The jobs of the sweep in a folder; None if there is none."""
    try:
        return json.loads((folder / SWEEP).read_text(encoding="utf-8"))["jobs"]
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError, KeyError):
        return None


def _earlier(folder: Path) -> list[Path]:
    """Folders of earlier sweeps, the latest first: `folder` is DATE/TIME among them."""
    return sorted((path.parent for path in folder.parent.parent.glob(f"*/*/{SWEEP}")), reverse=True)
