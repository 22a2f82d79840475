"""LoRA weights are tuned: interrupted or not, on one device or two, without a label; and then drawn with."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from crowd import finished, started
from fit_adapters import about, adaptation, tuned, weights
from PIL import Image
from pipelines import family_folder
from student_worlds import Patches, one_cpu, stages_of
from worlds import diffuser_folder, rows, tree

from lgclip.adaptation import Adaptation
from lgclip.adapting import adapt, folder_of, is_tuned, learner_of, told
from lgclip.batch import Prompt
from lgclip.datasets.base import BadImageError
from lgclip.diffuser.base import noise_seed
from lgclip.diffuser.pipeline import Diffuser
from lgclip.lora_spec import LoraTuning, TuningBatch
from lgclip.methods.diffuser_lora import DiffuserLora
from lgclip.tuning_pool import Steps, TuningPool

CPU = torch.device("cpu")
PROMPTS = [Prompt(0, "a photo of a red star.", repeat) for repeat in range(2)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return diffuser_folder(tmp_path_factory.mktemp("model") / "diffuser")


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name, value in wanted.items() if not torch.equal(found[name], value)] == []


def put_on(learner: DiffuserLora, folder: Path) -> None:
    """Gives a learner the weights that were tuned, by the names that peft gives them."""
    found = {name.removeprefix("unet."): value for name, value in weights(folder).items()}
    for name, weight in learner.unet.named_parameters():
        if ".default." in name:
            factor = name.replace("lora_A.default", "lora.down").replace("lora_B.default", "lora.up")
            weight.data = found[factor]


def pictures(model: Path, **settings: Any) -> np.ndarray:
    return Diffuser(str(model), steps=2, guidance=3.0, size=32, **settings).load(CPU)(PROMPTS, 0).astype(int)


def test_the_loss_falls_on_twenty_images_in_thirty_steps(tmp_path: Path) -> None:
    """On what is always the same: all of them at five noise levels, before and after."""
    spec = LoraTuning(steps=30, batch_size=4, lr=3e-3)
    what = Adaptation(spec, Diffuser("tiny:diffuser", size=32), Patches(7, "train"))
    before = learner_of(what, CPU)
    steps = Steps(TuningPool(LoraTuning(seed=9, batch_size=20), what.images(), 32), 0, 1)
    judged = [steps[at] for at in range(5)]

    def loss(module: DiffuserLora) -> float:
        with torch.no_grad():
            return float(np.mean([module.losses(batch).mean() for batch in judged]))

    first = loss(before)
    folder = tuned(what, tmp_path)
    after: Any = learner_of(what, CPU)
    put_on(after, folder)
    assert loss(after) < 0.9 * first
    assert told(folder).startswith(f"{folder}: 30 steps on 21 images of patches, mean loss ")


def test_the_store_holds_the_weights_and_what_is_told_of_them(model: Path, tmp_path: Path) -> None:
    what = adaptation(model)
    folder = tuned(what, tmp_path)
    assert set(tree(tmp_path)) == {
        f"adapters/{folder.name}/lora.json", f"adapters/{folder.name}/pytorch_lora_weights.safetensors"
    }  # fmt: skip
    said = about(folder)
    assert said["trained_on"] == {"dataset": "patches", "split": "train", "pool": 6}
    assert [row["step"] for row in said["history"]] == list(range(1, 9))
    assert all(np.isfinite(row["loss"]) for row in said["history"])
    assert said["key"] == folder.name == folder_of(what, tmp_path).name

    def refuse(**_: Any) -> Any:
        raise AssertionError("no trainer is needed")

    before, stages = tree(tmp_path), stages_of()
    assert adapt(stages, refuse, what, tmp_path) == folder
    assert tree(tmp_path) == before
    assert [(account.made, account.reused) for account in stages.accounts] == [(0, 8)]
    again = tuned(what, tmp_path / "again")
    assert tree(again)["pytorch_lora_weights.safetensors"] == tree(folder)["pytorch_lora_weights.safetensors"]


@pytest.mark.parametrize("strength", [None, 12.0])
def test_the_tuned_pipeline_draws_other_images_under_another_key(
    strength: float | None, model: Path, tmp_path: Path
) -> None:
    """What `diffuser.lora` draws is what the U-Net with the adapters that were tuned draws."""
    what = adaptation(model, alpha=strength, lr=0.1)
    folder = tuned(what, tmp_path)
    alone, ours = pictures(model), pictures(model, lora=str(folder))
    assert np.abs(alone - ours).max() > 3
    assert Diffuser(str(model)).inputs() != Diffuser(str(model), lora=str(folder)).inputs()
    learner: Any = learner_of(what, CPU)
    put_on(learner, folder)
    pipeline: Any = Diffuser(str(model)).pipeline()
    pipeline.unet = learner.unet.eval()
    noises = [torch.Generator().manual_seed(noise_seed(prompt, 0)) for prompt in PROMPTS]
    given = {"num_inference_steps": 2, "guidance_scale": 3.0, "height": 32, "width": 32, "output_type": "np"}
    expected = pipeline([prompt.text for prompt in PROMPTS], generator=noises, **given).images
    np.testing.assert_allclose(ours, (expected * 255).round(), atol=1)


@pytest.mark.parametrize(("at", "accumulate"), [(1, 1), (4, 1), (5, 2), (7, 2)])
def test_an_interrupted_tuning_ends_with_the_very_weights_of_an_unbroken_one(
    at: int, accumulate: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = adaptation(model, accumulate=accumulate)
    whole = tuned(what, tmp_path / "whole")
    step, steps = DiffuserLora.training_step, []

    def cut(learner: DiffuserLora, batch: TuningBatch, batch_idx: int) -> torch.Tensor:
        steps.append(batch.step)
        if batch.step == at and steps.count(at) == accumulate:
            raise RuntimeError("power cut")
        return step(learner, batch, batch_idx)

    monkeypatch.setattr(DiffuserLora, "training_step", cut)
    torch.manual_seed(7)  # what the process did before must not matter
    with pytest.raises(RuntimeError, match="power cut"):
        tuned(what, tmp_path / "cut")
    assert not is_tuned(folder_of(what, tmp_path / "cut"))
    left = len(steps)
    again = tuned(what, tmp_path / "cut")
    assert steps[left:] == [step for step in range(at // 2 * 2, 8) for _ in range(accumulate)]
    assert_equal(weights(again), weights(whole))
    assert about(again)["history"] == about(whole)["history"]


def test_two_devices_tune_the_same_weights_and_one_that_is_killed_goes_on(model: Path, tmp_path: Path) -> None:
    script = Path(__file__).with_name("fit_adapters.py")
    finished([started([sys.executable, str(script), str(tmp_path), str(model)])])
    what = adaptation(model)
    alone, shared = (folder_of(what, tmp_path / store) for store in ("1", "2"))
    assert about(shared)["devices"] == 2
    for name, value in weights(shared).items():
        torch.testing.assert_close(value, weights(alone)[name], rtol=1e-3, atol=1e-5)
    losses = [[row["loss"] for row in about(folder)["history"]] for folder in (alone, shared)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    killed = folder_of(what, tmp_path / "cut")
    assert list(tree(killed)) == ["checkpoints/last.safetensors"]
    assert_equal(weights(tuned(what, tmp_path / "cut")), weights(alone))


def test_parts_of_a_step_make_the_step(model: Path, tmp_path: Path) -> None:
    whole = tuned(adaptation(model), tmp_path / "whole")
    parts = tuned(adaptation(model, accumulate=3, gradient_checkpointing=True), tmp_path / "parts")
    assert whole.name == parts.name, "how it is computed is in no key"
    for name, value in weights(parts).items():
        torch.testing.assert_close(value, weights(whole)[name], rtol=1e-3, atol=1e-5)


def test_what_a_logger_is_told_is_the_history(model: Path, tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    folder = adapt(
        stages_of(), one_cpu, adaptation(model, steps=45), tmp_path, logger=CSVLogger(tmp_path / "log", "lora")
    )
    logged, history = rows(next((tmp_path / "log").rglob("metrics.csv"))), about(folder)["history"]
    assert [int(row["step"]) for row in logged] == [row["step"] for row in history] == [*range(2, 45, 2), 45]
    assert [float(row["loss"]) for row in logged] == pytest.approx([row["loss"] for row in history])


def test_sdxl_is_tuned_and_drawn_with_too(tmp_path: Path) -> None:
    model = family_folder("sdxl", tmp_path / "sdxl")
    folder = tuned(adaptation(model, steps=4, lr=0.1), tmp_path)
    assert np.abs(pictures(model, lora=str(folder)) - pictures(model)).max() > 1


def test_weights_for_another_u_net_are_refused_before_anything_loads(model: Path, tmp_path: Path) -> None:
    folder = tuned(adaptation(model, steps=1), tmp_path)
    said = r"do not fit StableDiffusionPipeline of tiny:diffuser \(.*to_k has 128 inputs .*, and they are for 16 and 16"
    with pytest.raises(ValueError, match=said):
        Diffuser("tiny:diffuser", lora=str(folder))
    sdxl = family_folder("sdxl", tmp_path / "sdxl")
    with pytest.raises(ValueError, match="do not fit StableDiffusionXLPipeline"):
        Diffuser(str(sdxl), lora=str(folder))


def test_an_image_that_cannot_be_read_is_named_and_the_same_command_goes_on(model: Path, tmp_path: Path) -> None:
    class Broken(Patches):
        broken = True

        def image(self, index: int) -> Image.Image:
            if index == 3 and self.broken:
                raise BadImageError("place/3.png", "cut")
            return super().image(index)

    pool = Broken(2, "train")
    what = Adaptation(LoraTuning(steps=3, batch_size=2), Diffuser(str(model), size=32), pool)
    with pytest.raises(BadImageError, match=r"place/3\.png cannot be read as an image"):
        tuned(what, tmp_path)
    assert not is_tuned(folder_of(what, tmp_path))
    pool.broken = False
    assert is_tuned(tuned(what, tmp_path))
