"""Tests the plan of a run against what the run then does."""

from pathlib import Path
from typing import Any

import pytest
from factories import FirstRun, put_in_hub_cache
from huggingface_hub import constants
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from lgclip import Experiment
from lgclip.reporting.plan_text import plan_text
from lgclip.runtime.hub import commit_of, size_of
from lgclip.stages.plan import Plan

pytest_plugins = ("run_fixtures",)

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture(autouse=True)
def unknown_commits() -> None:
    """Forgets the commits that other tests have looked up."""
    commit_of.cache_clear()


def plan_of(store: Path, *overrides: str, **options: Any) -> Plan:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("evaluate", [f"paths.store={store}", *overrides])
    return Experiment.from_config(cfg).plan(**options)


def counts(plan: Plan) -> dict[tuple[str, str], tuple[int, int | None]]:
    return {(stage.stage, stage.unit): (stage.total, stage.stored) for stage in plan.stages}


def test_empty_store_has_everything_to_compute(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "prompts_per_class=2", "images_per_prompt=3")
    assert counts(plan) == {
        ("prompts", "prompt"): (60, 0),
        ("images", "image"): (180, None),
        ("features", "sentence"): (930, 0),
        ("features", "prompt as a sentence"): (60, None),
        ("features", "synthetic image"): (180, None),
        ("features", "real image"): (1200, 0),
    }
    assert plan.models == []
    assert "up to 180" in plan_text(plan)
    assert not list(tmp_path.rglob("*.png"))


def test_text_baseline_needs_no_generation(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "method=clip_text", "diffuser=sd15")
    assert set(counts(plan)) == {("features", "sentence"), ("features", "real image")}
    assert plan.models == [], "the diffuser is not used"


def test_prompts_without_images_are_planned(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "method=clip_text", "text=llm", "prompts_per_class=2", "llm=template")
    assert counts(plan) == {
        ("prompts", "text"): (60, 0), ("features", "sentence"): (60, None), ("features", "real image"): (1200, 0),
    }  # fmt: skip


def test_finished_run_has_nothing_to_compute(first_run: FirstRun) -> None:
    plan = Experiment.from_config(DictConfig(first_run.result["config"])).plan()
    assert all(stage.total == stage.stored for stage in plan.stages), plan
    assert [stage.stage for stage in plan.stages] == ["prompts", "images", "features", "features", "features"]


def test_generation_plan_leaves_out_the_features(tmp_path: Path) -> None:
    assert {stage.stage for stage in plan_of(tmp_path, evaluates=False).stages} == {"prompts", "images"}


def test_hub_out_of_reach_leaves_counts_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    plan = plan_of(tmp_path / "store", "llm=qwen3_4b", "encoder=dinov2_s14", "prompts_per_class=1")
    assert counts(plan) == {
        ("prompts", "prompt"): (30, None),
        ("images", "image"): (30, None),
        ("features", "synthetic image"): (30, None),
        ("features", "real image"): (1200, None),
    }
    assert [(model.group, model.is_cached, model.size) for model in plan.models] == [
        ("llm", False, None), ("encoder", False, None),
    ]  # fmt: skip
    assert len(plan.notes) == 2
    assert "the hub cannot be reached" in plan.notes[0]


def test_cached_model_has_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = put_in_hub_cache(tmp_path / "hub", "timm/vit_small_patch14_dinov2.lvd142m")
    (snapshot / "model.safetensors").write_bytes(bytes(1_500_000_000 // 1000))
    assert size_of("timm/vit_small_patch14_dinov2.lvd142m") == 1_500_000
    plan = plan_of(tmp_path / "store", "method=clip_text", "encoder=vit_b16", "encoder.revision=null")
    assert plan.models[0].is_cached is False
