"""Writes the files of a run: result.json, per_class.csv, predictions.csv."""

import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from lgclip.datasets.base import Dataset
from lgclip.datasets.unreadable import left_out
from lgclip.encoder.paired import PairedEncoder
from lgclip.evaluation.confidence import confidence_of
from lgclip.evaluation.diagnostics import COLUMNS, Diagnosis, diagnose
from lgclip.evaluation.evaluator import Evaluation
from lgclip.evaluation.metrics import detectable, metrics, paired, per_class
from lgclip.methods.alignment import ALIGNMENT, write_alignment
from lgclip.methods.base import Predictions
from lgclip.reporting.costs import cost_of, towers_at
from lgclip.reporting.data_seen import data_seen
from lgclip.reporting.result_schema import RunResult, create_result, json_text, to_json
from lgclip.reporting.run_folder import DIAGNOSTICS, PER_CLASS, PREDICTION_COLUMNS, PREDICTIONS, RESULT
from lgclip.runtime.config_aliases import SECOND_ENCODER
from lgclip.runtime.csv_cells import write_rows
from lgclip.runtime.run_key import run_key
from lgclip.runtime.sweep_job import choices, sweep_job
from lgclip.runtime.versions import RESULT_SCHEMA
from lgclip.stages.runner import Stages
from lgclip.store.atomic import atomic_write
from lgclip.store.keys import key_inputs
from lgclip.store.root import location_of

