"""Tests complete runs whose synthetic images are JPEG files: `diffuser.image_format=jpeg-95`."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from factories import FirstRun, Sandbox, computed_counts, evaluate_run, run_command
from run_comparison import assert_same_run, features_of
from store_maintenance import files_of_kind, make_older

from lgclip.cli.store.archive import export, import_archive
from lgclip.cli.store.gc import collect
from lgclip.cli.store.inventory import Kind
from lgclip.cli.store.pack import pack, unpack
from lgclip.cli.store.transfer import pull, push
from lgclip.cli.store.verify import verify
from lgclip.store.shard_index import read_listing

pytest_plugins = ("run_fixtures",)

NOTHING = {"prompts": 0, "images": 0, "features": 0}
JPEG = "diffuser.image_format=jpeg-95"


@pytest.fixture(scope="module")
def jpeg_once(first_run: FirstRun, tmp_path_factory: pytest.TempPathFactory) -> FirstRun:
    """Runs the first run's command with JPEG, in an empty store."""
    folder = tmp_path_factory.mktemp("jpeg")
    sandbox = replace(first_run.sandbox, store=folder / "store")
    return FirstRun(sandbox, folder / "run", evaluate_run(sandbox, folder / "run", JPEG))


@pytest.fixture
def jpeg(jpeg_once: FirstRun, tmp_path: Path) -> Sandbox:
    """Returns a copy of that sandbox for the test."""
    shutil.copytree(jpeg_once.sandbox.store, tmp_path / "store")
    return replace(jpeg_once.sandbox, store=tmp_path / "store")


def test_images_are_jpeg_of_the_same_pixels(jpeg_once: FirstRun, first_run: FirstRun, tmp_path: Path) -> None:
    paths = files_of_kind(jpeg_once.sandbox.store, Kind.IMAGE)
    assert len(paths) == 9
    assert {path.suffix for path in paths} == {".jpg"}
    list(verify(jpeg_once.sandbox.store))
    assert jpeg_once.result["diffuser"]["image_format"] == "jpeg-95"
    assert first_run.result["diffuser"]["image_format"] == "png"
    assert jpeg_once.result["run_key"] != first_run.result["run_key"]
    assert jpeg_once.result["store"]["synthetic"] != first_run.result["store"]["synthetic"]
    # Close to the PNG images of the same prompts, and not equal to them.
    lossless = features_of(first_run.folder, tmp_path / "png.npz")["synthetic"]
    compressed = features_of(jpeg_once.folder, tmp_path / "jpeg.npz")["synthetic"]
    assert not np.array_equal(lossless, compressed)
    assert (lossless * compressed).sum(axis=-1).min() > 0.9


def test_second_run_computes_nothing(jpeg_once: FirstRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lgclip.diffuser.pipeline.Diffuser.load", None)
    result = evaluate_run(jpeg_once.sandbox, tmp_path / "run", JPEG)
    assert computed_counts(result) == NOTHING
    assert result["metrics"] == jpeg_once.result["metrics"]


@pytest.mark.parametrize("images", ["none", "sheet", "tar"])
def test_every_layout_gives_the_same_features(images: str, jpeg_once: FirstRun, tmp_path: Path) -> None:
    sandbox = replace(jpeg_once.sandbox, store=tmp_path / "store")
    result = evaluate_run(sandbox, tmp_path / "run", JPEG, f"paths.images={images}")
    assert result["store"] == jpeg_once.result["store"]
    assert result["metrics"] == jpeg_once.result["metrics"]
    assert_same_run(tmp_path / "run", jpeg_once.folder, tmp_path)
    list(verify(sandbox.store))
    shards = files_of_kind(sandbox.store, Kind.SHARD)
    names = [member.name for shard in shards for _, _, member in read_listing(shard).members(shard)]
    assert {Path(name).suffix for name in names} == (set() if images == "none" else {".jpg"})


def test_interrupted_run_continues_with_packed_images(jpeg: Sandbox, jpeg_once: FirstRun, tmp_path: Path) -> None:
    """Some images are cut and some gone, the rest is packed: only those are generated again, and are the same."""
    paths = sorted(files_of_kind(jpeg.store, Kind.IMAGE))
    expected = {path.name: path.read_bytes() for path in paths}
    paths[0].write_bytes(paths[0].read_bytes()[:-7])
    paths[1].unlink()
    shutil.rmtree(jpeg.store / "features")
    result = evaluate_run(jpeg, tmp_path / "resumed", JPEG)
    assert computed_counts(result)["images"] == 2
    assert {path.name: path.read_bytes() for path in files_of_kind(jpeg.store, Kind.IMAGE)} == expected
    assert_same_run(tmp_path / "resumed", jpeg_once.folder, tmp_path)
    assert list(pack(jpeg.store)) == [f"{jpeg.store}: 9 images and markers in 1 shard"]
    shutil.rmtree(jpeg.store / "features")
    evaluate_run(jpeg, tmp_path / "packed", JPEG)
    assert_same_run(tmp_path / "packed", jpeg_once.folder, tmp_path)
    list(unpack(jpeg.store))
    assert {path.name: path.read_bytes() for path in files_of_kind(jpeg.store, Kind.IMAGE)} == expected


def test_store_holds_both_formats(jpeg: Sandbox, first_run: FirstRun, tmp_path: Path) -> None:
    png = evaluate_run(jpeg, tmp_path / "png")
    assert png["store"] == first_run.result["store"]
    assert png["metrics"] == first_run.result["metrics"]
    paths = files_of_kind(jpeg.store, Kind.IMAGE)
    assert sorted({path.suffix for path in paths}) == [".jpg", ".png"]
    assert len(paths) == 18
    evaluate_run(jpeg, tmp_path / "jpeg", JPEG)
    make_older(jpeg.store, 3)
    list(collect(jpeg.store, keep=[tmp_path / "jpeg"], yes=True))
    assert {path.suffix for path in files_of_kind(jpeg.store, Kind.IMAGE)} == {".jpg"}
    list(verify(jpeg.store))
    assert computed_counts(evaluate_run(jpeg, tmp_path / "again", JPEG)) == NOTHING


def test_jpeg_is_exported_and_pushed(jpeg: Sandbox, tmp_path: Path) -> None:
    evaluate_run(jpeg, tmp_path / "run", JPEG)
    list(export(jpeg.store, tmp_path / "store.tar", [tmp_path / "run"]))
    imported = replace(jpeg, store=tmp_path / "imported")
    list(import_archive(imported.store, tmp_path / "store.tar"))
    assert computed_counts(evaluate_run(imported, tmp_path / "imported_run", JPEG)) == NOTHING
    url = f"file://{tmp_path / 'bucket'}"
    list(push(jpeg.store, url, [tmp_path / "run"]))
    list(pull(tmp_path / "pulled", url))
    (shard,) = files_of_kind(tmp_path / "pulled", Kind.SHARD)
    assert {Path(member.name).suffix for _, _, member in read_listing(shard).members(shard)} == {".jpg"}
    pulled = replace(jpeg, store=tmp_path / "pulled")
    assert computed_counts(evaluate_run(pulled, tmp_path / "pulled_run", JPEG)) == NOTHING


def test_invalid_format_is_rejected_early(
    fresh_sandbox: Sandbox, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        run_command(
            "evaluate", *fresh_sandbox.evaluate_overrides(), "diffuser.image_format=jpeg", f"hydra.run.dir={tmp_path}"
        )
    assert "diffuser.image_format=jpeg: choose png, or jpeg-QUALITY" in capsys.readouterr().err
    assert not (fresh_sandbox.store / "prompts").exists()
