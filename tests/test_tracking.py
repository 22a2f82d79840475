"""Loggers: W&B offline and without an account, CSV, none."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import InstantiationException
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig, OmegaConf
from wandb_records import Offline, offline_runs
from worlds import NAMES, SENTENCES, FirstRun, World, call, judge, rows

from lgclip.reopen import reopen
from lgclip.runs import Run
from lgclip.tracking import axes_of, flat_metrics, group_of, tag_of, track

pytest_plugins = ("run_fixtures", "wandb_fixtures")
pytestmark = pytest.mark.usefixtures("no_account")

SWEEP = {"dir": "multirun/grid", "job": 3, "overrides": ["prompts_per_class=2", "scales=multi", "paths.store=x"]}
CHOICES = {"dataset": "folder", "encoder": "tiny", "method": "lgclip", "scales": "multi", "experiment": None}


@pytest.fixture
def logger() -> DictConfig:
    """`logger=wandb`."""
    found = OmegaConf.load(Path(__file__).parents[1] / "conf" / "logger" / "wandb.yaml")
    assert isinstance(found, DictConfig)
    return found


def logged(logger: DictConfig, result: dict[str, Any], first_run: FirstRun, folder: Path) -> Offline:
    """What W&B has of the first run, were its result another."""
    opened = reopen(Run.read(first_run.folder))
    for path in first_run.folder.glob("*.csv"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "result.json").write_text(json.dumps(result))
    with track(logger, folder, result["config"], CHOICES, SWEEP) as tracker:
        tracker.log(result, opened.dataset, opened.drawing)
    (run,) = offline_runs(folder)
    return run


def full(result: dict[str, Any]) -> dict[str, Any]:
    """A result with everything that a result can say."""
    paired = {"difference": -0.01, "ci95": [-0.03, 0.02], "only_this": 3, "only_other": 5, "p": 0.7}
    more = {"temperature": 0.01, "fitted_on": "default", "ece": 0.04, "nll": None, "brier": 0.2, "aurc": 0.1}
    return {
        **result,
        "paired": {"clip_text": paired},
        "detectable": {"difference": 0.05, "power": 0.8, "discordant": 0.1},
        "confidence": {**more, "rejection": [{"coverage": 1.0, "top1": 0.5}]},
        "diagnostics": {"margin": {"spearman": 0.5, "p": 0.01}},
    }


def test_a_sweep_is_one_finished_offline_run_a_cell(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "2026-01-02" / "10-20-30"
    sweep = ["logger=wandb", f"hydra.sweep.dir={folder}", "prompts_per_class=1,2", "scales=single", "-m"]
    call("evaluate", *world.evaluating(), *sweep)
    assert len(offline_runs(folder)) == 2
    for cell, prompts in enumerate((1, 2)):
        (found,) = offline_runs(folder / str(cell))
        result = json.loads((folder / str(cell) / "result.json").read_text())
        assert found.exit_code == 0
        assert found.config["prompts_per_class"] == prompts
        assert found.history["top1"] == found.summary["top1"] == result["metrics"]["top1"]
        assert {name: found.summary[name] for name in flat_metrics(result)} == flat_metrics(result)
        table = found.table("prototypes")
        assert table["columns"] == ["class", "name", "prompt", "image"]
        assert [row[:3] for row in table["data"]] == [
            [c, name, sentence.replace("{}", name)] for c, name in enumerate(NAMES) for sentence in SENTENCES[:prompts]
        ]
        assert found.run.run_group == "2026-01-02_10-20-30"
        assert {f"prompts_per_class={prompts}", "scales=single", "dataset=folder"} <= set(found.run.tags)
        assert found.config["choices"]["scales"] == "single"
        assert found.table("cell")["data"][0][found.table("cell")["columns"].index("prompts_per_class")] == prompts


def test_a_run_that_fails_is_finished_as_failed(logger: DictConfig, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="power cut"), track(logger, tmp_path, {"seed": 0}):
        raise RuntimeError("power cut")
    (found,) = offline_runs(tmp_path)
    assert found.exit_code == 1
    with track(logger, tmp_path, {"seed": 1}):
        pass
    assert sorted(run.exit_code for run in offline_runs(tmp_path)) == [0, 1], "the next run is its own"


def test_the_summary_holds_the_very_numbers_of_the_result(
    logger: DictConfig, first_run: FirstRun, tmp_path: Path
) -> None:
    result = full(first_run.result)
    found = logged(logger, result, first_run, tmp_path)
    said = found.summary
    assert [said["top1_low"], said["top1_high"]] == result["metrics"]["top1_ci95"]
    assert [said["clip_text/top1_low"], said["clip_text/top1_high"]] == result["beside"]["clip_text"]["top1_ci95"]
    assert [said["paired/clip_text/low"], said["paired/clip_text/high"]] == [-0.03, 0.02]
    assert said["paired/clip_text/p"] == 0.7
    assert said["confidence/ece"] == 0.04
    assert said["diagnostics/margin/spearman"] == 0.5
    assert said["detectable/difference"] == 0.05
    assert said["seconds"] == pytest.approx(sum(stage["seconds"] for stage in result["stages"]))
    assert not {"confidence/nll", "confidence/fitted_on", "confidence/rejection"} & said.keys()
    assert len(flat_metrics(result)) <= 60
    ways = {metric.name: (metric.summary.max, metric.summary.min) for metric in found.of("metric") if metric.name}
    assert ways["top1"] == ways["clip_text/mean_per_class"] == (True, False)
    assert ways["confidence/ece"] == (False, True)


def test_a_run_is_found_by_its_group_its_tags_and_its_name(
    logger: DictConfig, first_run: FirstRun, tmp_path: Path
) -> None:
    found = logged(logger, first_run.result, first_run, tmp_path)
    assert found.run.run_group == "grid"
    assert found.run.job_type == "evaluate"
    assert found.run.display_name == "prompts_per_class=2 scales=multi"
    assert list(found.run.tags) == [
        "dataset=folder", "encoder=tiny", "method=lgclip", "prompts_per_class=2", "scales=multi",
    ]  # fmt: skip
    assert found.config["choices"] == CHOICES
    assert found.config["sweep"] == SWEEP


def test_what_the_user_sets_stays(logger: DictConfig, tmp_path: Path) -> None:
    logger.group = "mine"
    with track(logger, tmp_path, {}, CHOICES, SWEEP):
        pass
    (found,) = offline_runs(tmp_path)
    assert found.run.run_group == "mine"


def test_a_run_by_itself_is_named_by_its_parts(logger: DictConfig, tmp_path: Path) -> None:
    with track(logger, tmp_path, {}, CHOICES):
        pass
    (found,) = offline_runs(tmp_path)
    assert (found.run.display_name, found.run.run_group) == ("folder tiny lgclip", "")


def test_nothing_of_the_machine_is_kept(logger: DictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SECRET", "hunter2hunter2")
    with track(logger, tmp_path, {"seed": 0}):
        pass
    (found,) = offline_runs(tmp_path)
    assert found.run.host == ""
    told = b"".join(record.SerializeToString() for record in found.found)
    for word in ("hunter2hunter2", os.uname().nodename + "\x12", str(Path(__file__).parents[1])):
        assert word.encode() not in told
    assert not [path for path in found.folder.rglob("*") if path.name in ("requirements.txt", "wandb-metadata.json")]


def test_an_online_run_without_an_account_is_one_line(logger: DictConfig, tmp_path: Path) -> None:
    logger.offline = False
    with pytest.raises(InstantiationException, match=r"needs an account of Weights & Biases: set WANDB_API_KEY"):
        track(logger, tmp_path, {}).__enter__()
    assert list(tmp_path.rglob("*.wandb")) == []


def test_an_unknown_kind_of_artifacts_is_one_line(logger: DictConfig, tmp_path: Path) -> None:
    logger.artifacts = "all"
    with pytest.raises(InstantiationException, match=r"logger.artifacts=all: choose manifest, files, none"):
        track(logger, tmp_path, {}).__enter__()


def test_lightnings_own_logger_does_as_well(first_run: FirstRun, tmp_path: Path) -> None:
    name = f"{WandbLogger.__module__}.{WandbLogger.__qualname__}"
    found = logged(OmegaConf.create({"_target_": name, "mode": "offline"}), first_run.result, first_run, tmp_path)
    assert found.run.run_group == "grid"
    assert found.summary["top1"] == first_run.result["metrics"]["top1"]
    assert "result" in found.artifacts


def test_an_offline_run_leaves_later_ones_their_choice(logger: DictConfig, tmp_path: Path) -> None:
    with track(logger, tmp_path, {}):
        pass
    assert "WANDB_MODE" not in os.environ


@pytest.mark.parametrize(
    ("folder", "group"),
    [
        ("multirun/2026-01-02/10-20-30", "2026-01-02_10-20-30"), ("multirun/grid", "grid"), ("grid", "grid"),
        ("/data/sweeps/one/", "one"),
    ],
)  # fmt: skip
def test_a_sweep_goes_by_its_folder(folder: str, group: str) -> None:
    assert group_of(folder) == group


def test_axes_are_what_the_command_line_sets() -> None:
    overrides = [
        "+experiment=lgclip/cub",
        "seed=0",
        "logger=wandb",
        "hydra.sweep.dir=x",
        "llm.model='a b'",
        "workers=2",
    ]
    expected = {"experiment": "lgclip/cub", "seed": "0", "llm.model": "a b"}
    assert axes_of({"overrides": overrides}) == expected
    assert axes_of(None) == {}


@given(st.text(min_size=1), st.text(min_size=1))
def test_a_tag_is_taken_and_two_stay_two(one: str, other: str) -> None:
    long = "dataset.root=" + "x" * 60
    for first, second in ((one, other), (long + one, long + other)):
        assert 1 <= len(tag_of(first)) <= 64
        assert (tag_of(first) == tag_of(second)) == (first == second)


def test_the_csv_logger_writes_the_figures(world: World, tmp_path: Path) -> None:
    result = judge(world, tmp_path / "run", "logger=csv")
    (found,) = rows(next((tmp_path / "run").rglob("metrics.csv")))
    assert {name: float(found[name]) for name in flat_metrics(result)} == flat_metrics(result)
    assert float(found["top1"]) == result["metrics"]["top1"]


def test_no_logger_logs_nothing(first_run: FirstRun, tmp_path: Path) -> None:
    opened = reopen(Run.read(first_run.folder))
    with track(None, tmp_path, {}) as tracker:
        tracker.log(first_run.result, opened.dataset, opened.drawing)
    assert list(tmp_path.iterdir()) == []


def test_figures_beside_go_by_their_name(first_run: FirstRun) -> None:
    flat = flat_metrics(first_run.result)
    assert next(iter(flat)) == "top1"
    assert flat["fusion/top5"] == first_run.result["beside"]["fusion"]["top5"]
    assert all(isinstance(value, float) for value in flat.values())
