"""Tests that unreadable test images are named, skipped or quarantined, and never evaluated."""

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
from corrupted_images import CORRUPTIONS, FULL_IMAGE, encode_image, flip_bit, make_corrupted_folder
from factories import NAMES, Sandbox, computed_counts, evaluate_run, read_csv, read_tree
from hypothesis import given
from hypothesis import strategies as st
from parquet_trees import table, write
from PIL import Image

from lgclip.datasets.base import BadImageError
from lgclip.datasets.folder import Folder
from lgclip.datasets.image_decoding import read_image
from lgclip.datasets.unreadable import READER, OnBadImage, ReadableSubset, UnreadableImages, left_out
from lgclip.encoder.open_clip import OpenClip

pytest_plugins = ("run_fixtures",)

GOOD = 3 * FULL_IMAGE
ALL = 3 * FULL_IMAGE + len(CORRUPTIONS)
FEATURES = {"prompts": 0, "images": 0, "features": GOOD}


@pytest.mark.parametrize("damage", CORRUPTIONS)
def test_corruption_error_names_file_and_reason(damage: str, tmp_path: Path) -> None:
    path = make_corrupted_folder(tmp_path)[damage]
    for file, where in ((path, None), (BytesIO(path.read_bytes()), "shard 7, row 3")):
        with pytest.raises(BadImageError) as raised:
            read_image(file, where)
        error = raised.value
        assert error.where == (where or str(path))
        assert re.search(CORRUPTIONS[damage][1], error.reason)
        assert str(tmp_path) not in error.reason, "the same words wherever the file lies"
        assert "0x" not in error.reason
        assert str(error).startswith(f"{error.where} cannot be read as an image ({error.reason})")


@pytest.mark.parametrize("action", ["ignore", "always"])
def test_decompression_bomb_is_an_error(action: str, tmp_path: Path) -> None:
    path = make_corrupted_folder(tmp_path)["bomb"]
    with warnings.catch_warnings(record=True):
        warnings.simplefilter(action)  # pyright: ignore[reportArgumentType]
        with pytest.raises(BadImageError, match="more than 400,000,000 pixels"):
            read_image(path)


