"""Tests LoRA tuning: interrupted or not, on one device or two, without labels; and generating with the weights."""

import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import SUPPORT, make_diffuser, read_csv, read_tree
from fit_adapters import about, adaptation, tuned, weights
from multiprocess_runs import start_process, wait_for_processes
from PIL import Image
from pipelines import family_folder
from student_factories import ColorPatches, build_context, build_stages

from lgclip.datasets.base import BadImageError
from lgclip.diffuser.base import noise_seed
from lgclip.diffuser.pipeline import Diffuser
from lgclip.training.loop import run_training
from lgclip.training.lora.config import LoraTuning, TuningBatch
from lgclip.training.lora.data import Steps, TuningPool
from lgclip.training.lora.module import DiffuserLora
from lgclip.training.lora.task import Adaptation
from lgclip.training.lora.train import LoraTraining, build_lora_module
from lgclip.types import Prompt, TargetClass

CPU = torch.device("cpu")
PROMPTS = [Prompt(TargetClass(0, "red star"), "a photo of a red star.", repeat) for repeat in range(2)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_diffuser(tmp_path_factory.mktemp("model") / "diffuser")


def assert_equal(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(actual[name], value)] == []


def put_on(module: DiffuserLora, folder: Path) -> None:
    """Loads tuned weights by the names that peft gives them."""
    loaded = {name.removeprefix("unet."): value for name, value in weights(folder).items()}
    for name, weight in module.unet.named_parameters():
        if ".default." in name:
            factor = name.replace("lora_A.default", "lora.down").replace("lora_B.default", "lora.up")
            weight.data = loaded[factor]


def synthetic_images(model: Path, **settings: Any) -> np.ndarray:
    return Diffuser(str(model), steps=2, guidance=3.0, size=32, **settings).load(CPU)(PROMPTS, 0).astype(int)


@pytest.mark.slow
def test_loss_decreases(tmp_path: Path) -> None:
    """Compares a fixed loss, all images at five noise levels, before and after."""
    spec = LoraTuning(steps=30, batch_size=4, lr=3e-3)
    task = Adaptation(spec, Diffuser("tiny:diffuser", size=32), ColorPatches(7, "train"))
    before = build_lora_module(task, CPU)
    steps = Steps(TuningPool(LoraTuning(seed=9, batch_size=20), task.images(), 32), 0, 1)
    predictions = [steps[index] for index in range(5)]

    def loss(module: DiffuserLora) -> float:
        with torch.no_grad():
            return float(np.mean([module.losses(batch).mean() for batch in predictions]))

    first = loss(before)
    folder = tuned(task, tmp_path)
    after: Any = build_lora_module(task, CPU)
    put_on(after, folder)
    assert loss(after) < 0.9 * first
    assert LoraTraining.summary(folder).startswith(f"{folder}: 30 steps on 21 images of patches, mean loss ")


@pytest.mark.slow
def test_store_has_weights_and_metadata(model: Path, tmp_path: Path) -> None:
    task = adaptation(model)
    folder = tuned(task, tmp_path)
    assert set(read_tree(tmp_path)) == {
        f"adapters/{folder.name}/lora.json", f"adapters/{folder.name}/pytorch_lora_weights.safetensors"
    }  # fmt: skip
    metadata = about(folder)
    assert metadata["trained_on"] == {"dataset": "patches", "split": "train", "pool": 6}
    assert [row["step"] for row in metadata["history"]] == list(range(1, 9))
    assert all(np.isfinite(row["loss"]) for row in metadata["history"])
    assert metadata["key"] == folder.name == LoraTraining(task).folder(tmp_path).name

    def refuse(**_: Any) -> Any:
        raise AssertionError("no trainer is needed")

    before = read_tree(tmp_path)
    stages = build_stages()
    assert run_training(LoraTraining(task), build_context(tmp_path, refuse, stages=stages)) == folder
    assert read_tree(tmp_path) == before
    assert [(stats.computed, stats.reused) for stats in stages.stage_stats] == [(0, 8)]
    again = tuned(task, tmp_path / "again")
    assert read_tree(again)["pytorch_lora_weights.safetensors"] == read_tree(folder)["pytorch_lora_weights.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize("strength", [None, 12.0])
def test_tuned_pipeline_changes_images_and_key(strength: float | None, model: Path, tmp_path: Path) -> None:
    """Compares `diffuser.lora` with the U-Net with the tuned adapters."""
    task = adaptation(model, alpha=strength, lr=0.1)
    folder = tuned(task, tmp_path)
    alone = synthetic_images(model)
    actual = synthetic_images(model, lora=str(folder))
    assert np.abs(alone - actual).max() > 3
    assert Diffuser(str(model)).inputs() != Diffuser(str(model), lora=str(folder)).inputs()
    module: Any = build_lora_module(task, CPU)
    put_on(module, folder)
    pipeline: Any = Diffuser(str(model)).pipeline()
    pipeline.unet = module.unet.eval()
    noises = [torch.Generator().manual_seed(noise_seed(prompt, 0)) for prompt in PROMPTS]
    kwargs = {"num_inference_steps": 2, "guidance_scale": 3.0, "height": 32, "width": 32, "output_type": "np"}
    expected = pipeline([prompt.text for prompt in PROMPTS], generator=noises, **kwargs).images
    np.testing.assert_allclose(actual, (expected * 255).round(), atol=1)


@pytest.mark.slow
@pytest.mark.parametrize(("stop_step", "accumulate"), [(1, 1), (4, 1), (5, 2), (7, 2)])
def test_resumed_tuning_matches_uninterrupted(
    stop_step: int, accumulate: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = adaptation(model, accumulate=accumulate)
    uninterrupted = tuned(setup, tmp_path / "whole")
    step = DiffuserLora.training_step
    steps = []

    def cut(module: DiffuserLora, batch: TuningBatch, batch_idx: int) -> torch.Tensor:
        steps.append(batch.step)
        if batch.step == stop_step and steps.count(stop_step) == accumulate:
            raise RuntimeError("power cut")
        return step(module, batch, batch_idx)

    monkeypatch.setattr(DiffuserLora, "training_step", cut)
    torch.manual_seed(7)  # what the process did before must not matter
    with pytest.raises(RuntimeError, match="power cut"):
        tuned(setup, tmp_path / "cut")
    task = LoraTraining(setup)
    assert not task.is_complete(task.folder(tmp_path / "cut"))
    left = len(steps)
    again = tuned(setup, tmp_path / "cut")
    assert steps[left:] == [step for step, _ in product(range(stop_step // 2 * 2, 8), range(accumulate))]
    assert_equal(weights(again), weights(uninterrupted))
    assert about(again)["history"] == about(uninterrupted)["history"]


@pytest.mark.multiprocess
def test_two_devices_match_one_and_resume(model: Path, tmp_path: Path) -> None:
    script = SUPPORT / "fit_adapters.py"
    wait_for_processes([start_process([sys.executable, str(script), str(tmp_path), str(model)])])
    task = adaptation(model)
    alone, shared = (LoraTraining(task).folder(tmp_path / store) for store in ("1", "2"))
    assert about(shared)["devices"] == 2
    for name, value in weights(shared).items():
        torch.testing.assert_close(value, weights(alone)[name], rtol=1e-3, atol=1e-5)
    losses = []
    for folder in (alone, shared):
        losses.append([row["loss"] for row in about(folder)["history"]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    killed = LoraTraining(task).folder(tmp_path / "cut")
    assert list(read_tree(killed)) == ["checkpoints/last.safetensors"]
    assert_equal(weights(tuned(task, tmp_path / "cut")), weights(alone))


@pytest.mark.slow
def test_accumulated_steps_match_one_step(model: Path, tmp_path: Path) -> None:
    uninterrupted = tuned(adaptation(model), tmp_path / "whole")
    parts = tuned(adaptation(model, accumulate=3, gradient_checkpointing=True), tmp_path / "parts")
    assert uninterrupted.name == parts.name, "how it is computed is in no key"
    for name, value in weights(parts).items():
        torch.testing.assert_close(value, weights(uninterrupted)[name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_logged_values_match_the_history(model: Path, tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    context = build_context(tmp_path, logger=CSVLogger(tmp_path / "log", "lora"))
    folder = run_training(LoraTraining(adaptation(model, steps=45)), context)
    logged = read_csv(next((tmp_path / "log").rglob("metrics.csv")))
    history = about(folder)["history"]
    assert [int(row["step"]) for row in logged] == [row["step"] for row in history] == [*range(2, 45, 2), 45]
    assert [float(row["loss"]) for row in logged] == pytest.approx([row["loss"] for row in history])


@pytest.mark.slow
def test_sdxl_is_tuned_and_used(tmp_path: Path) -> None:
    model = family_folder("sdxl", tmp_path / "sdxl")
    folder = tuned(adaptation(model, steps=4, lr=0.1), tmp_path)
    assert np.abs(synthetic_images(model, lora=str(folder)) - synthetic_images(model)).max() > 1


def test_weights_for_another_unet_are_rejected(model: Path, tmp_path: Path) -> None:
    folder = tuned(adaptation(model, steps=1), tmp_path)
    message = (
        r"do not fit StableDiffusionPipeline of tiny:diffuser \(.*to_k has 128 inputs .*, and they are for 16 and 16"
    )
    with pytest.raises(ValueError, match=message):
        Diffuser("tiny:diffuser", lora=str(folder))
    sdxl = family_folder("sdxl", tmp_path / "sdxl")
    with pytest.raises(ValueError, match="do not fit StableDiffusionXLPipeline"):
        Diffuser(str(sdxl), lora=str(folder))


def test_unreadable_image_is_named_and_resumable(model: Path, tmp_path: Path) -> None:
    class Broken(ColorPatches):
        broken = True

        def image(self, index: int) -> Image.Image:
            if index == 3 and self.broken:
                raise BadImageError("place/3.png", "cut")
            return super().image(index)

    pool = Broken(2, "train")
    setup = Adaptation(LoraTuning(steps=3, batch_size=2), Diffuser(str(model), size=32), pool)
    with pytest.raises(BadImageError, match=r"place/3\.png cannot be read as an image"):
        tuned(setup, tmp_path)
    task = LoraTraining(setup)
    assert not task.is_complete(task.folder(tmp_path))
    pool.broken = False
    assert task.is_complete(tuned(setup, tmp_path))
