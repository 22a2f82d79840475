"""The experiment logger of a run: Lightning's CSV logger, or Weights & Biases with tables, pictures and artifacts."""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig

from lgclip.allowed import build, target_of
from lgclip.artifacts import KEEP, log_artifacts
from lgclip.datasets.base import Dataset
from lgclip.diffuser.base import Pictures
from lgclip.prompt_rounds import log_rounds
from lgclip.runs import Run
from lgclip.wandb_tables import tables_of

TAG_LENGTH, NAME_LENGTH = 64, 128
"""What W&B takes."""

_BETTER: dict[str, Literal["max", "min"]] = {
    "top1": "max", "top5": "max", "mean_per_class": "max", "ece": "min", "nll": "min", "brier": "min", "aurc": "min",
}  # fmt: skip
_APART = ("logger", "trainer", "paths", "workers", "rerun", "hydra")


class Wandb(WandbLogger):
    """Lightning's logger of Weights & Biases, for runs that say of themselves what they were.

    The machine's name, folders, command line, packages and what is printed are not sent: result.json says versions
    and commit.

    Args:
        save_dir: The run's folder; W&B's files go into its folder `wandb`.
        project: The project.
        entity: User or team; None for the account's own.
        group: Runs that belong together; a sweep gives its own name.
        name: The run's name.
        job_type: What kind of run it is.
        tags: Words to filter by, of 1 to 64 characters.
        offline: Whether nothing is sent; `wandb sync` sends it later.
        artifacts: `manifest`: prompts, lists of content keys and the result's files; `files`: images and
            features too; `none`.

    Raises:
        ValueError: If `artifacts` is none of these, or there is no account to log to.
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
        mode = "offline" if offline else os.environ.get("WANDB_MODE", "online")
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            raise ValueError(
                "logger.offline=false needs an account of Weights & Biases: set WANDB_API_KEY or run `wandb login`, "
                "or leave logger.offline=true and run `wandb sync` later"
            )
        super().__init__(
            save_dir=save_dir, project=project, name=name, version=version, entity=entity, group=group,
            job_type=job_type, tags=list(tags), mode=mode,
            settings=wandb.Settings(
                x_disable_meta=True, x_save_requirements=False, host="", disable_git=True, console="off"
            ),
        )  # fmt: skip
        self.artifacts = artifacts


class Tracker:
    """Logs one run's result.

    Args:
        logger: Any of Lightning's loggers, or None.
        folder: The run's folder.
        axes: What the run's job of a sweep is, by the swept keys.

    Attributes:
        logger: The logger, for what the run learns; False for none.
    """

    def __init__(self, logger: Logger | None, folder: Path, axes: Mapping[str, str]) -> None:
        self.logger: Logger | Literal[False] = logger or False  # a trainer takes None for its own logger
        self._folder, self._axes = folder, dict(axes)

    def log(self, result: Mapping[str, Any], dataset: Dataset, drawing: Pictures | None) -> None:
        """Logs the figures, and to W&B the tables, the confusion matrix and the artifacts.

        Before them the curve of what was learnt, unless this run learnt it and has logged it meanwhile.

        Args:
            result: Content of result.json; it and the other files are in the run's folder already.
            dataset: What was judged.
            drawing: The synthetic images; None if the method needs none.
        """
        if not self.logger:
            return
        _log_curve(result, self.logger)
        figures, run = flat_metrics(result), Run(self._folder, result)
        experiment: Any = self.logger.experiment if isinstance(self.logger, WandbLogger) else None
        for name in figures if experiment else ():
            if way := _BETTER.get(name.rpartition("/")[2]):
                experiment.define_metric(name, summary=way)
        self.logger.log_metrics(figures)
        self.logger.save()
        if experiment:
            experiment.log(tables_of(run, dataset, drawing, self._axes))
            experiment.summary.update(figures)  # the plain number, where W&B would have {"max": number}
            log_artifacts(
                experiment, run, drawing, self.logger.artifacts if isinstance(self.logger, Wandb) else KEEP[0]
            )


def _log_curve(result: Mapping[str, Any], logger: Logger) -> None:
    """What was learnt before, as the loggers of the run that learnt it were told."""
    if any(stage["made"] for stage in result["stages"] if stage["stage"] in ("prompt learning", "student")):
        return
    if learner := result["learner"]:
        log_rounds(learner["rounds"], logger)
    elif student := result["student"]:
        names, rows = student["history"], [*zip(*student["history"].values(), strict=True)]
        for epoch, row in enumerate(rows, 1):
            told = {"epoch": float(epoch), **dict(zip(names, row, strict=True))}
            logger.log_metrics(told, step=epoch * student["steps"] // len(rows))


def flat_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """The figures of result.json as a logger takes them.

    `top1`, `top1_low`, ... of the method, `clip_text/top1`, ... of what stands beside it,
    `paired/clip_text/difference`, `confidence/ece`, `diagnostics/margin/spearman`, `ood/NAME/metrics/top1`,
    `membership/auroc`, `by_kind/air/harmonic`, `seconds` in all and `seconds/images` of a stage.
    """
    parts = ("paired", "detectable", "confidence", "diagnostics", "ood", "membership")
    flat = dict(_flat(result["metrics"], ""))
    flat |= _flat(result["beside"], "")
    flat |= _flat({name: result.get(name) for name in parts}, "")
    flat |= _flat({"by_kind": (result.get("learner") or {}).get("by_kind", {})}, "")
    stages = {stage["stage"]: float(stage["seconds"]) for stage in result["stages"]}
    return flat | {"seconds": sum(stages.values())} | {f"seconds/{name}": spent for name, spent in stages.items()}


def _flat(figures: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    """Numbers and intervals; what is not known, words and lists are left to result.json."""
    for name, value in figures.items():
        match value:
            case bool():
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
    """What a job of a sweep sets, but for where it runs, writes and logs; `+experiment=x` is `experiment`."""
    pairs = (override.lstrip("+~").partition("=") for override in (sweep or {}).get("overrides", ()))
    return {key: value.strip("'\"") for key, _, value in pairs if key.partition(".")[0] not in _APART}


def group_of(folder: str) -> str:
    """The name of a sweep's folder: the same however often it is resumed; its date stays before a time."""
    *_, before, last = Path("/", "sweep", folder).parts
    return (f"{before}_{last}" if re.fullmatch(r"\d{4}-\d\d-\d\d", before) else last)[:NAME_LENGTH]


