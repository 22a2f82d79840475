"""Defines the axes of a comparison: settings and result fields that distinguish rows and columns."""

import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from lgclip.reporting.comparison.results import SEEDS, ComparisonError, MethodResult
from lgclip.reporting.run_folder import Run, differing, settings_of

REAL = "real"
"""Name of the training set of a student of real images only."""

_NO_SETTINGS = ("checkpoint", "dataset", "membership", "objective", "ood")
"""Groups and keys that define what was evaluated, not with what; `dataset` has its own axis."""


def trained_on(result: MethodResult) -> str:
    """Returns the training set of a student: `real`, the prompt format, or `format + fraction of real images`."""
    student = result.run.result.student
    # A baseline of a student's run was not trained: on this axis it has its own name.
    if student is None or result.baseline is not None:
        return result.method
    images = student.trained_on
    form = images.form or "synthetic"  # a student of prompts without a name
    if not images.synthetic:
        return REAL
    if not images.real:
        return form
    # The fraction is part of the name: students of the same prompts with 10% and 50% of real images are two rows.
    return f"{form} + {100 * images.real_fraction:g}% {REAL}"


def _prompt_tuning(result: MethodResult) -> str:
    content = result.run.result
    if content.prompt_tuning is None or result.baseline is not None:
        return result.method
    # The choice of the config group, such as `cpl` or `grip`, distinguishes the recipes of prompt tuning.
    return content.choices.get("prompt_tuning") or content.method


def _of_student(result: MethodResult) -> Any:
    if result.baseline is not None:
        return None
    return result.run.result.student


def _mix(result: MethodResult) -> Hashable:
    student = _of_student(result)
    return student.trained_on.real_fraction if student else None


def _backbone(result: MethodResult) -> Hashable:
    student = _of_student(result)
    return student.backbone if student else None


def _selected_on(result: MethodResult) -> Hashable:
    student = _of_student(result)
    return student.selected_on if student else None


def _paradigm(result: MethodResult) -> Hashable:
    prompt_tuning = result.run.result.prompt_tuning
    return prompt_tuning.paradigm if prompt_tuning else None


def _rounds(result: MethodResult) -> Hashable:
    prompt_tuning = result.run.result.prompt_tuning
    if prompt_tuning is None or result.baseline is not None:
        return None
    # The rounds that were done, not those of the config; with none, the result is zero-shot, which is round 0.
    return max((row["round"] for row in prompt_tuning.rounds), default=0)


# These are read from the result, not from the config: a run with `checkpoint=` evaluates what was trained elsewhere,
# and its
# config holds the defaults of parts that it never used.
RESULT_AXES: Mapping[str, Callable[[MethodResult], Hashable]] = {
    "method": lambda result: result.method,
    "dataset": lambda result: result.dataset,
    "split": lambda result: result.run.result.dataset.split,
    "trained_on": trained_on,
    "real_fraction": _mix,
    "backbone": _backbone,
    "selected_on": _selected_on,
    "prompt_tuning": _prompt_tuning,
    "paradigm": _paradigm,
    "rounds": _rounds,
    "seen": lambda result: result.seen,
}
"""Axes that are read from a result; every other name is a group or a dotted key of the config."""

WITH_BASELINES = ("method", "trained_on", "prompt_tuning")
"""Axes on which a baseline has its own value."""

OF_TRAINING = ("trained_on", "real_fraction", "backbone", "selected_on", "prompt_tuning", "rounds")
"""Axes on which a baseline, which learns nothing, has no value or its own name."""

# Without this, a row would repeat its own axis as a setting: `real_fraction=0.5 (student.real_fraction=0.5)`.
_REPLACES = {
    "trained_on": ("student.real_fraction", "form"),
    "real_fraction": ("student.real_fraction",),
    "backbone": ("student.backbone",),
    "paradigm": ("paradigm", "paradigm.kind"),
    "rounds": ("prompt_tuning.rounds",),
    "method": ("method",),
}
"""Settings that an axis of the result already covers."""


def settings_by_key(result: MethodResult) -> dict[str, Any]:
    """Returns the settings that may distinguish results, with the data set under `dataset`.

    For a student or tuned prompts they are those of its training, which the config of a run with `checkpoint=` lacks.
    """
    # Seeds make repetitions of a setting: if they counted, each run would be a row and no mean would be taken.
    settings = {
        key: value
        for key, value in settings_of(result.run).items()
        if key not in SEEDS and key.partition(".")[0] not in _NO_SETTINGS
    }
    content = result.run.result
    # For tuned prompts from a file, only the file records how they were trained.
    if content.prompt_tuning is not None and content.config.get("checkpoint"):
        settings["checkpoint"] = content.config["checkpoint"]
    student = _of_student(result)
    if student:
        images = student.trained_on
        # What the student was trained with wins over the config, which may be that of another evaluation of it.
        settings |= {"student.backbone": student.backbone, "student.selected_on": student.selected_on}
        settings["form"] = images.form if images.synthetic else None
    # A baseline of a student's run uses the prompts whose images the student was trained on, so runs with other
    # training images may have other baselines under the same name.
    if content.student is not None and result.baseline is not None:
        settings["trained_on"] = trained_on(MethodResult(result.run))
    return {"dataset": result.dataset, **settings}


def axis_value(result: MethodResult, axis: str) -> Any:
    """Returns the value of a result on an axis; None where it has none."""
    if axis in RESULT_AXES:
        value = RESULT_AXES[axis](result)
        # Where the result has no value the config may have one of the same name. Not for a baseline: the config's
        # value belongs to the method that was trained.
        if value is not None or result.baseline is not None:
            return value
    settings = {**settings_of(result.run), **settings_by_key(result)}
    if axis in settings:
        return settings[axis]
    return settings.get(_full_key(axis, settings))


