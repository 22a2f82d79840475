"""Converts the files of one run to the page's data format."""

import base64
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from lgclip.reporting.dashboard.prediction_plots import confusion_cells, reliability_bins
from lgclip.reporting.dashboard.schema import ClassRow, Confusion, Learning, RunData, Stage
from lgclip.reporting.result_schema import RunResult, StageRecord, to_json
from lgclip.reporting.run_folder import Run, RunError, flat
from lgclip.runtime.sweep_job import FAILED
from lgclip.store.keys import content_key

PAIRS = 12
"""Pairs of classes that are shown of a run."""

SKIPPED = 5
"""Maximum number of unreadable images that are listed for a run."""

DIGITS = 4
"""Decimals of a diagnostic on the page, whose file has six, and of a metric of a round or an epoch."""

LEARNING = ("precision", "coverage", "accuracy", "loss")
"""Displayed metrics of a round or an epoch."""

_NO_MEASURE = ("class", "name", "images", "nearest", "accuracy")
_NO_SETTING = ("logger", "paths", "workers", "rerun")
# Fields of a failed job that are null, and that are empty lists.
_UNKNOWN = ("metrics", "detectable", "confidence", "learning", "right", "evaluation_key", "feature_map")
_EMPTY = ("classes", "confusions", "matrix", "reliability", "gallery", "stages", "provenance")
_PARTS = ("encoder", "llm", "diffuser", "scales")


def finished(run: Run, number: int) -> RunData:
    """Returns a finished run; its name, axes and images are added later.

    Args:
        run: The run.
        number: Its number on the page.

    Raises:
        RunError: If one of its files is incomplete.
    """
    result = run.result
    values = to_json(result)
    try:
        mistaken = _mistaken(run)
        return RunData(
            id=number,
            name="",
            folder=str(run.folder),
            status="finished",
            error=None,
            sweep=result.sweep.dir if result.sweep else None,
            job=result.sweep.job if result.sweep else None,
            axes={},
            dataset=result.dataset.name,
            split=result.dataset.split,
            method=result.method,
            n=result.n,
            metrics=values["metrics"],
            baselines=values["baselines"],
            paired=values["paired"],
            detectable=values["detectable"],
            confidence=values["confidence"],
            learning=_learning(result),
            correlations=values["diagnostics"] or {},
            class_list=0,
            classes=_classes(run, mistaken),
            diagnostics=_diagnostics(run),
            confusions=_confusions(mistaken),
            matrix=confusion_cells(mistaken),
            reliability=reliability_bins(run.predictions),
            feature_map=None,
            gallery=[],
            stages=[_stage(stage) for stage in result.stages],
            cost={key: value for key, value in values["cost"].items() if key != "stages"},
            config=settings(result),
            provenance=list(_provenance(result)),
            right=base64.b64encode(np.packbits(run.predictions.rank == 0, bitorder="little").tobytes()).decode(),
            evaluation_key=_evaluation_key(run),
        )
    except RunError:
        raise  # it is a ValueError itself and has the better message
    # Files of another run, or edited by hand: the names of the classes and the predictions no longer match.
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{run.folder}: its files are inconsistent ({type(error).__name__}: {error}); run it again with rerun=true"
        ) from error


def failed(folder: Path, number: int) -> RunData:
    """Returns a failed job: its overrides, and the reason.

    Raises:
        RunError: If its failed.json cannot be read.
    """
    path = folder / FAILED
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        error = str(record["error"])
        overrides = dict(map(_setting, record["overrides"]))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is damaged: run the job again, or remove its folder") from error
    job = int(folder.name) if folder.name.isdecimal() else None
    # The page's scripts read every field of every run, so each is there with an empty value of its own type.
    empty: Any = {"axes": {}, "baselines": {}, "paired": {}, "correlations": {}, "diagnostics": {}, "cost": {}}
    none: Any = dict.fromkeys(_UNKNOWN)
    lists: Any = {key: [] for key in _EMPTY}
    return RunData(
        id=number, name="", folder=str(folder), status="failed", error=error, job=job,
        sweep=str(folder.absolute().parent), dataset="", split="", method="", n=0, class_list=0, config=overrides,
        **empty, **none, **lists,
    )  # fmt: skip


