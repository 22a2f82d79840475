"""Tests the stage that captions real training images, and the sources of synthetic images."""

import dataclasses
import json
import logging
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from captioners import ScriptedCaptioner, caption_dataset, stages, vit_gpt2
from factories import NAMES, make_image_folder, read_store
from PIL import Image
from student_factories import ColorPatches

from lgclip.datasets.embedded import Shapes
from lgclip.datasets.folder import Folder
from lgclip.datasets.splits import DatasetSplits
from lgclip.datasets.subsets import Selected
from lgclip.datasets.unreadable import OnBadImage
from lgclip.diffuser.base import image_id, image_prompts
from lgclip.prompts.captioner import Captioner, CaptionFile, SceneDescriptions
from lgclip.stages.caption_set import Captions, Traced
from lgclip.stages.generate import training_images
from lgclip.store.cost_log import lines_of
from lgclip.store.root import StoreError

pytest_plugins = ("run_fixtures",)
ROOT = Path(__file__).parents[2]
PER_CLASS = 5


@pytest.fixture
def training(tmp_path: Path) -> Folder:
    return Folder(str(make_image_folder(tmp_path / "train", per_class=PER_CLASS)))


def brightness(file: str) -> str:
    """Returns the caption of `ScriptedCaptioner` by NumPy alone."""
    with Image.open(file) as image:
        return f"grey {int(torch.from_numpy(np.array(image.convert('RGB'))).float().mean())}"


def test_captions_follow_the_image_order(training: Folder, tmp_path: Path) -> None:
    captions = caption_dataset(training, ScriptedCaptioner(), tmp_path / "store")
    expected = [f"a photo of {training.class_names[label]}, {brightness(training.where(index))}"
                for index, label in enumerate(training.labels)]  # fmt: skip
    assert [*chain(*captions.texts())] == expected
    assert [prompt.source for prompt in chain.from_iterable(captions.with_sources())] == list(training.ids)
    assert captions.counts() == [PER_CLASS] * 3
    assert [captions.where(image) for image in training.ids] == [
        training.where(index) for index in range(len(training))
    ]


def test_batches_are_saved_as_files(training: Folder, tmp_path: Path) -> None:
    prompt_generator = ScriptedCaptioner(batch=7)
    captions = caption_dataset(training, prompt_generator, tmp_path / "store")
    assert prompt_generator.passes == [3, 3, 3, 3, 3]
    assert len(list((tmp_path / "store" / "captions" / captions.store.key).glob("*.json"))) == 3 + 1  # 6, 6, 3; inputs
    alone = caption_dataset(training, dataclasses.replace(prompt_generator, batch=1), tmp_path / "other")
    assert alone.texts() == captions.texts()


def test_more_captions_extend_fewer(training: Folder, tmp_path: Path) -> None:
    prompt_generator = ScriptedCaptioner()
    few = caption_dataset(training, prompt_generator, tmp_path / "store", per_class=2)
    assert few.counts() == [2, 2, 2]
    assert len(prompt_generator.passes) == 2
    larger = caption_dataset(training, prompt_generator, tmp_path / "store", per_class=4)
    assert len(prompt_generator.passes) == 4, "six images more, in passes of three"
    assert [class_prompts[:2] for class_prompts in larger.texts()] == few.texts()


def test_other_form_reuses_captions(training: Folder, tmp_path: Path) -> None:
    prompt_generator = ScriptedCaptioner()
    basic = caption_dataset(training, dataclasses.replace(prompt_generator, form="basic"), tmp_path / "store")
    assert basic.texts() == [[f"a photo of {name}"] * PER_CLASS for name in NAMES]
    assert {prompt.source for prompt in chain.from_iterable(basic.with_sources())} == {""}
    assert not prompt_generator.loads
    assert not (tmp_path / "store").exists()
    caption_dataset(training, prompt_generator, tmp_path / "store")
    only = caption_dataset(training, dataclasses.replace(prompt_generator, form="caption_only"), tmp_path / "store")
    assert prompt_generator.loads == ["cpu"]
    assert only.texts()[0][0] == brightness(training.where(0))


