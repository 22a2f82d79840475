"""Every row of a result can be computed from the exported file with NumPy alone."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import Sandbox, evaluate_run

from lgclip.reporting.export_features import export_features


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def mean_per_class(features: np.ndarray, labels: np.ndarray, classes: int, *, scaled: bool = True) -> np.ndarray:
    means = np.stack([features[labels == label].astype(np.float64).mean(axis=0) for label in range(classes)])
    return unit(means) if scaled else means


def recomputed(arrays: Any, row: str) -> np.ndarray:
    """Returns the predictions of one row of the result, from the file alone."""
    rule = json.loads(str(arrays["rules"]))["predictor"][row]
    classes = len(arrays["class_names"])
    weights = arrays["weights"]
    real = unit(np.einsum("nsd,s->nd", arrays["real"].astype(np.float64), weights))
    weight = rule["text_weight"]
    scores = np.zeros((len(real), classes))
    if weight > 0:
        text = rule.get("text", "text")
        prototypes = mean_per_class(
            arrays[text], arrays[f"{text}_labels"], classes, scaled=not arrays[f"{text}_averages_scores"]
        )
        scores += weight * real @ prototypes.T
    if weight < 1:
        synthetic = arrays["synthetic"]
        labels = arrays.get("synthetic_labels", None)
        if labels is None:
            labels = np.repeat(np.arange(classes), synthetic.shape[1])
            synthetic = synthetic.reshape(-1, *synthetic.shape[2:])
        fused = unit(np.einsum("nsd,s->nd", synthetic.astype(np.float64), weights))
        mask = arrays["kept"][list(arrays["rows"]).index(row)]
        scores += (1 - weight) * real @ mean_per_class(fused[mask], labels[mask], classes).T
    return scores.argmax(axis=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("scales=multi", "selection=medoid", "selection.keep=2"),
        ("selection=text", "selection.keep=1", "scales=official_code"),
        ("calibration=leave_one_out",),
        ("method=fusion", "text.alternatives=[llm,waffle]"),
        ("method=fusion", "text=waffle", "text.alternatives=[template]"),
    ],
)
def test_rows_are_recomputed_from_the_file(overrides: tuple[str, ...], sandbox: Sandbox, tmp_path: Path) -> None:
    result = evaluate_run(sandbox, tmp_path / "run", *overrides)
    export_features(tmp_path / "run", tmp_path / "features.npz")
    with (tmp_path / "run" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with np.load(tmp_path / "features.npz") as arrays:
        for name in arrays["rows"]:
            column = "prediction" if name == result["method"] else str(name)
            expected = np.array([int(row[column]) for row in rows])
            np.testing.assert_array_equal(recomputed(arrays, str(name)), expected, err_msg=str(name))
        correct = recomputed(arrays, result["method"]) == arrays["real_labels"]
        assert correct.mean() == pytest.approx(result["metrics"]["top1"])
        assert arrays["real_index"].tolist() == [int(row["index"]) for row in rows]
        assert len(set(arrays["real_ids"].tolist())) == len(rows)
        assert len(arrays["sentences"]) == len(arrays["text"])
        for name in set(result["text"]) - {"text"}:
            assert len(arrays[f"{name}_sentences"]) == len(arrays[name]) == len(arrays[f"{name}_labels"])