def settings(result: RunResult) -> dict[str, Any]:
    """Returns the flattened config without output and logging settings; a group's choice is under its name."""
    config = {key: value for key, value in result.config.items() if key not in _NO_SETTING}
    choices = {group: choice for group, choice in result.choices.items() if group in config}
    # First for the order, so that a group stands before its values; last to win over a value of the same name, such as
    # an empty group.
    return {**choices, **dict(flat(config)), **choices}


# Config groups and values that affect synthetic images alone.
_GENERATION = (
    "diffuser", "prompts_per_class", "images_per_prompt", "prompt_order_seed", "prompt_pool", "noise", "selection",
)  # fmt: skip


def is_used(key: str, result: RunResult) -> bool:
    """Returns whether a setting affects a run: a run of CLIP's text baseline has `prompts_per_class` and ignores it.

    Args:
        key: Key of the flattened config.
        result: The run's result.
    """
    group = key.partition(".")[0]
    generates = result.diffuser is not None
    is_student = result.student is not None
    is_tuned = result.prompt_tuning is not None
    uses = {
        **dict.fromkeys(_GENERATION, generates),
        "llm": generates or result.llm is not None,
        "seed": generates or is_student or is_tuned,
        "student": is_student,
        "membership": is_student,
        "prompt_tuning": is_tuned,
        "paradigm": is_tuned,
    }
    # The attack on membership reads as many training images of a class as there are prompts.
    if group == "prompts_per_class" and result.membership is not None:
        return True
    return uses.get(group, True)


