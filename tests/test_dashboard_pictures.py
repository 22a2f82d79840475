"""The small pictures on the page are those of the runs, as many as there is room for."""

import base64
import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from worlds import IMAGES_PER_CLASS, NAMES, SENTENCES, FirstRun, World, judge, picture_folder

from lgclip.dashboard import thumbnails as module
from lgclip.dashboard.collect import collect
from lgclip.dashboard.shape import Page
from lgclip.dashboard.thumbnails import PER_PAIR, SIDE, Thumbnails, data_uri
from lgclip.diagnostics import MEASURES
from lgclip.reopen import reopen
from lgclip.runs import Run

pytest_plugins = ("run_fixtures",)


def page_of(*places: Path, images: int = 10) -> Page:
    return collect(places, title="", reference=None, images=images)


def decoded(uri: str) -> Image.Image:
    kind, _, data = uri.partition(",")
    assert kind == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


def likest(uri: str, pictures: list[Image.Image]) -> int:
    """Which of some pictures a small one shows."""
    shown = decoded(uri)
    far = [
        np.abs(np.asarray(shown, np.float64) - np.asarray(picture.convert("RGB").resize(shown.size))).mean()
        for picture in pictures
    ]
    return int(np.argmin(far))


@pytest.mark.parametrize("size", [(600, 400), (30, 900), (48, 40), (1, 1)])
def test_a_small_picture_keeps_its_form_and_is_never_enlarged(size: tuple[int, int]) -> None:
    shown = decoded(data_uri(Image.new("RGB", size, (200, 30, 30))))
    scale = min(1, SIDE / max(size))
    assert shown.size == tuple(max(1, round(side * scale)) for side in size)
    assert np.abs(np.asarray(shown.convert("RGB"), int) - (200, 30, 30)).max() < 12


def test_a_picture_is_kept_once_and_none_goes_over_the_room() -> None:
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(9)]
    size = len(data_uri(noise[0]))
    thumbs = Thumbnails(room=4 * size)
    keys = [thumbs.add("drawn", str(at), lambda at=at: noise[at]) for at in (0, 1, 0, *range(9))]
    assert keys[0] == keys[2] == keys[3] == ["0"]
    assert thumbs.full
    assert keys[-1] == []
    assert 3 <= len(thumbs.uris) <= 4
    assert sum(map(len, thumbs.uris.values())) <= 4 * size
    assert thumbs.add("drawn", "0", lambda: noise[0]) == ["0"], "what is there is used even so"
    assert thumbs.add("real", "0", lambda: noise[1]) == [], "the same id of another source is another picture"


def test_a_real_run_is_told_as_its_files_tell_it(first_run: FirstRun) -> None:
    (run,) = page_of(first_run.folder, images=0)["runs"]
    result = first_run.result
    for key in ("metrics", "beside", "paired", "detectable", "confidence", "stages"):
        assert run[key] == result[key], "the template's prompts took no tokens"
        assert run[key]
    assert run["correlations"] == result["diagnostics"]
    assert {**run["cost"], "stages": result["cost"]["stages"]} == result["cost"]
    assert list(run["diagnostics"]) == list(MEASURES)
    assert sum(row["right"] for row in run["classes"]) == round(result["metrics"]["top1"] * result["n"])


def test_the_gallery_shows_each_prompt_with_what_was_drawn_from_it(first_run: FirstRun) -> None:
    page = page_of(first_run.folder)
    assert page["notes"] == []
    drawing = reopen(Run.read(first_run.folder)).drawing
    assert drawing is not None
    pictures = [drawing.image(at) for at in range(len(drawing.prompts))]
    (run,) = page["runs"]
    shown = []
    for c, name in enumerate(NAMES):
        assert [one["prompt"] for one in run["gallery"][c]] == [s.replace("{}", name) for s in SENTENCES[:3]]
        shown += [key for one in run["gallery"][c] for key in one["images"]]
    assert [likest(page["thumbs"][key], pictures) for key in shown] == list(range(9))


