"""Tests complete runs with images in tar shards: the same results as files, for every command."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from factories import FirstRun, Sandbox, computed_counts, evaluate_run, read_tree, run_command
from store_maintenance import files_of_kind, make_older

from lgclip.cli.store.archive import export, import_archive
from lgclip.cli.store.gc import collect
from lgclip.cli.store.inventory import Kind
from lgclip.cli.store.pack import pack, unpack
from lgclip.cli.store.verify import verify
from lgclip.reporting.dashboard.page import write_page
from lgclip.reporting.leakage_audit import audit
from lgclip.reporting.restore import restore_run
from lgclip.reporting.run_folder import Run
from lgclip.reporting.wandb.artifacts import _contents
from lgclip.store.keys import digest_of
from lgclip.store.shard_index import Member, read_listing, read_manifest

pytest_plugins = ("run_fixtures",)

ROOT = Path(__file__).parents[2]
NOTHING = {"prompts": 0, "images": 0, "features": 0}


def generated(sandbox: Sandbox) -> dict[str, bytes]:
    """Returns the bytes of every image in a store by id."""
    content = {path.stem: path.read_bytes() for path in files_of_kind(sandbox.store, Kind.IMAGE)}
    for shard in files_of_kind(sandbox.store, Kind.SHARD):
        content |= {name: member.read_bytes() for name, _, member in read_listing(shard).members(shard)}
    return content


def generate(sandbox: Sandbox, folder: Path, *overrides: str) -> list[dict[str, object]]:
    """Generates into shards; returns the rows of images.jsonl."""
    run_command("generate", *sandbox.generate_overrides(), "++paths.images=tar", f"hydra.run.dir={folder}", *overrides)
    return [json.loads(line) for line in (folder / "images.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def packed_once(first_run: FirstRun, tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """Packs the first run's images into a shard."""
    folder = tmp_path_factory.mktemp("packed")
    sandbox = replace(first_run.sandbox, store=folder / "store")
    shutil.copytree(first_run.sandbox.store, sandbox.store, ignore=shutil.ignore_patterns("*.png"))
    generate(sandbox, folder / "drawn")
    return sandbox


@pytest.fixture
def packed(packed_once: Sandbox, tmp_path: Path) -> Sandbox:
    """Returns a copy of the packed sandbox for the test."""
    shutil.copytree(packed_once.store, tmp_path / "store")
    return replace(packed_once, store=tmp_path / "store")


@pytest.mark.slow
def test_shards_and_files_give_the_same_result(packed: Sandbox, first_run: FirstRun, tmp_path: Path) -> None:
    assert generated(packed) == generated(first_run.sandbox)
    assert not files_of_kind(packed.store, Kind.IMAGE)
    result = evaluate_run(packed, tmp_path / "run")
    assert computed_counts(result) == NOTHING, "features are of an image, wherever it lies"
    shutil.rmtree(packed.store / "features")
    result = evaluate_run(packed, tmp_path / "again", "workers=2")
    assert result["metrics"] == first_run.result["metrics"]
    assert (tmp_path / "again" / "predictions.csv").read_bytes() == (first_run.folder / "predictions.csv").read_bytes()
    sheet = "prototypes.png"
    assert (tmp_path / "again" / sheet).read_bytes() == (first_run.folder / sheet).read_bytes()


@pytest.mark.slow
def test_switching_formats_stores_images_once(sandbox: Sandbox, tmp_path: Path) -> None:
    before = read_tree(sandbox.store / "images")
    packed_result = generate(sandbox, tmp_path / "tar")
    assert read_tree(sandbox.store / "images") == before, "all images are there, as files"
    assert all(Path(str(line["file"])).is_file() for line in packed_result)
    larger = generate(sandbox, tmp_path / "more", "prompts_per_class=4")
    assert sum(".tar!" in str(line["file"]) for line in larger) == 3
    (shard,) = files_of_kind(sandbox.store, Kind.SHARD)
    assert len(read_listing(shard).ids) == 3
    run_command("generate", *sandbox.generate_overrides(), "prompts_per_class=4", f"hydra.run.dir={tmp_path / 'back'}")
    assert len(generated(sandbox)) == 12
    assert len(files_of_kind(sandbox.store, Kind.IMAGE)) == 9


def test_image_list_and_manifest_cover_shards(packed: Sandbox, tmp_path: Path) -> None:
    for line in generate(packed, tmp_path / "run"):
        shard, _, name = str(line["file"]).partition("!")
        (member,) = [m for _, _, m in read_listing(Path(shard)).members(Path(shard)) if m.name == name]
        assert member.read_bytes() == generated(packed)[name.removesuffix(".png")]
    (shard,) = files_of_kind(packed.store, Kind.SHARD)
    assert read_manifest(shard.parent) == {shard.name: (shard.stat().st_size, digest_of(shard))}
    shards = json.loads((shard.parent / "manifest.json").read_text(encoding="utf-8"))["shards"]
    assert [(row["images"], row["faults"]) for row in shards] == [(9, 0)]
    assert len(list(shard.parent.iterdir())) == 3, "a shard, its index, the manifest"


