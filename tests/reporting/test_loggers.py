"""Tests Lightning's own loggers for TensorBoard and MLflow."""

import sqlite3
from pathlib import Path

import pytest
from factories import FirstRun
from omegaconf import DictConfig, OmegaConf

from lgclip.reporting.restore import restore_run
from lgclip.reporting.result_schema import from_json
from lgclip.reporting.run_folder import Run
from lgclip.reporting.wandb.tracking import flat_metrics, track

pytest_plugins = ("run_fixtures",)

CONF = Path(__file__).parents[2] / "conf" / "logger"


def logger_config(name: str) -> DictConfig:
    config = OmegaConf.load(CONF / f"{name}.yaml")
    assert isinstance(config, DictConfig)
    return config


def log(config: DictConfig, run: FirstRun, folder: Path) -> dict[str, float]:
    """Logs a finished run and returns its metrics."""
    restored = restore_run(Run.read(run.folder))
    result = from_json(run.result)
    with track(config, folder, {"seed": 0, "nested": {"list": [1, 2]}}) as tracker:
        tracker.log_metrics(result)
        tracker.log_tables(result, restored.dataset, restored.synthetic_images)
        tracker.log_artifacts(result, restored.synthetic_images)
    return flat_metrics(result)


@pytest.mark.slow
def test_tensorboard_has_every_metric(first_run: FirstRun, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    expected = log(logger_config("tensorboard"), first_run, tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == expected.keys()
    assert {name: events.Scalars(name)[0].value for name in expected} == pytest.approx(expected, rel=1e-6, nan_ok=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own queries
def test_mlflow_has_every_metric(first_run: FirstRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # its database is in the working directory
    expected = log(logger_config("mlflow"), first_run, tmp_path / "run")
    database = sqlite3.connect(tmp_path / "mlflow.db")
    assert dict(database.execute("select key, value from metrics")) == pytest.approx(expected, nan_ok=True)
    assert database.execute("select value from params where key = 'seed'").fetchone() == ("0",)
    assert database.execute("select status from runs").fetchall() == [("FINISHED",)]
    assert database.execute("select name from experiments where name = 'lgclip'").fetchone()


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_missing_package_is_one_error(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch import loggers

    def fail(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("no such package")

    config = logger_config(name)
    monkeypatch.setattr(getattr(loggers, str(config["_target_"]).rpartition(".")[2]), "__init__", fail)
    expected = rf"logger={name}: its package is missing: pip install 'lgclip\[{name}\]'"
    with pytest.raises(ValueError, match=expected), track(config, tmp_path, {}):
        pass