def test_other_io_errors_are_not_wrapped(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    for name in ("folder.png", "gone.png"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read \(.*never left out") as raised:
            read_image(tmp_path / name)
        assert not isinstance(raised.value, BadImageError)


@given(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"]), st.data())
def test_corrupted_file_is_rgb_or_an_error(kind: str, data: st.DataObject) -> None:
    image_bytes = encode_image(kind)
    content = image_bytes[: data.draw(st.integers(0, len(image_bytes)))]
    for _ in range(data.draw(st.integers(0, 3)) if content else 0):
        content = flip_bit(content, data.draw(st.integers(0, 8 * len(content) - 1)))
    with warnings.catch_warnings(), suppress(BadImageError):
        warnings.filterwarnings("ignore", category=UserWarning)  # of Pillow, on metadata
        image = read_image(BytesIO(content), "here")
        assert image.mode == "RGB"
        assert min(image.size) > 0


@pytest.mark.parametrize("bit", range(0, 8 * len(encode_image("PNG")), 997))
def test_flipped_png_bits_are_detected(bit: int) -> None:
    try:
        image = read_image(BytesIO(flip_bit(encode_image("PNG"), bit)), "here")
    except BadImageError:
        return
    np.testing.assert_array_equal(np.asarray(image), np.asarray(read_image(BytesIO(encode_image("PNG")), "here")))


def test_findings_are_reused_until_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    findings = UnreadableImages(tmp_path, {"dataset": "a"})
    other_findings = UnreadableImages(tmp_path, {"dataset": "b"})
    assert findings.reasons() == {}
    findings.add({"one": "it is empty", "two": "truncated"})
    findings.add({"three": "noise"})
    assert findings.reasons() == {"one": "it is empty", "two": "truncated", "three": "noise"}
    assert other_findings.reasons() == {}
    path = next(path for path in tmp_path.rglob("*.json") if "three" in path.read_text(encoding="utf-8"))
    assert json.loads(path.read_text(encoding="utf-8"))["reader"] == READER
    for content in ("{", "[]", '{"reader": 1}', json.dumps({"reader": READER, "reasons": 3})):
        path.write_text(content, encoding="utf-8")
        assert findings.reasons().keys() == {"one", "two"}
    assert "is damaged; the images that it lists are tried again" in caplog.text
    monkeypatch.setattr("lgclip.datasets.unreadable.READER", "Pillow 99")
    assert findings.reasons() == {}


def test_unknown_policy_is_rejected_early(
    fresh_sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [OnBadImage.of(choice) for choice in ("raise", "skip", "quarantine")] == list(OnBadImage)
    with pytest.raises(SystemExit):
        evaluate_run(fresh_sandbox, tmp_path / "run", "on_bad_image=ignore")
    assert capsys.readouterr().err.splitlines()[-1] == "error: on_bad_image=ignore: choose raise, skip, quarantine"
    assert not list(fresh_sandbox.store.rglob("*"))


@pytest.fixture
def corrupted_sandbox(sandbox: Sandbox, tmp_path: Path) -> Sandbox:
    """Returns a sandbox with prompts and generated images whose test images include every corruption."""
    make_corrupted_folder(tmp_path / "pictures")
    return replace(sandbox, synthetic_images=tmp_path / "pictures")


def rejection_message(sandbox: Sandbox, folder: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    """Returns the error message of a run that stops."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        evaluate_run(sandbox, folder, *overrides)
    assert end.value.code == 1
    return capsys.readouterr().err.splitlines()[-1]


def read_whole(path: Path) -> Image.Image:
    """Decodes undamaged images; every run reads images for the figures."""
    assert not path.stem.startswith("1_"), f"{path} is decoded again"
    return read_image(path)


@pytest.mark.slow
def test_raise_names_every_unreadable_image(
    corrupted_sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output_path = rejection_message(corrupted_sandbox, tmp_path / "run", capsys)
    assert output_path.startswith(
        f"error: {len(CORRUPTIONS)} of {ALL} images of pictures: {corrupted_sandbox.synthetic_images}"
    )
    data = Folder(str(corrupted_sandbox.synthetic_images))
    for index, path in enumerate(map(data.original, range(len(data)))):
        where = f"{path} cannot be read as an image ("
        assert (where in output_path) == (path.stem.startswith("1_"))
        assert (
            where not in output_path
            or f"class {data.labels[index]} ({NAMES[data.labels[index]]!r})" in output_path.split(where)[1]
        )
    assert "on_bad_image=skip" in output_path
    assert not (tmp_path / "run" / "result.json").exists()
    assert not (tmp_path / "run" / "predictions.csv").exists()
    assert not list(corrupted_sandbox.store.rglob(".*")), "half-written files"

    monkeypatch.setattr(OpenClip, "load", lambda *_: pytest.fail("a model is loaded"))
    monkeypatch.setattr("lgclip.datasets.folder.read_image", read_whole)
    assert rejection_message(corrupted_sandbox, tmp_path / "again", capsys) == output_path
    assert computed_counts(evaluate_run(corrupted_sandbox, tmp_path / "skip", "on_bad_image=skip"))["features"] == 0


@pytest.mark.slow
def test_skip_equals_a_folder_without_unreadable_images(
    corrupted_sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = evaluate_run(corrupted_sandbox, tmp_path / "run", "on_bad_image=skip", "encoder.batch_size=2")
    out = capsys.readouterr().out
    assert f"{GOOD} of {ALL} images, {len(CORRUPTIONS)} could not be read: {corrupted_sandbox.synthetic_images}" in out
    assert (result["n"], result["images_in_dataset"]) == (GOOD, ALL)
    assert computed_counts(result) == FEATURES
    data = Folder(str(corrupted_sandbox.synthetic_images))
    bad = [index for index in range(len(data)) if data.original(index).stem.startswith("1_")]
    assert [entry["index"] for entry in result["skipped"]] == bad
    for entry in result["skipped"]:
        index = entry["index"]
        assert entry.keys() == {"index", "id", "file", "class", "name", "reason"}
        assert (entry["id"], entry["file"]) == (data.ids[index], data.where(index))
        assert (entry["class"], entry["name"]) == (data.labels[index], NAMES[data.labels[index]])
    predictions = read_csv(tmp_path / "run" / "predictions.csv")
    assert [int(row["index"]) for row in predictions] == [index for index in range(ALL) if index not in bad]

    monkeypatch.setattr("lgclip.datasets.folder.read_image", read_whole)
    again = evaluate_run(corrupted_sandbox, tmp_path / "again", "on_bad_image=skip")
    assert computed_counts(again) == {**FEATURES, "features": 0}
    assert {stage["stage"]: stage["reused"] for stage in again["stages"]}["features"] == 3 + 9 + GOOD
    assert (again["skipped"], again["metrics"]) == (result["skipped"], result["metrics"])
    monkeypatch.undo()

    clean = Path(shutil.copytree(corrupted_sandbox.synthetic_images, tmp_path / "clean"))
    for path in clean.rglob("1_*"):
        path.unlink()
    oracle = evaluate_run(replace(corrupted_sandbox, synthetic_images=clean), tmp_path / "oracle")
    assert (oracle["n"], oracle["images_in_dataset"], oracle["skipped"]) == (GOOD, GOOD, [])
    for figures in ("metrics", "baselines", "paired", "confidence", "diagnostics"):
        assert oracle[figures] == result[figures]
    expected = read_csv(tmp_path / "oracle" / "predictions.csv")
    assert [{**row, "index": ""} for row in predictions] == [{**row, "index": ""} for row in expected]
    for name in ("per_class.csv", "diagnostics.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "oracle" / name).read_bytes()


@pytest.mark.slow
def test_quarantine_copies_unreadable_images(corrupted_sandbox: Sandbox, tmp_path: Path) -> None:
    before = read_tree(corrupted_sandbox.synthetic_images)
    result = evaluate_run(corrupted_sandbox, tmp_path / "run", "on_bad_image=quarantine")
    quarantine = tmp_path / "run" / "quarantine"
    listed = [json.loads(line) for line in (quarantine / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [{key: entry[key] for key in entry if key != "copy"} for entry in listed] == result["skipped"]
    assert {path.name for path in quarantine.iterdir()} == {"quarantine.jsonl", *(entry["copy"] for entry in listed)}
    for entry in listed:
        assert (quarantine / entry["copy"]).read_bytes() == Path(entry["file"]).read_bytes()
        assert re.fullmatch(rf"{entry['index']:06d}-[A-Za-z0-9-]+\.(png|jpg)", entry["copy"])
    assert read_tree(corrupted_sandbox.synthetic_images) == before
    for path in corrupted_sandbox.synthetic_images.rglob("1_*"):
        path.unlink()
    evaluate_run(corrupted_sandbox, tmp_path / "run", "on_bad_image=quarantine")
    assert not quarantine.exists(), "what an earlier run left in the folder lists other images"


def test_repaired_image_is_evaluated(corrupted_sandbox: Sandbox, tmp_path: Path) -> None:
    evaluate_run(corrupted_sandbox, tmp_path / "run", "on_bad_image=skip")
    mended = next(corrupted_sandbox.synthetic_images.rglob("1_html.jpg"))
    mended.write_bytes(encode_image("JPEG", seed=7))
    result = evaluate_run(corrupted_sandbox, tmp_path / "again", "on_bad_image=skip")
    assert (computed_counts(result)["features"], result["n"], result["images_in_dataset"]) == (1, GOOD + 1, ALL)
    assert str(mended) not in [process["file"] for process in result["skipped"]]


def test_class_without_readable_image_is_rejected(
    corrupted_sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (corrupted_sandbox.synthetic_images / "red star").glob("[02].png"):
        path.write_bytes(b"")
    output_path = rejection_message(corrupted_sandbox, tmp_path / "run", capsys, "on_bad_image=skip")
    assert output_path.startswith("error: class 2 ('red star'): not one of its 5 images can be read, first ")
    assert f"{corrupted_sandbox.synthetic_images / 'red star' / '0.png'} (it is empty)" in output_path


def test_unreadable_parquet_rows_are_skipped(sandbox: Sandbox, tmp_path: Path) -> None:
    images = [encode_image("JPEG", seed=index) for index in range(7)]
    images[2], images[5] = images[2][:300], b"<html></html>"
    content = table(images, {"label": [0, 1, 2, 2, 1, 0, 0]}, {"names": list(NAMES), "_type": "ClassLabel"})
    structs = content["image"].to_pylist()
    structs[4]["bytes"] = None
    content = content.set_column(0, "image", pa.array(structs, content.schema.field("image").type))
    write(tmp_path / "hub", "data/test-00000-of-00001.parquet", content.append_column("n", pa.array(range(7))))
    overrides = [o for o in sandbox.evaluate_overrides() if not o.startswith("dataset")]
    place = ["dataset=hub", f"dataset.root={tmp_path / 'hub'}", "on_bad_image=quarantine"]
    result = evaluate_run([*overrides, *place], tmp_path / "run")
    assert (result["n"], [entry["index"] for entry in result["skipped"]]) == (4, [2, 4, 5])
    assert result["skipped"][0]["file"].endswith("data/test-00000-of-00001.parquet, row 2")
    assert "'path': '4.jpg'" in result["skipped"][1]["reason"]
    quarantine = tmp_path / "run" / "quarantine"
    assert (quarantine / "000002-red-star.bin").read_bytes() == images[2]
    assert (quarantine / "000005-blue-moon.bin").read_bytes() == images[5]
    assert sorted(path.name for path in quarantine.iterdir()) == [
        "000002-red-star.bin", "000005-blue-moon.bin", "quarantine.jsonl"
    ]  # fmt: skip


def test_readable_subset_keeps_image_indices(tmp_path: Path) -> None:
    make_corrupted_folder(tmp_path)
    full_dataset = Folder(str(tmp_path))
    rest = ReadableSubset(full_dataset, {3: "it is empty", 1: "noise"})
    assert list(rest.places) == [position for position in range(len(full_dataset)) if position not in (1, 3)]
    assert (rest.ids, rest.labels) == tuple(
        tuple(column[position] for position in rest.places) for column in (full_dataset.ids, full_dataset.labels)
    )
    for index, position in enumerate(rest.places):
        assert (rest.where(index), rest.original(index)) == (
            full_dataset.where(position),
            full_dataset.original(position),
        )
    last = len(rest) - 1
    assert np.array_equal(np.asarray(rest.image(last)), np.asarray(full_dataset.image(len(full_dataset) - 1)))
    assert (rest.source(), rest.class_names, rest.target_classes) == (
        full_dataset.source(),
        full_dataset.class_names,
        full_dataset.target_classes,
    )
    assert [entry["index"] for entry in left_out(rest)] == [1, 3]
    assert (left_out(full_dataset), list(full_dataset.places)) == ([], list(range(len(full_dataset))))
