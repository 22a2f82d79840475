import hashlib
from dataclasses import replace

import numpy as np
import pytest

from lgclip.tiny.world import (
    BACKGROUNDS,
    COLOURS,
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
    draw,
    image_of,
    label_of,
    scanned_digits,
    scene_of,
)

STILL = Scene(Kind("circle", "red", "plain"), 0.3, (0.5, 0.5), 0.0, "black", shade=0.0, noise=0.0)
RNG = np.random.default_rng(0)
END = len(HELD_OUT_KINDS) * TEST_IMAGES_PER_CLASS


def seen_at(scene: Scene) -> np.ndarray:
    return draw(scene, RNG).astype(int)


def cover(scene: Scene) -> np.ndarray:
    """Where the object is: where a change of its colour changes the picture."""
    other = replace(scene.kind, colour="white" if scene.kind.colour != "white" else "red")
    return (seen_at(scene) != seen_at(replace(scene, kind=other))).any(axis=-1)


def test_the_kinds_are_split_without_a_rest() -> None:
    everything = {Kind(s, c, p) for s in SHAPES for c in COLOURS for p in PATTERNS}
    assert set(SEEN_KINDS) | set(HELD_OUT_KINDS) == everything
    assert (len(SEEN_KINDS), len(HELD_OUT_KINDS), len(everything)) == (210, 30, 240)


@pytest.mark.parametrize("part", ["shape", "colour", "pattern"])
def test_a_held_out_kind_is_a_new_combination_of_known_words(part: str) -> None:
    assert {getattr(k, part) for k in HELD_OUT_KINDS} <= {getattr(k, part) for k in SEEN_KINDS}


def test_one_colour_of_every_shape_and_pattern_is_held_out() -> None:
    assert {(k.shape, k.pattern) for k in HELD_OUT_KINDS} == {(s, p) for s in SHAPES for p in PATTERNS}
    assert {sum(k.colour == c for k in HELD_OUT_KINDS) for c in COLOURS} == {3, 4, 5}


