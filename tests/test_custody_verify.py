"""`lgclip store verify`: whatever is done to a file of a store is found, told, and made again after a repair."""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch
from custody_damages import DAMAGES, cut, edit, empty, flip, html
from custody_stores import DAY, entries, fails, files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from worlds import FirstRun, World, judge, made, tree

from lgclip.diffuser.faults import Fault
from lgclip.feature_store import FeatureStore
from lgclip.identity import key_of
from lgclip.image_store import ImageStore
from lgclip.inspection import fault_in
from lgclip.inventory import HOUR, MANIFEST, QUARANTINE, Kind, kind_of, walk
from lgclip.verification import verify

pytest_plugins = ("run_fixtures",)


def test_a_store_that_a_run_has_made_is_whole(world: World) -> None:
    before = tree(world.store)
    (said,) = verify(world.store)
    assert "9 image" in said
    assert "3 prompts" in said
    assert said.endswith(" 0 faults")
    assert tree(world.store) == before


@pytest.mark.parametrize("what", DAMAGES)
def test_what_is_damaged_is_found_and_told(what: str, world: World) -> None:
    kind, damage, fault = DAMAGES[what]
    damage(files(world.store, kind)[0])
    told = fails(verify(world.store), f"faults in {world.store}; --repair")[:-1]
    assert len(told) == (2 if "swapped" in what else 1)
    path, _, rest = told[0].partition(": ")
    assert kind_of(path) == kind
    assert re.search(fault, rest), rest


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bit=st.integers(0, 10**6))
def test_any_flipped_bit_of_an_image_is_found(bit: int, first_run: FirstRun, tmp_path: Path) -> None:
    item = next(item for item in walk(first_run.world.store) if item.kind == Kind.IMAGE)
    copy = tmp_path / "copy" / item.place
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(item.path, copy)
    (found,) = walk(tmp_path / "copy")
    assert fault_in(found) is None
    flip(copy, bit)
    assert fault_in(found) is not None


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bit=st.integers(0, 10**6), kind=st.sampled_from([Kind.IMAGE, Kind.PROMPTS, Kind.FEATURES, Kind.INPUTS]))
def test_a_manifest_finds_any_flipped_bit(bit: int, kind: Kind, first_run: FirstRun, tmp_path: Path) -> None:
    store = tmp_path / "flipped"
    if not store.exists():
        shutil.copytree(first_run.world.store, store)
        list(verify(store, manifest=True))
    path = files(store, kind)[0]
    before, times = path.read_bytes(), path.stat()
    flip(path, bit)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a disk that forgets
    (told, _) = fails(verify(store))
    assert told.startswith(path.relative_to(store).as_posix())
    path.write_bytes(before)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_after_a_repair_a_run_makes_what_was_faulty_again_and_nothing_else(
    world: World, first_run: FirstRun, tmp_path: Path
) -> None:
    list(verify(world.store, manifest=True))
    images, prompts = files(world.store, Kind.IMAGE), files(world.store, Kind.PROMPTS)
    html(images[0])
    flip(images[1], 999)
    empty(prompts[2])
    chunk = files(world.store, Kind.FEATURES)[0]
    cut(chunk)
    html(chunk.parent / "inputs.json")
    bad = {"images": 2, "prompts": 1}
    damaged = {p.read_bytes() for p in (*images[:2], prompts[2], chunk, chunk.parent / "inputs.json")}

    *_, said = verify(world.store, repair=True)
    assert said.startswith("5 files moved")
    assert set(tree(world.store / QUARANTINE).values()) == damaged, "nothing is deleted"
    assert len(list(verify(world.store))) == 1

    result = judge(world, tmp_path / "run")
    again = made(result)
    assert {stage: again[stage] for stage in bad} == bad
    assert 0 < again["features"] < made(first_run.result)["features"]
    assert result["metrics"] == first_run.result["metrics"]
    assert entries(world.store) == entries(first_run.world.store)
    list(verify(world.store))


def test_what_is_faulty_twice_lies_in_quarantine_twice(world: World) -> None:
    path = files(world.store, Kind.IMAGE)[0]
    for content in ("one", "two"):
        path.write_text(content)
        list(verify(world.store, repair=True))
    assert sorted(tree(world.store / QUARANTINE).values()) == [b"one", b"two"]


