"""The stage that captions real training images, and synthetic images that are traced back to them."""

import dataclasses
import json
import logging
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from captioners import Scripted, captioned, stages, vit_gpt2
from PIL import Image
from worlds import NAMES, picture_folder, stored

from lgclip.batch import Subject
from lgclip.captioning import caption
from lgclip.captions import Captions
from lgclip.damage import OnBadImage
from lgclip.datasets.folder import Folder
from lgclip.generation import opened
from lgclip.prompts.captioner import Captioner, CaptionFile
from lgclip.store import StoreError

pytest_plugins = ("run_fixtures",)
ROOT = Path(__file__).parents[1]
EACH = 5


@pytest.fixture
def training(tmp_path: Path) -> Folder:
    return Folder(str(picture_folder(tmp_path / "train", each=EACH)))


def brightness(file: str) -> str:
    """What `Scripted` says of an image, by NumPy alone."""
    with Image.open(file) as image:
        return f"grey {int(torch.from_numpy(np.array(image.convert('RGB'))).float().mean())}"


def test_prompts_are_captions_in_the_order_of_the_images(training: Folder, tmp_path: Path) -> None:
    captions = captioned(training, Scripted(), tmp_path / "store")
    expected = [f"a photo of {training.class_names[label]}, {brightness(training.where(at))}"
                for at, label in enumerate(training.labels)]  # fmt: skip
    assert [*chain(*captions.texts())] == expected
    assert [one.source for own in captions.traced() for one in own] == list(training.ids)
    assert captions.counts() == [EACH] * 3
    assert [captions.where(image) for image in training.ids] == [training.where(at) for at in range(len(training))]


def test_passes_are_of_one_size_and_a_batch_is_a_file(training: Folder, tmp_path: Path) -> None:
    writer = Scripted(batch=7)
    captions = captioned(training, writer, tmp_path / "store")
    assert writer.passes == [3, 3, 3, 3, 3]
    assert len(list((tmp_path / "store" / "captions" / captions.store.key).glob("*.json"))) == 3 + 1  # 6, 6, 3; inputs
    alone = captioned(training, dataclasses.replace(writer, batch=1), tmp_path / "other")
    assert alone.texts() == captions.texts()


def test_the_first_images_of_each_class_are_captioned_and_more_go_on_from_there(
    training: Folder, tmp_path: Path
) -> None:
    writer = Scripted()
    few = captioned(training, writer, tmp_path / "store", per_class=2)
    assert few.counts() == [2, 2, 2]
    assert len(writer.passes) == 2
    more = captioned(training, writer, tmp_path / "store", per_class=4)
    assert len(writer.passes) == 4, "six images more, in passes of three"
    assert [own[:2] for own in more.texts()] == few.texts()


def test_another_form_captions_nothing_again_and_basic_captions_nothing_at_all(
    training: Folder, tmp_path: Path
) -> None:
    writer = Scripted()
    basic = captioned(training, dataclasses.replace(writer, form="basic"), tmp_path / "store")
    assert basic.texts() == [[f"a photo of {name}"] * EACH for name in NAMES]
    assert {one.source for own in basic.traced() for one in own} == {""}
    assert not writer.loads
    assert not (tmp_path / "store").exists()
    captioned(training, writer, tmp_path / "store")
    only = captioned(training, dataclasses.replace(writer, form="caption_only"), tmp_path / "store")
    assert writer.loads == ["cpu"]
    assert only.texts()[0][0] == brightness(training.where(0))


def test_a_crash_loses_a_batch_at_most(training: Folder, tmp_path: Path) -> None:
    whole = captioned(training, Scripted(), tmp_path / "whole")
    broken = Scripted(breaks_after=2)
    with pytest.raises(RuntimeError, match="power cut"):
        captioned(training, broken, tmp_path / "store")
    writer = Scripted()
    again = captioned(training, writer, tmp_path / "store")
    assert len(writer.passes) == 3, "of five passes two were stored"
    assert again.texts() == whole.texts()


def test_what_it_cost_is_kept_beside_the_captions(training: Folder, tmp_path: Path) -> None:
    run = stages()
    caption(run, training, Scripted(), tmp_path / "store", per_class=EACH)
    (account,), (part,) = run.accounts, run.parts["prompts"]
    assert (account.stage, account.made, account.reused, account.unit) == ("prompts", 15, 0, "image")
    assert (part.name, part.unit, part.used, part.made) == ("prompts", "caption", 15, 15)
    assert json.loads(part.ledger.read_text())["count"] == 15
    again = stages()
    caption(again, training, Scripted(form="basic"), tmp_path / "store", per_class=EACH)
    assert (again.accounts[0].made, again.accounts[0].reused, again.parts["prompts"][0].used) == (0, 0, 0)


def test_a_class_with_fewer_images_has_fewer_prompts_and_this_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = picture_folder(tmp_path / "train", each=EACH)
    for file in sorted((root / "green_ring").iterdir())[2:]:
        file.unlink()
    with caplog.at_level(logging.WARNING):
        captions = captioned(Folder(str(root)), Scripted(), tmp_path / "store", per_class=4)
    assert captions.counts() == [4, 2, 4]
    assert "1 of 3 classes have fewer than 4 training images, the smallest 2" in caplog.text
    assert "10 in all" in caplog.text


