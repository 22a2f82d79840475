"""Tests a fourth training task and predictor, in one file each and a YAML file, without changes to lgclip."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import SUPPORT, Sandbox
from multiprocess_runs import ROOT
from PIL import Image

pytest_plugins = ("run_fixtures",)

EXTENSION = SUPPORT / "extension"


def run(script: str, sandbox: Sandbox, folder: Path, *overrides: str) -> str:
    """Runs a script with the user's own packages and configs."""
    completed = subprocess.run(
        [
            sys.executable,
            script,
            "--config-dir",
            str(EXTENSION / "conf"),
            *sandbox.evaluate_overrides(),
            "method=mean_color",
            f"hydra.run.dir={folder}",
            *overrides,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(EXTENSION), "LGCLIP_ALLOW": "mean_color_task"},
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


def nearest_colors(sandbox: Sandbox, colors: list[list[float]]) -> list[int]:
    """Returns the expected predictions by NumPy alone."""
    predictions = []
    for path in sorted(sandbox.synthetic_images.rglob("*.png")):
        color = np.asarray(Image.open(path).convert("RGB"), dtype=np.float64).mean(axis=(0, 1)) / 255
        predictions.append(
            int(np.argmin([np.linalg.norm(color - prototype_color) for prototype_color in np.array(colors)]))
        )
    return predictions


@pytest.fixture
def trained(fresh_sandbox: Sandbox, tmp_path: Path) -> tuple[Sandbox, Path]:
    """Trains the mean colors with train.py."""
    output = run("train.py", fresh_sandbox, tmp_path / "train")
    folder = next((fresh_sandbox.store / "mean_colors").iterdir())
    assert output.strip().endswith(f"{folder}: 3 mean colors")
    return fresh_sandbox, folder


@pytest.mark.slow
def test_user_task_and_predictor_work(trained: tuple[Sandbox, Path], tmp_path: Path) -> None:
    sandbox, folder = trained
    run("evaluate.py", sandbox, tmp_path / "run")
    result: dict[str, Any] = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    stages = {stage["stage"]: (stage["computed"], stage["reused"]) for stage in result["stages"]}
    assert stages["mean color"] == (0, 3), "trained before by train.py, under the same key"
    assert stages["nearest color"] == (12, 0)
    assert result["predictor"]["mean_color"] == {"learned": "mean colors"}
    assert list(result["baselines"]) == ["lgclip"]
    with (tmp_path / "run" / "predictions.csv").open(encoding="utf-8") as file:
        predictions = [int(row["prediction"]) for row in csv.DictReader(file)]
    colors = json.loads((folder / "colors.json").read_text(encoding="utf-8"))["colors"]
    assert predictions == nearest_colors(sandbox, colors)
    run("evaluate.py", sandbox, tmp_path / "again", f"checkpoint={folder}")
    again = (tmp_path / "again" / "predictions.csv").read_bytes()
    assert again == (tmp_path / "run" / "predictions.csv").read_bytes()
