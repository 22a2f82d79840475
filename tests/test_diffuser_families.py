"""Each family of pipelines: loaded as from the hub, and drawing what the pipeline itself draws from plain prompts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING, AutoPipelineForText2Image
from omegaconf import OmegaConf
from pipelines import FAMILIES, family_folder

from lgclip.batch import Prompt
from lgclip.diffuser import embeddings
from lgclip.diffuser.base import noise_seed
from lgclip.diffuser.brush import PipelineBrush
from lgclip.diffuser.pipeline import Diffuser

CPU = torch.device("cpu")
CONF = Path(__file__).parents[1] / "conf" / "diffuser"
SIZE = 32

OPTIONS: dict[str, dict[str, Any]] = {
    "flux": {"max_sequence_length": 24},
    "flux2_klein": {"text_encoder_out_layers": [1, 2, 3], "max_sequence_length": 40},
    "sana": {"use_resolution_binning": False, "max_sequence_length": 40},
    "pixart_sigma": {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 24},
    "z_image": {"max_sequence_length": 40},
}
"""What the small models need to be told; the large ones of the presets are made for the defaults."""
PLAIN = ["a photo of a red star.", "one small green ring."]
PROMPTS = [Prompt(0, PLAIN[0], 0), Prompt(1, PLAIN[1], 0), Prompt(0, PLAIN[0], 1)]

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
    "flux2_klein_4b": "Flux2KleinPipeline",
    "sana": "SanaPipeline",
    "pixart_sigma": "PixArtSigmaPipeline",
    "z_image": "ZImagePipeline",
}
"""The pipeline that each preset's repository names in its model_index.json."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {family: family_folder(family, root / family) for family in ("sd", *FAMILIES)}


def load(family: str, folder: Path, **settings: Any) -> PipelineBrush:
    given = {"steps": 2, "guidance": 4.0, "size": SIZE, "options": OPTIONS.get(family, {}), **settings}
    return Diffuser(str(folder), **given).load(CPU)


def drawn_by_the_pipeline(family: str, folder: Path, guidance: float, **more: Any) -> np.ndarray:
    """The family's own pipeline with plain prompts, its images by its own way to NumPy."""
    pipeline: Any = AutoPipelineForText2Image.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    noises = [torch.Generator().manual_seed(noise_seed(prompt, 5)) for prompt in PROMPTS]
    given = {**OPTIONS.get(family, {}), "num_inference_steps": 2, "guidance_scale": guidance, **more}
    texts = [prompt.text for prompt in PROMPTS]
    images = pipeline(prompt=texts, generator=noises, height=SIZE, width=SIZE, output_type="np", **given).images
    return (images * 255).round().astype(int)


@pytest.mark.parametrize("guidance", [4.0, 1.0, 0.0])
@pytest.mark.parametrize("family", ["sd", *FAMILIES])
def test_embeddings_draw_what_plain_prompts_draw(family: str, guidance: float, folders: dict[str, Path]) -> None:
    brush = load(family, folders[family], guidance=guidance)
    assert type(brush.pipeline).__name__ in embeddings.RETURNS
    expected = drawn_by_the_pipeline(family, folders[family], guidance)
    np.testing.assert_allclose(brush(PROMPTS, 5).astype(int), expected, atol=1)


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "sana", "pixart_sigma", "z_image"])
def test_the_negative_prompt_is_the_pipeline_s_own(family: str, folders: dict[str, Path]) -> None:
    said = "a blue moon."
    brush = load(family, folders[family], negative_prompt=said)
    negative = said if family in ("sana", "pixart_sigma") else [said] * len(PROMPTS)
    expected = drawn_by_the_pipeline(family, folders[family], 4.0, negative_prompt=negative)
    image = brush(PROMPTS, 5).astype(int)
    np.testing.assert_allclose(image, expected, atol=1)
    assert np.abs(image - load(family, folders[family])(PROMPTS, 5)).max() > 1


