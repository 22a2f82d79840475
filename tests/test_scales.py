import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lgclip.scales import Scales

HALF = Scales((0.25,), (1,))


def addresses(width: int, height: int) -> Image.Image:
    """An image whose pixels say where they stand."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], -1).astype(np.uint8))


def corner(crop: Image.Image) -> tuple[int, int]:
    left, top, _ = np.asarray(crop)[0, 0]
    return int(left), int(top)


@pytest.mark.parametrize(
    ("fractions", "weights", "message"),
    [
        ((), (), "at least one scale"),
        ((1.0,), (1, 2), "2 weights for 1 fractions"),
        ((0.0,), (1,), r"0\.0 is not an area share"),
        ((-0.5,), (1,), r"-0\.5 is not an area share"),
        ((1.01,), (1,), r"1\.01 is not an area share"),
        ((math.nan,), (1,), "nan is not an area share"),
        ((0.5, 0.5), (1, 1), "stands there twice"),
        ((0.5, 0.5000001), (1, 1), "stands there twice"),  # they would share a key
        ((1.0, 0.5), (0, 0), "sum to more than 0"),
        ((1.0, 0.5), (2, -1), "at least 0"),
        ((1.0, 0.5), (1, math.nan), "at least 0"),
        ((1.0, 0.5), (1, math.inf), "at least 0"),
    ],
)
def test_scales_out_of_range_are_refused(fractions: list[float], weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scales(fractions, weights)


@given(
    size=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    fraction=st.floats(0.01, 0.999),
    name=st.text(max_size=5),
)
def test_a_crop_is_a_square_of_the_right_area_inside_the_image(
    size: tuple[int, int], fraction: float, name: str
) -> None:
    (crop,) = Scales((fraction,), (1,)).crop(addresses(*size), name.encode("utf-8", "replace").decode())
    side = crop.size[0]
    assert crop.size == (side, side)
    assert side == 1 or abs(side - math.sqrt(fraction) * min(size)) <= 0.5
    left, top = corner(crop)
    expected = addresses(*size).crop((left, top, left + side, top + side))
    assert left + side <= size[0]
    assert top + side <= size[1]
    np.testing.assert_array_equal(crop, expected)


def test_a_crop_depends_on_the_id_and_the_fraction_alone() -> None:
    image = addresses(100, 80)
    alone = [Scales((f,), (1,)).crop(image, "id")[0] for f in (0.5, 0.25)]
    together = Scales((0.25, 1.0, 0.5), (3, 2, 1)).crop(image, "id")
    assert [corner(together[2]), corner(together[0])] == [corner(crop) for crop in alone]
    assert corner(HALF.crop(image, "id")[0]) != corner(HALF.crop(image, "other")[0])
    assert corner(alone[0]) != corner(alone[1])


def test_crops_reach_every_place() -> None:
    corners = np.array([corner(HALF.crop(addresses(8, 6), str(i))[0]) for i in range(400)])
    assert {tuple(c) for c in corners.tolist()} == {(x, y) for x in range(6) for y in range(4)}  # 8-3+1 by 6-3+1


def test_the_fraction_1_is_the_whole_image_whatever_its_proportions() -> None:
    image = addresses(9, 4)
    assert Scales().crop(image, "id") == [image]


def test_views_are_named_by_their_fraction_alone() -> None:
    assert Scales((1.0, 0.5), (1, 3)).views == Scales([1, 0.5], [9, 0.5]).views
    assert len(set(Scales((1.0, 0.5, 0.501), (1, 1, 1)).views)) == 3


@given(
    weights=st.lists(st.floats(0, 10), min_size=1, max_size=5).filter(lambda w: sum(w) > 0.1),
    unit=st.floats(0.1, 10),
    seed=st.integers(0, 99),
)
def test_fuse_is_the_normalised_weighted_mean(weights: list[float], unit: float, seed: int) -> None:
    features = np.random.default_rng(seed).normal(size=(3, len(weights), 4)).astype(np.float32)
    scales = Scales([(i + 1) / len(weights) for i in range(len(weights))], [w * unit for w in weights])
    mean = sum(w * features[:, i] for i, w in enumerate(weights)) / sum(weights)
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(scales.fuse(torch.from_numpy(features)), expected, atol=2e-4)
