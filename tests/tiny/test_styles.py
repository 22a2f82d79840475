"""Tests the synthetic images in other styles: stateless, equal shapes, different images."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from jaxtyping import Bool
from scipy.ndimage import binary_dilation
from torch import Tensor

from lgclip.datasets.embedded import Shapes
from lgclip.encoder.open_clip import OpenClip
from lgclip.tiny.install import WEIGHTS
from lgclip.tiny.styles import NOISE, STYLES
from lgclip.tiny.world import image_of

INDICES = (0, 41, 377, 1199)
RNG = np.random.default_rng(0)


def _grown(mask: Bool[np.ndarray, "h w"], by: int) -> Bool[np.ndarray, "h w"]:
    return np.asarray(binary_dilation(mask, iterations=by))


@pytest.mark.parametrize("style", STYLES)
def test_style_depends_on_image_and_index(style: str) -> None:
    data = Shapes(style=style)
    forth = [np.asarray(data.image(i)) for i in INDICES]
    back = [np.asarray(Shapes(style=style).image(i)) for i in INDICES[::-1]][::-1]
    np.testing.assert_array_equal(forth, back)
    photos = [image_of("test", i) for i in INDICES]
    assert all(np.array_equal(a, b) for a, b in zip(forth, photos, strict=True)) == (style == "photo")
    for i, image in zip(INDICES, photos, strict=True):
        before = image.copy()
        STYLES[style](image, i)
        np.testing.assert_array_equal(image, before)


def test_sketch_has_lines_at_color_edges() -> None:
    flat = np.full((64, 64, 3), 90, np.uint8)
    flat[20:44, 20:44] = (230, 60, 20)
    lines = STYLES["sketch"](flat, 0)
    assert (lines == lines[..., :1]).all(), "it has no colour"
    inside = np.zeros((64, 64), bool)
    inside[20:44, 20:44] = True
    border = _grown(inside, 1) & _grown(~inside, 1)
    assert lines[border].max() < 60
    assert lines[~_grown(border, 3)].min() == 255


def test_sketch_is_mostly_white() -> None:
    for index in range(0, 1200, 40):
        ink = (np.asarray(Shapes(style="sketch").image(index)) < 128).mean()
        assert 0.02 < ink < 0.5, index


def test_double_negative_is_the_image() -> None:
    image = image_of("test", 7)
    np.testing.assert_array_equal(STYLES["inverted"](STYLES["inverted"](image, 7), 7), image)


def test_noise_has_its_deviation() -> None:
    gray = np.full((64, 64, 3), 128, np.uint8)
    first, second = (STYLES["noisy"](gray, index) / 255 - 128 / 255 for index in (0, 1))
    assert not np.array_equal(first, second)
    clipped = np.clip(RNG.normal(128 / 255, NOISE, 500_000), 0, 1)  # what lies outside the range is cut off
    assert first.std() == pytest.approx(clipped.std(), rel=0.02)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.05


@pytest.mark.parametrize(("values", "message"), [
    ({"split": "val"}, "dataset.split=val: choose test or train"),
    ({"style": "oil"}, "dataset.style=oil: choose photo, sketch, inverted, noisy"),
])  # fmt: skip
def test_unknown_split_or_style_is_rejected(values: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shapes(**values)


@pytest.mark.parametrize("style", ["evening", "dusk"])
def test_low_light_dims_and_keeps_the_order_of_channels(style: str) -> None:
    white = np.full((64, 64, 3), 255, np.uint8)
    red, green, blue = STYLES[style](white, 0)[0, 0].astype(int)
    assert green < red < blue < 255
    black = np.zeros((64, 64, 3), np.uint8)
    assert not STYLES[style](black, 0).any()


def test_dusk_is_darker_than_evening() -> None:
    image = image_of("test", 7)
    assert STYLES["dusk"](image, 7).mean() < STYLES["evening"](image, 7).mean() < image.mean()


@pytest.mark.slow
def test_autoencoder_keeps_dusk_but_not_noise() -> None:
    """A diffusion model can only learn a shift that its autoencoder keeps."""
    vae: Any = AutoencoderKL.from_pretrained(WEIGHTS / "diffuser" / "vae", dtype=torch.float32)
    towers = OpenClip("tiny:encoder", precision="fp32").load(torch.device("cpu"))

    def pixels(style: str) -> Tensor:
        images = np.stack([STYLES[style](image_of("test", i), i) for i in range(0, 1200, 12)])
        return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1

    def mean_feature(images: Tensor, *, rebuilt: bool) -> Tensor:
        with torch.inference_mode():
            if rebuilt:
                images = vae.decode(vae.encode(images).latent_dist.mean).sample.clamp(-1, 1)
            return towers.images(images).mean(dim=0)

    def preserved_shift(style: str) -> float:
        shift = mean_feature(pixels(style), rebuilt=False) - mean_feature(pixels("photo"), rebuilt=False)
        after = mean_feature(pixels(style), rebuilt=True) - mean_feature(pixels("photo"), rebuilt=True)
        return float(after @ shift / shift.square().sum())

    assert 0.85 < preserved_shift("dusk") < 1.15
    assert preserved_shift("noisy") < 0.6
