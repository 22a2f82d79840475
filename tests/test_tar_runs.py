"""Whole runs whose images lie in tar shards: what files give, shards give, and everything that looks at them too."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from custody_stores import age, files
from worlds import FirstRun, World, call, judge, made, tree

from lgclip.artifacts import _contents
from lgclip.audit import audit
from lgclip.dashboard.page import write_page
from lgclip.identity import digest_of
from lgclip.inventory import Kind
from lgclip.packing import pack, unpack
from lgclip.reopen import reopen
from lgclip.retention import collect
from lgclip.runs import Run
from lgclip.shard_index import Member, look, read_manifest
from lgclip.transport import export, import_archive
from lgclip.verification import verify

pytest_plugins = ("run_fixtures",)

ROOT = Path(__file__).parents[1]
NOTHING = {"prompts": 0, "images": 0, "features": 0}


def drawn(world: World) -> dict[str, bytes]:
    """The bytes of every image in a store, by its id."""
    found = {path.stem: path.read_bytes() for path in files(world.store, Kind.IMAGE)}
    for shard in files(world.store, Kind.SHARD):
        found |= {name: member.read_bytes() for name, _, member in look(shard).members(shard)}
    return found


def generate(world: World, folder: Path, *overrides: str) -> list[dict[str, object]]:
    """Draws into shards; what images.jsonl says."""
    call("generate", *world.generating(), "++paths.images=tar", f"hydra.run.dir={folder}", *overrides)
    return [json.loads(line) for line in (folder / "images.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def packed_once(first_run: FirstRun, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The first run's world, its images in a shard."""
    folder = tmp_path_factory.mktemp("packed")
    world = replace(first_run.world, store=folder / "store")
    shutil.copytree(first_run.world.store, world.store, ignore=shutil.ignore_patterns("*.png"))
    generate(world, folder / "drawn")
    return world


@pytest.fixture
def packed(packed_once: World, tmp_path: Path) -> World:
    """A copy of it that is the test's own."""
    shutil.copytree(packed_once.store, tmp_path / "store")
    return replace(packed_once, store=tmp_path / "store")


def test_a_run_says_the_same_whether_its_images_lie_in_files_or_in_shards(
    packed: World, first_run: FirstRun, tmp_path: Path
) -> None:
    assert drawn(packed) == drawn(first_run.world)
    assert not files(packed.store, Kind.IMAGE)
    result = judge(packed, tmp_path / "run")
    assert made(result) == NOTHING, "features are of an image, wherever it lies"
    shutil.rmtree(packed.store / "features")
    result = judge(packed, tmp_path / "again", "workers=2")
    assert result["metrics"] == first_run.result["metrics"]
    assert (tmp_path / "again" / "predictions.csv").read_bytes() == (first_run.folder / "predictions.csv").read_bytes()
    sheet = "prototypes.png"
    assert (tmp_path / "again" / sheet).read_bytes() == (first_run.folder / sheet).read_bytes()


def test_switching_costs_nothing_and_each_image_is_kept_once(world: World, tmp_path: Path) -> None:
    before = tree(world.store / "images")
    told = generate(world, tmp_path / "tar")
    assert tree(world.store / "images") == before, "all images are there, as files"
    assert all(Path(str(line["file"])).is_file() for line in told)
    more = generate(world, tmp_path / "more", "prompts_per_class=4")
    assert sum(".tar!" in str(line["file"]) for line in more) == 3
    (shard,) = files(world.store, Kind.SHARD)
    assert len(look(shard).ids) == 3
    call("generate", *world.generating(), "prompts_per_class=4", f"hydra.run.dir={tmp_path / 'back'}")
    assert len(drawn(world)) == 12
    assert len(files(world.store, Kind.IMAGE)) == 9


def test_the_list_of_images_leads_to_each_and_the_manifest_to_each_shard(packed: World, tmp_path: Path) -> None:
    for line in generate(packed, tmp_path / "run"):
        shard, _, name = str(line["file"]).partition("!")
        (member,) = [m for _, _, m in look(Path(shard)).members(Path(shard)) if m.name == name]
        assert member.read_bytes() == drawn(packed)[name.removesuffix(".png")]
    (shard,) = files(packed.store, Kind.SHARD)
    assert read_manifest(shard.parent) == {shard.name: (shard.stat().st_size, digest_of(shard))}
    told = json.loads((shard.parent / "manifest.json").read_text(encoding="utf-8"))["shards"]
    assert [(row["images"], row["faults"]) for row in told] == [(9, 0)]
    assert len(list(shard.parent.iterdir())) == 3, "a shard, its index, the manifest"


