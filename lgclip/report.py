"""What a run leaves behind: result.json, per_class.csv, predictions.csv."""

import csv
import json
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from lgclip.confidence import confidence_of
from lgclip.costs import cost_of, towers_at
from lgclip.damage import OnBadImage, left_out, quarantine
from lgclip.data import Streams
from lgclip.datasets.base import Dataset
from lgclip.diagnostics import COLUMNS, Diagnosis, diagnose
from lgclip.diffuser.base import Pictures
from lgclip.identity import inputs_of
from lgclip.jobs import choices, sweep_job
from lgclip.methods.base import Classifier, Judged
from lgclip.runs import DIAGNOSTICS, JUDGED, PER_CLASS, PREDICTIONS, RESULT, RESULT_SCHEMA
from lgclip.stages import Stages
from lgclip.statistics import detectable, metrics, paired, per_class
from lgclip.sweeps import run_key
from lgclip.whole import write_whole

_ROWS = 8192  # of predictions.csv, written at once
_PACKAGES = ("lgclip", "torch", "lightning", "transformers", "diffusers", "open_clip_torch", "torchmetrics")


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Versions of the packages that a result depends on."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


@lru_cache(maxsize=1)  # what this process runs was read when it started
def git_commit() -> str | None:
    """Commit of the checkout that lgclip is run from, `-dirty` if it was changed; None outside one."""
    here = Path(__file__).resolve().parent
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=here, capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
        tracked = subprocess.run(
            ["git", "ls-files", "--error-unmatch", __file__], cwd=here, capture_output=True, timeout=5, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip() if tracked.returncode == 0 else None


def report(
    folder: Path,
    config: DictConfig,
    dataset: Dataset,
    parts: Mapping[str, Any],
    data: Streams,
    method: Classifier,
    stages: Stages,
    drawing: Pictures | None,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes the files of a run that is judged, and returns the content of its result.json.

    Args:
        folder: The run's folder.
        config: The run's config.
        dataset: What was judged.
        parts: The parts by config group; those that only prompts or images need are told of if there were any.
        data: The streams that were judged.
        method: The method, after its test.
        stages: What each stage did.
        drawing: The synthetic images; None if the method needs none.
        more: What else result.json says: `student`, `ood`, `membership`.

    Raises:
        ValueError: If not every image of the data set was judged once.
    """
    for name, judged in method.results.items():
        if not torch.equal(judged.index, torch.arange(len(dataset)).to(judged.index)):
            raise ValueError(f"{name}: {len(judged.index)} images were judged, the data set has {len(dataset)}")
    idle = {"llm", "diffuser"} if drawing is None else set() if parts["diffuser"].needs_prompts else {"llm"}
    took_part = {group: part for group, part in parts.items() if group not in idle}
    diagnosis = None
    if method.support is not None:
        judged = next(iter(method.results.values()))
        real = (parts["scales"].fuse(batch.features) for batch in data.streams[-1].batches())
        diagnosis = diagnose(method.support, real, judged.label, judged.rank == 0)
    result = result_of(config, dataset, took_part, data, method, stages, drawing, diagnosis) | dict(more or {})
    if config.on_bad_image == OnBadImage.QUARANTINE:
        quarantine(folder, dataset)
    write_report(folder, result, method.results, dataset, diagnosis)
    return result


def result_of(
    config: DictConfig,
    dataset: Dataset,
    parts: Mapping[str, Any],
    data: Streams,
    method: Classifier,
    stages: Stages,
    drawing: Pictures | None = None,
    diagnosis: Diagnosis | None = None,
) -> dict[str, Any]:
    """Content of result.json.

    Args:
        config: The run's config.
        dataset: What was judged.
        parts: The parts that took part, by config group.
        data: The streams that were judged.
        method: The method, after its test.
        stages: What each stage did.
        drawing: The synthetic images; None if the method needs none.
        diagnosis: What the synthetic images tell of each class; None without them.
    """
    num_classes, n, skipped = len(dataset.class_names), len(dataset), left_out(dataset)
    figures = {
        name: metrics(judged.label.numpy(), judged.rank.numpy(), num_classes) for name, judged in method.results.items()
    }
    first, *others = figures
    own = method.results[first]
    against = {name: paired(*_said(own), method.results[name].prediction.numpy()) for name in others}
    made = {group: _described(group, p) for group, p in parts.items()}
    return {
        "schema": RESULT_SCHEMA,
        "run_key": run_key(config),
        "sweep": sweep_job(),
        "choices": choices(),
        "method": first,
        "dataset": _judged_on(dataset),
        "n": n,
        "images_in_dataset": n + len(skipped),
        "skipped": skipped,
        "num_classes": num_classes,
        **{group: made.get(group) for group in ("encoder", "llm", "diffuser", "scales")},
        "prompts_per_class": config.prompts_per_class if "diffuser" in parts else 0,
        "images_per_prompt": config.images_per_prompt if "diffuser" in parts else 0,
        "seed": config.seed,
        "templated_prompts": list(drawing.templated) if drawing and any(drawing.templated) else [],
        "missing_images": drawing.faults() if drawing else [],
        "protocol": choices().get("protocol"),
        "judged_by": dict(method.choices),
        "metrics": figures[first],
        "beside": {name: figures[name] for name in others},
        "baseline": figures.get("clip_text"),
        "student": None,  # see `judging`
        "learner": None,
        "ood": {},
        "membership": None,
        "paired": against,
        "detectable": _detectable(n, figures[first], against),
        "confidence": confidence_of(own, method.temperatures[first]),
        "diagnostics": diagnosis.correlations if diagnosis else None,
        "stages": [asdict(account) for account in stages.accounts],
        "cost": cost_of(
            stages.accounts,
            stages.parts,
            towers=towers_at(data.streams[-1].store.towers),
            views=len(data.streams[-1].views),
        ),
        "store": {stream.name: stream.store.key for stream in data.streams},
        "config": OmegaConf.to_container(config, resolve=True),
        "versions": versions(),
        "git_commit": git_commit(),
    }


def _said(judged: Judged) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    return judged.label.numpy(), judged.prediction.numpy()


def _detectable(n: int, figures: Mapping[str, Any], against: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The least difference that a paired test finds here: against one that disagrees as much as the baseline does.

    Without a baseline, against an independent one of the same accuracy, which disagrees more than most would.
    """
    for name, test in against.items():
        return {**detectable(n, (test["only_this"] + test["only_other"]) / n), "discordant_from": name}
    top1 = figures["top1"]
    return {**detectable(n, 2 * top1 * (1 - top1)), "discordant_from": "an independent method"}


def _judged_on(dataset: Dataset) -> dict[str, object]:
    """Split and names decide a figure as much as the method does, so every result says them."""
    shown = {name: getattr(dataset, name) for name in ("name", "split", "names", "context")}
    return {**shown, "templates": list(dataset.templates), "source": dataset.source()}


def _described(group: str, part: Any) -> dict[str, object]:
    """A part's choice in the config, the model's own name, and everything its results depend on."""
    name = {"id": part.model} if "model" in part.__dataclass_fields__ else {}
    return {"choice": choices().get(group), **name, **inputs_of(part)}


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with write_whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def write_report(
    folder: Path,
    result: Mapping[str, Any],
    results: Mapping[str, Judged],
    dataset: Dataset,
    diagnosis: Diagnosis | None = None,
) -> None:
    """Writes the files of one run; result.json last, so that it stands for a finished run.

    Args:
        folder: The run's folder.
        result: Content of result.json.
        results: The judgement of every image, by the method and by those beside it.
        dataset: What was judged.
        diagnosis: What the synthetic images tell of each class; None without them.
    """
    judged, class_names = results[result["method"]], dataset.class_names
    beside = [results[name].prediction for name in result["beside"]]
    _write_csv(folder / PREDICTIONS, (*JUDGED, *result["beside"]), _predictions(judged, beside, dataset.places))
    mistaken = np.zeros((len(class_names), len(class_names)), dtype=np.int64)
    wrong = (judged.rank > 0).numpy()
    np.add.at(mistaken, (judged.label.numpy()[wrong], judged.prediction.numpy()[wrong]), 1)
    rows = []
    for c, counts in enumerate(per_class(judged.label.numpy(), judged.rank.numpy(), len(class_names))):
        other = int(mistaken[c].argmax())
        rows.append((
            c, class_names[c], counts["n"], counts["right"],
            f"{counts['right'] / counts['n']:.6f}" if counts["n"] else "",
            class_names[other] if mistaken[c, other] else "", int(mistaken[c, other]),
        ))  # fmt: skip
    header = ("class", "name", "n", "right", "accuracy", "most_taken_for", "times")
    _write_csv(folder / PER_CLASS, header, rows)
    if diagnosis:
        _write_csv(folder / DIAGNOSTICS, COLUMNS, diagnosis.rows(class_names))
    with write_whole(folder / RESULT) as temporary:
        temporary.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _predictions(judged: Judged, beside: Sequence[Tensor], places: Sequence[int]) -> Iterator[tuple[object, ...]]:
    """Rows of predictions.csv: not all are in memory at once."""
    own = (judged.index, judged.label, judged.prediction, judged.rank, judged.confidence)
    for parts in zip(*(column.split(_ROWS) for column in (*own, *beside)), strict=True):
        for at, label, prediction, rank, confidence, *others in zip(*(part.tolist() for part in parts), strict=True):
            yield places[at], label, prediction, rank, f"{confidence:.6f}", *others
