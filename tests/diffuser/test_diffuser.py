from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import make_diffuser
from hypothesis import given
from hypothesis import strategies as st

from lgclip.diffuser.base import SyntheticImages, image_id, image_prompts, noise_seed, shared_noise_seed
from lgclip.diffuser.pipeline import Diffuser
from lgclip.diffuser.sampling_loop import SamplingPipeline
from lgclip.store.keys import content_key
from lgclip.types import Prompt, TargetClass

CPU = torch.device("cpu")
CLASS = TargetClass(0, "green ring")
RING = Prompt(CLASS, "a photo of a green ring.", 0)
OTHERS = [
    RING._replace(target_class=CLASS._replace(name="green moon")),
    RING._replace(target_class=CLASS._replace(occurrence=1)),
    RING._replace(text="a ring"),
    RING._replace(repeat=1),
]
SAME = RING._replace(target_class=CLASS._replace(class_index=7, context="a kind of toy"))
"""The same class at another place of another list."""

TEXTS = st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), max_size=3)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"steps": 0}, "at least 1"),
        ({"batch_size": -1}, "at least 1"),
        ({"size": 0}, "multiple of 8"),
        ({"size": 65}, "multiple of 8"),
        ({"size": -64}, "multiple of 8"),
        ({"guidance": -0.1}, "at least 0"),
        ({"guidance": float("nan")}, "at least 0"),
        ({"retries": -1}, "at least 0"),
        ({"lora_scale": float("inf")}, "must be a number"),
        ({"precision": "int4"}, "choose auto, fp32, fp16, bf16"),
        ({"noise": "none"}, "choose image, repeat"),
        ({"offload": "disk"}, "choose none, model, sequential"),
        ({"scheduler": "DDIM"}, "no such scheduler; did you mean .*DDIMScheduler"),
        ({"scheduler": "AutoPipelineForText2Image"}, "no such scheduler"),
        ({"lora": "/no/such/lora"}, "no such file or folder"),
        ({"lora": "weights.safetensors"}, "no such file or folder"),
    ],
)
def test_invalid_settings_are_rejected(setting: dict[str, Any], message: str) -> None:
    (name,) = setting
    with pytest.raises(ValueError, match=rf"diffuser\.{name}=.*{message}"):
        Diffuser("hub/sd", **setting)


def classes_of(texts: list[list[str]]) -> list[TargetClass]:
    return [TargetClass(index, f"class {index}") for index in range(len(texts))]


@given(TEXTS, st.integers(1, 4), st.integers(1, 3))
def test_images_are_ordered_by_class_prompt_and_repeat(texts: list[list[str]], prompts: int, images: int) -> None:
    required = image_prompts(classes_of(texts), texts, prompts, images)
    expected = []
    for c, sentences in enumerate(texts):
        for text in sentences[:prompts]:
            for _ in range(images):
                expected.append((c, text))
    assert [(p.class_index, p.text) for p in required] == expected
    assert len(set(required)) == len(required)  # a sentence that comes twice is drawn with another noise


