"""Tests the dealing of captions to other images: what stays, what changes, and what it depends on."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgclip.prompts.caption_shuffle import ImageOfClass, deal_captions

SIZES = st.lists(st.integers(1, 8), min_size=2, max_size=6).filter(lambda sizes: 2 * max(sizes) <= sum(sizes))


def images_of(sizes: list[int]) -> list[ImageOfClass]:
    """Returns the images of classes of some sizes; the last two classes share a name."""
    images: list[ImageOfClass] = []
    for label, size in enumerate(sizes):
        name, occurrence = f"class {label}", 0
        if label == len(sizes) - 1:
            name, occurrence = f"class {label - 1}", 1
        images += [ImageOfClass(f"image {label} {index}", name, occurrence) for index in range(size)]
    return images


def classes_of(images: list[ImageOfClass]) -> dict[str, tuple[str, int]]:
    return {image.image: image.target_class for image in images}


@given(SIZES)
def test_captions_stay_in_their_class(sizes: list[int]) -> None:
    images = images_of(sizes)
    sources = deal_captions(images, "class")
    target_classes = classes_of(images)
    assert Counter(sources) == Counter(image.image for image in images)
    assert all(target_classes[source] == image.target_class for image, source in zip(images, sources, strict=True))


@given(SIZES)
def test_no_image_has_a_caption_of_its_class(sizes: list[int]) -> None:
    images = images_of(sizes)
    sources = deal_captions(images, "all")
    target_classes = classes_of(images)
    assert Counter(sources) == Counter(image.image for image in images), "each caption is dealt once"
    assert all(target_classes[source] != image.target_class for image, source in zip(images, sources, strict=True))


@pytest.mark.parametrize("shuffle", ["class", "all"])
@given(st.integers(0, 10**6))
def test_dealing_ignores_the_order_of_images(shuffle: str, seed: int) -> None:
    images = images_of([5, 4, 6])
    expected = dict(zip(images, deal_captions(images, shuffle), strict=True))
    permuted = images.copy()
    random.Random(seed).shuffle(permuted)
    assert dict(zip(permuted, deal_captions(permuted, shuffle), strict=True)) == expected


@pytest.mark.parametrize("shuffle", ["class", "all"])
def test_most_captions_move(shuffle: str) -> None:
    images = images_of([40] * 5)
    sources = deal_captions(images, shuffle)
    moved = sum(image.image != source for image, source in zip(images, sources, strict=True))
    assert moved > 180, "of a random order about one image in a class keeps its caption"


def test_captions_of_a_class_go_to_several_classes() -> None:
    images = images_of([40] * 5)
    donors: dict[tuple[str, int], Counter[tuple[str, int]]] = {}
    target_classes = classes_of(images)
    for image, source in zip(images, deal_captions(images, "all"), strict=True):
        donors.setdefault(image.target_class, Counter())[target_classes[source]] += 1
    # Captions of one other class would replace a class by another one, which is no control.
    assert all(len(counts) == 4 and max(counts.values()) < 25 for counts in donors.values())


def test_copies_of_an_image_may_be_in_two_classes() -> None:
    images = [ImageOfClass("same", name, 0) for name in ("ant", "bee")]
    images += [ImageOfClass(name, name, 0) for name in ("ant", "bee")]
    assert Counter(deal_captions(images, "all")) == {"same": 2, "ant": 1, "bee": 1}


def test_majority_class_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"llm\.shuffle=all: class 'class 0' has 4 of 7 captions.*prompts_per_class"):
        deal_captions(images_of([4, 1, 2]), "all")
    assert deal_captions(images_of([4, 1, 2]), "class")
