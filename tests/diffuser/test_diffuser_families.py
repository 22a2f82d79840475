"""Tests each family of pipelines: loading as from the hub, and the same images as the pipeline from plain prompts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING, AutoPipelineForText2Image
from diffusers.pipelines.sana.pipeline_sana_sprint import SanaSprintPipeline
from omegaconf import OmegaConf
from pipelines import FAMILIES, family_folder

from lgclip.diffuser import prompt_embeddings
from lgclip.diffuser.base import noise_seed
from lgclip.diffuser.pipeline import BEYOND_AUTO, Diffuser
from lgclip.diffuser.sampling_loop import SamplingPipeline
from lgclip.types import Prompt, TargetClass

CPU = torch.device("cpu")
CONF = Path(__file__).parents[2] / "conf" / "diffuser"
SIZE = 32

OPTIONS: dict[str, dict[str, Any]] = {
    "flux": {"max_sequence_length": 24},
    "flux2_klein": {"text_encoder_out_layers": [1, 2, 3], "max_sequence_length": 40},
    "sana": {"use_resolution_binning": False, "max_sequence_length": 40},
    "sana_sprint": {"use_resolution_binning": False, "max_sequence_length": 40},
    "pixart_sigma": {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 24},
    "z_image": {"max_sequence_length": 40},
}
"""What the small models need to be told; the large ones of the presets are made for the defaults."""
PLAIN = ["a photo of a red star.", "one small green ring."]
CLASSES = [TargetClass(0, "red star"), TargetClass(1, "small green ring")]
PROMPTS = [Prompt(CLASSES[0], PLAIN[0], 0), Prompt(CLASSES[1], PLAIN[1], 0), Prompt(CLASSES[0], PLAIN[0], 1)]

PIPELINES = {
    "tiny": "StableDiffusionPipeline",
    "sd14": "StableDiffusionPipeline",
    "sd15": "StableDiffusionPipeline",
    "sd21": "StableDiffusionPipeline",
    "sd21_base": "StableDiffusionPipeline",
    "sd_turbo": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sdxl_turbo": "StableDiffusionXLPipeline",
    "sd35_medium": "StableDiffusion3Pipeline",
    "flux_schnell": "FluxPipeline",
    "flux_schnell_512": "FluxPipeline",
    "flux2_klein_4b": "Flux2KleinPipeline",
    "sana": "SanaPipeline",
    "sana_512": "SanaPipeline",
    "sana_sprint": "SanaSprintPipeline",
    "pixart_sigma": "PixArtSigmaPipeline",
    "z_image": "ZImagePipeline",
}
"""The pipeline that each preset's repository names in its model_index.json."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {family: family_folder(family, root / family) for family in ("sd", *FAMILIES)}


def load(family: str, folder: Path, **settings: Any) -> SamplingPipeline:
    kwargs = {"steps": 2, "guidance": 4.0, "size": SIZE, "options": OPTIONS.get(family, {}), **settings}
    return Diffuser(str(folder), **kwargs).load(CPU)


def generate_with_pipeline(family: str, folder: Path, guidance: float, **kwargs: Any) -> np.ndarray:
    """Generates with the family's own pipeline from plain prompts, converted to NumPy by the pipeline."""
    loader: Any = AutoPipelineForText2Image if PIPELINES.get(family) not in BEYOND_AUTO else SanaSprintPipeline
    pipeline: Any = loader.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    noises = [torch.Generator().manual_seed(noise_seed(prompt, 5)) for prompt in PROMPTS]
    inputs = {**OPTIONS.get(family, {}), "num_inference_steps": 2, "guidance_scale": guidance, **kwargs}
    texts = [prompt.text for prompt in PROMPTS]
    images = pipeline(prompt=texts, generator=noises, height=SIZE, width=SIZE, output_type="np", **inputs).images
    return (images * 255).round().astype(int)


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [4.0, 1.0, 0.0])
@pytest.mark.parametrize("family", ["sd", *FAMILIES])
def test_embeddings_match_plain_prompts(family: str, guidance: float, folders: dict[str, Path]) -> None:
    brush = load(family, folders[family], guidance=guidance)
    assert type(brush.pipeline).__name__ in prompt_embeddings.RETURNS
    expected = generate_with_pipeline(family, folders[family], guidance)
    np.testing.assert_allclose(brush(PROMPTS, 5).astype(int), expected, atol=1)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "sana", "pixart_sigma", "z_image"])
def test_negative_prompt_matches_the_pipeline(family: str, folders: dict[str, Path]) -> None:
    negative_prompt = "a blue moon."
    brush = load(family, folders[family], negative_prompt=negative_prompt)
    negative = negative_prompt if family in ("sana", "pixart_sigma") else [negative_prompt] * len(PROMPTS)
    expected = generate_with_pipeline(family, folders[family], 4.0, negative_prompt=negative)
    image = brush(PROMPTS, 5).astype(int)
    np.testing.assert_allclose(image, expected, atol=1)
    assert np.abs(image - load(family, folders[family])(PROMPTS, 5)).max() > 1


