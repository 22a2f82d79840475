import hashlib
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from lgclip.tiny.world import (
    BACKGROUNDS,
    COLORS,
    HELD_OUT_KINDS,
    PATTERNS,
    SEEN_KINDS,
    SHAPES,
    SIZE,
    TEST_IMAGES_PER_CLASS,
    TRAIN_IMAGES_PER_CLASS,
    Kind,
    Scene,
    Split,
    image_of,
    label_of,
    render,
    scanned_digits,
    scene_of,
)

STILL = Scene(Kind("circle", "red", "plain"), 0.3, (0.5, 0.5), 0.0, "black", shade=0.0, noise=0.0)
RNG = np.random.default_rng(0)
END = len(HELD_OUT_KINDS) * TEST_IMAGES_PER_CLASS


def seen_at(scene: Scene) -> np.ndarray:
    return render(scene, RNG).astype(int)


def cover(scene: Scene) -> np.ndarray:
    """Returns the mask of the object: where a change of its color changes the image."""
    other_kind = replace(scene.kind, color="white" if scene.kind.color != "white" else "red")
    return (seen_at(scene) != seen_at(replace(scene, kind=other_kind))).any(axis=-1)


def test_kinds_are_split_completely() -> None:
    everything = {Kind(s, c, p) for s, c, p in product(SHAPES, COLORS, PATTERNS)}
    assert set(SEEN_KINDS) | set(HELD_OUT_KINDS) == everything
    assert (len(SEEN_KINDS), len(HELD_OUT_KINDS), len(everything)) == (210, 30, 240)


@pytest.mark.parametrize("part", ["shape", "color", "pattern"])
def test_held_out_kinds_combine_known_words(part: str) -> None:
    assert {getattr(k, part) for k in HELD_OUT_KINDS} <= {getattr(k, part) for k in SEEN_KINDS}


def test_every_shape_and_pattern_holds_out_a_color() -> None:
    assert {(k.shape, k.pattern) for k in HELD_OUT_KINDS} == {(s, p) for s, p in product(SHAPES, PATTERNS)}
    assert {sum(k.color == c for k in HELD_OUT_KINDS) for c in COLORS} == {3, 4, 5}