def test_foreign_files_links_and_leftovers_are_told(world: World) -> None:
    (world.store / "images" / "notes.txt").write_text("x")
    (world.store / "prompts" / "link.json").symlink_to("/etc/passwd")
    (world.store / "images" / "up").symlink_to("..")
    (world.store / "prompts" / ".abc.json.a1b2c3_4").write_text("x")
    assert len(fails(verify(world.store))) == 4, "the temporary file may be being written"
    said = fails(verify(world.store, now=time.time_ns() + 2 * HOUR), "4 faults")
    assert sum("a link, which is not followed" in line for line in said) == 2
    assert sum("an interrupted run left" in line for line in said) == 1
    fails(verify(world.store, repair=True), "2 faults .* links are left")
    assert (world.store / QUARANTINE / "images" / "notes.txt").read_text() == "x"
    assert Path("/etc/passwd").exists()


def test_a_manifest_is_one_that_sha256sum_reads_and_tells_what_is_gone(world: World) -> None:
    list(verify(world.store, manifest=True))
    subprocess.run(["sha256sum", "--check", "--quiet", "--strict", MANIFEST], cwd=world.store, check=True)
    gone = files(world.store, Kind.IMAGE)[0]
    gone.unlink()
    assert f"{gone.relative_to(world.store)}: it is in {MANIFEST}" in fails(verify(world.store), "1 faults")[0]
    list(verify(world.store, repair=True))
    assert len(list(verify(world.store))) == 1


def test_prompts_that_a_run_adds_to_are_no_fault_of_the_manifest(world: World) -> None:
    list(verify(world.store, manifest=True))
    path = files(world.store, Kind.PROMPTS)[0]
    edit(path, prompts=[*json.loads(path.read_text())["prompts"], "one more"])
    later = time.time_ns() + DAY
    os.utime(path, ns=(later, later))
    assert len(list(verify(world.store))) == 1


@pytest.mark.parametrize("line", ["nonsense", "0" * 64 + "  a\n" + "0" * 64 + "  a"])
def test_a_damaged_manifest_is_said(line: str, world: World) -> None:
    (world.store / MANIFEST).write_text(line + "\n")
    fails(verify(world.store), rf"{MANIFEST}, line \d: .*--manifest")


def test_markers_of_faults_and_findings_are_looked_at(tmp_path: Path) -> None:
    store = ImageStore(tmp_path, {"diffuser": "d"})
    about = {"class_index": 0, "text": "a cat", "repeat": 0}
    name = key_of({"diffuser": store.key, "seed": 0, **about})
    store.put_fault(name, Fault.BLACK, {**about, "seed": 0, "attempt": 0})
    findings = tmp_path / "images" / store.key / f"{'f' * 32}.json"
    findings.write_text(json.dumps({"faults": {"a": "unreadable"}}))
    assert "1 fault marker, 1 findings" in next(verify(tmp_path))
    findings.write_text(json.dumps({"faults": {"a": "ugly"}}))
    edit(files(tmp_path, Kind.MARKER)[0], text="a dog")
    assert [line.rpartition(": ")[2] for line in fails(verify(tmp_path))[:2]] == [
        "its name is not the key of what it says it was made from", "it names no findings",
    ]  # fmt: skip


def test_two_widths_of_equal_number_are_both_doubtful(tmp_path: Path) -> None:
    for name, width in (("a", 4), ("b", 5)):
        FeatureStore(tmp_path, {"encoder": "e"}, {"source": name}).add([name], ["whole"], torch.eye(width)[None, :1])
    assert len(fails(verify(tmp_path), "2 faults")) == 3


def test_a_folder_without_a_store_is_an_error_and_stays_empty(tmp_path: Path) -> None:
    fails(verify(tmp_path / "none"), "holds no store")
    assert not (tmp_path / "none").exists()


@settings(max_examples=100)
@given(data=st.binary(max_size=200), kind=st.sampled_from(["image", "json", "features"]))
def test_whatever_bytes_lie_there_are_a_fault_and_no_crash(
    data: bytes, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = {
        "image": f"images/{'a' * 32}/aa/{'a' * 32}.png", "json": f"prompts/{'a' * 32}.json",
        "features": f"features/{'a' * 32}/{'b' * 32}/{'c' * 32}.safetensors",
    }[kind]  # fmt: skip
    path = tmp_path_factory.mktemp("fuzz") / place
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    (item,) = walk(path.parents[len(place.split("/")) - 1])
    assert fault_in(item) is not None