def _full_key(axis: str, keys: Iterable[str]) -> str:
    """Returns the dotted key that ends in a name, if it is unique: `shots` stands for `paradigm.shots`."""
    ending = [key for key in keys if key.endswith(f".{axis}")]
    # `seed` ends several keys. Taking any of them would be arbitrary, so an ambiguous name stays as it is.
    if len(ending) != 1:
        return axis
    return ending[0]


def check_axes(axes: Sequence[str], results: Sequence[MethodResult]) -> None:
    """Checks that each axis has a value in a run.

    Raises:
        ComparisonError: If it has none, or is named twice.
    """
    for place, axis in enumerate(axes):
        if axis in axes[:place]:
            raise ComparisonError(f"the axis {axis!r} is named twice: name each once, in --by or in --columns")
        # One run with a value is enough: a table may hold students next to runs that train nothing.
        if all(axis_value(result, axis) is None for result in results):
            varying = [key for key in differing([result.run for result in results]) if key not in SEEDS]
            raise ComparisonError(
                f"no run has a value of {axis!r}: choose {', '.join(RESULT_AXES)} or a key of the config; "
                f"here the runs differ in {', '.join(varying) or 'their seeds only'}"
            )


def keys_of(axes: Iterable[str], results: Sequence[MethodResult]) -> set[str]:
    """Returns the settings that axes show."""
    # The first result stands for all: the keys come from the config, which has one schema.
    keys = set(settings_by_key(results[0])) if results else set()
    displayed = set[str]()
    for axis in axes:
        displayed |= {axis, _full_key(axis, keys), *_REPLACES.get(axis, ())}
    return displayed


def distinguishing_settings(results: Sequence[MethodResult], ignored: set[str]) -> list[dict[str, Any]]:
    """Returns for each result the settings in which it differs from others; only equal results get the same.

    Where the choice of a part differs, its values are left out, and results with the same choice are compared again.

    Args:
        results: The results.
        ignored: Settings that do not count.
    """
    settings = [settings_by_key(result) for result in results]
    return _distinguish(settings, _following_seeds([result.run for result in results]) | ignored)


def _following_seeds(runs: Sequence[Run]) -> set[str]:
    """Returns the seeds of parts that equal the run's seed in every run, and are therefore redundant."""
    # `prompt_tuning.seed: ${seed}` is the default: in a sweep over `seed` both vary, and one of them is enough.
    settings = [settings_of(run) for run in runs]
    seeds = {key for key in _all_keys(settings) if key.endswith(".seed")}
    return {key for key in seeds if all(values.get(key) == values.get("seed") for values in settings)}


def _all_keys(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the keys of all settings in order of first occurrence, so that the output is stable."""
    return list(dict.fromkeys(chain.from_iterable(settings)))


def _distinguish(settings: Sequence[Mapping[str, Any]], ignored: set[str]) -> list[dict[str, Any]]:
    varying = [key for key in _all_keys(settings) if key not in ignored and _varies(key, settings)]
    # Where `encoder` differs, `encoder.model` differs of necessity: the choice alone is shown.
    top = [key for key in varying if _is_choice(key) or _group(key) not in varying]
    differences: list[dict[str, Any]] = []
    places_by_values: dict[str, list[int]] = {}
    for place, values in enumerate(settings):
        displayed = {key: values.get(key) for key in top}
        differences.append(displayed)
        # A value may be a list, which cannot be hashed; its JSON can.
        places_by_values.setdefault(json.dumps(displayed, sort_keys=True), []).append(place)
    # Results of one choice may still differ in the values below it, which the choice has hidden so far. Each step
    # compares fewer or more similar results; nothing that differs ends it.
    if top:
        for places in places_by_values.values():
            inside = _distinguish([settings[place] for place in places], ignored)
            for place, further in zip(places, inside, strict=True):
                differences[place] |= further
    return differences


def _varies(key: str, settings: Sequence[Mapping[str, Any]]) -> bool:
    # Not by a set: a value may be a list. A missing key counts as None, as a part that is off has neither.
    first = settings[0].get(key)
    return any(values.get(key) != first for values in settings)


def _is_choice(key: str) -> bool:
    """Returns whether a key has no dot: the choice of a group, or a top-level value of the config."""
    return _group(key) == key


def _group(key: str) -> str:
    return key.partition(".")[0]


def brief_settings(settings: Mapping[str, Any]) -> str:
    """Returns abbreviated settings: the last part of a key, the name of a path, the beginning of a hash."""
    # `prompts.seed` and `student.seed` keep their groups, as `seed=0, seed=1` would say nothing.
    last = [key.rpartition(".")[2] for key in settings]
    names = [short if last.count(short) == 1 else key for short, key in zip(last, settings, strict=True)]
    return ", ".join(f"{name}={brief_value(value)}" for name, value in zip(names, settings.values(), strict=True))


def brief_value(value: object) -> str:
    """Returns an abbreviated value."""
    if value is None:
        return "none"
    if not isinstance(value, str):
        return json.dumps(value)  # as in YAML and on the command line: true, 0.5, [1, 2]
    name = value
    if "/" in value:
        name = Path(value).name
    # Store keys are hashes of 32 hexadecimal digits and more; as with Git, eight of them distinguish a few.
    is_hash = len(name) >= 32 and not set(name) - set("0123456789abcdef")
    return name[:8] if is_hash else name
