"""Tests loggers: W&B offline and without an account, CSV, none."""

import json
import os
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from factories import NAMES, SENTENCES, FirstRun, Sandbox, evaluate_run, read_csv, run_command
from hydra.errors import InstantiationException
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig, OmegaConf
from wandb_records import OfflineRun, offline_runs

from lgclip.reporting.restore import restore_run
from lgclip.reporting.result_schema import from_json
from lgclip.reporting.run_folder import Run
from lgclip.reporting.wandb.tracking import axes_of, choose_mode, flat_metrics, group_of, tag_of, track

pytest_plugins = ("run_fixtures", "wandb_fixtures")
pytestmark = pytest.mark.usefixtures("no_account")

SWEEP = {"dir": "multirun/grid", "job": 3, "overrides": ["prompts_per_class=2", "scales=multi", "paths.store=x"]}
CHOICES = {"dataset": "folder", "encoder": "tiny", "method": "lgclip", "scales": "multi", "experiment": None}


@pytest.fixture
def logger() -> DictConfig:
    """Returns the config of `logger=wandb`."""
    config = OmegaConf.load(Path(__file__).parents[2] / "conf" / "logger" / "wandb.yaml")
    assert isinstance(config, DictConfig)
    return config


def logged(logger: DictConfig, result: dict[str, Any], first_run: FirstRun, folder: Path) -> OfflineRun:
    """Logs a result of the first run and returns W&B's records."""
    opened = restore_run(Run.read(first_run.folder))
    for path in first_run.folder.glob("*.csv"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "result.json").write_text(json.dumps(result))
    with track(logger, folder, result["config"], CHOICES, SWEEP) as tracker:
        tracker.log_metrics(from_json(result))
        tracker.log_tables(from_json(result), opened.dataset, opened.synthetic_images)
        tracker.log_artifacts(from_json(result), opened.synthetic_images)
    (run,) = offline_runs(folder)
    return run


def full(result: dict[str, Any]) -> dict[str, Any]:
    """Returns a result with every optional field."""
    paired = {"difference": -0.01, "ci95": [-0.03, 0.02], "only_this": 3, "only_other": 5, "p": 0.7}
    confidence = {"temperature": 0.01, "fitted_on": "default", "ece": 0.04, "nll": 0.3, "brier": 0.2, "aurc": 0.1}
    return {
        **result,
        "paired": {"clip_text": paired},
        "detectable": {"difference": 0.05, "power": 0.8, "discordant": 0.1, "discordant_from": "clip_text"},
        "confidence": {**confidence, "rejection": [{"coverage": 1.0, "top1": 0.5}]},
        "diagnostics": {"margin": {"spearman": 0.5, "p": 0.01}, "spread": {"spearman": None, "p": None}},
    }


@pytest.mark.slow
def test_sweep_logs_one_offline_run_per_job(sandbox: Sandbox, tmp_path: Path) -> None:
    folder = tmp_path / "2026-01-02" / "10-20-30"
    sweep = ["logger=wandb", f"hydra.sweep.dir={folder}", "prompts_per_class=1,2", "scales=single", "-m"]
    run_command("evaluate", *sandbox.evaluate_overrides(), *sweep)
    assert len(offline_runs(folder)) == 2
    for cell, prompts in enumerate((1, 2)):
        (offline_run,) = offline_runs(folder / str(cell))
        result = json.loads((folder / str(cell) / "result.json").read_text())
        assert offline_run.exit_code == 0
        assert offline_run.config["prompts_per_class"] == prompts
        assert offline_run.history["top1"] == offline_run.summary["top1"] == result["metrics"]["top1"]
        assert {name: offline_run.summary[name] for name in flat_metrics(from_json(result))} == flat_metrics(
            from_json(result)
        )
        table = offline_run.table("prototypes")
        assert table["columns"] == ["class", "name", "prompt", "image"]
        assert [row[:3] for row in table["data"]] == [
            [c, name, sentence.replace("{}", name)]
            for (c, name), sentence in product(enumerate(NAMES), SENTENCES[:prompts])
        ]
        assert offline_run.run.run_group == "2026-01-02_10-20-30"
        assert {f"prompts_per_class={prompts}", "scales=single", "dataset=folder"} <= set(offline_run.run.tags)
        assert offline_run.config["choices"]["scales"] == "single"
        assert (
            offline_run.table("cell")["data"][0][offline_run.table("cell")["columns"].index("prompts_per_class")]
            == prompts
        )


