"""Test images that cannot be read: named, left out, or copied aside; never judged, never a mystery."""

import json
import re
import shutil
import warnings
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from bad_pictures import DAMAGES, WHOLE, damaged_folder, encoded, flipped
from hypothesis import given
from hypothesis import strategies as st
from parquet_trees import table, write
from PIL import Image
from worlds import NAMES, World, judge, made, rows, tree

from lgclip.damage import READER, Findings, OnBadImage, Readable, left_out
from lgclip.datasets.base import BadImageError
from lgclip.datasets.files import read_image
from lgclip.datasets.folder import Folder
from lgclip.encoder.open_clip import OpenClip

pytest_plugins = ("run_fixtures",)

GOOD, ALL = 3 * WHOLE, 3 * WHOLE + len(DAMAGES)
FEATURES = {"prompts": 0, "images": 0, "features": GOOD}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_an_error_that_names_the_file_and_what_is_wrong(damage: str, tmp_path: Path) -> None:
    path = damaged_folder(tmp_path)[damage]
    for file, where in ((path, None), (BytesIO(path.read_bytes()), "shard 7, row 3")):
        with pytest.raises(BadImageError) as raised:
            read_image(file, where)
        error = raised.value
        assert error.where == (where or str(path))
        assert re.search(DAMAGES[damage][1], error.reason)
        assert str(tmp_path) not in error.reason, "the same words wherever the file lies"
        assert "0x" not in error.reason
        assert str(error).startswith(f"{error.where} cannot be read as an image ({error.reason})")


@pytest.mark.parametrize("action", ["ignore", "always"])
def test_a_bomb_is_an_error_whatever_is_done_about_warnings(action: str, tmp_path: Path) -> None:
    path = damaged_folder(tmp_path)["bomb"]
    with warnings.catch_warnings(record=True):
        warnings.simplefilter(action)  # pyright: ignore[reportArgumentType]
        with pytest.raises(BadImageError, match="more than 89,478,485 pixels"):
            read_image(path)


