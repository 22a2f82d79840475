"""Writes run folders with metrics that a test chooses."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lgclip.evaluation.metrics import metrics
from lgclip.runtime.versions import RESULT_SCHEMA

NAMES = ("blue moon", "green ring", "red star")
LABEL = (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2)
PREDICTION = (0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2)
MEASURES = ("alignment", "spread", "margin", "effective_images", "claimed", "gap")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        prompt_generator = csv.writer(file, lineterminator="\n")
        prompt_generator.writerow(header)
        prompt_generator.writerows(rows)


def metrics_record(top1: float, **extra: float) -> dict[str, Any]:
    """Returns metrics of a method with a given accuracy."""
    interval = [max(0.0, top1 - 0.1), min(1.0, top1 + 0.1)]
    chosen = {"top1": top1, "top1_ci95": interval, "top5": 1.0, "mean_per_class": top1, **extra}
    return {**chosen, "mean_per_class_ci95": interval}


def student_record(**changes: Any) -> dict[str, Any]:
    """Returns the entry of a student in result.json."""
    trained_on = {
        "form": "cip", "real_fraction": 0.0, "synthetic": 100, "real": 0, "held_out": 0, "dataset": "pictures",
        "split": None, "images": None, **changes.pop("trained_on", {}),
    }  # fmt: skip
    return {
        "key": "student", "backbone": "resnet10t", "seed": 0, "selected_on": "synthetic", "epoch": 1, "accuracy": 0.5,
        "steps": 12, "history": {}, "precision": "fp32", "trained_on": trained_on, **changes,
    }  # fmt: skip


def prompt_tuning_record(**changes: Any) -> dict[str, Any]:
    """Returns the entry of tuned prompts in result.json."""
    return {
        "key": "prompt", "prompt_types": ["text"], "seed": 0, "paradigm": "ul", "rounds": [], "auxiliary": None,
        "temperature": 0.01, "trained_on": {"labelled": 0, "unlabelled": 40, "synthetic": 0}, **changes,
    }  # fmt: skip


def membership_record(auroc: float, best: float, held_out: float) -> dict[str, Any]:
    """Returns the entry of a membership inference attack in result.json."""
    return {
        "members": 40, "non_members": 40, "auroc": auroc, "auroc_ci95": None, "balanced_accuracy": best,
        "balanced_accuracy_ci95": [0.5, 1.0], "threshold": 0.5, "held_out_balanced_accuracy": held_out,
        "held_out_balanced_accuracy_ci95": None,
    }  # fmt: skip


NAMES_SEEN = {
    "label": "names", "labelled": 0, "unlabelled": 0, "unlabelled_from": None, "test_images": 0, "captions": False,
    "unknown": [],
}  # fmt: skip
"""What a method has seen that knows the class names alone."""


def shifted_set(
    inside: float,
    shifted: float,
    *,
    baselines: Mapping[str, tuple[float, float]],
    n: int = 200,
    known: int = 40,
    num_classes: int = 2,
) -> dict[str, Any]:
    """Returns the entry of an out-of-distribution set in result.json.

    Args:
        inside: Accuracy in distribution.
        shifted: Accuracy on the set.
        baselines: The same two of each baseline.
        n: Images of the set.
        known: Images in distribution.
        num_classes: Classes of the set.
    """
    accuracies = {"in_distribution": (inside, known), "shifted": (shifted, n)}
    return {
        "dataset": {"name": "shifted", "split": "test", "source": {}},
        "n": n, "images_in_dataset": n, "num_classes": num_classes,
        "metrics": metrics_record(shifted),
        "baselines": {name: metrics_record(top1) for name, (_, top1) in baselines.items()},
        "in_distribution": metrics_record(inside),
        "in_distribution_baselines": {name: metrics_record(top1) for name, (top1, _) in baselines.items()},
        "shift": {
            **{name: {"top1": top1, "top1_ci95": [0.0, 1.0], "n": count} for name, (top1, count) in accuracies.items()},
            "difference": shifted - inside, "difference_ci95": [-1.0, 1.0], "ratio": None, "ratio_ci95": None,
        },
    }  # fmt: skip


def build_result(
    names: Sequence[str], label: Sequence[int], prediction: Sequence[int], settings: Mapping[str, Any], dataset: str
) -> dict[str, Any]:
    """Returns a result.json of the current schema."""
    rank = (np.array(label) != np.array(prediction)).astype(np.int64)
    figures = metrics(np.array(label), rank, len(names))
    on = {"device": "cpu", "devices": 1, "peak_memory": 1_000_000, "peak_from": "process", "workers": None}
    parts = {"choice": "tiny", "id": "tiny:encoder", "model": "sha256:38dd", "pretrained": None, "options": {}}
    return {
        "schema": RESULT_SCHEMA, "method": "lgclip", "n": len(label), "images_in_dataset": len(label), "skipped": [],
        "noted_images": [], "ties": {"lgclip": 0},
        "num_classes": len(names), "student": None, "prompt_tuning": None, "ood": {}, "pools": [], "membership": None,
        "choices": {"dataset": dataset, "scales": settings.get("scales", "single")},
        "run_key": "0" * 32, "sweep": None,
        "dataset": {"name": dataset, "split": "test", "names": "own", "context": "", "templates": ["a photo of a {}."],
                    "source": {"dataset": dataset}, "fingerprint": dataset, "folder_names": {}, "files_left_out": {},
                    "files_noted": {}},
        "encoder": parts, "llm": None, "diffuser": parts, "scales": {"choice": "single", "fractions": [1.0]},
        "text": None, "prompts_per_class": 3, "images_per_prompt": 1, "seed": 0, "templated_prompts": [0, 2, 1],
        "missing_images": [{"class": 0, "name": names[0], "prompt": "", "repeat": 0, "faults": ["black"]}],
        "protocol": "clean", "predictor": {"lgclip": {"text_weight": 0.0}},
        "seen": dict.fromkeys(("lgclip", "clip_text"), NAMES_SEEN),
        "metrics": figures, "baselines": {"clip_text": metrics_record(0.5)}, "baseline": None,
        "paired": {"clip_text": {"difference": 0.25, "ci95": [0.0, 0.5], "only_this": 4, "only_other": 1, "p": 0.375}},
        "detectable": {"difference": 0.1, "power": 0.8, "discordant": 0.05, "discordant_from": "clip_text"},
        "confidence": {"temperature": 0.02, "fitted_on": "synthetic images", "ece": 0.03, "nll": 0.4, "brier": 0.2,
                       "aurc": 0.1, "rejection": [{"coverage": 1.0, "top1": figures["top1"]}]},
        "diagnostics": {"margin": {"spearman": 0.5, "p": 0.6}, "claimed": {"spearman": None, "p": None}},
        "stages": [{"stage": "prompts", "unit": "class", "computed": 3, "reused": 0, "seconds": 0.5, **on,
                    "tokens": {"prompt": 7, "completion": 30}},
                   {"stage": "images", "unit": "image", "computed": 9, "reused": 2, "seconds": 1.5, **on, "tokens":
                   None}],
        "cost": {"stages": [], "seconds": 2.0, "total_seconds": 4.0, "complete": True,
                 "computed_before": {"images": {"seconds": 2.0, "count": 9, "device": "cpu", "parts": {}}},
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
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes a run folder; returns its result.

    Args:
        folder: Where.
        names: Class names.
        label: True class of each image.
        prediction: Predicted class of each.
        dataset: The data set's name.
        settings: Values of its config; of `scales`, the choice.
        extra: Other fields of result.json.
    """
    folder.mkdir(parents=True)
    result = {**build_result(names, label, prediction, settings or {}, dataset), **(extra or {})}
    methods = (result["method"], *result["baselines"])
    result["seen"] = {**dict.fromkeys(methods, NAMES_SEEN), **result["seen"]}
    predictions = list(zip(label, prediction, strict=True))
    baselines = list(result["baselines"])
    rows = []
    for i, (t, p) in enumerate(predictions):
        rows.append((i, t, p, int(t != p), f"{0.9 - i / 100:.6f}", *[t for _ in baselines]))
    write_csv(folder / "predictions.csv", ("index", "label", "prediction", "rank", "confidence", *baselines), rows)
    classes: list[Sequence[object]] = []
    diagnostics: list[Sequence[object]] = []
    for c, name in enumerate(names):
        wrong = [p for t, p in predictions if t == c and p != c]
        n = list(label).count(c)
        right = sum(t == p == c for t, p in predictions)
        most = max(sorted(set(wrong)), key=wrong.count, default=c)
        accuracy = f"{right / n:.6f}" if n else ""
        classes.append((c, name, n, right, accuracy, names[most] if wrong else "", wrong.count(most)))
        values = [f"{(c + 1) / (10 + index):.6f}" for index in range(len(MEASURES))]
        values[4] = "" if c == 0 else values[4]
        diagnostics.append((c, name, 3, *values[:3], (c + 1) % len(names), *values[3:], accuracy))
    header = ("class", "name", "n", "correct", "accuracy", "most_confused_with", "confusions")
    write_csv(folder / "per_class.csv", header, classes)
    header = ("class", "name", "images", *MEASURES[:3], "nearest", *MEASURES[3:], "accuracy")
    write_csv(folder / "diagnostics.csv", header, diagnostics)
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return result


def write_failed(folder: Path, overrides: Sequence[str], error: str = "ValueError: no such thing") -> None:
    """Writes the files of a failed job."""
    folder.mkdir(parents=True)
    document = {"overrides": list(overrides), "error": error, "trace": "...", "run_key": "0" * 32}
    (folder / "failed.json").write_text(json.dumps(document), encoding="utf-8")
