"""LoRA weights on a pipeline: applied, scaled, part of the key, refused where they do not fit."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from pipelines import diffusers, family_folder
from safetensors.torch import save_file
from worlds import diffuser_folder

from lgclip.batch import Prompt
from lgclip.diffuser import adapter
from lgclip.diffuser.base import noise_seed
from lgclip.diffuser.pipeline import Diffuser

CPU = torch.device("cpu")
PROMPTS = [Prompt(0, "a photo of a red star.", repeat) for repeat in range(2)]


def drawn(folder: Path, **settings: Any) -> np.ndarray:
    return Diffuser(str(folder), steps=2, guidance=3.0, size=32, **settings).load(CPU)(PROMPTS, 0).astype(int)


def recorded(folder: Path, **settings: Any) -> Any:
    inputs: Any = Diffuser(str(folder), **settings).inputs()
    return inputs["diffuser"]["lora"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return diffuser_folder(tmp_path_factory.mktemp("model") / "diffuser")


@pytest.fixture(scope="module")
def adapted(folder: Path) -> Any:
    """The pipeline with LoRA weights put on it by peft itself."""
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
    """Those weights as diffusers' training scripts save them."""
    root = tmp_path_factory.mktemp("lora")
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(adapted.unet))
    adapted.save_lora_weights(root, unet_lora_layers=layers)
    return root


def test_a_lora_draws_what_the_adapted_pipeline_draws(folder: Path, lora: Path, adapted: Any) -> None:
    noises = [torch.Generator().manual_seed(noise_seed(prompt, 0)) for prompt in PROMPTS]
    texts = [prompt.text for prompt in PROMPTS]
    given = {"num_inference_steps": 2, "guidance_scale": 3.0, "height": 32, "width": 32, "output_type": "np"}
    expected = (adapted(texts, generator=noises, **given).images * 255).round().astype(int)
    for place in (lora, lora / "pytorch_lora_weights.safetensors"):
        np.testing.assert_allclose(drawn(folder, lora=str(place)), expected, atol=1)
    assert np.abs(expected - drawn(folder)).max() > 1


def test_its_scale_counts_and_none_of_it_is_the_pipeline_alone(folder: Path, lora: Path) -> None:
    alone, whole = drawn(folder), drawn(folder, lora=str(lora))
    half = drawn(folder, lora=str(lora), lora_scale=0.5)
    np.testing.assert_allclose(drawn(folder, lora=str(lora), lora_scale=0.0), alone, atol=1)
    assert min(np.abs(half - alone).max(), np.abs(half - whole).max()) > 1


def test_the_key_holds_the_weights_and_not_their_place(folder: Path, lora: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(lora, tmp_path / "moved") / "pytorch_lora_weights.safetensors"
    assert (
        recorded(folder, lora=str(lora))
        == recorded(folder, lora=str(moved))
        == recorded(folder, lora=str(moved.parent))
    )
    assert recorded(folder, lora=None) is None
    save_file({"other": torch.ones(3)}, moved)
    assert recorded(folder, lora=str(moved)) != recorded(folder, lora=str(lora))


def test_weights_that_do_not_fit_are_an_error_and_not_left_out(folder: Path, lora: Path, tmp_path: Path) -> None:
    save_file({"unknown.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="do not fit StableDiffusionPipeline"):
        drawn(folder, lora=str(tmp_path / "other.safetensors"))
    with pytest.raises(ValueError, match="do not fit StableDiffusionXLPipeline"):
        drawn(family_folder("sdxl", tmp_path / "sdxl"), lora=str(lora))
    with pytest.raises(ValueError, match="PixArtSigmaPipeline takes no LoRA"):
        drawn(family_folder("pixart_sigma", tmp_path / "pixart"), lora=str(lora))


def test_what_cannot_be_read_is_refused_before_anything_loads(lora: Path, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match="only safetensors files are read"):
        Diffuser("hub/sd", lora=str(tmp_path / "weights.bin"))
    with pytest.raises(ValueError, match="one safetensors file is wanted in this folder, found none"):
        Diffuser("hub/sd", lora=str(tmp_path))
    for name in ("a", "b"):
        shutil.copy(lora / "pytorch_lora_weights.safetensors", tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match=r"found a\.safetensors, b\.safetensors"):
        Diffuser("hub/sd", lora=str(tmp_path))


def test_without_peft_the_way_out_is_said(lora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package peft, pip install 'lgclip\[lora\]'"):
        Diffuser("hub/sd", lora=str(lora))
    Diffuser("hub/sd")