def test_captions_shuffled_by_class_are_the_same_prompts(training: Folder, tmp_path: Path) -> None:
    prompt_generator = ScriptedCaptioner()
    captions = caption_dataset(training, prompt_generator, tmp_path / "store")
    shuffled = caption_dataset(training, dataclasses.replace(prompt_generator, shuffle="class"), tmp_path / "store")
    assert prompt_generator.loads == ["cpu"], "nothing is captioned again"
    assert shuffled.texts() != captions.texts()
    assert [sorted(texts) for texts in shuffled.texts()] == [sorted(texts) for texts in captions.texts()]
    for prompts in shuffled.with_sources():
        assert all(prompt.text.endswith(f", {captions.caption(prompt.source)}") for prompt in prompts)
    # A set of prompts is a set of images: the control generates no new image.
    keys = []
    for script in (captions, shuffled):
        images = image_prompts(script.target_classes, script.texts(), PER_CLASS, 1)
        keys.append({image_id("diffuser", image, 0) for image in images})
    assert keys[0] == keys[1]
    assert len(keys[0]) == len(training)


def test_captions_shuffled_over_all_are_of_other_classes(training: Folder, tmp_path: Path) -> None:
    prompt_generator = ScriptedCaptioner(shuffle="all")
    shuffled = caption_dataset(training, prompt_generator, tmp_path / "store")
    labels = dict(zip(training.ids, training.labels, strict=True))
    sources = []
    for label, prompts in enumerate(shuffled.with_sources()):
        assert all(labels[prompt.source] != label for prompt in prompts)
        assert [prompt.text for prompt in prompts] == [
            f"a photo of {training.class_names[label]}, {shuffled.caption(prompt.source)}" for prompt in prompts
        ]
        sources += [prompt.source for prompt in prompts]
    assert sorted(sources) == sorted(training.ids)


@pytest.mark.parametrize("shuffle", ["class", "all"])
def test_shuffle_does_not_depend_on_the_class_order(shuffle: str, training: Folder, tmp_path: Path) -> None:
    prompt_generator = ScriptedCaptioner(shuffle=shuffle)
    captions = caption_dataset(training, prompt_generator, tmp_path / "store")
    reordered = caption_dataset(Selected(training, [2, 0, 1]), prompt_generator, tmp_path / "store")
    assert reordered.with_sources() == [captions.with_sources()[label] for label in (2, 0, 1)]


