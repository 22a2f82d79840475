"""A sweep goes on where it stopped: finished jobs are not run again, and one that fails loses no other.

multirun/DATE/TIME/sweep.json     the jobs, which are what tells a sweep from another
multirun/DATE/TIME/0/             a job's run folder, with result.json if it is finished
multirun/DATE/TIME/1/failed.json  why a job failed
multirun/DATE/TIME/summary.csv    a row a job
"""

import functools
import hashlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

SWEEP, FAILED = "sweep.json", "failed.json"
"""Names of the files in a sweep's folder, and in that of a job that failed."""

_BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


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
    """The job that this process is at; None if it runs by itself.

    A launcher that gives each job a process of its own says by the environment which it is.
    """
    if "LGCLIP_SWEEP_DIR" in os.environ:
        said = (os.environ[f"LGCLIP_SWEEP_{name}"] for name in ("DIR", "JOB", "OVERRIDES"))
        folder, number, overrides = said
        return Job(Path(folder), int(number), json.loads(overrides), alone=True)
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN:
        return None
    return Job(Path(hydra.sweep.dir).absolute(), int(hydra.job.num), list(hydra.overrides.task), alone=False)


def run_key(cfg: DictConfig) -> str:
    """32 hexadecimal digits of a run's whole config and of the code: what makes two jobs the same."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    plain.pop("rerun", None)
    text = json.dumps([plain, _code()], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


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
    if cfg.objective == "leave_one_out" and not (cfg.get("calibration") and cfg.method.text_weight < 1):
        raise ValueError("objective=leave_one_out needs calibration=leave_one_out and a method that uses images")


Task = Callable[[DictConfig], Any]


def resumed(task: Task) -> Task:
    """Wraps a task: in a sweep, a finished job is not run again, and a job that fails says so and is no more.

    What decides is `run_key`. A job that fails in a process of its own passes its error on; in the sweep's
    process it leaves failed.json and gives not-a-number, which a sweeper takes for a failed trial.
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
        try:
            if done is not None and done["config"] != OmegaConf.to_container(cfg, resolve=True) and not cfg.rerun:
                raise ValueError(f"{folder} holds the result of another job; name another folder, hydra.sweep.dir=DIR")
            _check(cfg)
            with _own_processes(folder, job):
                value = task(cfg)
        except Exception as error:
            told = {"overrides": job.overrides, "error": f"{type(error).__name__}: {error}", "run_key": key}
            _write(failed, {**told, "trace": traceback.format_exc()})
            if job.alone:
                raise
            print(f"job {job.number} failed: {error}\n{failed} has the trace", file=sys.stderr, flush=True)
            return float("nan")
        failed.unlink(missing_ok=True)
        return value

    return run


def _result(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def _write(path: Path, content: object) -> None:
    from lgclip.store import write_whole

    with write_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def _own_processes(folder: Path, job: Job) -> Iterator[None]:
    """A job's other devices run this job, and the next job starts its own.

    Lightning starts them as `sys.argv`, which of a sweep's job is the whole sweep, and marks in the
    environment that they are there.
    """
    argv, environment = sys.argv, dict(os.environ)
    hydra: Any = HydraConfig.get()
    where = hydra.run.dir
    if not job.alone:
        flags = [word for word in argv[1:] if word.startswith("-") or "=" not in word]
        sys.argv = [argv[0], *(flag for flag in flags if flag not in ("-m", "--multirun")), *job.overrides]
        with read_write(hydra):
            hydra.run.dir = str(folder)
    try:
        yield
    finally:
        _leave_group()
        sys.argv = argv
        os.environ.clear()
        os.environ.update(environment)
        with read_write(hydra):
            hydra.run.dir = where


def _leave_group() -> None:
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


class Sweeps(Callback):
    """Finds the folder of a sweep that was begun before, and tells at the end how its jobs ended.

    Hydra turns a callback's errors into warnings, so what is refused ends the process instead.
    """

    def on_multirun_start(self, config: DictConfig, config_name: str | None = None, **_: Any) -> None:
        if config_name != "evaluate" or config.hydra.sweeper.get("_target_") != _BASIC:
            return
        jobs = _jobs(config)
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
        _write_plain(folder / SWEEP, {"jobs": jobs})
        done = sum((folder / str(number) / "result.json").is_file() for number in range(len(jobs)))
        if done:
            print(f"{folder} was begun before: {done} of {len(jobs)} jobs have a result", flush=True)
        with read_write(config), open_dict(config):
            config.hydra.sweep.dir = str(folder)
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{folder}'")

    def on_multirun_end(self, config: DictConfig, config_name: str | None = None, **_: Any) -> None:
        if config_name != "evaluate":
            return
        from lgclip.summary import summarise

        text, failed = summarise(Path(config.hydra.sweep.dir))
        print(text, flush=True)
        if failed:
            raise SystemExit(f"error: {failed} jobs failed; run the same command again for them alone")


def _write_plain(path: Path, content: object) -> None:
    """Whole or absent, without torch, which `store` needs."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def _jobs(config: DictConfig) -> list[list[str]]:
    """The overrides of each job, as Hydra's sweeper will make them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    params = config.hydra.sweeper.get("params") or {}
    given = [*(f"{key}={value}" for key, value in params.items()), *config.hydra.overrides.task]
    parsed = OverridesParser.create().parse_overrides(given)
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