def test_invalid_format_is_rejected_early(
    fresh_sandbox: Sandbox, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        generate(fresh_sandbox, tmp_path / "run", "++paths.images=zip")
    assert "paths.images=zip: choose files, tar, sheet, none" in capsys.readouterr().err
    assert not (fresh_sandbox.store / "prompts").exists()


def test_reports_read_images_from_shards(packed: Sandbox, first_run: FirstRun, tmp_path: Path) -> None:
    evaluate_run(packed, tmp_path / "run")
    run = Run.read(tmp_path / "run")
    synthetic_images = restore_run(run).synthetic_images
    assert synthetic_images is not None
    assert all(isinstance(place, Member) for place in synthetic_images.paths)
    report = audit(run)
    expected = audit(Run.read(first_run.folder))
    assert report["duplicates"]["found"] == expected["duplicates"]["found"]
    write_page([tmp_path / "run"], tmp_path / "page.html", reference=None, title="", images=4)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Pictures of" not in page
    assert "data:image/" in page
    (tmp_path / "artifacts").mkdir()
    inside, _ = _contents(run, synthetic_images, tmp_path / "artifacts", "files")["images"]
    (shard,) = files_of_kind(packed.store, Kind.SHARD)
    listed = inside.pop("images.jsonl").read_text(encoding="utf-8").splitlines()
    assert inside == {f"shards/{shard.name}": shard}
    assert {json.loads(line)["file"] for line in listed} == {
        f"shards/{shard.name}!{name}.png" for name in synthetic_images.ids
    }


def test_gc_keeps_shards_in_use(packed: Sandbox, tmp_path: Path) -> None:
    evaluate_run(packed, tmp_path / "run", "prompts_per_class=1")
    generate(packed, tmp_path / "other", "seed=1")
    (first,) = [path for path in files_of_kind(packed.store, Kind.SHARD) if len(read_manifest(path.parent)) == 2][:1]
    make_older(packed.store, 3)
    list(verify(packed.store, manifest=True))
    needed = set(restore_run(Run.read(tmp_path / "run")).synthetic_images.paths)  # pyright: ignore[reportOptionalMemberAccess]
    (shard,) = {place.shard for place in needed if isinstance(place, Member)}
    list(collect(packed.store, keep=[tmp_path / "run"], yes=True))
    assert sorted(path.name for path in first.parent.iterdir()) == sorted(
        ["manifest.json", shard.name, shard.with_suffix(".safetensors").name]
    )
    list(verify(packed.store))
    shard.unlink()
    make_older(packed.store, 3)
    lines = list(collect(packed.store, yes=True))
    assert any("features of images that are gone" in line for line in lines)


@pytest.mark.slow
def test_shards_are_exported(packed: Sandbox, tmp_path: Path) -> None:
    evaluate_run(packed, tmp_path / "run")
    generate(packed, tmp_path / "other", "seed=1")
    for runs, count in (([], 2), ([tmp_path / "run"], 1)):
        target_sandbox = replace(packed, store=tmp_path / f"there{count}")
        list(export(packed.store, tmp_path / f"{count}.tar", runs))
        list(import_archive(target_sandbox.store, tmp_path / f"{count}.tar"))
        assert (
            len(files_of_kind(target_sandbox.store, Kind.SHARD))
            == len(files_of_kind(target_sandbox.store, Kind.INDEX))
            == count
        )
        list(verify(target_sandbox.store, manifest=True))
        assert computed_counts(evaluate_run(target_sandbox, tmp_path / f"run{count}")) == NOTHING


@pytest.mark.slow
def test_packing_is_lossless(sandbox: Sandbox, first_run: FirstRun, tmp_path: Path) -> None:
    generate(sandbox, tmp_path / "more", "prompts_per_class=4")
    images = generated(sandbox)
    before = read_tree(sandbox.store)
    assert list(pack(sandbox.store)) == [f"{sandbox.store}: 12 images and markers in 1 shard"]
    assert not files_of_kind(sandbox.store, Kind.IMAGE)
    assert len(files_of_kind(sandbox.store, Kind.SHARD)) == 1
    assert generated(sandbox) == images
    list(verify(sandbox.store))
    assert list(pack(sandbox.store)) == [f"{sandbox.store}: nothing to pack"]
    assert computed_counts(evaluate_run(sandbox, tmp_path / "run")) == NOTHING
    assert list(unpack(sandbox.store)) == [f"{sandbox.store}: 12 images and markers in files"]
    assert generated(sandbox) == images
    after = read_tree(sandbox.store)
    assert {name for name in after if ".tar" in name or "/shards/" in name} == set()
    assert {name: data for name, data in before.items() if "/shards/" not in name}.items() <= after.items()
    assert computed_counts(evaluate_run(sandbox, tmp_path / "again")) == NOTHING


@pytest.mark.multiprocess
def test_devices_write_separate_shards(fresh_sandbox: Sandbox, first_run: FirstRun, tmp_path: Path) -> None:
    arguments = [*fresh_sandbox.generate_overrides(), "images_per_prompt=2", "++paths.images=tar"]
    arguments += [f"hydra.run.dir={tmp_path / 'two'}"]
    completed = subprocess.run(
        [sys.executable, "generate.py", *arguments, "trainer.devices=2", "trainer.strategy=ddp"],
        cwd=ROOT, capture_output=True, text=True, timeout=200, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
    shards = files_of_kind(fresh_sandbox.store, Kind.SHARD)
    assert sorted(len(read_listing(shard).ids) for shard in shards) == [8, 10], "a pass each"
    assert read_manifest(shards[0].parent).keys() == {shard.name for shard in shards}
    assert generated(fresh_sandbox).keys() > generated(first_run.sandbox).keys()
    list(verify(fresh_sandbox.store))