def test_image_without_a_caption_is_not_shuffled(training: Folder, tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    lines = [{"image": image, "caption": "" if index == 7 else f"{index}"} for index, image in enumerate(training.ids)]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    prompt_generator = CaptionFile(file=str(path), shuffle="all")
    with pytest.raises(ValueError, match=rf"nothing is said of 1 of 15 training images: {training.where(7)}"):
        caption_dataset(training, prompt_generator, tmp_path / "store")
    captions = caption_dataset(training, dataclasses.replace(prompt_generator, empty="name"), tmp_path / "store")
    assert captions.with_sources()[1][2] == Traced("a photo of green ring", "", True)
    sources = [prompt.source for prompt in chain.from_iterable(captions.with_sources()) if prompt.source]
    assert sorted(sources) == sorted(set(training.ids) - {training.ids[7]})


def test_descriptions_replace_captions(training: Folder, tmp_path: Path) -> None:
    shapes = Shapes("train")
    captions = caption_dataset(shapes, SceneDescriptions(), tmp_path / "store", per_class=2)
    first = captions.with_sources()[3][1]
    assert first.source == shapes.ids[301]
    assert first.text == f"a photo of {shapes.class_names[3]}, {shapes.description(301)}"
    with pytest.raises(ValueError, match="llm=scene_descriptions: train has no descriptions of its images"):
        Captions(training, SceneDescriptions(), tmp_path / "other", PER_CLASS)
    assert not (tmp_path / "other").exists()
    assert caption_dataset(training, SceneDescriptions(form="basic"), tmp_path / "other").counts() == [PER_CLASS] * 3


def test_crash_loses_at_most_a_batch(training: Folder, tmp_path: Path) -> None:
    uninterrupted = caption_dataset(training, ScriptedCaptioner(), tmp_path / "whole")
    broken = ScriptedCaptioner(breaks_after=2)
    with pytest.raises(RuntimeError, match="power cut"):
        caption_dataset(training, broken, tmp_path / "store")
    prompt_generator = ScriptedCaptioner()
    again = caption_dataset(training, prompt_generator, tmp_path / "store")
    assert len(prompt_generator.passes) == 3, "of five passes two were stored"
    assert again.texts() == uninterrupted.texts()


def test_captioning_cost_is_recorded(training: Folder, tmp_path: Path) -> None:
    run = stages()
    caption_dataset(training, ScriptedCaptioner(), tmp_path / "store", PER_CLASS, stages=run)
    (stats,), (part,) = run.stage_stats, run.parts["prompts"]
    assert (stats.stage, stats.computed, stats.reused, stats.unit) == ("prompts", 15, 0, "image")
    assert (part.name, part.unit, part.used, part.computed) == ("prompts", "caption", 15, 15)
    [line] = lines_of(part.cost_log)
    assert line.count == 15
    again = stages()
    caption_dataset(training, ScriptedCaptioner(form="basic"), tmp_path / "store", PER_CLASS, stages=again)
    assert (again.stage_stats[0].computed, again.stage_stats[0].reused, again.parts["prompts"][0].used) == (0, 0, 0)


def test_small_class_has_fewer_prompts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = make_image_folder(tmp_path / "train", per_class=PER_CLASS)
    for file in sorted((root / "green_ring").iterdir())[2:]:
        file.unlink()
    with caplog.at_level(logging.WARNING):
        captions = caption_dataset(Folder(str(root)), ScriptedCaptioner(), tmp_path / "store", per_class=4)
    assert captions.counts() == [4, 2, 4]
    assert "1 of 3 classes have fewer than 4 training images, the smallest 2" in caplog.text
    assert "10 in all" in caplog.text


def test_unreadable_image_is_named_once(training: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = training.original(6)
    bad.write_bytes(b"no image")
    damaged = Folder(str(training.root))
    prompt_generator = ScriptedCaptioner()
    with pytest.raises(ValueError, match=rf"1 of 15 training images.*{bad}.*'green ring'.*on_bad_image=skip"):
        caption_dataset(damaged, prompt_generator, tmp_path / "store")
    assert len(prompt_generator.passes) == 5
    run = stages()
    captions = caption_dataset(
        damaged, prompt_generator, tmp_path / "store", PER_CLASS, stages=run, on_bad_image=OnBadImage.SKIP
    )
    assert (run.stage_stats[0].computed, run.stage_stats[0].reused, run.parts["prompts"][0].used) == (0, 14, 14)
    assert len(prompt_generator.passes) == 5, "what is known to be unreadable is not tried again"
    assert captions.counts() == [5, 4, 5]
    assert f"1 of 15 training images cannot be read and have no prompt: {bad}" in caplog.text


def test_class_without_readable_image_is_rejected(training: Folder, tmp_path: Path) -> None:
    for index in range(PER_CLASS):
        training.original(index).write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"class 0 \('blue moon'\): not one of its training images can be read"):
        caption_dataset(
            Folder(str(training.root)), ScriptedCaptioner(), tmp_path / "store", on_bad_image=OnBadImage.SKIP
        )


def test_silent_captioner_is_rejected(training: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prompt_generator = ScriptedCaptioner(silent=True)
    with pytest.raises(ValueError, match=r"nothing is said of 15 of 15 .*0\.png.*and 10 more.*llm\.empty=name"):
        caption_dataset(training, prompt_generator, tmp_path / "store")
    captions = caption_dataset(training, dataclasses.replace(prompt_generator, empty="name"), tmp_path / "store")
    assert len(prompt_generator.loads) == 1, "that nothing is said is known"
    assert captions.texts() == [[f"a photo of {name}"] * PER_CLASS for name in NAMES]
    assert captions.fallback_positions() == [list(range(PER_CLASS))] * 3
    assert {prompt.source for prompt in chain.from_iterable(captions.with_sources())} == {""}
    assert "nothing is said of 15 training images: they have the basic form" in caplog.text


def test_truncated_caption_is_reported(training: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caption_dataset(training, ScriptedCaptioner(reply="star " * 90), tmp_path / "store")
    assert "15 of 15 prompts are longer than the 77 tokens" in caplog.text


def test_caption_is_sanitized(training: Folder, tmp_path: Path) -> None:
    captions = caption_dataset(
        training, ScriptedCaptioner(reply="a\nred\x1b[1m  star {}\0"), tmp_path / "store", per_class=1
    )
    assert captions.texts()[0][0].startswith("a photo of blue moon, a red [1m star ")


@pytest.mark.slow
def test_workers_change_nothing(training: Folder, tmp_path: Path) -> None:
    prompt_generator = Captioner(model=str(vit_gpt2(tmp_path / "model")), max_new_tokens=5, batch_size=4)
    captions = caption_dataset(training, prompt_generator, tmp_path / "store")
    parallel = caption_dataset(training, prompt_generator, tmp_path / "other", workers=2)
    assert parallel.texts() == captions.texts()
    assert read_store(tmp_path / "other") == read_store(tmp_path / "store")


def test_caption_file_matches_ids_or_paths(training: Folder, tmp_path: Path) -> None:
    lines = [
        {"image": training.ids[index], "caption": f"number {index}"} if index % 2 else
        {"file": "/".join(training.where(index).split("/")[-2:]), "caption": f"number {index}"}
        for index in range(len(training))
    ]  # fmt: skip
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    captions = caption_dataset(training, CaptionFile(file=str(path), form="caption_only"), tmp_path / "store")
    assert [*chain(*captions.texts())] == [f"number {index}" for index in range(len(training))]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines[:12]))
    with pytest.raises(ValueError, match=rf"3 of 15 images of train have no caption there: {training.where(12)}"):
        caption_dataset(training, CaptionFile(file=str(path)), tmp_path / "store")
    path.write_text("".join(json.dumps({"file": f"{index}.png", "caption": "x"}) + "\n" for index in range(PER_CLASS)))
    with pytest.raises(ValueError, match=r"'0\.png' could be .*blue_moon/0\.png or .*green_ring/0\.png"):
        caption_dataset(training, CaptionFile(file=str(path)), tmp_path / "store")


def test_missing_captions_are_not_invented(training: Folder, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="15 training images have no caption in the store"):
        Captions(training, ScriptedCaptioner(), tmp_path / "store", PER_CLASS).texts()


def test_other_classes_are_rejected_before_loading(training: Folder) -> None:
    def splits(*names: str) -> DatasetSplits:
        data = DatasetSplits(lambda **_: ColorPatches(names=names))
        data.training = training
        return data

    with pytest.raises(ValueError, match="has no training split"):
        training_images(DatasetSplits(lambda **_: ColorPatches()))
    with pytest.raises(ValueError, match=r"its 3 training classes are not the 2 .*dataset\.names"):
        training_images(splits("blue moon", "green ring"))
    with pytest.raises(ValueError, match="first 'dog' and 'green ring'"):
        training_images(splits("blue moon", "dog", "red star"))
    assert training_images(splits("blue moon", "green ring", "red star")) is training