def test_failed_run_is_marked_failed(logger: DictConfig, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="power cut"), track(logger, tmp_path, {"seed": 0}):
        raise RuntimeError("power cut")
    (offline_run,) = offline_runs(tmp_path)
    assert offline_run.exit_code == 1
    with track(logger, tmp_path, {"seed": 1}):
        pass
    assert sorted(run.exit_code for run in offline_runs(tmp_path)) == [0, 1], "the next run is its own"


def test_summary_matches_the_result(logger: DictConfig, first_run: FirstRun, tmp_path: Path) -> None:
    result = full(first_run.result)
    offline_run = logged(logger, result, first_run, tmp_path)
    summary = offline_run.summary
    assert [summary["top1_low"], summary["top1_high"]] == result["metrics"]["top1_ci95"]
    assert [summary["clip_text/top1_low"], summary["clip_text/top1_high"]] == result["baselines"]["clip_text"][
        "top1_ci95"
    ]
    assert [summary["paired/clip_text/low"], summary["paired/clip_text/high"]] == [-0.03, 0.02]
    assert summary["paired/clip_text/p"] == 0.7
    assert summary["confidence/ece"] == 0.04
    assert summary["diagnostics/margin/spearman"] == 0.5
    assert summary["detectable/difference"] == 0.05
    assert summary["seconds"] == pytest.approx(sum(stage["seconds"] for stage in result["stages"]))
    assert not {"diagnostics/spread/p", "confidence/fitted_on", "confidence/rejection"} & summary.keys()
    assert len(flat_metrics(from_json(result))) <= 60
    ways = {
        metric.name: (metric.summary.max, metric.summary.min)
        for metric in offline_run.records_of("metric")
        if metric.name
    }
    assert ways["top1"] == ways["clip_text/mean_per_class"] == (True, False)
    assert ways["confidence/ece"] == (False, True)


def test_run_has_group_tags_and_name(logger: DictConfig, first_run: FirstRun, tmp_path: Path) -> None:
    offline_run = logged(logger, first_run.result, first_run, tmp_path)
    assert offline_run.run.run_group == "grid"
    assert offline_run.run.job_type == "evaluate"
    assert offline_run.run.display_name == "prompts_per_class=2 scales=multi"
    assert list(offline_run.run.tags) == [
        "dataset=folder", "encoder=tiny", "method=lgclip", "prompts_per_class=2", "scales=multi",
    ]  # fmt: skip
    assert offline_run.config["choices"] == CHOICES
    assert offline_run.config["sweep"] == SWEEP


def test_user_settings_are_kept(logger: DictConfig, tmp_path: Path) -> None:
    logger.group = "mine"
    with track(logger, tmp_path, {}, CHOICES, SWEEP):
        pass
    (offline_run,) = offline_runs(tmp_path)
    assert offline_run.run.run_group == "mine"


def test_single_run_is_named_by_its_parts(logger: DictConfig, tmp_path: Path) -> None:
    with track(logger, tmp_path, {}, CHOICES):
        pass
    (offline_run,) = offline_runs(tmp_path)
    assert (offline_run.run.display_name, offline_run.run.run_group) == ("folder tiny lgclip", "")


def test_machine_details_are_not_logged(logger: DictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SECRET", "hunter2hunter2")
    with track(logger, tmp_path, {"seed": 0}):
        pass
    (offline_run,) = offline_runs(tmp_path)
    assert offline_run.run.host == ""
    content = b"".join(record.SerializeToString() for record in offline_run.records)
    for word in ("hunter2hunter2", os.uname().nodename + "\x12", str(Path(__file__).parents[2])):
        assert word.encode() not in content
    assert not [
        path for path in offline_run.folder.rglob("*") if path.name in ("requirements.txt", "wandb-metadata.json")
    ]


def test_online_run_without_account_is_one_line(logger: DictConfig, tmp_path: Path) -> None:
    logger.offline = False
    with pytest.raises(InstantiationException, match=r"needs an account of Weights & Biases: set WANDB_API_KEY"):
        track(logger, tmp_path, {}).__enter__()
    assert list(tmp_path.rglob("*.wandb")) == []


def test_unknown_artifact_kind_is_one_line(logger: DictConfig, tmp_path: Path) -> None:
    logger.artifacts = "all"
    with pytest.raises(InstantiationException, match=r"logger.artifacts=all: choose manifest, files, none"):
        track(logger, tmp_path, {}).__enter__()


def test_lightning_logger_is_supported(first_run: FirstRun, tmp_path: Path) -> None:
    name = f"{WandbLogger.__module__}.{WandbLogger.__qualname__}"
    offline_run = logged(OmegaConf.create({"_target_": name, "mode": "offline"}), first_run.result, first_run, tmp_path)
    assert offline_run.run.run_group == "grid"
    assert offline_run.summary["top1"] == first_run.result["metrics"]["top1"]
    assert "result" in offline_run.artifacts


def test_offline_mode_is_not_inherited(logger: DictConfig, tmp_path: Path) -> None:
    with track(logger, tmp_path, {}):
        pass
    assert "WANDB_MODE" not in os.environ


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "group"),
    [
        ("multirun/2026-01-02/10-20-30", "2026-01-02_10-20-30"), ("multirun/grid", "grid"), ("grid", "grid"),
        ("/data/sweeps/one/", "one"),
    ],
)  # fmt: skip
def test_sweep_is_grouped_by_folder(folder: str, group: str) -> None:
    assert group_of(folder) == group