def test_flux_is_guided_away_only_where_it_is_told_to(folders: dict[str, Path]) -> None:
    away = {"negative_prompt": "a blue moon.", "options": {**OPTIONS["flux"], "true_cfg_scale": 4.0}}
    more = {"negative_prompt": ["a blue moon."] * len(PROMPTS), "true_cfg_scale": 4.0}
    expected = drawn_by_the_pipeline("flux", folders["flux"], 4.0, **more)
    image = load("flux", folders["flux"], **away)(PROMPTS, 5).astype(int)
    np.testing.assert_allclose(image, expected, atol=1)
    assert np.abs(image - load("flux", folders["flux"])(PROMPTS, 5)).max() > 1
    with pytest.raises(ValueError, match="true_cfg_scale"):
        load("flux", folders["flux"], negative_prompt="a blue moon.")


def test_flux_2_base_is_guided_by_the_empty_prompt(tmp_path: Path) -> None:
    torch.manual_seed(1)
    FAMILIES["flux2_klein"](is_distilled=False).save_pretrained(tmp_path / "base")
    expected = drawn_by_the_pipeline("flux2_klein", tmp_path / "base", 4.0)
    np.testing.assert_allclose(load("flux2_klein", tmp_path / "base")(PROMPTS, 5).astype(int), expected, atol=1)


@pytest.mark.parametrize("family", ["sd", *FAMILIES])
def test_what_is_said_reaches_the_image(family: str, folders: dict[str, Path]) -> None:
    """Without this the tests above would be of the noise alone."""
    same_noise = load(family, folders[family], noise="repeat")([Prompt(c, t, 0) for c, t in enumerate(PLAIN)], 0)
    assert np.abs(same_noise[0].astype(int) - same_noise[1]).max() > 1


@pytest.mark.parametrize("family", ["sd", *FAMILIES])
def test_a_prompt_is_encoded_once_and_its_image_is_the_same_in_any_batch(
    family: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    brush = load(family, folders[family])
    encode, asked = brush.pipeline.encode_prompt, []

    def counted(*args: Any, **given: Any) -> Any:
        if given.get("prompt") is not None:  # the call itself passes its embeddings through
            asked.append(given["prompt"])
        return encode(*args, **given)

    monkeypatch.setattr(brush.pipeline, "encode_prompt", counted)
    brush.texts._pipeline = brush.pipeline
    together = brush(PROMPTS, 0)
    for prompt, image in zip(PROMPTS, together, strict=True):
        np.testing.assert_allclose(brush([prompt], 0)[0].astype(int), image, atol=1)
    assert len(asked) <= len(PLAIN) + 1, "each distinct prompt, and for some families the empty one"


def test_no_more_embeddings_are_kept_than_said(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "KEPT", 2)
    brush = load("sd", folders["sd"])
    texts = [f"a {shape}" for shape in ("star", "ring", "moon")]
    brush.texts(texts)
    brush.texts(texts[1:])
    assert brush.texts.encoded == 3
    brush.texts(texts[:1])
    assert brush.texts.encoded == 4, "the least recently used one had left"
    assert len(brush.texts._kept) == 2


def test_a_family_that_is_not_known_is_given_plain_prompts(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = load("sdxl", folders["sdxl"], negative_prompt="a ring.")(PROMPTS, 0).astype(int)
    monkeypatch.setattr(embeddings, "RETURNS", {})
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
def test_what_a_pipeline_does_not_take_is_refused(
    family: str, settings: dict[str, Any], message: str, folders: dict[str, Path]
) -> None:
    with pytest.raises(ValueError, match=message):
        load(family, folders[family], **settings)


def test_every_preset_names_a_pipeline_that_diffusers_can_load() -> None:
    mapped = {pipeline.__name__ for pipeline in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()}
    presets: dict[str, Any] = {path.stem: OmegaConf.load(path) for path in CONF.glob("*.yaml") if path.stem != "hub"}
    drawing = {name: preset for name, preset in presets.items() if preset["_target_"].endswith("Diffuser")}
    assert drawing.keys() == PIPELINES.keys()
    assert set(PIPELINES.values()) <= mapped
    assert set(PIPELINES.values()) <= embeddings.RETURNS.keys()
    for name, preset in drawing.items():
        header = (CONF / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[:6]
        assert PIPELINES[name] in " ".join(header) or name == "tiny", f"{name}: its header names its pipeline"
        whole: Any = OmegaConf.merge({"noise": "image", "precision": "auto"}, {"preset": preset})
        given: Any = OmegaConf.to_container(whole.preset, resolve=True)
        assert Diffuser(**{key: value for key, value in given.items() if key != "_target_"}).model == preset.model