def test_flux_uses_negative_prompt_only_if_set(folders: dict[str, Path]) -> None:
    away = {"negative_prompt": "a blue moon.", "options": {**OPTIONS["flux"], "true_cfg_scale": 4.0}}
    extra = {"negative_prompt": ["a blue moon."] * len(PROMPTS), "true_cfg_scale": 4.0}
    expected = generate_with_pipeline("flux", folders["flux"], 4.0, **extra)
    image = load("flux", folders["flux"], **away)(PROMPTS, 5).astype(int)
    np.testing.assert_allclose(image, expected, atol=1)
    assert np.abs(image - load("flux", folders["flux"])(PROMPTS, 5)).max() > 1
    with pytest.raises(ValueError, match="true_cfg_scale"):
        load("flux", folders["flux"], negative_prompt="a blue moon.")


def test_flux_2_base_uses_the_empty_prompt(tmp_path: Path) -> None:
    torch.manual_seed(1)
    FAMILIES["flux2_klein"](is_distilled=False).save_pretrained(tmp_path / "base")
    expected = generate_with_pipeline("flux2_klein", tmp_path / "base", 4.0)
    np.testing.assert_allclose(load("flux2_klein", tmp_path / "base")(PROMPTS, 5).astype(int), expected, atol=1)


@pytest.mark.parametrize("family", ["sd", *FAMILIES])
def test_prompt_changes_the_image(family: str, folders: dict[str, Path]) -> None:
    """Checks that the prompt changes the image; otherwise the tests above would compare noise alone."""
    same_noise = load(family, folders[family], noise="repeat")(PROMPTS[:2], 0)
    assert np.abs(same_noise[0].astype(int) - same_noise[1]).max() > 1


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd", *FAMILIES])
def test_prompt_is_encoded_once(family: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    brush = load(family, folders[family])
    encode = brush.pipeline.encode_prompt
    requests = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("prompt") is not None:  # the call itself passes its embeddings through
            requests.append(kwargs["prompt"])
        return encode(*args, **kwargs)

    monkeypatch.setattr(brush.pipeline, "encode_prompt", counted)
    brush.texts._pipeline = brush.pipeline
    together = brush(PROMPTS, 0)
    for prompt, image in zip(PROMPTS, together, strict=True):
        np.testing.assert_allclose(brush([prompt], 0)[0].astype(int), image, atol=1)
    assert len(requests) <= len(PLAIN) + 1, "each distinct prompt, and for some families the empty one"


def test_embedding_cache_is_limited(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_embeddings, "MAX_CACHED", 2)
    brush = load("sd", folders["sd"])
    texts = [f"a {shape}" for shape in ("star", "ring", "moon")]
    brush.texts(texts)
    brush.texts(texts[1:])
    assert brush.texts.encoded == 3
    brush.texts(texts[:1])
    assert brush.texts.encoded == 4, "the least recently used one had left"
    assert len(brush.texts._cached) == 2


def test_unknown_family_gets_plain_prompts(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    known = load("sdxl", folders["sdxl"], negative_prompt="a ring.")(PROMPTS, 0).astype(int)
    monkeypatch.setattr(prompt_embeddings, "RETURNS", {})
    plain = load("sdxl", folders["sdxl"], negative_prompt="a ring.")
    np.testing.assert_allclose(plain(PROMPTS, 0).astype(int), known, atol=1)
    assert plain.texts.encoded == 0


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("flux2_klein", {"negative_prompt": "a ring"}, "Flux2KleinPipeline takes none"),
        ("sd", {"options": {"max_sequence_length": 9}}, "StableDiffusionPipeline takes no max_sequence_length"),
    ],
)
def test_unsupported_options_are_rejected(
    family: str, settings: dict[str, Any], message: str, folders: dict[str, Path]
) -> None:
    with pytest.raises(ValueError, match=message):
        load(family, folders[family], **settings)


def test_presets_name_loadable_pipelines() -> None:
    mapped = {pipeline.__name__ for pipeline in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()}
    assert mapped.isdisjoint(BEYOND_AUTO), "diffusers knows it by now"
    mapped |= set(BEYOND_AUTO)
    presets: dict[str, Any] = {path.stem: OmegaConf.load(path) for path in CONF.glob("*.yaml") if path.stem != "hub"}
    synthetic_images = {name: preset for name, preset in presets.items() if preset["_target_"].endswith("Diffuser")}
    assert synthetic_images.keys() == PIPELINES.keys()
    assert set(PIPELINES.values()) <= mapped
    assert set(PIPELINES.values()) <= prompt_embeddings.RETURNS.keys()
    for name, preset in synthetic_images.items():
        header = (CONF / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[:6]
        assert PIPELINES[name] in " ".join(header) or name == "tiny", f"{name}: its header names its pipeline"
        full_config: Any = OmegaConf.merge({"noise": "image", "precision": "auto"}, {"preset": preset})
        settings: Any = OmegaConf.to_container(full_config.preset, resolve=True)
        assert Diffuser(**{key: value for key, value in settings.items() if key != "_target_"}).model == preset.model