def tag_of(text: str) -> str:
    """A tag that W&B takes; one that is cut ends in a hash, so that two stay two."""
    if len(text) <= TAG_LENGTH:
        return text
    return f"{text[: TAG_LENGTH - 9]}~{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _described(choices: Mapping[str, str | None], sweep: Mapping[str, Any] | None) -> dict[str, Any]:
    """What W&B is told of a run beside its config."""
    axes = axes_of(sweep)
    main = {group: choices[group] for group in ("dataset", "encoder", "method") if choices.get(group)}
    name = " ".join(f"{key}={value}" for key, value in axes.items()) or " ".join(map(str, main.values()))
    tags = dict.fromkeys(tag_of(f"{key}={value}") for key, value in {**main, **axes}.items())
    group = {"group": group_of(sweep["dir"])} if sweep else {}
    return {"name": name[:NAME_LENGTH] or None, "tags": list(tags), "job_type": "evaluate", **group}


@contextmanager
def track(
    logger: DictConfig | None,
    folder: Path,
    config: Any,
    choices: Mapping[str, str | None] | None = None,
    sweep: Mapping[str, Any] | None = None,
) -> Iterator[Tracker]:
    """A tracker that is closed with its exit code, so that a sweep's next job opens its own.

    Args:
        logger: The config group's choice; None or empty for no logger.
        folder: The run's folder.
        config: The run's whole config, as plain values.
        choices: Of every config group, its choice.
        sweep: The job of a sweep that this is, as in result.json; None for a run by itself.
    """
    if not logger:
        yield Tracker(None, folder, {})
        return
    target = target_of(logger)
    wandb = isinstance(target, type) and issubclass(target, WandbLogger)
    told = _described(choices or {}, sweep) if wandb else {}
    # What the user has set stays.
    told = {name: value for name, value in told.items() if not logger.get(name)}
    made: Logger = build(logger, save_dir=str(folder), **told)
    experiment = made.experiment if isinstance(made, WandbLogger) else None
    status = "failed"
    try:
        made.log_hyperparams({**config, "choices": dict(choices or {}), "sweep": dict(sweep or {})})
        yield Tracker(made, folder, axes_of(sweep))
        status = "success"
    finally:
        made.finalize(status)
        if experiment is not None:
            experiment.finish(exit_code=0 if status == "success" else 1)