def _setting(override: str) -> tuple[str, Any]:
    """Returns an override's key and value as Hydra parses them."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        read = OverridesParser.create().parse_override(override)
        return read.key_or_group, read.value()
    except HydraException:
        # What was written by another version of Hydra; its text still tells the jobs apart.
        key, _, value = override.partition("=")
        return key, value


def _evaluation_key(run: Run) -> str:
    """Returns a key of the images and the classes that a run was evaluated on."""
    dataset = run.result.dataset
    data: dict[str, object] = {
        "name": dataset.name,
        "split": dataset.split,
        "names": dataset.names,
        "content": dataset.fingerprint,
    }
    if run.left_out:
        data["left_out"] = run.left_out
    # Runs with the same key can be compared image by image in the browser, which cannot check the images themselves.
    return content_key({**data, "classes": run.class_names, "labels": run.predictions.label.tolist()})


def _mistaken(run: Run) -> Int[np.ndarray, "c c"]:
    """Counts how often images of a class (row) are predicted as another (column)."""
    predictions = run.predictions
    classes = len(run.per_class)
    # By the rank, as `right` is: predictions.csv has both, and they are equal unless two classes tie.
    incorrect = predictions.rank > 0
    # One number for each pair of classes, so that a single pass of bincount counts them all.
    cells = predictions.label[incorrect] * classes + predictions.prediction[incorrect]
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def _classes(run: Run, mistaken: Int[np.ndarray, "c c"]) -> list[ClassRow]:
    confused_with = mistaken.argmax(axis=1).tolist()
    rows = []
    for c, row in enumerate(run.per_class):
        times = int(row["confusions"])
        # The argmax of a row of zeros is 0, which would blame class 0.
        taken_for = confused_with[c] if times else None
        rows.append(ClassRow(n=int(row["n"]), right=int(row["correct"]), taken_for=taken_for, times=times))
    return rows


def _learning(result: RunResult) -> Learning | None:
    """Returns the rounds of a prompt tuning, each with the loss of its last epoch, or the epochs of a student."""
    by_type: dict[str, dict[str, float]] = {}
    columns: Mapping[str, Sequence[float | None]]
    if prompt_tuning := result.prompt_tuning:
        rows = []
        for row in prompt_tuning.rounds:
            # Losses are per epoch; the last one is the round's result. Round 0 trains nothing.
            rows.append({**row, "loss": row["losses"][-1]} if row.get("losses") else row)
        columns = {}
        for name in LEARNING:
            columns[name] = [row.get(name) for row in rows]
        unit = "round"
        first = 0
        by_type = {name: asdict(accuracies) for name, accuracies in (prompt_tuning.by_type or {}).items()}
    elif result.student and result.student.history:
        columns = result.student.history
        unit = "epoch"
        first = 1
    else:
        return None
    curves = {}
    for name in LEARNING:
        column = [_rounded(value) for value in columns.get(name, ())]
        # A curve without a single value would be an empty chart.
        if any(value is not None for value in column):
            curves[name] = column
    return Learning(unit=unit, first=first, curves=curves, by_type=by_type)


def _rounded(value: float | None) -> float | None:
    """Returns a rounded value; None for one that is not finite, such as the loss of a diverged training."""
    if value is None or not math.isfinite(value):
        return None
    return round(value, DIGITS)


def _diagnostics(run: Run) -> dict[str, list[float | None]]:
    rows = run.diagnostics
    if not rows:
        return {}
    columns: dict[str, list[float | None]] = {}
    for key in rows[0]:
        if key in _NO_MEASURE:
            continue
        # A class without synthetic images has an empty cell.
        columns[key] = [round(float(row[key]), DIGITS) if row[key] else None for row in rows]
    return columns


def _confusions(mistaken: Int[np.ndarray, "c c"]) -> list[Confusion]:
    counts = mistaken.ravel()
    confused = np.flatnonzero(counts)
    # Stable, so that of equally frequent pairs the one with the lower class comes first on every machine.
    most = confused[np.argsort(-counts[confused], kind="stable")][:PAIRS]
    return [
        Confusion(
            true=int(cell) // len(mistaken), predicted=int(cell) % len(mistaken), count=int(counts[cell]),
            images=[], of_true=[], of_predicted=[],
        )
        for cell in most
    ]  # fmt: skip


def _stage(stage: StageRecord) -> Stage:
    # None stays None: a stage without a language model read no tokens, rather than zero of them.
    tokens = sum(stage.tokens.values()) if stage.tokens else None
    return Stage(**{**asdict(stage), "tokens": tokens})


def _provenance(result: RunResult) -> Iterator[tuple[str, str]]:
    """Returns the origin of a result: data, parts with their weights, store keys, versions."""
    dataset = result.dataset
    yield "data set", f"{dataset.name}, {dataset.split}: {result.n} images, {result.num_classes} classes"
    if skipped := result.skipped:
        named = "; ".join(f"{image.file} ({image.reason})" for image in skipped[:SKIPPED])
        if len(skipped) > SKIPPED:
            named += "; ..."
        yield "test images that could not be read", f"{len(skipped)} of {result.images_in_dataset}: {named}"
    yield "class names", dataset.names
    yield "templates of the data set", " | ".join(dataset.templates)
    for stream, record in (result.text or {}).items():
        fewest, most = record.sentences
        number = str(fewest) if fewest == most else f"{fewest} to {most}"
        yield f"sentences of clip_{stream}", f"{record.kind}, {number} a class, such as: {record.example}"
    if dataset.context:
        yield "context", dataset.context
    for group in _PARTS:
        if part := getattr(result, group):
            yield group, _displayed(part)
    yield "protocol", result.protocol or "none"
    for method, choices in result.predictor.items():
        yield f"evaluated by {method}", _displayed(choices)
    for method, seen in result.seen.items():
        yield f"seen by {method}", seen.label
    if templated := sum(result.templated_prompts):
        yield "template sentences in place of prompts", str(templated)
    if missing := result.missing_images:
        yield "images that could not be generated", str(len(missing))
    for stream, key in result.store.items():
        yield f"{stream} features", key
    yield from ((f"version of {name}", version) for name, version in result.versions.items())
    yield "commit", result.git_commit or "unknown"
    yield "run key", result.run_key


def _displayed(values: Mapping[str, Any]) -> str:
    """Returns a part in one line: `choice=tiny, model=sha256:...`; without unset values."""
    texts = []
    for key, value in flat(values):
        if value is None or value == {}:
            continue
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        texts.append(f"{key}={text}")
    return ", ".join(texts)