_ROWS = 8192  # of predictions.csv, written at once
_PACKAGES = ("lgclip", "torch", "lightning", "transformers", "diffusers", "open_clip_torch", "torchmetrics")


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Returns the versions of the packages that a result depends on."""
    installed = {}
    for name in _PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            installed[name] = "not installed"
    return installed


# Cached, because the code of this process was read when it started: a commit in the middle of a sweep changes nothing.
@lru_cache(maxsize=1)
def git_commit() -> str | None:
    """Returns the commit of the checkout that lgclip runs from, with `-dirty` if it was changed; None outside one."""
    package_folder = Path(__file__).resolve().parent
    try:
        # "--exclude=*" passes over all tags, so that the answer is always the full hash.
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=package_folder, capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
        # An installed lgclip may lie in a virtual environment inside the checkout of another project.
        tracked = subprocess.run(
            ["git", "ls-files", "--error-unmatch", __file__],
            cwd=package_folder,
            capture_output=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    if tracked.returncode != 0:
        return None
    return commit.stdout.strip()


def report(
    folder: Path, config: DictConfig, evaluation: Evaluation, parts: Mapping[str, Any], stages: Stages
) -> RunResult:
    """Writes the files of an evaluated run, and returns the content of its result.json.

    Args:
        folder: The run's folder.
        config: The run's config.
        evaluation: The evaluation.
        parts: The parts by config group; unused ones, where nothing was generated, are left out.
        stages: Statistics of each stage.

    Raises:
        ValueError: If an image of the data set was not evaluated exactly once.
    """
    dataset = evaluation.dataset
    method = evaluation.method
    # With several devices a sampler may repeat images to fill the last batch, and a lost process would leave some out:
    # either would change the accuracy without a sign.
    for name, predictions in method.results.items():
        if not torch.equal(predictions.index, torch.arange(len(dataset)).to(predictions.index)):
            raise ValueError(f"{name}: {len(predictions.index)} images were evaluated, the data set has {len(dataset)}")
    diagnosis = None
    if method.support is not None:
        predictions = next(iter(method.results.values()))
        # The last stream is that of the evaluated images.
        real = (parts["scales"].fuse(batch.features) for batch in evaluation.data.streams[-1].batches())
        diagnosis = diagnose(method.support, real, predictions.label, predictions.rank == 0)
    used = {group: part for group, part in parts.items() if group not in _unused(evaluation, parts)}
    result = result_of(config, evaluation, used, stages, diagnosis)
    if method.alignment is not None:
        write_alignment(folder / ALIGNMENT, method.alignment)
    write_report(folder, result, method.results, dataset, diagnosis)
    return result


def _unused(evaluation: Evaluation, parts: Mapping[str, Any]) -> set[str]:
    """Returns the config groups whose parts were not used in a run."""
    # The config names a part of every group, whether or not the method needs it.
    unused: set[str] = set()
    if evaluation.synthetic_images is None:
        unused = {"llm", "diffuser"}
    elif not parts["diffuser"].needs_prompts:
        unused = {"llm"}  # a folder of images is read without prompts
    if evaluation.texts is not None and evaluation.texts.configured.texts is not None:
        unused.discard("llm")  # it has written the sentences
    return unused


def result_of(
    config: DictConfig,
    evaluation: Evaluation,
    parts: Mapping[str, Any],
    stages: Stages,
    diagnosis: Diagnosis | None = None,
) -> RunResult:
    """Returns the content of result.json.

    Args:
        config: The run's config.
        evaluation: The evaluation.
        parts: The used parts, by config group.
        stages: Statistics of each stage.
        diagnosis: Statistics of the synthetic images by class; None without them.
    """
    data = evaluation.data
    dataset = evaluation.dataset
    synthetic_images = evaluation.synthetic_images
    method = evaluation.method
    num_classes = len(dataset.class_names)
    n = len(dataset)
    skipped = left_out(dataset)
    metrics_by_method = {}
    for name, predictions in method.results.items():
        metrics_by_method[name] = metrics(predictions.label.numpy(), predictions.rank.numpy(), num_classes)
    first, *baselines = metrics_by_method  # the method itself comes first, then its baselines
    method_predictions = method.results[first]
    label, prediction = _label_and_prediction(method_predictions)
    against = {name: paired(label, prediction, method.results[name].prediction.numpy()) for name in baselines}
    described = {group: _described(group, p) for group, p in parts.items()}
    # What the user asked for; 0 where nothing was generated, because the config has a value all the same.
    has_images = "diffuser" in parts
    values = {
        "schema": RESULT_SCHEMA,
        "run_key": run_key(config),
        "sweep": sweep_job(),
        "choices": choices(),
        "method": first,
        "dataset": _dataset_fields(dataset),
        "n": n,
        "images_in_dataset": n + len(skipped),
        "skipped": skipped,
        "noted_images": _noted_images(dataset, data.streams[-1].notes()),
        "ties": {name: int(predictions.tied.sum()) for name, predictions in method.results.items()},
        "num_classes": num_classes,
        **{group: described.get(group) for group in ("encoder", "llm", "diffuser", "scales")},
        "text": evaluation.texts.record(dataset) if evaluation.texts else None,
        "prompts_per_class": config.prompts_per_class if has_images else 0,
        "images_per_prompt": config.images_per_prompt if has_images else 0,
        "seed": config.seed,
        "templated_prompts": list(synthetic_images.templated)
        if synthetic_images and any(synthetic_images.templated)
        else [],
        "missing_images": synthetic_images.faults() if synthetic_images else [],
        "protocol": choices().get("protocol"),
        "predictor": dict(method.choices),
        "seen": {},
        "metrics": metrics_by_method[first],
        "baselines": {name: metrics_by_method[name] for name in baselines},
        "baseline": metrics_by_method.get("clip_text"),
        "student": None,
        "prompt_tuning": None,
        "ood": {},
        "pools": [],
        "membership": None,
        "paired": against,
        "detectable": _detectable(n, metrics_by_method[first], against),
        "confidence": confidence_of(method_predictions, method.temperatures[first]),
        "diagnostics": diagnosis.correlations if diagnosis else None,
        "stages": [asdict(stats) for stats in stages.stage_stats],
        "cost": cost_of(
            stages.stage_stats,
            stages.parts,
            towers=towers_at(data.streams[-1].store.towers),
            views=len(data.streams[-1].views),
        ),
        "store": {stream.name: stream.store.key for stream in data.streams},
        "config": _recorded_config(config),
        "versions": versions(),
        "git_commit": git_commit(),
    }
    # What a student, tuned prompts or shifted sets add replaces the empty fields above, so their order stays.
    values |= evaluation.entries
    values["seen"] = data_seen(values)
    return create_result(values)


def _recorded_config(config: DictConfig) -> dict[str, Any]:
    """Returns the config as it took effect, with the store that was used where the config names none."""
    recorded: Any = OmegaConf.to_container(config, resolve=True)
    # null means an environment variable or the user's cache folder, which are others for whoever reads the result.
    recorded["paths"]["store"] = location_of(config.paths.store)
    return recorded


def _label_and_prediction(predictions: Predictions) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    return predictions.label.numpy(), predictions.prediction.numpy()


def _detectable(
    n: int, metrics_by_method: Mapping[str, Any], against: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Returns the smallest difference that a paired test detects, assuming the disagreement with the baseline.

    Without a baseline, it assumes an independent method of the same accuracy, which disagrees more than most would.
    """
    # The first baseline only: one value is enough to say what this number of images can show.
    for name, test in against.items():
        return {**detectable(n, (test["only_this"] + test["only_other"]) / n), "discordant_from": name}
    # Two independent methods of accuracy p disagree on 2 p (1 - p) of the images.
    top1 = metrics_by_method["top1"]
    return {**detectable(n, 2 * top1 * (1 - top1)), "discordant_from": "an independent method"}