def test_beside_a_pair_of_classes_stand_its_mistakes_and_what_was_drawn_of_both(first_run: FirstRun) -> None:
    page = page_of(first_run.folder)
    run, opened = page["runs"][0], Run.read(first_run.folder)
    dataset, judged = reopen(opened).dataset, opened.predictions
    pictures = [dataset.image(at) for at in range(len(dataset))]
    assert run["confusions"]
    for pair in run["confusions"]:
        wrong = np.flatnonzero((judged.label == pair["true"]) & (judged.prediction == pair["predicted"]))
        surest = sorted(wrong.tolist(), key=lambda at: (-judged.confidence[at], at))[:PER_PAIR]
        assert [likest(page["thumbs"][key], pictures) for key in pair["images"]] == surest
        for keys, c in ((pair["of_true"], pair["true"]), (pair["of_predicted"], pair["predicted"])):
            assert keys == [key for one in run["gallery"][c] for key in one["images"]][:PER_PAIR]


def test_runs_share_the_pictures_that_they_have_in_common(world: World, first_run: FirstRun, tmp_path: Path) -> None:
    judge(world, tmp_path / "runs" / "one", "prompts_per_class=1")
    judge(world, tmp_path / "runs" / "three")
    one, three = page_of(tmp_path / "runs")["runs"]
    page = page_of(tmp_path / "runs")
    assert one["gallery"] == [drawn[:1] for drawn in three["gallery"]]
    assert len(page["thumbs"]) <= 3 * len(NAMES) + IMAGES_PER_CLASS * len(NAMES)
    assert len(set(page["thumbs"].values())) == len(page["thumbs"])


def test_a_class_shows_no_more_pictures_than_asked_for(first_run: FirstRun) -> None:
    (run,) = page_of(first_run.folder, images=2)["runs"]
    assert [sum(len(one["images"]) for one in drawn) for drawn in run["gallery"]] == [2, 2, 2]
    page = page_of(first_run.folder, images=0)
    assert (page["thumbs"], page["runs"][0]["gallery"], page["notes"]) == ({}, [], [])


def test_what_finds_no_room_is_left_out_and_said(first_run: FirstRun, monkeypatch: pytest.MonkeyPatch) -> None:
    room = sum(map(len, page_of(first_run.folder)["thumbs"].values())) // 2
    monkeypatch.setattr(module, "ROOM", room)
    page = page_of(first_run.folder)
    assert sum(map(len, page["thumbs"].values())) <= room
    assert page["notes"] == [
        f"Some pictures are left out: the page holds {len(page['thumbs'])}, the first of each run and class."
    ]
    (run,) = page["runs"]
    used = [key for drawn in run["gallery"] for one in drawn for key in one["images"]]
    used += [key for pair in run["confusions"] for key in (*pair["images"], *pair["of_true"], *pair["of_predicted"])]
    assert set(used) == page["thumbs"].keys(), "no key without a picture, no picture without a place"


def test_places_in_galleries_are_limited_too(first_run: FirstRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENTRIES", 3)
    page = page_of(first_run.folder)
    assert [sum(len(one["images"]) for one in drawn) for drawn in page["runs"][0]["gallery"]] == [1, 1, 1]
    assert len(page["notes"]) == 1


def test_images_that_are_gone_are_a_note_and_no_failure(empty_world: World, tmp_path: Path) -> None:
    world = replace(empty_world, pictures=picture_folder(tmp_path / "pictures"), store=tmp_path / "store")
    judge(world, tmp_path / "run")
    shutil.rmtree(tmp_path / "store" / "images")
    assert_noted(page_of(tmp_path / "run"), "images")
    shutil.rmtree(world.pictures)
    assert_noted(page_of(tmp_path / "run"), "pictures")


def assert_noted(page: Page, word: str) -> None:
    (note,) = page["notes"]
    assert note.startswith("Pictures of 1 runs (pictures, lgclip) are not shown")
    assert word in note
    assert page["runs"][0]["metrics"] is not None


def test_another_data_set_in_the_same_place_is_not_shown_for_the_one_that_was_judged(
    empty_world: World, tmp_path: Path
) -> None:
    world = replace(empty_world, pictures=picture_folder(tmp_path / "pictures"), store=tmp_path / "store")
    judge(world, tmp_path / "run")
    next(world.pictures.rglob("*.png")).unlink()
    page = page_of(tmp_path / "run")
    assert_noted(page, "are not those that were judged")
    assert page["thumbs"] == {}
