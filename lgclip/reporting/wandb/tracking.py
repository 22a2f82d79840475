"""Provides the experiment logger of a run: Lightning's CSV logger, or Weights & Biases with tables and artifacts."""

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from hydra.errors import InstantiationException
from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig

from lgclip.datasets.base import Dataset
from lgclip.diffuser.base import SyntheticImages
from lgclip.reporting.result_schema import RunResult, to_json
from lgclip.reporting.run_folder import Run
from lgclip.reporting.wandb.artifacts import KEEP, log_artifacts
from lgclip.reporting.wandb.tables import tables_of
from lgclip.runtime.instantiate import build, target_of

log = logging.getLogger(__name__)

TAG_LENGTH = 64
NAME_LENGTH = 128
"""Artifact settings for W&B."""

_MODES = {
    "online": "online", "offline": "offline", "disabled": "disabled", "shared": "shared", "run": "online",
    "dryrun": "offline",
}  # fmt: skip
"""Values of `WANDB_MODE`, with what W&B takes them for."""

# W&B shows the last value of each metric unless a summary is defined. Names that are not here have none.
_BETTER: dict[str, Literal["max", "min"]] = {
    "top1": "max", "top5": "max", "mean_per_class": "max", "ece": "min", "nll": "min", "brier": "min", "aurc": "min",
}  # fmt: skip
# Where and how a run runs. A sweep over such a key is not one over settings, so it makes no name, tag or axis.
_APART = ("logger", "trainer", "paths", "workers", "rerun", "hydra")


class Wandb(WandbLogger):
    """Extends Lightning's Weights & Biases logger for runs that record their own environment.

    The host name, folders, command line, packages and console output are not sent: result.json has versions
    and commit.

    Args:
        save_dir: The run's folder; W&B's files go into its folder `wandb`.
        project: The project.
        entity: User or team; None for the account's own.
        group: Group of related runs; a sweep uses its own name.
        name: The run's name.
        job_type: Type of the run.
        tags: Tags to filter by, of 1 to 64 characters.
        offline: Whether nothing is sent; `wandb sync` sends it later. The environment variable `WANDB_MODE` takes
            precedence, with a warning where the two differ.
        artifacts: `manifest`: prompts, lists of content keys and the result's files; `files`: images and
            features too; `none`.

    Raises:
        ValueError: If `artifacts` or `WANDB_MODE` is unknown, or there is no account to log to.
    """

    def __init__(
        self,
        save_dir: str,
        project: str = "lgclip",
        entity: str | None = None,
        group: str | None = None,
        name: str | None = None,
        job_type: str | None = None,
        tags: Sequence[str] = (),
        offline: bool = True,
        artifacts: str = "manifest",
        version: str | None = None,
    ) -> None:
        import wandb

        if artifacts not in KEEP:
            raise ValueError(f"logger.artifacts={artifacts}: choose {', '.join(KEEP)}")
        # `mode` in place of Lightning's `offline`, which would keep every later run of the process offline.
        mode: Any = choose_mode(offline=offline)
        if mode in ("online", "shared") and not wandb.login(prompt=False, verify=False):
            cause = f"WANDB_MODE={mode}" if offline else "logger.offline=false"
            raise ValueError(
                f"{cause} needs an account of Weights & Biases: set WANDB_API_KEY or run `wandb login`, or choose "
                "logger.offline=true without WANDB_MODE and run `wandb sync` later"
            )
        # W&B's defaults send the host, the command line, the installed packages, the Git state and the console.
        super().__init__(
            save_dir=save_dir, project=project, name=name, version=version, entity=entity, group=group,
            job_type=job_type, tags=list(tags), mode=mode,
            settings=wandb.Settings(
                x_disable_meta=True, x_save_requirements=False, host="", disable_git=True, console="off"
            ),
        )  # fmt: skip
        self.artifacts = artifacts


def choose_mode(*, offline: bool) -> str:
    """Returns the mode of W&B: that of the environment, or else of the config.

    The environment is set for a machine or a single command, so it takes precedence, as in W&B itself.

    Args:
        offline: Value of the config.

    Raises:
        ValueError: If `WANDB_MODE` is unknown.
    """
    configured = "offline" if offline else "online"
    name = os.environ.get("WANDB_MODE")
    if not name:
        return configured
    if name not in _MODES:
        raise ValueError(f"WANDB_MODE={name}: choose {', '.join(_MODES)}, or unset it to use logger.offline")
    mode = _MODES[name]
    if mode != configured:
        log.warning("WANDB_MODE=%s takes precedence over logger.offline=%s", name, str(offline).lower())
    return mode


