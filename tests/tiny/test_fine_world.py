"""Tests the fine world: distinct classes, stateless images, true sentences."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from lgclip.datasets.embedded import ShapesFine
from lgclip.prompts.base import GeneratedPrompts, PromptError, Task
from lgclip.prompts.field_guide import FieldGuide
from lgclip.tiny.captions import facts
from lgclip.tiny.fine_world import (
    FINE_KINDS,
    IMAGES_PER_CLASS,
    FineKind,
    Split,
    fine_image,
    fine_scene,
    guide_sentence,
)
from lgclip.tiny.world import BACKGROUNDS, HELD_OUT_KINDS
from lgclip.types import TargetClass

BY_NAME = {fine_kind.name: fine_kind for fine_kind in FINE_KINDS}
END = len(FINE_KINDS) * IMAGES_PER_CLASS["test"]


def test_classes_are_distinct_and_held_out() -> None:
    assert len(FINE_KINDS) == len(BY_NAME) == 75
    assert len({fine_kind.description for fine_kind in FINE_KINDS}) == 75
    assert {fine_kind.kind for fine_kind in FINE_KINDS} == set(HELD_OUT_KINDS)
    assert all((fine_kind.size is None) != (fine_kind.background is None) for fine_kind in FINE_KINDS)


def test_a_third_of_the_names_do_not_describe_the_class() -> None:
    described = [fine_kind.name == fine_kind.description for fine_kind in FINE_KINDS]
    naming_the_kind = [fine_kind.kind.name in fine_kind.name for fine_kind in FINE_KINDS]
    assert (sum(described), sum(naming_the_kind)) == (51, 66)


def test_backgrounds_are_used_equally_often() -> None:
    assert Counter(f.background for f in FINE_KINDS if f.background) == dict.fromkeys(BACKGROUNDS, 9)


@pytest.mark.parametrize("split", ["test", "train"])
def test_scenes_show_what_distinguishes_the_class(split: Split) -> None:
    per_class = IMAGES_PER_CLASS[split]
    for index in range(0, per_class * len(FINE_KINDS), 7):
        fine_kind = FINE_KINDS[index // per_class]
        scene = fine_scene(split, index)[0]
        assert scene.kind == fine_kind.kind
        if fine_kind.size:
            assert (scene.size < 0.27) == (fine_kind.size == "small")
            assert (scene.size > 0.33) == (fine_kind.size == "large")
        else:
            assert scene.background == fine_kind.background
        reach = 0.9 * scene.size
        assert all(reach - 1e-9 <= center <= 1 - reach + 1e-9 for center in scene.center)


def test_splits_share_no_image() -> None:
    test = {fine_image("test", index).tobytes() for index in range(0, END, 20)}
    train = {fine_image("train", index).tobytes() for index in range(0, 2 * END, 20)}
    assert not test & train


@pytest.mark.parametrize(("split", "index"), [("test", -1), ("test", END), ("train", 3000)])
def test_index_outside_the_split_is_rejected(split: Split, index: int) -> None:
    with pytest.raises(IndexError, match=f"index {index}: the split '{split}' of shapes_fine"):
        fine_scene(split, index)


@pytest.mark.parametrize("fine_kind", FINE_KINDS, ids=lambda fine_kind: fine_kind.name.replace(" ", "_"))
def test_sentences_are_true(fine_kind: FineKind) -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    sentences = [guide_sentence(fine_kind, rng) for _ in range(20)]
    assert len(set(sentences)) > 5
    for sentence in sentences:
        attributes = facts(sentence)
        assert f"{fine_kind.kind.name} " in f"{sentence} "
        if fine_kind.size:
            assert attributes["size"] == (fine_kind.size,)
        else:
            assert attributes["background"] == (f"{fine_kind.background} background",)


def write(names: list[str], count: int, seed: int = 0, existing: tuple[str, ...] = ()) -> dict[str, list[str]]:
    tasks = [Task(TargetClass(place, name), count, existing) for place, name in enumerate(names)]
    prompts: dict[str, list[str]] = {}
    for place, written in FieldGuide().load(torch.device("cpu"))(tasks, seed):
        assert isinstance(written, GeneratedPrompts)
        prompts[names[place]] = written.prompts
    return prompts


def test_guide_depends_on_class_seed_and_number_alone() -> None:
    names = ["dax", "blick", FINE_KINDS[0].name]
    three = write(names, 3)
    assert write(names[::-1], 3) == three
    more = write(["dax"], 5)["dax"]
    assert more[:3] == three["dax"]
    assert write(["dax"], 5, existing=tuple(more[:2]))["dax"] == more
    assert write(["dax"], 5, seed=1)["dax"] != more


def test_guide_rejects_unknown_classes() -> None:
    classes = [TargetClass(0, "dax"), TargetClass(1, "robin")]
    with pytest.raises(PromptError, match=r"no entry for 'robin' \(1 of 2 classes are missing\)"):
        FieldGuide().check(classes, 1)
    FieldGuide().check(classes[:1], 1)


@pytest.mark.parametrize("values", [{}, {"split": "train"}, {"style": "photo"}], ids=str)
def test_data_set_has_its_labels_and_ids(values: dict[str, Any]) -> None:
    data = ShapesFine(**values)
    per_class = len(data) // len(FINE_KINDS)
    assert data.labels == tuple(index // per_class for index in range(len(data)))
    assert len(set(data.ids)) == len(data)
    if values:
        assert not set(data.ids) & set(ShapesFine().ids)
    index = 7 * per_class
    expected = fine_image("train" if "split" in values else "test", index)
    assert np.array_equal(np.asarray(data.image(index)), expected) == ("style" in values)