def test_names_are_unique() -> None:
    names = [k.name for k in (*SEEN_KINDS, *HELD_OUT_KINDS)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("split", ["pretrain", "test", "train"])
def test_image_depends_on_its_index_only(split: Split) -> None:
    first = [image_of(split, i) for i in (0, 7, 1199)]
    again = [image_of(split, i) for i in (1199, 7, 0)][::-1]
    np.testing.assert_array_equal(first, again)
    assert len({image.tobytes() for image in first}) == 3
    assert all(image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8 for image in first)


def test_test_scenes_are_fixed() -> None:
    """Checks the test split, which must not change for results to be comparable."""
    scenes = repr([scene_of("test", i)[0] for i in range(0, END, 7)])
    assert hashlib.sha256(scenes.encode()).hexdigest()[:16] == "5e4c4888f76d7893"


def test_test_images_are_fixed() -> None:
    """Checks the sum of the pixels of the first published version."""
    digest = hashlib.sha256(b"".join(image_of("test", i).tobytes() for i in range(0, END, 40)))
    assert digest.hexdigest()[:16] == "127452bf158bf749"


def test_training_images_differ_in_the_same_kinds() -> None:
    per_class = TRAIN_IMAGES_PER_CLASS
    scenes = [scene_of("train", i)[0] for i in range(per_class * len(HELD_OUT_KINDS))]
    assert [HELD_OUT_KINDS.index(s.kind) for s in scenes] == [label_of(i, "train") for i in range(len(scenes))]
    assert np.array_equal(np.bincount([label_of(i, "train") for i in range(len(scenes))]), np.full(30, per_class))
    predictions = {replace(scene_of("test", i)[0], noise=0.0) for i in range(END)}
    assert not predictions & {replace(scene, noise=0.0) for scene in scenes}


def test_splits_are_disjoint() -> None:
    test = [scene_of("test", i)[0] for i in range(END)]
    assert [HELD_OUT_KINDS.index(scene.kind) for scene in test] == [label_of(i) for i in range(END)]
    assert {scene_of("pretrain", i)[0].kind for i in range(2 * len(SEEN_KINDS))} == set(SEEN_KINDS)
    assert not np.array_equal(image_of("test", 3), image_of("pretrain", 3))


@pytest.mark.parametrize(("split", "index"), [("test", END), ("test", -1), ("pretrain", -1), ("train", 3000)])
def test_index_out_of_range_is_an_error(split: Split, index: int) -> None:
    with pytest.raises(IndexError, match=f"index {index}"):
        image_of(split, index)


def test_nuisances_fill_their_ranges() -> None:
    scenes = [scene_of("pretrain", i)[0] for i in range(600)]
    for name, low, high in (("size", 0.22, 0.38), ("angle", -30, 30), ("shade", 0, 0.5), ("noise", 0, 0.06)):
        values = [getattr(scene, name) for scene in scenes]
        assert low <= min(values) < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < max(values) <= high
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    for scene in scenes:  # the object's centre leaves room for most of the object
        assert all(0.9 * scene.size <= coordinate <= 1 - 0.9 * scene.size for coordinate in scene.center)


@pytest.mark.parametrize("shape", SHAPES)
def test_object_is_centered_as_specified(shape: str) -> None:
    scene = replace(STILL, kind=Kind(shape, "red", "plain"), size=0.2, center=(0.3, 0.6))
    y, x = np.argwhere(cover(scene)).mean(axis=0) / SIZE
    assert abs(x - 0.3) < 0.4 * scene.size  # a moon's mass is off its centre
    assert abs(y - 0.6) < 0.4 * scene.size


@pytest.mark.parametrize("shape", SHAPES)
def test_area_grows_with_the_square_of_size(shape: str) -> None:
    small, large = (cover(replace(STILL, kind=Kind(shape, "red", "plain"), size=s)).sum() for s in (0.2, 0.4))
    assert 3.4 < large / small < 4.2  # half-covered pixels at the rim weigh more for the small one


def test_circle_area_is_pi_r_squared() -> None:
    assert cover(STILL).sum() / SIZE**2 == pytest.approx(np.pi * (0.3 * 0.88) ** 2, rel=0.08)


def test_positive_angle_is_clockwise() -> None:
    arrow = replace(STILL, kind=Kind("arrow", "red", "plain"))  # it points to the right
    turned = cover(replace(arrow, angle=90.0))
    np.testing.assert_array_equal(turned, np.rot90(cover(arrow), -1))  # rot90 turns the other way


@pytest.mark.parametrize("color", COLORS)
def test_plain_object_has_its_color(color: str) -> None:
    image = seen_at(replace(STILL, kind=Kind("circle", color, "plain"), background="olive"))
    np.testing.assert_allclose(image[32, 32], np.array(COLORS[color]) * 255, atol=1)
    tuning_data = np.array(BACKGROUNDS["olive"]) * (1.15 - 0.3 * (31.5 / 64)) * 255
    np.testing.assert_allclose(image[31, 0], tuning_data, atol=1)


def test_patterns_are_distinguishable() -> None:
    for shape in SHAPES:
        synthetic_images = [seen_at(replace(STILL, kind=Kind(shape, "red", pattern))) for pattern in PATTERNS]
        inside = cover(replace(STILL, kind=Kind(shape, "red", "plain")))
        for a, b in ((0, 1), (0, 2), (1, 2)):
            assert (np.abs(synthetic_images[a] - synthetic_images[b]).max(-1) > 40)[inside].mean() > 0.15


@pytest.mark.parametrize("noise", [0.03, 0.06])
def test_noise_has_the_scenes_deviation(noise: float) -> None:
    gray = replace(STILL, background="grey", size=0.01)  # grey ground is far from both ends of the range
    residue = seen_at(replace(gray, noise=noise)) - seen_at(gray)
    assert residue.std() / 255 == pytest.approx(noise, rel=0.04)
    assert abs(residue.mean()) / 255 < 0.002


def test_scanned_digits_are_scikit_learn_halves() -> None:
    from sklearn.datasets import load_digits

    (seen, seen_labels), (predictions, judged_labels) = (scanned_digits(pretrain=p) for p in (True, False))
    _, labels = load_digits(return_X_y=True)
    np.testing.assert_array_equal([*seen_labels, *judged_labels], labels)
    assert (len(seen), len(predictions)) == (898, 899)
    assert not {image.tobytes() for image in seen} & {image.tobytes() for image in predictions}
    np.testing.assert_array_equal(seen[..., 0], seen[..., 2])  # grey