def _build(logger: DictConfig, folder: Path, description: Mapping[str, Any]) -> Logger:
    """Builds a logger.

    Raises:
        ValueError: If its package is not installed.
    """
    # MLflow reports its use to its developers, and prints how it creates its database, unless these are set
    # before it is imported.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    try:
        return build(logger, save_dir=str(folder), **description)
    except InstantiationException as error:
        if not isinstance(error.__cause__, ModuleNotFoundError):
            raise
        name = str(logger["_target_"]).rpartition(".")[2]
        extra = {"MLFlowLogger": "mlflow", "TensorBoardLogger": "tensorboard"}.get(name, name)
        raise ValueError(f"logger={extra}: its package is missing: pip install 'lgclip[{extra}]'") from error


class Tracker:
    """Logs one run's result.

    Args:
        logger: Any of Lightning's loggers, or None.
        folder: The run's folder.
        axes: Values of the swept keys in the run's sweep job.

    Attributes:
        logger: The logger for the run's trainings; False for none.
    """

    def __init__(self, logger: Logger | None, folder: Path, axes: Mapping[str, str]) -> None:
        # To a Trainer None means its own default logger, and only False means none.
        self.logger: Logger | Literal[False] = logger or False
        self._folder = folder
        self._axes = dict(axes)

    def log_metrics(self, result: RunResult) -> None:
        """Logs the metrics.

        The learning curve is logged before them, unless this run trained and has logged it already.

        Args:
            result: Content of result.json.
        """
        if not self.logger:
            return
        _log_curve(result, self.logger)
        metrics = flat_metrics(result)
        experiment = self._experiment
        if experiment:
            # Before the first value is logged: a definition does not apply to earlier ones.
            for name in metrics:
                if summary_mode := _BETTER.get(name.rpartition("/")[2]):
                    experiment.define_metric(name, summary=summary_mode)
        self.logger.log_metrics(metrics)
        self.logger.save()
        if experiment:
            # The plain number, where W&B would have {"max": number}, which filters and columns cannot use.
            experiment.summary.update(metrics)

    def log_tables(self, result: RunResult, dataset: Dataset, synthetic_images: SyntheticImages | None) -> None:
        """Logs to W&B the tables and the confusion matrix.

        Args:
            result: Content of result.json; it and the other files are in the run's folder already.
            dataset: The evaluated data set.
            synthetic_images: The synthetic images; None if the method needs none.
        """
        experiment = self._experiment
        if experiment:
            experiment.log(tables_of(Run(self._folder, result), dataset, synthetic_images, self._axes))
            # Logging replaces the summary by {"max": number} again.
            experiment.summary.update(flat_metrics(result))

    def log_artifacts(self, result: RunResult, synthetic_images: SyntheticImages | None) -> None:
        """Logs to W&B the artifacts: prompts, images, features and the files of the run's folder.

        Args:
            result: Content of result.json; it and the other files are in the run's folder already.
            synthetic_images: The synthetic images; None if the method needs none.
        """
        experiment = self._experiment
        if experiment:
            # Lightning's own WandbLogger may be configured too; it has no setting for the artifacts.
            keep = self.logger.artifacts if isinstance(self.logger, Wandb) else KEEP[0]
            log_artifacts(experiment, Run(self._folder, result), synthetic_images, keep)

    @property
    def _experiment(self) -> Any:
        """Returns the run of W&B; None for another logger, or where W&B is disabled."""
        if not isinstance(self.logger, WandbLogger) or self.logger.experiment.disabled:
            return None
        return self.logger.experiment


