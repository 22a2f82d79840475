"""Tests LoRA weights on a pipeline: applied, scaled, part of the key, rejected where they do not fit."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
from factories import make_diffuser
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from pipelines import diffusers, family_folder
from safetensors.torch import save_file

from lgclip.diffuser import lora_weights
from lgclip.diffuser.base import noise_seed
from lgclip.diffuser.pipeline import Diffuser
from lgclip.types import Prompt, TargetClass

CPU = torch.device("cpu")
PROMPTS = [Prompt(TargetClass(0, "red star"), "a photo of a red star.", repeat) for repeat in range(2)]


def generated(folder: Path, **settings: Any) -> np.ndarray:
    return Diffuser(str(folder), steps=2, guidance=3.0, size=32, **settings).load(CPU)(PROMPTS, 0).astype(int)


def recorded(folder: Path, **settings: Any) -> Any:
    inputs: Any = Diffuser(str(folder), **settings).inputs()
    return inputs["diffuser"]["lora"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_diffuser(tmp_path_factory.mktemp("model") / "diffuser")


@pytest.fixture(scope="module")
def adapted(folder: Path) -> Any:
    """Returns the pipeline with LoRA weights that peft itself has added."""
    pipeline: Any = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    torch.manual_seed(3)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    pipeline.unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=targets))
    for name, weight in pipeline.unet.named_parameters():
        if "lora_B" in name:  # zero in a new adapter, which then changes nothing
            torch.nn.init.normal_(weight)
    return pipeline


@pytest.fixture(scope="module")
def lora(adapted: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saves those weights as diffusers' training scripts do."""
    root = tmp_path_factory.mktemp("lora")
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(adapted.unet))
    adapted.save_lora_weights(root, unet_lora_layers=layers)
    return root


def test_lora_matches_the_adapted_pipeline(folder: Path, lora: Path, adapted: Any) -> None:
    noises = [torch.Generator().manual_seed(noise_seed(prompt, 0)) for prompt in PROMPTS]
    texts = [prompt.text for prompt in PROMPTS]
    kwargs = {"num_inference_steps": 2, "guidance_scale": 3.0, "height": 32, "width": 32, "output_type": "np"}
    expected = (adapted(texts, generator=noises, **kwargs).images * 255).round().astype(int)
    for place in (lora, lora / "pytorch_lora_weights.safetensors"):
        np.testing.assert_allclose(generated(folder, lora=str(place)), expected, atol=1)
    assert np.abs(expected - generated(folder)).max() > 1


def test_lora_scale_is_applied(folder: Path, lora: Path) -> None:
    alone = generated(folder)
    adapted = generated(folder, lora=str(lora))
    half = generated(folder, lora=str(lora), lora_scale=0.5)
    np.testing.assert_allclose(generated(folder, lora=str(lora), lora_scale=0.0), alone, atol=1)
    assert min(np.abs(half - alone).max(), np.abs(half - adapted).max()) > 1


def test_key_has_the_weights_not_their_path(folder: Path, lora: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(lora, tmp_path / "moved") / "pytorch_lora_weights.safetensors"
    assert (
        recorded(folder, lora=str(lora))
        == recorded(folder, lora=str(moved))
        == recorded(folder, lora=str(moved.parent))
    )
    assert recorded(folder, lora=None) is None
    save_file({"other": torch.ones(3)}, moved)
    assert recorded(folder, lora=str(moved)) != recorded(folder, lora=str(lora))


def test_mismatched_weights_are_rejected(folder: Path, lora: Path, tmp_path: Path) -> None:
    save_file({"unknown.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="do not fit StableDiffusionPipeline"):
        generated(folder, lora=str(tmp_path / "other.safetensors"))
    with pytest.raises(ValueError, match="do not fit StableDiffusionXLPipeline"):
        generated(family_folder("sdxl", tmp_path / "sdxl"), lora=str(lora))
    with pytest.raises(ValueError, match="PixArtSigmaPipeline takes no LoRA"):
        generated(family_folder("pixart_sigma", tmp_path / "pixart"), lora=str(lora))


def test_unreadable_weights_are_rejected_early(lora: Path, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match="only safetensors files are read"):
        Diffuser("hub/sd", lora=str(tmp_path / "weights.bin"))
    with pytest.raises(ValueError, match="one safetensors file is wanted in this folder, found none"):
        Diffuser("hub/sd", lora=str(tmp_path))
    for name in ("a", "b"):
        shutil.copy(lora / "pytorch_lora_weights.safetensors", tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match=r"found a\.safetensors, b\.safetensors"):
        Diffuser("hub/sd", lora=str(tmp_path))


def test_missing_peft_is_reported(lora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_weights, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package peft, pip install 'lgclip\[lora\]'"):
        Diffuser("hub/sd", lora=str(lora))
    Diffuser("hub/sd")
