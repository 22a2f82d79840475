"""Tests that every launcher and the search give the same results as Hydra's basic launcher."""

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from factories import FirstRun, Sandbox, run_command
from omegaconf import OmegaConf
from toy_sweep import ROOT

pytest_plugins = ("run_fixtures",)

GRID = ("scales=single,multi", "prompts_per_class=2")
LAUNCHERS = {
    "slots": ("hydra.launcher.slots=2",),
    "joblib": ("hydra.launcher.n_jobs=2", "hydra.launcher.batch_size=2"),  # a worker for both saves its imports
    "submitit_local": ("hydra.launcher.timeout_min=5",),
}


def run(*arguments: str, status: int = 0, **variables: str) -> str:
    """Runs `evaluate.py` from the command line and returns its output."""
    command = [sys.executable, str(ROOT / "evaluate.py"), *arguments]
    completed = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1", **variables}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert completed.returncode == status, completed.stdout
    return completed.stdout


def sweep(sandbox: Sandbox, folder: Path, *arguments: str, status: int = 0, **variables: str) -> str:
    return run("-m", *sandbox.evaluate_overrides(), f"hydra.sweep.dir={folder}", *arguments, status=status, **variables)


@pytest.fixture(scope="module")
def small(first_run: FirstRun, tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """Returns the sandbox of the first run with a store for this file."""
    store = tmp_path_factory.mktemp("launchers") / "store"
    shutil.copytree(first_run.sandbox.store, store)
    return replace(first_run.sandbox, store=store)


@pytest.fixture(scope="module")
def basic(small: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs the grid with Hydra's basic launcher."""
    folder = tmp_path_factory.mktemp("basic")
    run_command("evaluate", "-m", *small.evaluate_overrides(), f"hydra.sweep.dir={folder}", *GRID)
    return folder


def predictions(folder: Path) -> list[dict[str, object]]:
    """Returns what identifies a sweep's jobs and their results, without times."""
    results = []
    for number in range(2):
        result = json.loads((folder / str(number) / "result.json").read_text(encoding="utf-8"))
        predictions = (folder / str(number) / "predictions.csv").read_text(encoding="utf-8")
        metadata = {key: result[key] for key in ("metrics", "baselines", "config")}
        results.append({**metadata, "sweep": {**result["sweep"], "dir": None}, "predictions": predictions})
    return results


@pytest.mark.slow
@pytest.mark.parametrize("name", LAUNCHERS)
def test_launchers_agree_with_hydras_basic_launcher(name: str, basic: Path, small: Sandbox, tmp_path: Path) -> None:
    sweep(small, tmp_path / "sweep", *GRID, f"hydra/launcher={name}", *LAUNCHERS[name])
    assert predictions(tmp_path / "sweep") == predictions(basic)
    with (tmp_path / "sweep" / "summary.csv").open(newline="", encoding="utf-8") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["finished"] * 2


@pytest.mark.slow
@pytest.mark.multiprocess
def test_jobs_of_a_sweep_run_on_ray(basic: Path, small: Sandbox, tmp_path: Path) -> None:
    """Jobs follow each other, and the stages of each are dealt out to all workers."""
    sandbox = replace(small, store=tmp_path / "store")
    # A cluster of its own, wherever another one runs.
    sweep(sandbox, tmp_path / "sweep", *GRID, "executor=ray", "executor.shard=4", RAY_ADDRESS="local")
    expected = predictions(basic)
    for job, reference in zip(predictions(tmp_path / "sweep"), expected, strict=True):
        assert (job["metrics"], job["predictions"]) == (reference["metrics"], reference["predictions"])


@pytest.mark.slow
def test_search_uses_synthetic_validation(small: Sandbox, tmp_path: Path) -> None:
    overrides = (
        "experiment=search", "hydra.sweeper.n_trials=4", "hydra.sweeper.sampler.n_startup_trials=2",
        "prompts_per_class=3", "selection.keep=int(interval(1,2))",
    )  # fmt: skip
    output = sweep(small, tmp_path / "sweep", *overrides)
    loaded = OmegaConf.load(tmp_path / "sweep" / "optimization_results.yaml")
    results = [
        json.loads((tmp_path / "sweep" / str(number) / "result.json").read_text(encoding="utf-8"))
        for number in range(4)
    ]
    values = [result["predictor"]["lgclip"]["leave_one_out"] for result in results]
    best = results[values.index(max(values))]
    assert loaded.best_value == pytest.approx(max(values))
    assert loaded.best_params == {
        "prototype.beta": best["config"]["prototype"]["beta"], "selection.keep": best["config"]["selection"]["keep"]
    }  # fmt: skip
    for result in results:  # no trial looked for better parameters than its own
        used = result["predictor"]["lgclip"]
        config = result["config"]
        assert used["prototype"]["beta"] == config["prototype"]["beta"]
        assert used["selection"]["keep"] == config["selection"]["keep"]
    assert {result["config"]["selection"]["keep"] for result in results} <= {1, 2}
    assert "finished before" not in output
    again = sweep(small, tmp_path / "sweep", *overrides)
    assert again.count("finished before, not run again") == 4


def test_slurm_preset_requests_its_resources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks the preset with an `sbatch` that stores the script and rejects it."""
    for name in ("srun", "sbatch"):
        (tmp_path / name).write_text('#!/bin/sh\ncp "$1" "$(dirname "$0")/kept.sh"\necho no cluster here >&2\nexit 1\n')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    run(
        "-m", "hydra/launcher=slurm", "hydra.launcher.partition=gpu", "hydra.launcher.mem_gb=48",
        f"hydra.sweep.dir={tmp_path / 'sweep'}", status=1,
    )  # fmt: skip
    settings = {
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in (tmp_path / "kept.sh").read_text().splitlines()
        if line.startswith("#SBATCH")
    }
    assert settings >= {
        ("array", "0-7%8"), ("partition", "gpu"), ("gpus-per-node", "1"), ("cpus-per-task", "8"), ("mem", "48GB"),
        ("time", "720"), ("nodes", "1"), ("ntasks-per-node", "1"), ("job-name", "evaluate"),
    }  # fmt: skip
