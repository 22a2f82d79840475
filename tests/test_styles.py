"""The small world in other styles: stateless, of the same shapes, and another picture each."""

import numpy as np
import pytest
from jaxtyping import Bool
from scipy.ndimage import binary_dilation

from lgclip.datasets.small import Shapes
from lgclip.tiny.styles import NOISE, STYLES
from lgclip.tiny.world import image_of

INDICES = (0, 41, 377, 1199)
RNG = np.random.default_rng(0)


def _grown(mask: Bool[np.ndarray, "h w"], by: int) -> Bool[np.ndarray, "h w"]:
    return np.asarray(binary_dilation(mask, iterations=by))


@pytest.mark.parametrize("style", STYLES)
def test_a_style_is_a_function_of_the_picture_and_its_index(style: str) -> None:
    data = Shapes(style=style)
    forth = [np.asarray(data.image(i)) for i in INDICES]
    back = [np.asarray(Shapes(style=style).image(i)) for i in INDICES[::-1]][::-1]
    np.testing.assert_array_equal(forth, back)
    photos = [image_of("test", i) for i in INDICES]
    assert all(np.array_equal(a, b) for a, b in zip(forth, photos, strict=True)) == (style == "photo")
    for i, picture in zip(INDICES, photos, strict=True):
        before = picture.copy()
        STYLES[style](picture, i)
        np.testing.assert_array_equal(picture, before)


def test_a_sketch_is_lines_where_two_colours_meet() -> None:
    flat = np.full((64, 64, 3), 90, np.uint8)
    flat[20:44, 20:44] = (230, 60, 20)
    lines = STYLES["sketch"](flat, 0)
    assert (lines == lines[..., :1]).all(), "it has no colour"
    inside = np.zeros((64, 64), bool)
    inside[20:44, 20:44] = True
    border = _grown(inside, 1) & _grown(~inside, 1)
    assert lines[border].max() < 60
    assert lines[~_grown(border, 3)].min() == 255


def test_most_of_a_sketch_is_white_and_some_of_it_black() -> None:
    for index in range(0, 1200, 40):
        ink = (np.asarray(Shapes(style="sketch").image(index)) < 128).mean()
        assert 0.02 < ink < 0.5, index


def test_the_negative_of_a_negative_is_the_picture() -> None:
    picture = image_of("test", 7)
    np.testing.assert_array_equal(STYLES["inverted"](STYLES["inverted"](picture, 7), 7), picture)


def test_noise_has_its_deviation_and_differs_from_picture_to_picture() -> None:
    grey = np.full((64, 64, 3), 128, np.uint8)
    one, other = (STYLES["noisy"](grey, index) / 255 - 128 / 255 for index in (0, 1))
    assert not np.array_equal(one, other)
    clipped = np.clip(RNG.normal(128 / 255, NOISE, 500_000), 0, 1)  # what lies outside the range is cut off
    assert one.std() == pytest.approx(clipped.std(), rel=0.02)
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.05


@pytest.mark.parametrize(("values", "message"), [
    ({"split": "val"}, "dataset.split=val: choose test or train"),
    ({"style": "oil"}, "dataset.style=oil: choose photo, sketch, inverted, noisy"),
])  # fmt: skip
def test_what_is_no_split_or_style_is_an_error(values: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shapes(**values)
