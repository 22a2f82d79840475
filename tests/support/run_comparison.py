"""Compares runs by their metrics, predictions and features."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from factories import read_arrays

from lgclip.cli.main import main


def features_of(folder: Path, destination: Path) -> dict[str, np.ndarray]:
    """Returns the features of a run by stream."""
    assert main(["store", "features", str(folder), str(destination)]) == 0
    return read_arrays(destination)


def assert_same_run(folder: Path, expected_folder: Path, tmp_path: Path) -> None:
    """Compares two runs bit by bit: predictions, and the features of every stream."""
    assert (folder / "predictions.csv").read_bytes() == (expected_folder / "predictions.csv").read_bytes()
    expected = features_of(expected_folder, tmp_path / "expected.npz")
    actual = features_of(folder, tmp_path / "actual.npz")
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


def results(folder: Path) -> Any:
    """Returns the metrics, the keys of the store and the predictions of a run."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return result["metrics"], result["store"], (folder / "predictions.csv").read_bytes()
