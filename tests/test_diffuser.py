from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from worlds import diffuser_folder

from lgclip.batch import Prompt
from lgclip.diffuser.base import Brush, image_id, image_prompts, noise_seed
from lgclip.diffuser.pipeline import Diffuser

CPU = torch.device("cpu")
RING = Prompt(0, "a photo of a green ring.", 0)
OTHERS = [RING._replace(class_index=1), RING._replace(text="a ring"), RING._replace(repeat=1)]

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
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, Any], message: str) -> None:
    (name,) = setting
    with pytest.raises(ValueError, match=rf"diffuser\.{name}=.*{message}"):
        Diffuser("hub/sd", **setting)


@given(TEXTS, st.integers(1, 4), st.integers(1, 3))
def test_images_stand_by_class_then_prompt_then_repeat(texts: list[list[str]], prompts: int, images: int) -> None:
    wanted = image_prompts(texts, prompts, images)
    expected = [(c, text) for c, sentences in enumerate(texts) for text in sentences[:prompts] for _ in range(images)]
    assert [(p.class_index, p.text) for p in wanted] == expected
    assert len(set(wanted)) == len(wanted)  # a sentence that comes twice is drawn with another noise


@given(TEXTS, st.integers(1, 3), st.integers(1, 3))
def test_a_larger_set_holds_the_smaller_one_s_images(texts: list[list[str]], prompts: int, images: int) -> None:
    small = set(image_prompts(texts, prompts, images))
    assert small <= set(image_prompts(texts, prompts + 1, images))
    assert small <= set(image_prompts(texts, prompts, images + 1))


def test_the_noise_depends_on_every_input() -> None:
    seeds = [noise_seed(RING, 0), noise_seed(RING, 1), *(noise_seed(p, 0) for p in OTHERS)]
    assert len(set(seeds)) == len(seeds)
    assert noise_seed(Prompt(*RING), 0) == seeds[0]
    assert all(0 <= seed < 2**63 for seed in seeds)  # what torch can take


def test_the_id_depends_on_every_input() -> None:
    ids = [image_id("k", RING, 0), image_id("l", RING, 0), image_id("k", RING, 1)]
    ids += [image_id("k", p, 0) for p in OTHERS]
    assert len(set(ids)) == len(ids)
    assert image_id("k", Prompt(*RING), 0) == ids[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return diffuser_folder(tmp_path_factory.mktemp("model") / "diffuser")


def load(folder: Path, **settings: Any) -> Brush:
    return Diffuser(str(folder), **{"steps": 2, "guidance": 3.0, "size": 32, **settings}).load(CPU)


@pytest.fixture(scope="module")
def brush(folder: Path) -> Brush:
    return load(folder)


def test_a_drawing_has_the_size_asked_for(folder: Path) -> None:
    for size in (16, 32):
        drawn = load(folder, size=size)([RING], 0)
        assert (drawn.shape, drawn.dtype) == ((1, size, size, 3), np.uint8)
        assert drawn.std() > 0


def test_an_image_is_the_same_alone_and_in_any_batch(brush: Brush) -> None:
    together = brush([*OTHERS, RING], 0)
    torch.rand(3)  # what else drew random numbers meanwhile is no matter
    for prompt, image in zip([*OTHERS, RING], together, strict=True):
        # Sums of floats depend on the batch in their last digit: one grey level.
        np.testing.assert_allclose(brush([prompt], 0)[0], image.astype(int), atol=1)


@pytest.mark.parametrize("other", OTHERS, ids=["class", "text", "repeat"])
def test_another_prompt_gives_another_image(other: Prompt, brush: Brush) -> None:
    assert distance(brush([RING], 0), brush([other], 0)) > 1


def test_another_seed_gives_another_image(brush: Brush) -> None:
    assert distance(brush([RING], 0), brush([RING], 1)) > 1


@pytest.mark.parametrize("setting", [{"steps": 4}, {"guidance": 30.0}, {"negative_prompt": "a red star"}])
def test_every_setting_reaches_the_pipeline(setting: dict[str, Any], folder: Path, brush: Brush) -> None:
    assert distance(load(folder, **setting)([RING], 0), brush([RING], 0)) > 0


def test_a_drawing_is_what_the_pipeline_itself_draws(folder: Path, brush: Brush) -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    pipeline: Any = StableDiffusionPipeline.from_pretrained(folder)
    noise = torch.Generator().manual_seed(noise_seed(RING, 5))
    drawn = pipeline(RING.text, 32, 32, num_inference_steps=2, guidance_scale=3.0, generator=noise).images[0]
    np.testing.assert_allclose(brush([RING], 5)[0].astype(int), drawn, atol=1)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b).mean())
