import math
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from lgclip.encoder.scales import FULL_IMAGE, RandomResizedCrops, SquareCrops, View, WithFullImage
from lgclip.store.keys import key_inputs

HALF = SquareCrops((0.25,), (1,))


def addresses(width: int, height: int) -> Image.Image:
    """Creates an image whose pixels encode their position."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], -1).astype(np.uint8))


def corner(crop: View | Image.Image) -> tuple[int, int]:
    left, top, _ = np.asarray(crop.image if isinstance(crop, View) else crop)[0, 0]
    return int(left), int(top)


@pytest.mark.parametrize(
    ("fractions", "weights", "message"),
    [
        ((), (), "at least one scale"),
        ((1.0,), (1, 2), "2 weights for 1 fractions"),
        ((0.0,), (1,), r"0\.0 is not an area fraction"),
        ((-0.5,), (1,), r"-0\.5 is not an area fraction"),
        ((1.01,), (1,), r"1\.01 is not an area fraction"),
        ((math.nan,), (1,), "nan is not an area fraction"),
        ((0.5, 0.5), (1, 1), "occurs twice"),
        ((0.5, 0.5000001), (1, 1), "occurs twice"),  # they would share a key
        ((1.0, 0.5), (0, 0), "sum to more than 0"),
        ((1.0, 0.5), (2, -1), "at least 0"),
        ((1.0, 0.5), (1, math.nan), "at least 0"),
        ((1.0, 0.5), (1, math.inf), "at least 0"),
    ],
)
def test_invalid_scales_are_rejected(fractions: list[float], weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SquareCrops(fractions, weights)


@given(
    size=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    fraction=st.floats(0.01, 0.999),
    name=st.text(max_size=5),
)
def test_crop_is_a_square_of_the_given_area(size: tuple[int, int], fraction: float, name: str) -> None:
    ((crop, squash),) = SquareCrops((fraction,), (1,)).crop(addresses(*size), name.encode("utf-8", "replace").decode())
    assert squash
    side = crop.size[0]
    assert crop.size == (side, side)
    assert side == 1 or abs(side - math.sqrt(fraction) * min(size)) <= 0.5
    left, top = corner(crop)
    expected = addresses(*size).crop((left, top, left + side, top + side))
    assert left + side <= size[0]
    assert top + side <= size[1]
    np.testing.assert_array_equal(crop, expected)


def test_crop_depends_on_id_and_fraction() -> None:
    image = addresses(100, 80)
    alone = [SquareCrops((f,), (1,)).crop(image, "id")[0] for f in (0.5, 0.25)]
    together = SquareCrops((0.25, 1.0, 0.5), (3, 2, 1)).crop(image, "id")
    assert [corner(together[2]), corner(together[0])] == [corner(crop) for crop in alone]
    assert corner(HALF.crop(image, "id")[0]) != corner(HALF.crop(image, "other")[0])
    assert corner(alone[0]) != corner(alone[1])


def test_crops_cover_the_image() -> None:
    corners = np.array([corner(HALF.crop(addresses(8, 6), str(i))[0]) for i in range(400)])
    assert {tuple(c) for c in corners.tolist()} == {(x, y) for x, y in product(range(6), range(4))}  # 8-3+1 by 6-3+1


def test_full_fraction_is_the_whole_image() -> None:
    image = addresses(9, 4)
    assert SquareCrops().crop(image, "id") == [(image, False)]


def test_views_are_named_by_fraction() -> None:
    assert SquareCrops((1.0, 0.5), (1, 3)).views == SquareCrops([1, 0.5], [9, 0.5]).views
    assert len(set(SquareCrops((1.0, 0.5, 0.501), (1, 1, 1)).views)) == 3


@given(
    weights=st.lists(st.floats(0, 10), min_size=1, max_size=5).filter(lambda w: sum(w) > 0.1),
    unit=st.floats(0.1, 10),
    seed=st.integers(0, 99),
)
def test_fuse_is_the_normalized_weighted_mean(weights: list[float], unit: float, seed: int) -> None:
    features = np.random.default_rng(seed).normal(size=(3, len(weights), 4)).astype(np.float32)
    scales = SquareCrops([(i + 1) / len(weights) for i in range(len(weights))], [w * unit for w in weights])
    mean = sum(w * features[:, i] for i, w in enumerate(weights)) / sum(weights)
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(scales.fuse(torch.from_numpy(features)), expected, atol=2e-4)


def test_random_resized_crop_matches_torchvision() -> None:
    """Checks that area and aspect ratio are as requested, inside the image, and distributed as torchvision's."""
    image = addresses(120, 90)
    crops = [RandomResizedCrops((0.3,), (1,)).crop(image, str(i))[0] for i in range(300)]
    assert all(crop.squash for crop in crops)
    areas = np.array([crop.image.width * crop.image.height for crop in crops]) / (120 * 90)
    shapes = np.array([crop.image.width / crop.image.height for crop in crops])
    assert np.abs(areas - 0.3).max() < 0.01
    assert shapes.min() > 0.74
    assert shapes.max() < 1.35
    torch.manual_seed(0)
    reference = [RandomResizedCrop.get_params(torch.empty(3, 90, 120), [0.3, 0.3], [3 / 4, 4 / 3]) for _ in range(300)]
    widths = np.array([p[3] for p in reference])
    tops = np.array([p[0] for p in reference])
    assert abs(np.mean([crop.image.width for crop in crops]) - widths.mean()) < 2
    assert abs(np.mean([corner(crop)[1] for crop in crops]) - tops.mean()) < 4


