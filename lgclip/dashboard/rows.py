"""What the page says of one run: its files' figures, in the page's shape."""

import base64
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from lgclip.dashboard.shape import ClassRow, Confusion, Learning, RunData, Stage
from lgclip.identity import key_of
from lgclip.jobs import FAILED
from lgclip.runs import Run, RunError, flat

PAIRS = 12
"""Pairs of classes that are shown of a run."""

SKIPPED = 5
"""Images that could not be read that are named of a run."""

DIGITS = 4
"""Decimals of a diagnostic on the page, whose file has six, and of a figure of a round or an epoch."""

LEARNING = ("precision", "coverage", "accuracy", "loss")
"""What is shown of a round or an epoch."""

_NO_MEASURE = ("class", "name", "images", "nearest", "accuracy")
_NO_SETTING = ("logger", "paths", "workers", "rerun")
_PARTS = ("encoder", "llm", "diffuser", "scales")


def finished(run: Run, number: int) -> RunData:
    """A finished run; its name, axes and pictures are still to come.

    Args:
        run: The run.
        number: What the page knows it by.

    Raises:
        RunError: If one of its files is not whole.
    """
    result = run.result
    try:
        mistaken = _mistaken(run)
        sweep = result["sweep"] or {}
        return RunData(
            id=number,
            name="",
            folder=str(run.folder),
            status="finished",
            error=None,
            sweep=sweep.get("dir"),
            job=sweep.get("job"),
            axes={},
            dataset=result["dataset"]["name"],
            split=result["dataset"]["split"],
            method=result["method"],
            n=result["n"],
            metrics=result["metrics"],
            beside=result["beside"],
            paired=result["paired"],
            detectable=result["detectable"],
            confidence=result["confidence"],
            learning=_learning(result),
            correlations=result["diagnostics"] or {},
            class_list=0,
            classes=_classes(run, mistaken),
            diagnostics=_diagnostics(run),
            confusions=_confusions(mistaken),
            gallery=[],
            stages=[_stage(stage) for stage in result["stages"]],
            cost={key: value for key, value in result["cost"].items() if key != "stages"},
            config=settings(result),
            provenance=list(_provenance(result)),
            right=base64.b64encode(np.packbits(run.predictions.rank == 0, bitorder="little").tobytes()).decode(),
            judged=_judged(run),
        )
    except RunError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{run.folder}: its files do not fit together ({error!r}); run it again with rerun=true"
        ) from error


def failed(folder: Path, number: int) -> RunData:
    """A job that failed: its overrides, and why.

    Raises:
        RunError: If its failed.json cannot be read.
    """
    path = folder / FAILED
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        error, overrides = str(told["error"]), dict(map(_setting, told["overrides"]))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is damaged: run the job again, or remove its folder") from error
    job = int(folder.name) if folder.name.isdecimal() else None
    empty: Any = {"axes": {}, "beside": {}, "paired": {}, "correlations": {}, "diagnostics": {}, "cost": {}}
    none: Any = dict.fromkeys(("metrics", "detectable", "confidence", "learning", "right", "judged"))
    lists: Any = {key: [] for key in ("classes", "confusions", "gallery", "stages", "provenance")}
    return RunData(
        id=number, name="", folder=str(folder), status="failed", error=error, job=job,
        sweep=str(folder.absolute().parent), dataset="", split="", method="", n=0, class_list=0, config=overrides,
        **empty, **none, **lists,
    )  # fmt: skip


def settings(result: Mapping[str, Any]) -> dict[str, Any]:
    """The config, flat, a group's choice under the group's name; where a run writes and logs is left out."""
    config = {key: value for key, value in result["config"].items() if key not in _NO_SETTING}
    chosen = {group: choice for group, choice in result["choices"].items() if group in config}
    return {**chosen, **dict(flat(config)), **chosen}