def test_what_is_no_fault_of_the_content_is_another_error(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    for name in ("folder.png", "gone.png"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read \(.*never left out") as raised:
            read_image(tmp_path / name)
        assert not isinstance(raised.value, BadImageError)


@given(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"]), st.data())
def test_a_damaged_file_is_an_rgb_image_or_that_error(kind: str, data: st.DataObject) -> None:
    whole = encoded(kind)
    content = whole[: data.draw(st.integers(0, len(whole)))]
    for _ in range(data.draw(st.integers(0, 3)) if content else 0):
        content = flipped(content, data.draw(st.integers(0, 8 * len(content) - 1)))
    with warnings.catch_warnings(), suppress(BadImageError):
        warnings.filterwarnings("ignore", category=UserWarning)  # of Pillow, on metadata
        image = read_image(BytesIO(content), "here")
        assert image.mode == "RGB"
        assert min(image.size) > 0


@pytest.mark.parametrize("bit", range(0, 8 * len(encoded("PNG")), 997))
def test_no_flipped_bit_of_a_png_changes_a_picture_unnoticed(bit: int) -> None:
    try:
        image = read_image(BytesIO(flipped(encoded("PNG"), bit)), "here")
    except BadImageError:
        return
    np.testing.assert_array_equal(np.asarray(image), np.asarray(read_image(BytesIO(encoded("PNG")), "here")))


def test_findings_are_kept_until_another_reader_comes_or_they_are_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    findings, other = Findings(tmp_path, {"dataset": "a"}), Findings(tmp_path, {"dataset": "b"})
    assert findings.reasons() == {}
    findings.add({"one": "it is empty", "two": "truncated"})
    findings.add({"three": "noise"})
    assert findings.reasons() == {"one": "it is empty", "two": "truncated", "three": "noise"}
    assert other.reasons() == {}
    path = next(path for path in tmp_path.rglob("*.json") if "three" in path.read_text(encoding="utf-8"))
    assert json.loads(path.read_text(encoding="utf-8"))["reader"] == READER
    for content in ("{", "[]", '{"reader": 1}', json.dumps({"reader": READER, "reasons": 3})):
        path.write_text(content, encoding="utf-8")
        assert findings.reasons().keys() == {"one", "two"}
    assert "is damaged; the images that it tells of are tried again" in caplog.text
    monkeypatch.setattr("lgclip.damage.READER", "Pillow 99")
    assert findings.reasons() == {}


def test_a_choice_that_is_not_there_is_refused_before_anything_is_made(
    fresh_world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [OnBadImage.of(choice) for choice in ("raise", "skip", "quarantine")] == list(OnBadImage)
    with pytest.raises(SystemExit):
        judge(fresh_world, tmp_path / "run", "on_bad_image=ignore")
    assert capsys.readouterr().err.splitlines()[-1] == "error: on_bad_image=ignore: choose raise, skip, quarantine"
    assert not list(fresh_world.store.rglob("*"))


@pytest.fixture
def spoilt(world: World, tmp_path: Path) -> World:
    """A world with prompts and drawn images, whose pictures to judge are damaged in every way."""
    damaged_folder(tmp_path / "pictures")
    return replace(world, pictures=tmp_path / "pictures")


def refused(world: World, folder: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    """What is said by a run that stops."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        judge(world, folder, *overrides)
    assert end.value.code == 1
    return capsys.readouterr().err.splitlines()[-1]


def read_whole(path: Path) -> Image.Image:
    """Decodes what is not damaged; pictures for the eye are read in every run."""
    assert not path.stem.startswith("1_"), f"{path} is decoded again"
    return read_image(path)


def test_raise_names_every_bad_image_and_keeps_what_it_encoded(
    spoilt: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = refused(spoilt, tmp_path / "run", capsys)
    assert said.startswith(f"error: {len(DAMAGES)} of {ALL} images of pictures: {spoilt.pictures}")
    data = Folder(str(spoilt.pictures))
    for at, path in enumerate(map(data.original, range(len(data)))):
        where = f"{path} cannot be read as an image ("
        assert (where in said) == (path.stem.startswith("1_"))
        assert where not in said or f"class {data.labels[at]} ({NAMES[data.labels[at]]!r})" in said.split(where)[1]
    assert "on_bad_image=skip" in said
    assert not (tmp_path / "run" / "result.json").exists()
    assert not (tmp_path / "run" / "predictions.csv").exists()
    assert not list(spoilt.store.rglob(".*")), "half-written files"

    monkeypatch.setattr(OpenClip, "load", lambda *_: pytest.fail("a model is loaded"))
    monkeypatch.setattr("lgclip.datasets.folder.read_image", read_whole)
    assert refused(spoilt, tmp_path / "again", capsys) == said
    assert made(judge(spoilt, tmp_path / "skip", "on_bad_image=skip"))["features"] == 0


def test_skip_says_what_a_folder_without_the_bad_images_says(
    spoilt: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = judge(spoilt, tmp_path / "run", "on_bad_image=skip", "encoder.batch_size=2")
    out = capsys.readouterr().out
    assert f"{GOOD} of {ALL} images, {len(DAMAGES)} could not be read: {spoilt.pictures}" in out
    assert (result["n"], result["images_in_dataset"]) == (GOOD, ALL)
    assert made(result) == FEATURES
    data = Folder(str(spoilt.pictures))
    bad = [at for at in range(len(data)) if data.original(at).stem.startswith("1_")]
    assert [one["index"] for one in result["skipped"]] == bad
    for one in result["skipped"]:
        at = one["index"]
        assert one.keys() == {"index", "id", "file", "class", "name", "reason"}
        assert (one["id"], one["file"]) == (data.ids[at], data.where(at))
        assert (one["class"], one["name"]) == (data.labels[at], NAMES[data.labels[at]])
    judged = rows(tmp_path / "run" / "predictions.csv")
    assert [int(row["index"]) for row in judged] == [at for at in range(ALL) if at not in bad]

    monkeypatch.setattr("lgclip.datasets.folder.read_image", read_whole)
    again = judge(spoilt, tmp_path / "again", "on_bad_image=skip")
    assert made(again) == {**FEATURES, "features": 0}
    assert {stage["stage"]: stage["reused"] for stage in again["stages"]}["features"] == 3 + 9 + GOOD
    assert (again["skipped"], again["metrics"]) == (result["skipped"], result["metrics"])
    monkeypatch.undo()

    clean = Path(shutil.copytree(spoilt.pictures, tmp_path / "clean"))
    for path in clean.rglob("1_*"):
        path.unlink()
    oracle = judge(replace(spoilt, pictures=clean), tmp_path / "oracle")
    assert (oracle["n"], oracle["images_in_dataset"], oracle["skipped"]) == (GOOD, GOOD, [])
    for figures in ("metrics", "beside", "paired", "confidence", "diagnostics"):
        assert oracle[figures] == result[figures]
    expected = rows(tmp_path / "oracle" / "predictions.csv")
    assert [{**row, "index": ""} for row in judged] == [{**row, "index": ""} for row in expected]
    for name in ("per_class.csv", "diagnostics.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "oracle" / name).read_bytes()


def test_quarantine_copies_what_is_bad_as_it_is_and_touches_nothing(spoilt: World, tmp_path: Path) -> None:
    before = tree(spoilt.pictures)
    result = judge(spoilt, tmp_path / "run", "on_bad_image=quarantine")
    aside = tmp_path / "run" / "quarantine"
    listed = [json.loads(line) for line in (aside / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [{key: one[key] for key in one if key != "copy"} for one in listed] == result["skipped"]
    assert {path.name for path in aside.iterdir()} == {"quarantine.jsonl", *(one["copy"] for one in listed)}
    for one in listed:
        assert (aside / one["copy"]).read_bytes() == Path(one["file"]).read_bytes()
        assert re.fullmatch(rf"{one['index']:06d}-[A-Za-z0-9-]+\.(png|jpg)", one["copy"])
    assert tree(spoilt.pictures) == before
    for path in spoilt.pictures.rglob("1_*"):
        path.unlink()
    judge(spoilt, tmp_path / "run", "on_bad_image=quarantine")
    assert not aside.exists(), "what an earlier run left in the folder tells of other images"


def test_a_mended_image_is_tried_again_and_judged(spoilt: World, tmp_path: Path) -> None:
    judge(spoilt, tmp_path / "run", "on_bad_image=skip")
    mended = next(spoilt.pictures.rglob("1_html.jpg"))
    mended.write_bytes(encoded("JPEG", seed=7))
    result = judge(spoilt, tmp_path / "again", "on_bad_image=skip")
    assert (made(result)["features"], result["n"], result["images_in_dataset"]) == (1, GOOD + 1, ALL)
    assert str(mended) not in [one["file"] for one in result["skipped"]]


def test_a_class_without_a_readable_image_is_an_error_that_names_it(
    spoilt: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (spoilt.pictures / "red star").glob("[02].png"):
        path.write_bytes(b"")
    said = refused(spoilt, tmp_path / "run", capsys, "on_bad_image=skip")
    assert said.startswith("error: class 2 ('red star'): not one of its 5 images can be read, first ")
    assert f"{spoilt.pictures / 'red star' / '0.png'} (it is empty)" in said


def test_rows_of_a_parquet_file_are_left_out_and_copied(world: World, tmp_path: Path) -> None:
    images = [encoded("JPEG", seed=at) for at in range(7)]
    images[2], images[5] = images[2][:300], b"<html></html>"
    content = table(images, {"label": [0, 1, 2, 2, 1, 0, 0]}, {"names": list(NAMES), "_type": "ClassLabel"})
    structs = content["image"].to_pylist()
    structs[4]["bytes"] = None
    content = content.set_column(0, "image", pa.array(structs, content.schema.field("image").type))
    write(tmp_path / "hub", "data/test-00000-of-00001.parquet", content.append_column("n", pa.array(range(7))))
    other = [o for o in world.evaluating() if not o.startswith("dataset")]
    place = ["dataset=hub", f"dataset.root={tmp_path / 'hub'}", "on_bad_image=quarantine"]
    result = judge([*other, *place], tmp_path / "run")
    assert (result["n"], [one["index"] for one in result["skipped"]]) == (4, [2, 4, 5])
    assert result["skipped"][0]["file"].endswith("data/test-00000-of-00001.parquet, row 2")
    assert "'path': '4.jpg'" in result["skipped"][1]["reason"]
    aside = tmp_path / "run" / "quarantine"
    assert (aside / "000002-red-star.bin").read_bytes() == images[2]
    assert (aside / "000005-blue-moon.bin").read_bytes() == images[5]
    assert sorted(path.name for path in aside.iterdir()) == [
        "000002-red-star.bin", "000005-blue-moon.bin", "quarantine.jsonl"
    ]  # fmt: skip


def test_what_is_left_of_a_data_set_keeps_each_image_s_place(tmp_path: Path) -> None:
    damaged_folder(tmp_path)
    whole = Folder(str(tmp_path))
    rest = Readable(whole, {3: "it is empty", 1: "noise"})
    assert list(rest.places) == [at for at in range(len(whole)) if at not in (1, 3)]
    assert (rest.ids, rest.labels) == tuple(
        tuple(column[at] for at in rest.places) for column in (whole.ids, whole.labels)
    )
    for index, at in enumerate(rest.places):
        assert (rest.where(index), rest.original(index)) == (whole.where(at), whole.original(at))
    last = len(rest) - 1
    assert np.array_equal(np.asarray(rest.image(last)), np.asarray(whole.image(len(whole) - 1)))
    assert (rest.source(), rest.class_names, rest.subjects) == (whole.source(), whole.class_names, whole.subjects)
    assert [one["index"] for one in left_out(rest)] == [1, 3]
    assert (left_out(whole), list(whole.places)) == ([], list(range(len(whole))))
