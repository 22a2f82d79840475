"""Every launcher and the search on the real line, in the small world: the same numbers as Hydra's own."""

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from toy_sweep import ROOT
from worlds import FirstRun, World, call

pytest_plugins = ("run_fixtures",)

GRID = ("scales=single,multi", "prompts_per_class=2")
LAUNCHERS = {
    "slots": ("hydra.launcher.slots=2",),
    "joblib": ("hydra.launcher.n_jobs=2", "hydra.launcher.batch_size=2"),  # a worker for both saves its imports
    "submitit_local": ("hydra.launcher.timeout_min=5",),
    "ray": ("+hydra.launcher.ray.init.num_cpus=2",),
}


def run(*arguments: str, status: int = 0) -> str:
    """Calls `evaluate.py` as a user does, and gives what the terminal shows."""
    command = [sys.executable, str(ROOT / "evaluate.py"), *arguments]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stdout
    return done.stdout


def sweep(world: World, folder: Path, *arguments: str, status: int = 0) -> str:
    return run("-m", *world.evaluating(), f"hydra.sweep.dir={folder}", *arguments, status=status)


@pytest.fixture(scope="module")
def small(first_run: FirstRun, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The world of the first run, with a store of this file's own."""
    store = tmp_path_factory.mktemp("launchers") / "store"
    shutil.copytree(first_run.world.store, store)
    return replace(first_run.world, store=store)


@pytest.fixture(scope="module")
def basic(small: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The grid by Hydra's own launcher."""
    folder = tmp_path_factory.mktemp("basic")
    call("evaluate", "-m", *small.evaluating(), f"hydra.sweep.dir={folder}", *GRID)
    return folder


def judged(folder: Path) -> list[dict[str, object]]:
    """What tells a sweep's jobs from one another and what they found; none of it is a time."""
    found = []
    for number in range(2):
        result = json.loads((folder / str(number) / "result.json").read_text(encoding="utf-8"))
        predictions = (folder / str(number) / "predictions.csv").read_text(encoding="utf-8")
        told = {key: result[key] for key in ("metrics", "beside", "config")}
        found.append({**told, "sweep": {**result["sweep"], "dir": None}, "predictions": predictions})
    return found


@pytest.mark.parametrize("name", LAUNCHERS)
def test_every_launcher_finds_what_hydras_own_finds(name: str, basic: Path, small: World, tmp_path: Path) -> None:
    if name == "ray":
        pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="it wants an environment of its own")
    sweep(small, tmp_path / "sweep", *GRID, f"hydra/launcher={name}", *LAUNCHERS[name])
    assert judged(tmp_path / "sweep") == judged(basic)
    with (tmp_path / "sweep" / "summary.csv").open(newline="", encoding="utf-8") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["finished"] * 2


def test_a_search_takes_what_judges_left_out_synthetic_images_best(small: World, tmp_path: Path) -> None:
    given = (
        "experiment=search", "hydra.sweeper.n_trials=4", "hydra.sweeper.sampler.n_startup_trials=2",
        "prompts_per_class=3", "selection.keep=int(interval(1,2))",
    )  # fmt: skip
    shown = sweep(small, tmp_path / "sweep", *given)
    found = OmegaConf.load(tmp_path / "sweep" / "optimization_results.yaml")
    results = [
        json.loads((tmp_path / "sweep" / str(number) / "result.json").read_text(encoding="utf-8"))
        for number in range(4)
    ]
    values = [result["judged_by"]["lgclip"]["leave_one_out"] for result in results]
    best = results[values.index(max(values))]
    assert found.best_value == pytest.approx(max(values))
    assert found.best_params == {
        "prototype.beta": best["config"]["prototype"]["beta"], "selection.keep": best["config"]["selection"]["keep"]
    }  # fmt: skip
    for result in results:  # no trial looked for better parameters than its own
        used, config = result["judged_by"]["lgclip"], result["config"]
        assert used["prototype"]["beta"] == config["prototype"]["beta"]
        assert used["selection"]["keep"] == config["selection"]["keep"]
    assert {result["config"]["selection"]["keep"] for result in results} <= {1, 2}
    assert "finished before" not in shown
    again = sweep(small, tmp_path / "sweep", *given)
    assert again.count("finished before, not run again") == 4


def test_the_slurm_preset_asks_the_cluster_for_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher hands its jobs to a `sbatch` that keeps the script and refuses it."""
    for name in ("srun", "sbatch"):
        (tmp_path / name).write_text('#!/bin/sh\ncp "$1" "$(dirname "$0")/kept.sh"\necho no cluster here >&2\nexit 1\n')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    run(
        "-m", "hydra/launcher=slurm", "hydra.launcher.partition=gpu", "hydra.launcher.mem_gb=48",
        f"hydra.sweep.dir={tmp_path / 'sweep'}", status=1,
    )  # fmt: skip
    asked = {
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in (tmp_path / "kept.sh").read_text().splitlines()
        if line.startswith("#SBATCH")
    }
    assert asked >= {
        ("array", "0-7%8"), ("partition", "gpu"), ("gpus-per-node", "1"), ("cpus-per-task", "8"), ("mem", "48GB"),
        ("time", "720"), ("nodes", "1"), ("ntasks-per-node", "1"), ("job-name", "evaluate"),
    }  # fmt: skip
