"""Tests which jobs of a grid are composed before the first one starts."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, open_dict

from lgclip.cli.sweeps import BASIC_SWEEPER, GRID_SWEEPER, Sweeps

ROOT = Path(__file__).parents[2]


@pytest.fixture
def compositions(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """Collects the overrides of each composed job."""
    composed: list[list[str]] = []
    original = ConfigLoaderImpl.load_sweep_config

    def record(self: ConfigLoaderImpl, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        composed.append(list(sweep_overrides))
        return original(self, master_config, sweep_overrides)

    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", record)
    yield composed
    GlobalHydra.instance().clear()


class _NoLauncher:
    """Runs no job; remembers what it would have run."""

    def __init__(self) -> None:
        self.jobs: list[list[str]] = []

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        del initial_job_idx
        self.jobs += [list(overrides) for overrides in job_overrides]
        return []


def sweep(target: str, folder: Path, *overrides: str) -> list[list[str]]:
    """Sweeps evaluate.py's config with a launcher that runs nothing, and returns its jobs."""
    loader = config_loader()
    # From the registry: Hydra imports its plugins a second time, so that a class imported here would be another.
    sweeper_class: Any = Plugins.instance().class_name_to_class[target]
    sweeper = sweeper_class(max_batch_size=None)
    sweeper.hydra_context = HydraContext(config_loader=loader, callbacks=None)  # pyright: ignore[reportArgumentType]
    sweeper.config = loader.load_configuration("evaluate", [f"hydra.sweep.dir={folder}"], RunMode.MULTIRUN)
    sweeper.launcher = _NoLauncher()
    sweeper.sweep(list(overrides))
    return sweeper.launcher.jobs


def config_loader() -> ConfigLoaderImpl:
    """Returns a loader of the configs in conf/."""
    return ConfigLoaderImpl(config_search_path=create_config_search_path(f"file://{ROOT / 'conf'}"))


@pytest.mark.parametrize(
    ("overrides", "composed"),
    [
        (["seed=range(0,3)"], 1),
        (["seed=0,1", "scales=single,multi"], 2),
        (["seed=0,1.5,none"], 3),
        (["prompt_order_seed=null,1,2"], 2),
        (["paths.store=a,b"], 1),
        (["paths.store=a,${paths.images}"], 2),
        (["trainer.devices=[0],[1]"], 2),
        (["hydra.job.name=a,b"], 2),
    ],
)
def test_jobs_of_equal_structure_are_composed_once(
    tmp_path: Path, compositions: list[list[str]], overrides: list[str], composed: int
) -> None:
    jobs = sweep(GRID_SWEEPER, tmp_path, *overrides)
    assert len(compositions) == composed
    compositions.clear()
    assert jobs == sweep(BASIC_SWEEPER, tmp_path, *overrides)
    assert jobs == compositions, "the basic sweeper composes each job"


@pytest.mark.parametrize(
    "override", ["scales=single,no_such", "seed=1,${no_such}", "no_such=1,2", "hydra.job.num=1,text"]
)
def test_mistake_in_any_job_stops_the_sweep_early(tmp_path: Path, compositions: list[list[str]], override: str) -> None:
    try:
        sweep(BASIC_SWEEPER, tmp_path, override)
        expected = None
    except HydraException as error:
        expected = str(error)
    if expected is None:
        assert sweep(GRID_SWEEPER, tmp_path, override)
        return
    with pytest.raises(HydraException) as caught:
        sweep(GRID_SWEEPER, tmp_path, override)
    assert str(caught.value) == expected


@pytest.mark.parametrize("config_name", ["evaluate", "train", "generate"])
def test_all_scripts_use_the_grid_sweeper(config_name: str, tmp_path: Path) -> None:
    config = config_loader().load_configuration(config_name, [f"hydra.sweep.dir={tmp_path}"], RunMode.MULTIRUN)
    assert any(callback["_target_"].endswith(".Sweeps") for callback in config.hydra.callbacks.values())
    GlobalHydra.instance().clear()
    Hydra.create_main_hydra2("test", create_config_search_path(f"file://{ROOT / 'conf'}"))
    try:
        Sweeps().on_multirun_start(config, config_name)
    finally:
        GlobalHydra.instance().clear()
    assert config.hydra.sweeper._target_ == GRID_SWEEPER


def test_other_sweepers_stay(tmp_path: Path) -> None:
    config = config_loader().load_configuration("evaluate", ["experiment=search"], RunMode.MULTIRUN)
    target = config.hydra.sweeper._target_
    with open_dict(config):
        config.hydra.sweep.dir = str(tmp_path)
    Sweeps().on_multirun_start(config, "evaluate")
    assert config.hydra.sweeper._target_ == target != GRID_SWEEPER