@pytest.mark.parametrize(
    ("size", "fraction", "expected"),
    [
        ((80, 80), 1.0, (0, 0, 80, 80)),  # no jittered shape of the whole area fits a square: taken whole
        ((80, 60), 1.0, (0, 0, 80, 60)),
        ((90, 60), 1.0, (5, 0, 80, 60)),  # 3:2 is too wide: its central 4:3
        ((60, 90), 1.0, (0, 5, 60, 80)),
        ((90, 60), 0.9, (5, 0, 80, 60)),
    ],
)
def test_full_area_falls_back_to_the_center_crop(
    size: tuple[int, int], fraction: float, expected: tuple[int, int, int, int]
) -> None:
    """Checks the release's rule: at s=10 a square or 4:3 image is squashed, a 3:2 one cropped to 4:3."""
    left, top, width, height = expected
    (view,) = RandomResizedCrops((fraction,), (1,)).crop(addresses(*size), "id")
    assert view.squash
    assert view.image.size == (width, height)
    assert corner(view) == (left, top)


def test_random_resized_crop_depends_on_id_and_view() -> None:
    image = addresses(100, 80)
    before = torch.get_rng_state()
    alone = RandomResizedCrops((0.25,), (1,)).crop(image, "id")[0].image
    together = RandomResizedCrops((0.5, 0.25), (1, 1)).crop(image, "id")[1].image
    assert alone.tobytes() == together.tobytes()
    assert alone.tobytes() != RandomResizedCrops((0.25,), (1,)).crop(image, "other")[0].image.tobytes()
    assert torch.equal(torch.get_rng_state(), before), "the random state of others is left alone"


def test_view_names_are_unique() -> None:
    kinds = [
        SquareCrops((1.0, 0.5), (1, 1)), RandomResizedCrops((1.0, 0.5), (1, 1)),
        RandomResizedCrops((1.0, 0.5), (1, 1), (1.0, 1.0)),
    ]  # fmt: skip
    names = []
    for kind in kinds:
        for name in kind.views:
            names.append(name)
    assert len(set(names)) == len(names)
    with_full = RandomResizedCrops((1.0, 0.5), (1, 1), full_image=True)
    assert with_full.views[0] == SquareCrops().views[0] == FULL_IMAGE
    assert with_full.crop(addresses(9, 4), "id")[0] == (addresses(9, 4), False)


@pytest.mark.parametrize("aspect", [(), (1.0,), (0.0, 1.0), (2.0, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_invalid_aspect_ratio_is_rejected(aspect: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"scales\.aspect"):
        RandomResizedCrops((0.5,), (1,), aspect)


def test_full_image_is_added_to_crops() -> None:
    crops = SquareCrops((0.5, 0.25), (2.0, 1.0))
    scales = WithFullImage(others=crops)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))

    views = scales.crop(image, "id")

    assert scales.views == (*crops.views, "full")
    assert [view.image.size for view in views[:2]] == [view.image.size for view in crops.crop(image, "id")]
    assert views[2] == View(image, squash=False)
    features = torch.nn.functional.normalize(torch.randn(4, 3, 8), dim=-1)
    torch.testing.assert_close(scales.fuse(features), crops.fuse(features[:, :2]))
    assert key_inputs(scales)["others"] == key_inputs(crops)


def test_random_crops_do_not_depend_on_threads() -> None:
    """Threads that crop at once shared torch's generator, so that crops of protocol=official_code differed by run."""
    scales = RandomResizedCrops(tuple((s + 1) / 10 for s in range(10)), (1.0,) * 10)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8))
    ids = [f"image {number}" for number in range(64)]

    def sizes(image_id: str) -> list[bytes]:
        return [view.image.tobytes() for view in scales.crop(image, image_id)]

    with ThreadPoolExecutor(8) as threads:
        parallel = list(threads.map(sizes, ids))

    assert parallel == [sizes(image_id) for image_id in ids]
