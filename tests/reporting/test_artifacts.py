"""Tests W&B artifacts: what a run computed is its output, what it reused is its input."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from factories import NAMES, FirstRun
from omegaconf import DictConfig, OmegaConf
from safetensors import safe_open
from wandb_records import offline_runs

from lgclip.diffuser.base import SyntheticImages
from lgclip.reporting.restore import restore_run
from lgclip.reporting.run_folder import Run
from lgclip.reporting.wandb.artifacts import log_artifacts
from lgclip.reporting.wandb.tracking import track

pytest_plugins = ("run_fixtures", "wandb_fixtures")
pytestmark = pytest.mark.usefixtures("no_account")

STAGES = ("prompts", "images", "features", "result")


class Online:
    """Mimics a connected W&B run, as far as artifacts need it."""

    offline = False

    def __init__(self, folder: Path) -> None:
        self.dir = str(folder / "files")
        self.computed: list[Any] = []
        self.used: list[Any] = []
        self.log_artifact, self.use_artifact = self.computed.append, self.used.append


@pytest.fixture
def run(first_run: FirstRun, tmp_path: Path) -> Run:
    """Copies the first run to a folder of the test."""
    shutil.copytree(first_run.folder, tmp_path / "run")
    return Run.read(tmp_path / "run")


def online(run: Run, upload: str = "manifest", synthetic_images: SyntheticImages | None = None) -> Online:
    experiment = Online(run.folder)
    log_artifacts(experiment, run, synthetic_images or restore_run(run).synthetic_images, upload)
    return experiment


def kinds(artifacts: list[Any]) -> tuple[str, ...]:
    return tuple(artifact.type for artifact in artifacts)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def offline(run: Run, artifacts: str) -> dict[str, dict[str, Path]]:
    """Returns the artifacts of an offline run as its file has them."""
    logger = OmegaConf.load(Path(__file__).parents[2] / "conf" / "logger" / "wandb.yaml")
    assert isinstance(logger, DictConfig)
    logger.artifacts = artifacts
    opened = restore_run(run)
    with track(logger, run.folder, {}) as tracker:
        tracker.log_metrics(run.result)
        tracker.log_tables(run.result, opened.dataset, opened.synthetic_images)
        tracker.log_artifacts(run.result, opened.synthetic_images)
    (offline_run,) = offline_runs(run.folder)
    return {kind: files for kind, files in offline_run.artifacts.items() if kind != "run_table"}


@pytest.mark.slow
def test_offline_run_logs_four_artifacts(run: Run) -> None:
    logged = offline(run, "manifest")
    assert logged.keys() == set(STAGES)
    assert logged["result"].keys() == {"result.json", "predictions.csv", "per_class.csv", "prototypes.png"} | {
        path.name for path in run.folder.glob("diagnostics.csv")
    }
    for name, path in logged["result"].items():
        assert path.read_bytes() == (run.folder / name).read_bytes()
        assert path != run.folder / name, "a later run in this folder leaves it alone"
    synthetic_images = restore_run(run).synthetic_images
    assert synthetic_images is not None
    images = lines(logged["images"]["images.jsonl"])
    assert [(line["id"], line["name"], line["prompt"]) for line in images] == [
        (key, NAMES[prompt.class_index], prompt.text)
        for key, prompt in zip(synthetic_images.ids, synthetic_images.prompts, strict=True)
    ]
    assert [line["prompt"] for line in lines(logged["prompts"]["prompts.jsonl"])] == [
        prompt.text for prompt in synthetic_images.prompts
    ]
    assert {line["stream"]: line["key"] for line in lines(logged["features"]["features.jsonl"])} == run.result.store


def test_artifact_files_are_references(run: Run) -> None:
    logged = offline(run, "files")
    synthetic_images = restore_run(run).synthetic_images
    assert synthetic_images is not None
    images = {path for name, path in logged["images"].items() if name.endswith(".png")}
    assert images == set(synthetic_images.paths)
    features = {name: path for name, path in logged["features"].items() if name.endswith(".safetensors")}
    assert {name.partition("/")[0] for name in features} == {"text", "synthetic", "real"}
    for path in features.values():
        with safe_open(path, framework="pt") as file:
            assert file.get_tensor("features").ndim == 3


def test_none_logs_no_artifacts(run: Run) -> None:
    assert offline(run, "none") == {}


def test_computed_artifacts_are_outputs(run: Run) -> None:
    logged = online(run)
    assert (kinds(logged.computed), kinds(logged.used)) == (STAGES, ())


def test_reused_artifacts_are_inputs(run: Run) -> None:
    stages = [stage if stage.stage == "features" else replace(stage, computed=0) for stage in run.result.stages]
    logged = online(replace(run, result=replace(run.result, stages=stages)))
    assert kinds(logged.used) == ("prompts", "images")
    assert kinds(logged.computed) == ("features", "result")


def test_equal_content_is_one_version(run: Run) -> None:
    first = online(run)
    again = online(run)
    assert [a.digest for a in first.computed] == [a.digest for a in again.computed]
    fewer = restore_run(run).synthetic_images
    assert fewer is not None
    fewer = replace(fewer, prompts=fewer.prompts[:-1], ids=fewer.ids[:-1], paths=fewer.paths[:-1])
    changed = online(run, synthetic_images=fewer)
    assert [a.digest == b.digest for a, b in zip(first.computed, changed.computed, strict=True)] == [
        False,
        False,
        True,
        True,
    ]


def test_artifact_metadata_names_its_source(run: Run) -> None:
    metadata = {artifact.type: artifact.metadata for artifact in online(run).computed}
    assert metadata["images"]["diffuser"] == run.result.diffuser
    assert run.result.encoder is not None
    assert metadata["features"]["encoder"]["choice"] == run.result.encoder["choice"]
    assert metadata["result"]["metrics"]["top1"] == run.result.metrics.top1


def test_method_without_images_logs_features_and_result(run: Run) -> None:
    experiment = Online(run.folder)
    log_artifacts(experiment, run, None, "manifest")
    assert kinds(experiment.computed) == ("features", "result")


def test_unknown_prompts_log_no_prompts(run: Run) -> None:
    synthetic_images = restore_run(run).synthetic_images
    assert synthetic_images is not None
    logged = online(
        run, synthetic_images=replace(synthetic_images, prompts=[p._replace(text="") for p in synthetic_images.prompts])
    )
    assert kinds(logged.computed) == ("images", "features", "result")


def test_invalid_artifact_name_is_fixed(run: Run) -> None:
    dataset = replace(run.result.dataset, name="my birds: 2/3 (é)")
    logged = online(replace(run, result=replace(run.result, dataset=dataset)))
    assert logged.computed[0].name == "prompts-my-birds-2-3-"
