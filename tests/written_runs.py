"""Run folders written by hand: the files of a run with figures that a test chooses."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lgclip.statistics import metrics

NAMES = ("blue moon", "green ring", "red star")
LABEL = (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2)
PREDICTION = (0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2)
MEASURES = ("alignment", "spread", "margin", "effective_images", "claimed", "gap")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def result_of(
    names: Sequence[str], label: Sequence[int], prediction: Sequence[int], settings: Mapping[str, Any], dataset: str
) -> dict[str, Any]:
    """A result.json of schema 2."""
    rank = (np.array(label) != np.array(prediction)).astype(np.int64)
    figures = metrics(np.array(label), rank, len(names))
    on = {"device": "cpu", "devices": 1, "peak_memory": 1_000_000, "peak_from": "process"}
    parts = {"choice": "tiny", "id": "tiny:encoder", "model": "sha256:38dd", "pretrained": None, "options": {}}
    return {
        "schema": 2, "method": "lgclip", "n": len(label), "num_classes": len(names),
        "choices": {"dataset": dataset, "scales": settings.get("scales", "single")},
        "run_key": "0" * 32, "sweep": None,
        "dataset": {"name": dataset, "split": "test", "names": "own", "context": "", "templates": ["a photo of a {}."],
                    "source": {"dataset": dataset}},
        "encoder": parts, "llm": None, "diffuser": parts, "scales": {"choice": "single", "fractions": [1.0]},
        "prompts_per_class": 3, "images_per_prompt": 1, "seed": 0, "templated_prompts": [0, 2, 1],
        "missing_images": [{"class": 0}], "protocol": "clean", "judged_by": {"lgclip": {"text_weight": 0.0}},
        "metrics": figures, "beside": {"clip_text": {**figures, "top1": 0.5}}, "baseline": None,
        "paired": {"clip_text": {"difference": 0.25, "ci95": [0.0, 0.5], "only_this": 4, "only_other": 1, "p": 0.375}},
        "detectable": {"difference": 0.1, "power": 0.8, "discordant": 0.05},
        "confidence": {"temperature": 0.02, "fitted_on": "synthetic images", "ece": 0.03, "nll": 0.4, "brier": 0.2,
                       "aurc": 0.1, "rejection": [{"coverage": 1.0, "top1": figures["top1"]}]},
        "diagnostics": {"margin": {"spearman": 0.5, "p": 0.6}, "claimed": {"spearman": None, "p": None}},
        "stages": [{"stage": "prompts", "unit": "class", "made": 3, "reused": 0, "seconds": 0.5, **on,
                    "tokens": {"prompt": 7, "completion": 30}},
                   {"stage": "images", "unit": "image", "made": 9, "reused": 2, "seconds": 1.5, **on, "tokens": None}],
        "cost": {"stages": [], "made_before": {"images": {"seconds": 2.0, "count": 9, "device": "cpu", "parts": {}}},
                 "towers": {"image": {"parameters": 10, "flops": 20}, "text": None}, "payback": {"never": None}},
        "store": {"real": "a/b", "synthetic": "a/c"}, "versions": {"lgclip": "0.1.0"}, "git_commit": "abc",
        "config": {"dataset": {"_target_": "x"}, "scales": {"fractions": [1.0]}, "prompts_per_class": 3, "seed": 0,
                   "paths": {"store": "/secret/place"}, "logger": None,
                   **{key: value for key, value in settings.items() if key != "scales"}},
    }  # fmt: skip


def write_run(
    folder: Path,
    *,
    names: Sequence[str] = NAMES,
    label: Sequence[int] = LABEL,
    prediction: Sequence[int] = PREDICTION,
    dataset: str = "pictures",
    settings: Mapping[str, Any] | None = None,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes a run folder; returns its result.

    Args:
        folder: Where.
        names: Class names.
        label: True class of each image.
        prediction: Predicted class of each.
        dataset: The data set's name.
        settings: Values of its config; of `scales`, the choice.
        more: Fields of result.json that are another than usual.
    """
    folder.mkdir(parents=True)
    result = {**result_of(names, label, prediction, settings or {}, dataset), **(more or {})}
    judged = list(zip(label, prediction, strict=True))
    rows = [(i, t, p, int(t != p), f"{0.9 - i / 100:.6f}", t) for i, (t, p) in enumerate(judged)]
    write_csv(folder / "predictions.csv", ("index", "label", "prediction", "rank", "confidence", "clip_text"), rows)
    classes: list[Sequence[object]] = []
    diagnostics: list[Sequence[object]] = []
    for c, name in enumerate(names):
        wrong = [p for t, p in judged if t == c and p != c]
        n, right = list(label).count(c), sum(t == p == c for t, p in judged)
        most = max(sorted(set(wrong)), key=wrong.count, default=c)
        accuracy = f"{right / n:.6f}" if n else ""
        classes.append((c, name, n, right, accuracy, names[most] if wrong else "", wrong.count(most)))
        values = [f"{(c + 1) / (10 + at):.6f}" for at in range(len(MEASURES))]
        values[4] = "" if c == 0 else values[4]
        diagnostics.append((c, name, 3, *values[:3], (c + 1) % len(names), *values[3:], accuracy))
    write_csv(folder / "per_class.csv", ("class", "name", "n", "right", "accuracy", "most_taken_for", "times"), classes)
    header = ("class", "name", "images", *MEASURES[:3], "nearest", *MEASURES[3:], "accuracy")
    write_csv(folder / "diagnostics.csv", header, diagnostics)
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return result


def write_failed(folder: Path, overrides: Sequence[str], error: str = "ValueError: no such thing") -> None:
    """Writes what a job that failed leaves behind."""
    folder.mkdir(parents=True)
    told = {"overrides": list(overrides), "error": error, "trace": "...", "run_key": "0" * 32}
    (folder / "failed.json").write_text(json.dumps(told), encoding="utf-8")