def _log_curve(result: RunResult, logger: Logger) -> None:
    """Logs the learning curve of an earlier training, in the same form as during the training."""
    # A training logs while it runs; a second time would draw each curve twice.
    if any(stage.computed for stage in result.stages if stage.stage in ("prompt tuning", "student")):
        return
    if prompt_tuning := result.prompt_tuning:
        # Imports what a training needs.
        from lgclip.training.prompt_tuning.rounds import log_rounds

        log_rounds(prompt_tuning.rounds, logger)
    elif student := result.student:
        rows = list(zip(*student.history.values(), strict=True))
        for epoch, row in enumerate(rows, 1):
            # Steps are spread evenly over the epochs, as at training time, so that the curves of a run that trained
            # and of one that found the student lie over each other.
            values: Any = {"epoch": float(epoch), **dict(zip(student.history, row, strict=True))}
            logger.log_metrics(values, step=epoch * (student.steps or 0) // len(rows))


def flat_metrics(result: RunResult) -> dict[str, float]:
    """Returns the metrics of result.json in the form that a logger takes.

    `top1`, `top1_low`, ... of the method, `clip_text/top1`, ... of its baselines,
    `paired/clip_text/difference`, `confidence/ece`, `diagnostics/margin/spearman`, `ood/NAME/metrics/top1`,
    `membership/auroc`, `by_type/air/harmonic`, `seconds` in total and `seconds/images` of a stage.
    """
    parts = ("paired", "detectable", "confidence", "diagnostics", "ood", "membership")
    values = to_json(result)
    flat = dict(_flat(values["metrics"], ""))
    flat |= _flat(values["baselines"], "")
    flat |= _flat({name: values[name] for name in parts}, "")
    flat |= _flat({"by_type": (values["prompt_tuning"] or {}).get("by_type", {})}, "")
    # A slash makes a separate section in W&B, so the stages do not crowd the metrics.
    stages = {stage.stage: float(stage.seconds) for stage in result.stages}
    flat["seconds"] = sum(stages.values())
    for name, seconds in stages.items():
        flat[f"seconds/{name}"] = seconds
    return flat


def _flat(metrics: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    """Returns numbers and intervals; unknown values, words and lists stay only in result.json."""
    for name, value in metrics.items():
        match value:
            case bool():  # before int, of which bool is a subclass
                continue
            case int() | float():
                yield f"{prefix}{name}", float(value)
            case [int() | float() as low, int() | float() as high] if name.endswith("ci95"):
                stem = prefix + name.removesuffix("ci95")
                yield f"{stem}low", float(low)
                yield f"{stem}high", float(high)
            case Mapping():
                yield from _flat(value, f"{prefix}{name}/")


def axes_of(sweep: Mapping[str, Any] | None) -> dict[str, str]:
    """Returns what a sweep job sets, except for output and logging; `+experiment=x` is `experiment`."""
    axes = {}
    for override in (sweep or {}).get("overrides", ()):
        # Hydra's signs of adding and removing, and the quotes of its grammar, are no part of the key and the value.
        key, _, value = override.lstrip("+~").partition("=")
        if key.partition(".")[0] not in _APART:
            axes[key] = value.strip("'\"")
    return axes


def group_of(folder: str) -> str:
    """Returns the name of a sweep's folder, unchanged when it is resumed; with its date before a time."""
    # The two leading parts are there for a folder of one part, so that there is always something before the last.
    *_, before, last = Path("/", "sweep", folder).parts
    name = last
    # Hydra's default is multirun/2024-05-31/12-30-00: the time alone would mix the sweeps of several days.
    if re.fullmatch(r"\d{4}-\d\d-\d\d", before):
        name = f"{before}_{last}"
    return name[:NAME_LENGTH]


def tag_of(text: str) -> str:
    """Returns a tag that W&B accepts; a truncated one ends in a hash, so that tags stay distinct."""
    if len(text) <= TAG_LENGTH:
        return text
    return f"{text[: TAG_LENGTH - 9]}~{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _described(choices: Mapping[str, str | None], sweep: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the metadata of a run for W&B besides its config."""
    axes = axes_of(sweep)
    main = {group: choices[group] for group in ("dataset", "encoder", "method") if choices.get(group)}
    name = " ".join(f"{key}={value}" for key, value in axes.items()) or " ".join(map(str, main.values()))
    tags = dict.fromkeys(tag_of(f"{key}={value}") for key, value in {**main, **axes}.items())
    description = {"name": name[:NAME_LENGTH] or None, "tags": list(tags), "job_type": "evaluate"}
    if sweep:
        description["group"] = group_of(sweep["dir"])
    return description


@contextmanager
def track(
    logger: DictConfig | None,
    folder: Path,
    config: Any,
    choices: Mapping[str, str | None] | None = None,
    sweep: Mapping[str, Any] | None = None,
) -> Iterator[Tracker]:
    """Provides a tracker that is closed with its exit code, so that a sweep's next job opens its own.

    Args:
        logger: The config group's choice; None or empty for no logger.
        folder: The run's folder.
        config: The run's complete config, as plain values.
        choices: Choice of every config group.
        sweep: The sweep job, as in result.json; None outside a sweep.
    """
    if not logger:
        yield Tracker(None, folder, {})
        return
    target = target_of(logger)
    description: dict[str, Any] = {}
    # Other loggers do not take these arguments. The target may also be a function, which is no class.
    if isinstance(target, type) and issubclass(target, WandbLogger):
        description = _described(choices or {}, sweep)
    # What the user has set stays.
    description = {name: value for name, value in description.items() if not logger.get(name)}
    built: Logger = _build(logger, folder, description)
    experiment = None
    if isinstance(built, WandbLogger):
        experiment = built.experiment  # starts the W&B run now, so that a wrong account ends the run before it works
    status = "failed"
    try:
        built.log_hyperparams({**config, "choices": dict(choices or {}), "sweep": dict(sweep or {})})
        yield Tracker(built, folder, axes_of(sweep))
        status = "success"
    finally:
        built.finalize(status)
        # Lightning leaves the W&B run open until the process ends, and a sweep runs its jobs in one process.
        if experiment is not None:
            experiment.finish(exit_code=0 if status == "success" else 1)