def test_names_differ() -> None:
    names = [k.name for k in (*SEEN_KINDS, *HELD_OUT_KINDS)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("split", ["pretrain", "test", "train"])
def test_an_image_is_a_pure_function_of_its_index(split: Split) -> None:
    first = [image_of(split, i) for i in (0, 7, 1199)]
    again = [image_of(split, i) for i in (1199, 7, 0)][::-1]
    np.testing.assert_array_equal(first, again)
    assert len({image.tobytes() for image in first}) == 3
    assert all(image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8 for image in first)


def test_the_judged_scenes_never_change() -> None:
    """Results are comparable only while the test split is what it was."""
    scenes = repr([scene_of("test", i)[0] for i in range(0, END, 7)])
    assert hashlib.sha256(scenes.encode()).hexdigest()[:16] == "f1894924fc112623"


def test_the_judged_pictures_never_change() -> None:
    """Nor do their pixels: the sum is of the first published version."""
    digest = hashlib.sha256(b"".join(image_of("test", i).tobytes() for i in range(0, END, 40)))
    assert digest.hexdigest()[:16] == "127452bf158bf749"


def test_training_pictures_are_others_of_the_same_kinds() -> None:
    each = TRAIN_IMAGES_PER_CLASS
    scenes = [scene_of("train", i)[0] for i in range(each * len(HELD_OUT_KINDS))]
    assert [HELD_OUT_KINDS.index(s.kind) for s in scenes] == [label_of(i, "train") for i in range(len(scenes))]
    assert np.array_equal(np.bincount([label_of(i, "train") for i in range(len(scenes))]), np.full(30, each))
    judged = {replace(scene_of("test", i)[0], noise=0.0) for i in range(END)}
    assert not judged & {replace(scene, noise=0.0) for scene in scenes}


def test_the_splits_share_no_kind_and_no_scene() -> None:
    test = [scene_of("test", i)[0] for i in range(END)]
    assert [HELD_OUT_KINDS.index(scene.kind) for scene in test] == [label_of(i) for i in range(END)]
    assert {scene_of("pretrain", i)[0].kind for i in range(2 * len(SEEN_KINDS))} == set(SEEN_KINDS)
    assert not np.array_equal(image_of("test", 3), image_of("pretrain", 3))


@pytest.mark.parametrize(("split", "index"), [("test", END), ("test", -1), ("pretrain", -1), ("train", 3000)])
def test_an_index_outside_the_split_is_an_error(split: Split, index: int) -> None:
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
        assert all(0.9 * scene.size <= at <= 1 - 0.9 * scene.size for at in scene.centre)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_object_is_centred_where_the_scene_says(shape: str) -> None:
    scene = replace(STILL, kind=Kind(shape, "red", "plain"), size=0.2, centre=(0.3, 0.6))
    y, x = np.argwhere(cover(scene)).mean(axis=0) / SIZE
    assert abs(x - 0.3) < 0.4 * scene.size  # a moon's mass is off its centre
    assert abs(y - 0.6) < 0.4 * scene.size


@pytest.mark.parametrize("shape", SHAPES)
def test_an_object_of_twice_the_size_has_four_times_the_area(shape: str) -> None:
    small, large = (cover(replace(STILL, kind=Kind(shape, "red", "plain"), size=s)).sum() for s in (0.2, 0.4))
    assert 3.4 < large / small < 4.2  # half-covered pixels at the rim weigh more for the small one


def test_a_circle_s_area_is_pi_r_squared() -> None:
    assert cover(STILL).sum() / SIZE**2 == pytest.approx(np.pi * (0.3 * 0.88) ** 2, rel=0.08)


def test_a_positive_angle_turns_clockwise() -> None:
    arrow = replace(STILL, kind=Kind("arrow", "red", "plain"))  # it points to the right
    turned = cover(replace(arrow, angle=90.0))
    np.testing.assert_array_equal(turned, np.rot90(cover(arrow), -1))  # rot90 turns the other way


@pytest.mark.parametrize("colour", COLOURS)
def test_a_plain_object_has_its_colour_and_the_ground_its_own(colour: str) -> None:
    picture = seen_at(replace(STILL, kind=Kind("circle", colour, "plain"), background="olive"))
    np.testing.assert_allclose(picture[32, 32], np.array(COLOURS[colour]) * 255, atol=1)
    ground = np.array(BACKGROUNDS["olive"]) * (1.15 - 0.3 * (31.5 / 64)) * 255
    np.testing.assert_allclose(picture[31, 0], ground, atol=1)


def test_patterns_can_be_told_apart_on_every_shape() -> None:
    for shape in SHAPES:
        pictures = [seen_at(replace(STILL, kind=Kind(shape, "red", pattern))) for pattern in PATTERNS]
        inside = cover(replace(STILL, kind=Kind(shape, "red", "plain")))
        for a, b in ((0, 1), (0, 2), (1, 2)):
            assert (np.abs(pictures[a] - pictures[b]).max(-1) > 40)[inside].mean() > 0.15


@pytest.mark.parametrize("noise", [0.03, 0.06])
def test_noise_has_the_deviation_that_the_scene_says(noise: float) -> None:
    grey = replace(STILL, background="grey", size=0.01)  # grey ground is far from both ends of the range
    residue = seen_at(replace(grey, noise=noise)) - seen_at(grey)
    assert residue.std() / 255 == pytest.approx(noise, rel=0.04)
    assert abs(residue.mean()) / 255 < 0.002


def test_the_scanned_digits_are_scikit_learns_in_two_halves() -> None:
    from sklearn.datasets import load_digits

    (seen, seen_labels), (judged, judged_labels) = (scanned_digits(pretrain=p) for p in (True, False))
    _, labels = load_digits(return_X_y=True)
    np.testing.assert_array_equal([*seen_labels, *judged_labels], labels)
    assert (len(seen), len(judged)) == (898, 899)
    assert not {image.tobytes() for image in seen} & {image.tobytes() for image in judged}
    np.testing.assert_array_equal(seen[..., 0], seen[..., 2])  # grey