def test_a_wrong_choice_is_said_before_anything_is_made(
    fresh_world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        generate(fresh_world, tmp_path / "run", "++paths.images=zip")
    assert "paths.images=zip: choose files or tar" in capsys.readouterr().err
    assert not (fresh_world.store / "prompts").exists()


def test_what_looks_at_a_run_finds_its_images_in_shards(packed: World, first_run: FirstRun, tmp_path: Path) -> None:
    judge(packed, tmp_path / "run")
    run = Run.read(tmp_path / "run")
    drawing = reopen(run).drawing
    assert drawing is not None
    assert all(isinstance(place, Member) for place in drawing.paths)
    found, expected = audit(run), audit(Run.read(first_run.folder))
    assert found["duplicates"]["found"] == expected["duplicates"]["found"]
    write_page([tmp_path / "run"], tmp_path / "page.html", reference=None, title="", images=4)
    assert "are not shown" not in (tmp_path / "page.html").read_text(encoding="utf-8")
    (tmp_path / "artifacts").mkdir()
    inside, _ = _contents(run, drawing, tmp_path / "artifacts", "files")["images"]
    (shard,) = files(packed.store, Kind.SHARD)
    listed = inside.pop("images.jsonl").read_text(encoding="utf-8").splitlines()
    assert inside == {f"shards/{shard.name}": shard}
    assert {json.loads(line)["file"] for line in listed} == {f"shards/{shard.name}!{name}.png" for name in drawing.ids}


def test_a_shard_stays_while_a_kept_run_needs_one_of_its_images(packed: World, tmp_path: Path) -> None:
    judge(packed, tmp_path / "run", "prompts_per_class=1")
    generate(packed, tmp_path / "other", "seed=1")
    (first,) = [path for path in files(packed.store, Kind.SHARD) if len(read_manifest(path.parent)) == 2][:1]
    age(packed.store, 3)
    list(verify(packed.store, manifest=True))
    kept = set(reopen(Run.read(tmp_path / "run")).drawing.paths)  # pyright: ignore[reportOptionalMemberAccess]
    (shard,) = {place.shard for place in kept if isinstance(place, Member)}
    list(collect(packed.store, keep=[tmp_path / "run"], yes=True))
    assert sorted(path.name for path in first.parent.iterdir()) == sorted(
        ["manifest.json", shard.name, shard.with_suffix(".safetensors").name]
    )
    list(verify(packed.store))
    shard.unlink()
    age(packed.store, 3)
    said = list(collect(packed.store, yes=True))
    assert any("features of images that are gone" in line for line in said)


def test_shards_go_to_another_machine_whole_or_those_of_a_run(packed: World, tmp_path: Path) -> None:
    judge(packed, tmp_path / "run")
    generate(packed, tmp_path / "other", "seed=1")
    for runs, count in (([], 2), ([tmp_path / "run"], 1)):
        there = replace(packed, store=tmp_path / f"there{count}")
        list(export(packed.store, tmp_path / f"{count}.tar", runs))
        list(import_archive(there.store, tmp_path / f"{count}.tar"))
        assert len(files(there.store, Kind.SHARD)) == len(files(there.store, Kind.INDEX)) == count
        list(verify(there.store, manifest=True))
        assert made(judge(there, tmp_path / f"run{count}")) == NOTHING


def test_packing_and_unpacking_change_no_image_and_cost_no_drawing(
    world: World, first_run: FirstRun, tmp_path: Path
) -> None:
    generate(world, tmp_path / "more", "prompts_per_class=4")
    images = drawn(world)
    before = tree(world.store)
    assert list(pack(world.store)) == [f"{world.store}: 12 images and markers in 1 shard"]
    assert not files(world.store, Kind.IMAGE)
    assert len(files(world.store, Kind.SHARD)) == 1
    assert drawn(world) == images
    list(verify(world.store))
    assert list(pack(world.store)) == [f"{world.store}: nothing to pack"]
    assert made(judge(world, tmp_path / "run")) == NOTHING
    assert list(unpack(world.store)) == [f"{world.store}: 12 images and markers in files"]
    assert drawn(world) == images
    after = tree(world.store)
    assert {name for name in after if ".tar" in name or "/shards/" in name} == set()
    assert {name: data for name, data in before.items() if "/shards/" not in name}.items() <= after.items()
    assert made(judge(world, tmp_path / "again")) == NOTHING


def test_two_devices_write_shards_of_their_own_and_one_manifest(
    fresh_world: World, first_run: FirstRun, tmp_path: Path
) -> None:
    arguments = [*fresh_world.generating(), "images_per_prompt=2", "++paths.images=tar"]
    arguments += [f"hydra.run.dir={tmp_path / 'two'}"]
    done = subprocess.run(
        [sys.executable, "generate.py", *arguments, "trainer.devices=2", "trainer.strategy=ddp"],
        cwd=ROOT, capture_output=True, text=True, timeout=200, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shards = files(fresh_world.store, Kind.SHARD)
    assert sorted(len(look(shard).ids) for shard in shards) == [8, 10], "a pass each"
    assert read_manifest(shards[0].parent).keys() == {shard.name for shard in shards}
    assert drawn(fresh_world).keys() > drawn(first_run.world).keys()
    list(verify(fresh_world.store))