def _dataset_fields(dataset: Dataset) -> dict[str, object]:
    """Returns the data set's fields: split and class names affect a metric as much as the method does."""
    fields = {name: getattr(dataset, name) for name in ("name", "split", "names", "context")}
    return {
        **fields,
        "templates": list(dataset.templates),
        "source": dataset.source(),
        "fingerprint": dataset.fingerprint,
        "folder_names": dict(dataset.folder_names),
        "files_left_out": dict(dataset.files_left_out),
        "files_noted": dict(dataset.files_noted),
    }


def _noted_images(dataset: Dataset, notes: Mapping[int, str]) -> list[dict[str, Any]]:
    """Lists the unusual images of a data set, in the form that a result records."""
    return [
        {
            "index": dataset.places[index],
            "id": dataset.ids[index],
            "file": dataset.where(index),
            "class": dataset.labels[index],
            "name": dataset.class_names[dataset.labels[index]],
            "note": note,
        }
        for index, note in notes.items()
    ]


def _described(group: str, part: Any) -> dict[str, object]:
    """Returns a part's choice in the config, the model's own name, and everything its results depend on."""
    if isinstance(part, PairedEncoder):
        parts = {"first": _described("encoder", part.first), "second": _described(SECOND_ENCODER, part.second)}
        choice = " + ".join(str(described["choice"]) for described in parts.values())
        return {"choice": choice, "id": part.model, "part": part.key_name, **parts}
    # Not by hasattr: a part may have a property `model` that loads the model.
    name = {"id": part.model} if "model" in part.__dataclass_fields__ else {}
    # For the leakage audit: a result says itself what its prompts and images were made from.
    origin = {"prompts_from": part.prompts_from} if group == "llm" else {}
    if group == "diffuser":
        origin = {"images_from": part.images_from}
    return {"choice": choices().get(group), **name, **origin, **key_inputs(part)}


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        write_rows(file, chain([header], rows))


def write_report(
    folder: Path,
    result: RunResult,
    results: Mapping[str, Predictions],
    dataset: Dataset,
    diagnosis: Diagnosis | None = None,
) -> None:
    """Writes the files of one run; result.json last, so that it marks a finished run.

    Args:
        folder: The run's folder.
        result: Content of result.json.
        results: The predictions for all images, by the method and by its baselines.
        dataset: The evaluated data set.
        diagnosis: Statistics of the synthetic images by class; None without them.
    """
    predictions = results[result.method]
    class_names = dataset.class_names
    baselines = [results[name].prediction for name in result.baselines]
    _write_csv(
        folder / PREDICTIONS,
        (*PREDICTION_COLUMNS, *result.baselines),
        _predictions(predictions, baselines, dataset.places),
    )
    mistaken = np.zeros((len(class_names), len(class_names)), dtype=np.int64)
    incorrect = (predictions.rank > 0).numpy()
    # `mistaken[i, j] += 1` with arrays of indices counts each pair once, however often it occurs.
    np.add.at(mistaken, (predictions.label.numpy()[incorrect], predictions.prediction.numpy()[incorrect]), 1)
    rows = []
    for c, counts in enumerate(per_class(predictions.label.numpy(), predictions.rank.numpy(), len(class_names))):
        confused = int(mistaken[c].argmax())
        # A class without images has no accuracy: 0 would be a statement.
        accuracy = f"{counts['right'] / counts['n']:.6f}" if counts["n"] else ""
        # Without a mistake the argmax is 0, which names class 0.
        most_confused_with = class_names[confused] if mistaken[c, confused] else ""
        rows.append((
            c, class_names[c], counts["n"], counts["right"], accuracy, most_confused_with, int(mistaken[c, confused]),
        ))  # fmt: skip
    header = ("class", "name", "n", "correct", "accuracy", "most_confused_with", "confusions")
    _write_csv(folder / PER_CLASS, header, rows)
    if diagnosis:
        _write_csv(folder / DIAGNOSTICS, COLUMNS, diagnosis.rows(class_names))
    with atomic_write(folder / RESULT) as temporary:
        temporary.write_text(json_text(to_json(result)), encoding="utf-8")


def _predictions(
    predictions: Predictions, baselines: Sequence[Tensor], places: Sequence[int]
) -> Iterator[tuple[object, ...]]:
    """Yields the rows of predictions.csv, so that not all are in memory at once."""
    columns = (
        predictions.index,
        predictions.label,
        predictions.prediction,
        predictions.rank,
        predictions.confidence,
        *baselines,
    )
    for parts in zip(*(column.split(_ROWS) for column in columns), strict=True):
        # Lists of Python numbers: to index a tensor row by row is far slower.
        lists = [part.tolist() for part in parts]
        for index, label, prediction, rank, confidence, *others in zip(*lists, strict=True):
            # The index in the data set, not in what was evaluated: unreadable images leave gaps.
            yield places[index], label, prediction, rank, f"{confidence:.6f}", *others