def test_axes_are_command_line_overrides() -> None:
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
def test_tags_are_valid_and_unique(one: str, other: str) -> None:
    long = "dataset.root=" + "x" * 60
    for first, second in ((one, other), (long + one, long + other)):
        assert 1 <= len(tag_of(first)) <= 64
        assert (tag_of(first) == tag_of(second)) == (first == second)


@pytest.mark.slow
def test_csv_logger_writes_metrics(sandbox: Sandbox, tmp_path: Path) -> None:
    result = evaluate_run(sandbox, tmp_path / "run", "logger=csv")
    (row,) = read_csv(next((tmp_path / "run").rglob("metrics.csv")))
    assert {name: float(row[name]) for name in flat_metrics(from_json(result))} == flat_metrics(from_json(result))
    assert float(row["top1"]) == result["metrics"]["top1"]


def test_no_logger_logs_nothing(first_run: FirstRun, tmp_path: Path) -> None:
    opened = restore_run(Run.read(first_run.folder))
    with track(None, tmp_path, {}) as tracker:
        tracker.log_metrics(from_json(first_run.result))
        tracker.log_tables(from_json(first_run.result), opened.dataset, opened.synthetic_images)
        tracker.log_artifacts(from_json(first_run.result), opened.synthetic_images)
    assert list(tmp_path.iterdir()) == []


def test_baseline_metrics_are_prefixed(first_run: FirstRun) -> None:
    flat = flat_metrics(from_json(first_run.result))
    assert next(iter(flat)) == "top1"
    assert flat["fusion/top5"] == first_run.result["baselines"]["fusion"]["top5"]
    assert all(isinstance(value, float) for value in flat.values())


@pytest.mark.parametrize(
    ("environment", "offline", "mode"),
    [
        (None, True, "offline"), (None, False, "online"), ("", True, "offline"), ("online", True, "online"),
        ("offline", False, "offline"), ("disabled", True, "disabled"), ("disabled", False, "disabled"),
        ("dryrun", False, "offline"), ("run", True, "online"),
    ],
)  # fmt: skip
def test_environment_takes_precedence_over_the_config(
    environment: str | None,
    offline: bool,
    mode: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if environment is not None:
        monkeypatch.setenv("WANDB_MODE", environment)
    assert choose_mode(offline=offline) == mode
    conflict = f"WANDB_MODE={environment} takes precedence over logger.offline={str(offline).lower()}"
    assert (conflict in caplog.text) == (mode != ("offline" if offline else "online"))


def test_unknown_mode_is_one_line(logger: DictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "of")
    with pytest.raises(InstantiationException, match="WANDB_MODE=of: choose online, offline, disabled"):
        track(logger, tmp_path, {}).__enter__()


def test_online_environment_needs_an_account(
    logger: DictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(InstantiationException, match="WANDB_MODE=online needs an account of Weights & Biases"):
        track(logger, tmp_path, {}).__enter__()


@pytest.mark.parametrize("offline", [True, False])
def test_disabled_environment_writes_nothing(
    logger: DictConfig, offline: bool, first_run: FirstRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger.offline = offline
    opened = restore_run(Run.read(first_run.folder))
    with track(logger, tmp_path, {}) as tracker:
        result = from_json(first_run.result)
        tracker.log_metrics(result)
        tracker.log_tables(result, opened.dataset, opened.synthetic_images)
        tracker.log_artifacts(result, opened.synthetic_images)
    assert list(tmp_path.rglob("*.wandb")) == []