def test_an_unreadable_image_is_named_once_all_others_are_captioned(
    training: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = training.original(6)
    bad.write_bytes(b"no image")
    damaged, writer = Folder(str(training.root)), Scripted()
    with pytest.raises(ValueError, match=rf"1 of 15 training images.*{bad}.*'green ring'.*on_bad_image=skip"):
        captioned(damaged, writer, tmp_path / "store")
    assert len(writer.passes) == 5
    run = stages()
    captions = caption(run, damaged, writer, tmp_path / "store", per_class=EACH, on_bad_image=OnBadImage.SKIP)
    assert (run.accounts[0].made, run.accounts[0].reused, run.parts["prompts"][0].used) == (0, 14, 14)
    assert len(writer.passes) == 5, "what is known to be unreadable is not tried again"
    assert captions.counts() == [5, 4, 5]
    assert f"1 of 15 training images cannot be read and have no prompt: {bad}" in caplog.text


def test_a_class_without_a_readable_image_is_an_error(training: Folder, tmp_path: Path) -> None:
    for at in range(EACH):
        training.original(at).write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"class 0 \('blue moon'\): not one of its training images can be read"):
        captioned(Folder(str(training.root)), Scripted(), tmp_path / "store", on_bad_image=OnBadImage.SKIP)


def test_a_captioner_that_says_nothing_is_an_error_with_the_way_out(
    training: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = Scripted(silent=True)
    with pytest.raises(ValueError, match=r"nothing is said of 15 of 15 .*0\.png.*and 10 more.*llm\.empty=name"):
        captioned(training, writer, tmp_path / "store")
    captions = captioned(training, dataclasses.replace(writer, empty="name"), tmp_path / "store")
    assert len(writer.loads) == 1, "that nothing is said is known"
    assert captions.texts() == [[f"a photo of {name}"] * EACH for name in NAMES]
    assert captions.standing_in() == [list(range(EACH))] * 3
    assert {one.source for own in captions.traced() for one in own} == {""}
    assert "nothing is said of 15 training images: they have the basic form" in caplog.text


def test_a_long_caption_is_said_to_be_cut(training: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    captioned(training, Scripted(said="star " * 90), tmp_path / "store")
    assert "15 of 15 prompts are longer than the 77 tokens" in caplog.text


def test_a_caption_is_cleaned(training: Folder, tmp_path: Path) -> None:
    captions = captioned(training, Scripted(said="a\nred\x1b[1m  star {}\0"), tmp_path / "store", per_class=1)
    assert captions.texts()[0][0].startswith("a photo of blue moon, a red [1m star ")


def test_workers_change_nothing(training: Folder, tmp_path: Path) -> None:
    writer = Captioner(model=str(vit_gpt2(tmp_path / "model")), max_new_tokens=5, batch_size=4)
    captions = captioned(training, writer, tmp_path / "store")
    other = captioned(training, writer, tmp_path / "other", workers=2)
    assert other.texts() == captions.texts()
    assert stored(tmp_path / "other") == stored(tmp_path / "store")


def test_captions_from_a_file_are_found_by_id_or_by_the_end_of_the_path(training: Folder, tmp_path: Path) -> None:
    lines = [
        {"image": training.ids[at], "caption": f"number {at}"} if at % 2 else
        {"file": "/".join(training.where(at).split("/")[-2:]), "caption": f"number {at}"}
        for at in range(len(training))
    ]  # fmt: skip
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    captions = captioned(training, CaptionFile(file=str(path), form="caption_only"), tmp_path / "store")
    assert [*chain(*captions.texts())] == [f"number {at}" for at in range(len(training))]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines[:12]))
    with pytest.raises(ValueError, match=rf"3 of 15 images of train have no caption there: {training.where(12)}"):
        captioned(training, CaptionFile(file=str(path)), tmp_path / "store")
    path.write_text("".join(json.dumps({"file": f"{at}.png", "caption": "x"}) + "\n" for at in range(EACH)))
    with pytest.raises(ValueError, match=r"'0\.png' could be .*blue_moon/0\.png or .*green_ring/0\.png"):
        captioned(training, CaptionFile(file=str(path)), tmp_path / "store")


def test_captions_that_are_not_stored_are_not_made_up(training: Folder, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="15 training images have no caption in the store"):
        Captions(training, Scripted(), tmp_path / "store", EACH).texts()


def test_other_classes_or_none_are_an_error_before_anything_loads(training: Folder) -> None:
    subjects = list(training.subjects)
    with pytest.raises(ValueError, match="Scripted captions real training images, and none are given"):
        opened(Scripted(), None, subjects)
    with pytest.raises(ValueError, match=r"its 3 training classes are not the 2 .*dataset\.names"):
        opened(Scripted(), lambda: training, subjects[:2])
    with pytest.raises(ValueError, match="first 'dog' and 'green ring'"):
        opened(Scripted(), lambda: training, [subjects[0], Subject(1, "dog"), subjects[2]])