def _setting(override: str) -> tuple[str, Any]:
    """An override's key and value as Hydra reads them."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        read = OverridesParser.create().parse_override(override)
        return read.key_or_group, read.value()
    except HydraException:
        key, _, value = override.partition("=")
        return key, value


def _judged(run: Run) -> str:
    """A key of the images and the classes that a run was judged on."""
    data = {key: run.result["dataset"][key] for key in ("name", "split", "names", "source")}
    left = {"left_out": run.left_out} if run.left_out else {}
    return key_of({**data, **left, "classes": run.class_names, "labels": run.predictions.label.tolist()})


def _mistaken(run: Run) -> Int[np.ndarray, "c c"]:
    """How often images of a class (row) are taken for another (column)."""
    judged, classes = run.predictions, len(run.per_class)
    wrong = judged.rank > 0
    cells = judged.label[wrong] * classes + judged.prediction[wrong]
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def _classes(run: Run, mistaken: Int[np.ndarray, "c c"]) -> list[ClassRow]:
    taken = mistaken.argmax(axis=1).tolist()
    rows = []
    for c, row in enumerate(run.per_class):
        times = int(row["times"])
        rows.append(
            ClassRow(n=int(row["n"]), right=int(row["right"]), taken_for=taken[c] if times else None, times=times)
        )
    return rows


def _learning(result: Mapping[str, Any]) -> Learning | None:
    """The rounds of a prompt, each with the loss of its last epoch, or the epochs of a student."""
    if learner := result.get("learner"):
        rows = [{**row, "loss": row["losses"][-1]} if row.get("losses") else row for row in learner["rounds"]]
        columns = {name: [row.get(name) for row in rows] for name in LEARNING}
        unit, first, by_kind = "round", 0, learner.get("by_kind", {})
    elif columns := (result.get("student") or {}).get("history"):
        unit, first, by_kind = "epoch", 1, {}
    else:
        return None
    shown = {
        name: [None if one is None or not math.isfinite(one) else round(one, DIGITS) for one in columns.get(name, ())]
        for name in LEARNING
    }
    figures = {name: column for name, column in shown.items() if any(one is not None for one in column)}
    return Learning(unit=unit, first=first, figures=figures, by_kind=by_kind)


def _diagnostics(run: Run) -> dict[str, list[float | None]]:
    rows = run.diagnostics
    measures = [key for key in (rows[0] if rows else {}) if key not in _NO_MEASURE]
    return {key: [round(float(row[key]), DIGITS) if row[key] else None for row in rows] for key in measures}


def _confusions(mistaken: Int[np.ndarray, "c c"]) -> list[Confusion]:
    counts = mistaken.ravel()
    found = np.flatnonzero(counts)
    most = found[np.argsort(-counts[found], kind="stable")][:PAIRS]
    return [
        Confusion(
            true=int(cell) // len(mistaken), predicted=int(cell) % len(mistaken), count=int(counts[cell]),
            images=[], of_true=[], of_predicted=[],
        )
        for cell in most
    ]  # fmt: skip


def _stage(stage: Mapping[str, Any]) -> Stage:
    told = {key: stage[key] for key in Stage.__annotations__}
    tokens = sum(stage["tokens"].values()) if stage["tokens"] else None
    return Stage(**{**told, "tokens": tokens})


def _provenance(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a figure came from: data, parts with their weights, store keys, versions."""
    data = result["dataset"]
    yield "data set", f"{data['name']}, {data['split']}: {result['n']} images, {result['num_classes']} classes"
    if gone := result.get("skipped"):
        shown = "; ".join(f"{one['file']} ({one['reason']})" for one in gone[:SKIPPED])
        of = f"{len(gone)} of {result['images_in_dataset']}"
        yield "test images that could not be read", f"{of}: {shown}{'; ...' if len(gone) > SKIPPED else ''}"
    yield "class names", data["names"]
    yield "sentences of the text baseline", " | ".join(data["templates"])
    if data["context"]:
        yield "context", data["context"]
    for group in _PARTS:
        if part := result.get(group):
            yield group, _shown(part)
    yield "protocol", result["protocol"] or "none"
    for method, choices in result["judged_by"].items():
        yield f"judged by {method}", _shown(choices)
    if templated := sum(result["templated_prompts"]):
        yield "template sentences in place of prompts", str(templated)
    if gone := result["missing_images"]:
        yield "images that could not be had", str(len(gone))
    for stream, key in result["store"].items():
        yield f"{stream} features", key
    yield from ((f"version of {name}", version) for name, version in result["versions"].items())
    yield "commit", result["git_commit"] or "unknown"
    yield "run key", result["run_key"]


def _shown(values: Mapping[str, Any]) -> str:
    """A part in one line: `choice=tiny, model=sha256:...`; what is not set is left out."""
    told = {key: value for key, value in flat(values) if value is not None and value != {}}
    return ", ".join(
        f"{key}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for key, value in told.items()
    )