@given(TEXTS, st.integers(1, 3), st.integers(1, 3))
def test_larger_set_contains_the_smaller(texts: list[list[str]], prompts: int, images: int) -> None:
    classes = classes_of(texts)
    small = set(image_prompts(classes, texts, prompts, images))
    assert small <= set(image_prompts(classes, texts, prompts + 1, images))
    assert small <= set(image_prompts(classes, texts, prompts, images + 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"options": {"generator": 1}}, r"diffuser\.options\.generator: this has a field of its own"),
        ({"options": {"num_inference_steps": 1}}, r"diffuser\.options\.num_inference_steps"),
        ({"scheduler_options": {"beta_end": 0.1}}, r"name the scheduler too"),
        ({"scheduler": "DDIMScheduler", "scheduler_options": {"gamma": 1}}, r"gamma: DDIMScheduler takes .*beta_end"),
    ],
)
def test_conflicting_settings_are_rejected(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Diffuser("hub/sd", **settings)


def test_noise_depends_on_every_input() -> None:
    seeds = [noise_seed(RING, 0), noise_seed(RING, 1), noise_seed(RING, 0, 1), *(noise_seed(p, 0) for p in OTHERS)]
    assert len(set(seeds)) == len(seeds)
    assert noise_seed(SAME, 0) == seeds[0]
    assert all(0 <= seed < 2**63 for seed in seeds)  # what torch can take


def test_image_id_depends_on_every_input() -> None:
    ids = [image_id("k", RING, 0), image_id("l", RING, 0), image_id("k", RING, 1), image_id("k", RING, 0, 1)]
    ids += [image_id("k", p, 0) for p in OTHERS]
    assert len(set(ids)) == len(ids)
    assert image_id("k", SAME, 0) == ids[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_diffuser(tmp_path_factory.mktemp("model") / "diffuser")


def load(folder: Path, **settings: Any) -> SamplingPipeline:
    return Diffuser(str(folder), **{"steps": 2, "guidance": 3.0, "size": 32, **settings}).load(CPU)


@pytest.fixture(scope="module")
def sampling_pipeline(folder: Path) -> SamplingPipeline:
    return load(folder)


def test_image_has_the_requested_size(folder: Path) -> None:
    for size in (16, 32):
        generated = load(folder, size=size)([RING], 0)
        assert (generated.shape, generated.dtype) == ((1, size, size, 3), np.uint8)
        assert generated.std() > 0


def test_image_does_not_depend_on_its_batch(sampling_pipeline: SamplingPipeline) -> None:
    together = sampling_pipeline([*OTHERS, RING], 0)
    torch.rand(3)  # what else drew random numbers meanwhile is no matter
    for prompt, image in zip([*OTHERS, RING], together, strict=True):
        # Sums of floats depend on the batch in their last digit: one grey level.
        np.testing.assert_allclose(sampling_pipeline([prompt], 0)[0], image.astype(int), atol=1)


@pytest.mark.parametrize("other_prompt", OTHERS, ids=["name", "occurrence", "text", "repeat"])
def test_other_prompt_gives_another_image(other_prompt: Prompt, sampling_pipeline: SamplingPipeline) -> None:
    assert distance(sampling_pipeline([RING], 0), sampling_pipeline([other_prompt], 0)) > 1


def test_other_seed_gives_another_image(sampling_pipeline: SamplingPipeline) -> None:
    assert distance(sampling_pipeline([RING], 0), sampling_pipeline([RING], 1)) > 1


@pytest.mark.parametrize("setting", [{"steps": 4}, {"guidance": 30.0}, {"negative_prompt": "a red star"}])
def test_settings_reach_the_pipeline(
    setting: dict[str, Any], folder: Path, sampling_pipeline: SamplingPipeline
) -> None:
    assert distance(load(folder, **setting)([RING], 0), sampling_pipeline([RING], 0)) > 0


def test_image_matches_the_pipeline(folder: Path, sampling_pipeline: SamplingPipeline) -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    pipeline: Any = StableDiffusionPipeline.from_pretrained(folder)
    noise = torch.Generator().manual_seed(noise_seed(RING, 5))
    generated = pipeline(RING.text, 32, 32, num_inference_steps=2, guidance_scale=3.0, generator=noise).images[0]
    np.testing.assert_allclose(sampling_pipeline([RING], 5)[0].astype(int), generated, atol=1)


def test_rounding_matches_the_pipeline(folder: Path, sampling_pipeline: SamplingPipeline) -> None:
    pipeline: Any = sampling_pipeline.pipeline
    noise = torch.Generator().manual_seed(noise_seed(RING, 5))
    kwargs = {"num_inference_steps": 2, "guidance_scale": 3.0, "height": 32, "width": 32, "generator": [noise]}
    images = pipeline(prompt=[RING.text], output_type="np", **kwargs).images
    np.testing.assert_array_equal(sampling_pipeline([RING], 5), (images * 255).round().astype("uint8"))


def test_noise_per_class_matches_the_release(folder: Path) -> None:
    assert [shared_noise_seed(RING._replace(repeat=j), 0) for j in range(10)] == list(range(10))
    assert shared_noise_seed(OTHERS[0], 7) == shared_noise_seed(RING, 7) == 7
    repeated = load(folder, noise="repeat")
    generated = repeated([RING, OTHERS[0], OTHERS[2]], 3)
    np.testing.assert_allclose(
        generated[0].astype(int), generated[1], atol=1
    )  # another class, the same noise and words
    assert np.abs(generated[0].astype(int) - generated[2]).max() > 1
    noise = torch.Generator().manual_seed(3)
    pipeline: Any = repeated.pipeline
    kwargs = {"num_inference_steps": 2, "guidance_scale": 3.0, "height": 32, "width": 32}
    expected = np.asarray(pipeline(RING.text, generator=noise, **kwargs).images[0])
    np.testing.assert_allclose(generated[0].astype(int), expected, atol=1)


@pytest.mark.parametrize(
    "setting", [{"channels_last": True}, {"slicing": True}, {"offload": "model"}, {"offload": "sequential"}]
)
def test_non_inputs_change_no_pixel(setting: dict[str, Any], folder: Path, sampling_pipeline: SamplingPipeline) -> None:
    prompts = [RING, *OTHERS]
    np.testing.assert_allclose(load(folder, **setting)(prompts, 0).astype(int), sampling_pipeline(prompts, 0), atol=1)


def test_compiled_blocks_give_the_same_image(folder: Path, sampling_pipeline: SamplingPipeline) -> None:
    """Checks that the blocks are compiled and what they compute, without the compiler, which takes half a minute."""
    with torch.compiler.set_stance("force_eager"):
        compiled = load(folder, compile=True)
        np.testing.assert_allclose(compiled([RING], 0).astype(int), sampling_pipeline([RING], 0), atol=1)
    blocks = [m for m in compiled.pipeline.unet.modules() if type(m).__name__ == "BasicTransformerBlock"]
    assert blocks
    assert all(block._compiled_call_impl is not None for block in blocks)
    assert compiled.pipeline.vae.decoder._compiled_call_impl is not None


@pytest.mark.parametrize("batch_size", [16, "auto"])
@pytest.mark.parametrize(("free", "slicing"), [(2**30, True), (141 * 2**30, False)])
def test_batches_are_decoded_at_once_where_memory_allows(
    folder: Path, monkeypatch: pytest.MonkeyPatch, free: int, slicing: bool, batch_size: Any
) -> None:
    """Checks the choice on a GPU, of which only the free memory is simulated."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
    diffuser = Diffuser(str(folder), size=512, batch_size=batch_size, channels_last=False)
    pipeline = diffuser.pipeline()
    monkeypatch.setattr(pipeline, "to", lambda device: pipeline)
    diffuser._place(pipeline, torch.device("cuda"))
    assert pipeline.vae.use_slicing == slicing


def test_tiling_changes_pixels_and_key(folder: Path, sampling_pipeline: SamplingPipeline) -> None:
    tiled = Diffuser(str(folder), tiling=True)
    assert content_key(tiled.inputs()) != content_key(Diffuser(str(folder)).inputs())
    assert load(folder, tiling=True).pipeline.vae.use_tiling
    assert not sampling_pipeline.pipeline.vae.use_tiling


def test_wrong_image_size_is_an_error(sampling_pipeline: SamplingPipeline) -> None:
    arguments = {"num_inference_steps": 1, "height": 16, "width": 16}
    unusual = SamplingPipeline(sampling_pipeline.pipeline, CPU, arguments, None, noise_seed, 24)
    with pytest.raises(ValueError, match=r"diffuser\.size=24: StableDiffusionPipeline generated 16 x 16 pixels"):
        unusual([RING], 0)


def test_scheduler_keeps_checkpoint_settings(folder: Path, sampling_pipeline: SamplingPipeline) -> None:
    changed = load(folder, scheduler="DDIMScheduler", scheduler_options={"clip_sample": False})
    config = changed.pipeline.scheduler.config
    assert type(changed.pipeline.scheduler).__name__ == "DDIMScheduler"
    assert (config.clip_sample, config.steps_offset) == (
        False,
        sampling_pipeline.pipeline.scheduler.config.steps_offset,
    )
    assert distance(changed([RING], 0), sampling_pipeline([RING], 0)) > 0
    with pytest.raises(
        ValueError, match=r"FlowMatchEulerDiscreteScheduler is made for flow matching, unlike DPMSolver"
    ):
        load(folder, scheduler="FlowMatchEulerDiscreteScheduler")


def test_scheduler_noise_is_per_image(folder: Path) -> None:
    ancestral = load(folder, scheduler="EulerAncestralDiscreteScheduler")
    together = ancestral([*OTHERS, RING], 0)
    np.testing.assert_allclose(ancestral([RING], 0)[0].astype(int), together[-1], atol=1)


def test_precision_is_resolved_and_in_the_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def recorded(precision: str) -> Any:
        inputs: Any = Diffuser(str(folder), precision=precision).inputs()
        return inputs["diffuser"]["precision"]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (recorded("auto"), recorded("bf16")) == ("fp32", "bf16")
    assert load(folder).pipeline.unet.dtype == torch.float32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert recorded("auto") == "bf16"
    # What is loaded is what the key says, even if the run is then put on the CPU.
    half = load(folder)
    assert half.pipeline.unet.dtype == torch.bfloat16
    assert half([RING], 0).std() > 0
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert recorded("auto") == "fp32"


def test_pipeline_defaults_are_keyed_by_version(folder: Path) -> None:
    inputs: Any = Diffuser(str(folder), steps=2, guidance=3.0, size=32).inputs()
    assert "defaults" not in inputs["diffuser"]
    for name in ("steps", "guidance", "size"):
        kwargs = {"steps": 2, "guidance": 3.0, "size": 32, name: None}
        left: Any = Diffuser(str(folder), **kwargs).inputs()
        assert left["diffuser"]["defaults"].startswith("diffusers 0.")
    generated = Diffuser(str(folder), steps=1).load(CPU)([RING], 0)
    assert generated.shape == (1, 32, 32, 3)  # 16 latents a side, twice as many pixels


def test_invalid_pipeline_folder_is_rejected(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"model_index\.json"):
        Diffuser(str(tmp_path)).load(CPU)
    (tmp_path / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    with pytest.raises(ValueError, match=r"diffuser\.model=.*WanPipeline"):
        Diffuser(str(tmp_path)).load(CPU)
    with pytest.raises(ValueError, match=r"diffuser\.model=.*variant"):
        Diffuser(str(folder), variant="fp16").load(CPU)


def test_variant_is_loaded(folder: Path, tmp_path: Path, sampling_pipeline: SamplingPipeline) -> None:
    pipeline: Any = sampling_pipeline.pipeline
    pipeline.save_pretrained(tmp_path / "half", variant="fp16")
    assert list((tmp_path / "half" / "unet").glob("*.fp16.safetensors"))
    np.testing.assert_allclose(load(tmp_path / "half", variant="fp16")([RING], 0), sampling_pipeline([RING], 0), atol=1)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b).mean())


def test_images_in_another_store_are_not_failures() -> None:
    with pytest.raises(ValueError, match=r"class 0 \('moon'\): none of its images is there; name the store that holds"):
        SyntheticImages("key", [TargetClass(0, "moon")], [], [], [])
