"""Artifacts: what a run made is its output, what it found is its input where W&B can say so."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from safetensors import safe_open
from wandb_records import offline_runs
from worlds import NAMES, FirstRun

from lgclip.artifacts import log_artifacts
from lgclip.diffuser.base import Pictures
from lgclip.reopen import reopen
from lgclip.runs import Run
from lgclip.tracking import track

pytest_plugins = ("run_fixtures", "wandb_fixtures")
pytestmark = pytest.mark.usefixtures("no_account")

STAGES = ("prompts", "images", "features", "result")


class Online:
    """A W&B run that is connected, as far as artifacts go."""

    offline = False

    def __init__(self, folder: Path) -> None:
        self.dir = str(folder / "files")
        self.made: list[Any] = []
        self.used: list[Any] = []
        self.log_artifact, self.use_artifact = self.made.append, self.used.append


@pytest.fixture
def run(first_run: FirstRun, tmp_path: Path) -> Run:
    """The first run, in a folder of the test's own."""
    shutil.copytree(first_run.folder, tmp_path / "run")
    return Run.read(tmp_path / "run")


def online(run: Run, keep: str = "manifest", drawing: Pictures | None = None) -> Online:
    experiment = Online(run.folder)
    log_artifacts(experiment, run, drawing or reopen(run).drawing, keep)
    return experiment


def kinds(artifacts: list[Any]) -> tuple[str, ...]:
    return tuple(artifact.type for artifact in artifacts)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def offline(run: Run, artifacts: str) -> dict[str, dict[str, Path]]:
    """The artifacts of an offline run, as its file has them."""
    logger = OmegaConf.load(Path(__file__).parents[1] / "conf" / "logger" / "wandb.yaml")
    assert isinstance(logger, DictConfig)
    logger.artifacts = artifacts
    opened = reopen(run)
    with track(logger, run.folder, {}) as tracker:
        tracker.log(run.result, opened.dataset, opened.drawing)
    (found,) = offline_runs(run.folder)
    return {kind: files for kind, files in found.artifacts.items() if kind != "run_table"}


def test_an_offline_run_has_all_four_as_outputs(run: Run) -> None:
    found = offline(run, "manifest")
    assert found.keys() == set(STAGES)
    assert found["result"].keys() == {"result.json", "predictions.csv", "per_class.csv", "prototypes.png"} | {
        path.name for path in run.folder.glob("diagnostics.csv")
    }
    for name, path in found["result"].items():
        assert path.read_bytes() == (run.folder / name).read_bytes()
        assert path != run.folder / name, "a later run in this folder leaves it alone"
    drawing = reopen(run).drawing
    assert drawing is not None
    images = lines(found["images"]["images.jsonl"])
    assert [(line["id"], line["name"], line["prompt"]) for line in images] == [
        (key, NAMES[prompt.class_index], prompt.text) for key, prompt in zip(drawing.ids, drawing.prompts, strict=True)
    ]
    assert [line["prompt"] for line in lines(found["prompts"]["prompts.jsonl"])] == [
        prompt.text for prompt in drawing.prompts
    ]
    assert {line["stream"]: line["key"] for line in lines(found["features"]["features.jsonl"])} == run.result["store"]


def test_files_are_those_of_the_store_and_not_copied(run: Run) -> None:
    found = offline(run, "files")
    drawing = reopen(run).drawing
    assert drawing is not None
    images = {path for name, path in found["images"].items() if name.endswith(".png")}
    assert images == set(drawing.paths)
    features = {name: path for name, path in found["features"].items() if name.endswith(".safetensors")}
    assert {name.partition("/")[0] for name in features} == {"text", "synthetic", "real"}
    for path in features.values():
        with safe_open(path, framework="pt") as file:
            assert file.get_tensor("features").ndim == 3


def test_none_is_none(run: Run) -> None:
    assert offline(run, "none") == {}


def test_online_what_the_run_made_is_its_output(run: Run) -> None:
    found = online(run)
    assert (kinds(found.made), kinds(found.used)) == (STAGES, ())


def test_online_what_it_found_is_its_input(run: Run) -> None:
    stages = [{**stage, "made": 0} if stage["stage"] != "features" else stage for stage in run.result["stages"]]
    found = online(replace(run, result={**run.result, "stages": stages}))
    assert kinds(found.used) == ("prompts", "images")
    assert kinds(found.made) == ("features", "result")


def test_equal_content_is_one_version(run: Run) -> None:
    first, again = online(run), online(run)
    assert [a.digest for a in first.made] == [a.digest for a in again.made]
    fewer = reopen(run).drawing
    assert fewer is not None
    fewer = replace(fewer, prompts=fewer.prompts[:-1], ids=fewer.ids[:-1], paths=fewer.paths[:-1])
    other = online(run, drawing=fewer)
    assert [a.digest == b.digest for a, b in zip(first.made, other.made, strict=True)] == [False, False, True, True]


def test_an_artifact_says_what_made_it(run: Run) -> None:
    said = {artifact.type: artifact.metadata for artifact in online(run).made}
    assert said["images"]["diffuser"] == run.result["diffuser"]
    assert said["features"]["encoder"]["choice"] == run.result["encoder"]["choice"]
    assert said["result"]["metrics"]["top1"] == run.result["metrics"]["top1"]


def test_a_method_without_images_has_features_and_a_result(run: Run) -> None:
    experiment = Online(run.folder)
    log_artifacts(experiment, run, None, "manifest")
    assert kinds(experiment.made) == ("features", "result")


def test_images_without_known_prompts_have_no_prompts(run: Run) -> None:
    drawing = reopen(run).drawing
    assert drawing is not None
    found = online(run, drawing=replace(drawing, prompts=[p._replace(text="") for p in drawing.prompts]))
    assert kinds(found.made) == ("images", "features", "result")


def test_a_name_that_wandb_does_not_take_is_made_one(run: Run) -> None:
    dataset = {**run.result["dataset"], "name": "my birds: 2/3 (é)"}
    found = online(replace(run, result={**run.result, "dataset": dataset}))
    assert found.made[0].name == "prompts-my-birds-2-3-"
