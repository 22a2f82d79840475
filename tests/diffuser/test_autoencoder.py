"""Tests `diffuser.vae`: a small autoencoder in place of the pipeline's own."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from factories import make_diffuser
from pipelines import family_folder

from lgclip.diffuser.pipeline import Diffuser
from lgclip.store.keys import content_key
from lgclip.types import Prompt, TargetClass

CPU = torch.device("cpu")
PROMPTS = [Prompt(TargetClass(0, "red star"), "a red star.", number) for number in range(2)]


def make_autoencoder(folder: Path, channels: int = 4, blocks: int = 2) -> Path:
    """Saves a small autoencoder with random weights; an image is twice as large for each block but the first."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "encoder_block_out_channels": (8,) * blocks, "decoder_block_out_channels": (8,) * blocks,
        "num_encoder_blocks": (1,) * blocks, "num_decoder_blocks": (1,) * blocks,
    }  # fmt: skip
    AutoencoderTiny(latent_channels=channels, **sizes).save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_diffuser(tmp_path_factory.mktemp("pipeline") / "sd")


@pytest.fixture
def diffuser(pipeline_folder: Path) -> Diffuser:
    return Diffuser(str(pipeline_folder), steps=2, guidance=1.0, size=32, precision="fp32")


def test_images_are_decoded_by_it(diffuser: Diffuser, tmp_path: Path) -> None:
    small = replace(diffuser, vae=str(make_autoencoder(tmp_path / "tiny")))
    loaded = small.load(CPU)
    assert isinstance(loaded.pipeline.vae, AutoencoderTiny)
    images = loaded(PROMPTS, 0)
    assert images.shape == (2, 32, 32, 3)
    # By the plain pipeline of diffusers with the same autoencoder, as its authors tell to use it.
    plain: Any = diffuser.pipeline()
    plain.vae = AutoencoderTiny.from_pretrained(tmp_path / "tiny")
    expected = diffuser.load(CPU)
    expected.pipeline.vae = plain.vae
    np.testing.assert_array_equal(images, expected(PROMPTS, 0))
    assert np.abs(images.astype(int) - diffuser.load(CPU)(PROMPTS, 0)).max() > 10
    half = replace(small, precision="bf16").load(CPU)
    assert half.pipeline.vae.dtype == torch.bfloat16


def test_key_holds_its_weights(diffuser: Diffuser, tmp_path: Path) -> None:
    def key(vae: Path | None) -> str:
        return content_key(replace(diffuser, vae=None if vae is None else str(vae)).inputs())

    first = make_autoencoder(tmp_path / "first")
    shutil.copytree(first, tmp_path / "copy")
    assert key(first) == key(tmp_path / "copy") != key(None)
    weights = first / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert key(first) not in (key(tmp_path / "copy"), key(None))
    fields: Any = diffuser.inputs()["diffuser"]
    assert "vae" not in fields, "without one the key is that of a release that knew none"


def test_other_latents_are_rejected(diffuser: Diffuser, tmp_path: Path) -> None:
    for name, arguments in (("channels", {"channels": 16}), ("size", {"blocks": 4})):
        vae = str(make_autoencoder(tmp_path / name, **arguments))
        with pytest.raises(ValueError, match=r"StableDiffusionPipeline have 4 channels and 2 times; choose the one"):
            replace(diffuser, vae=vae).load(CPU)


def test_wrong_folder_is_an_error_before_loading(pipeline_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"diffuser\.vae=.*nowhere"):
        Diffuser(str(pipeline_folder), vae=str(tmp_path / "nowhere" / "deeper"))
    with pytest.raises(ValueError, match="it is a AutoencoderKL, and only AutoencoderTiny"):
        Diffuser(str(pipeline_folder), vae=str(pipeline_folder / "vae"))
    with pytest.raises(ValueError, match=r"it has no config\.json"):
        Diffuser(str(pipeline_folder), vae=str(pipeline_folder))
    empty = make_autoencoder(tmp_path / "empty")
    (empty / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no \.safetensors file"):
        Diffuser(str(pipeline_folder), vae=str(empty))


def test_download_and_plan_name_it(pipeline_folder: Path) -> None:
    diffuser = Diffuser(str(pipeline_folder), vae="owner/taesd", vae_revision="a" * 40)
    assert diffuser.repositories() == [("owner/taesd", "a" * 40)]


def test_sana_has_other_latents(tmp_path: Path) -> None:
    folder = family_folder("sana", tmp_path / "sana")
    vae = make_autoencoder(tmp_path / "tiny", channels=16)
    assert json.loads((folder / "vae" / "config.json").read_text())["_class_name"] == "AutoencoderDC"
    with pytest.raises(ValueError, match="SanaPipeline have 4 channels"):
        Diffuser(str(folder), vae=str(vae), options={"use_resolution_binning": False}).load(CPU)
