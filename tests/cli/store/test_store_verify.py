"""Tests `lgclip store verify`: every corruption is reported, and restored after a repair."""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch
from factories import FirstRun, Sandbox, computed_counts, evaluate_run, read_tree
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_corruption import CORRUPTIONS, edit_json, flip_bit, truncate, truncate_to_zero, write_html
from store_maintenance import DAY, collect_failure, files_of_kind, read_entries

from lgclip.cli.store.entry_checks import fault_in
from lgclip.cli.store.inventory import HOUR, MANIFEST, QUARANTINE, Kind, kind_of, walk
from lgclip.cli.store.verify import verify
from lgclip.store.checksums import with_checksum
from lgclip.store.features import FeatureStore
from lgclip.store.images import ImageStore
from lgclip.store.keys import content_key
from lgclip.types import Fault

pytest_plugins = ("run_fixtures",)


def test_store_of_a_run_is_valid(sandbox: Sandbox) -> None:
    before = read_tree(sandbox.store)
    (line,) = verify(sandbox.store)
    assert "9 image" in line
    assert "3 prompts" in line
    assert line.endswith(" 0 faults")
    assert read_tree(sandbox.store) == before


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_verify_reports_corruption(corruption: str, sandbox: Sandbox) -> None:
    kind, damage, fault = CORRUPTIONS[corruption]
    damage(files_of_kind(sandbox.store, kind)[0])
    lines = collect_failure(verify(sandbox.store), f"faults in {sandbox.store}; --repair")[:-1]
    assert len(lines) == (2 if "swapped" in corruption else 1)
    path, _, rest = lines[0].partition(": ")
    assert kind_of(path) == kind
    assert re.search(fault, rest), rest


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bit=st.integers(0, 10**6))
def test_verify_detects_any_flipped_image_bit(bit: int, first_run: FirstRun, tmp_path: Path) -> None:
    item = next(item for item in walk(first_run.sandbox.store) if item.kind == Kind.IMAGE)
    copy = tmp_path / "copy" / item.place
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(item.path, copy)
    (entry,) = walk(tmp_path / "copy")
    assert fault_in(entry) is None
    flip_bit(copy, bit)
    assert fault_in(entry) is not None


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bit=st.integers(0, 10**6), kind=st.sampled_from([Kind.IMAGE, Kind.PROMPTS, Kind.FEATURES, Kind.INPUTS]))
def test_manifest_detects_any_flipped_bit(bit: int, kind: Kind, first_run: FirstRun, tmp_path: Path) -> None:
    store = tmp_path / "flipped"
    if not store.exists():
        shutil.copytree(first_run.sandbox.store, store)
        list(verify(store, manifest=True))
    path = files_of_kind(store, kind)[0]
    before = path.read_bytes()
    times = path.stat()
    flip_bit(path, bit)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a disk that forgets
    (line, _) = collect_failure(verify(store))
    assert line.startswith(path.relative_to(store).as_posix())
    path.write_bytes(before)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_repaired_store_is_completed_by_a_run(sandbox: Sandbox, first_run: FirstRun, tmp_path: Path) -> None:
    list(verify(sandbox.store, manifest=True))
    images = files_of_kind(sandbox.store, Kind.IMAGE)
    prompts = files_of_kind(sandbox.store, Kind.PROMPTS)
    write_html(images[0])
    flip_bit(images[1], 999)
    truncate_to_zero(prompts[2])
    chunk = files_of_kind(sandbox.store, Kind.FEATURES)[0]
    truncate(chunk)
    write_html(chunk.parent / "inputs.json")
    bad = {"images": 2, "prompts": 1}
    damaged = {p.read_bytes() for p in (*images[:2], prompts[2], chunk, chunk.parent / "inputs.json")}

    *_, summary = verify(sandbox.store, repair=True)
    assert summary.startswith("5 files moved")
    assert set(read_tree(sandbox.store / QUARANTINE).values()) == damaged, "nothing is deleted"
    assert len(list(verify(sandbox.store))) == 1

    result = evaluate_run(sandbox, tmp_path / "run")
    again = computed_counts(result)
    assert {stage: again[stage] for stage in bad} == bad
    assert 0 < again["features"] < computed_counts(first_run.result)["features"]
    assert result["metrics"] == first_run.result["metrics"]
    assert read_entries(sandbox.store) == read_entries(first_run.sandbox.store)
    list(verify(sandbox.store))


def test_quarantine_keeps_repeated_faults(sandbox: Sandbox) -> None:
    path = files_of_kind(sandbox.store, Kind.IMAGE)[0]
    for content in ("one", "two"):
        path.write_text(content)
        list(verify(sandbox.store, repair=True))
    assert sorted(read_tree(sandbox.store / QUARANTINE).values()) == [b"one", b"two"]


def test_verify_reports_foreign_files_and_links(sandbox: Sandbox) -> None:
    (sandbox.store / "images" / "notes.txt").write_text("x")
    (sandbox.store / "prompts" / "link.json").symlink_to("/etc/passwd")
    (sandbox.store / "images" / "up").symlink_to("..")
    (sandbox.store / "prompts" / ".abc.json.a1b2c3_4").write_text("x")
    assert len(collect_failure(verify(sandbox.store))) == 4, "the temporary file may be being written"
    lines = collect_failure(verify(sandbox.store, now=time.time_ns() + 2 * HOUR), "4 faults")
    assert sum("a link, which is not followed" in line for line in lines) == 2
    assert sum("an interrupted run left" in line for line in lines) == 1
    collect_failure(verify(sandbox.store, repair=True), "2 faults .* links are left")
    assert (sandbox.store / QUARANTINE / "images" / "notes.txt").read_text() == "x"
    assert Path("/etc/passwd").exists()


def test_manifest_is_readable_by_sha256sum(sandbox: Sandbox) -> None:
    list(verify(sandbox.store, manifest=True))
    subprocess.run(["sha256sum", "--check", "--quiet", "--strict", MANIFEST], cwd=sandbox.store, check=True)
    deleted = files_of_kind(sandbox.store, Kind.IMAGE)[0]
    deleted.unlink()
    assert (
        f"{deleted.relative_to(sandbox.store)}: it is in {MANIFEST}"
        in collect_failure(verify(sandbox.store), "1 faults")[0]
    )
    list(verify(sandbox.store, repair=True))
    assert len(list(verify(sandbox.store))) == 1


def test_manifest_allows_appended_prompts(sandbox: Sandbox) -> None:
    list(verify(sandbox.store, manifest=True))
    path = files_of_kind(sandbox.store, Kind.PROMPTS)[0]
    edit_json(path, prompts=[*json.loads(path.read_text())["prompts"], "one more"])
    later = time.time_ns() + DAY
    os.utime(path, ns=(later, later))
    assert len(list(verify(sandbox.store))) == 1


@pytest.mark.parametrize("line", ["nonsense", "0" * 64 + "  a\n" + "0" * 64 + "  a"])
def test_damaged_manifest_is_reported(line: str, sandbox: Sandbox) -> None:
    (sandbox.store / MANIFEST).write_text(line + "\n")
    collect_failure(verify(sandbox.store), rf"{MANIFEST}, line \d: .*--manifest")


def test_verify_checks_markers_and_findings(tmp_path: Path) -> None:
    store = ImageStore(tmp_path, {"diffuser": "d"})
    about = {"class": "cat", "occurrence": 0, "text": "a cat", "repeat": 0, "seed": 0, "attempt": 0}
    store.put_fault(content_key({"diffuser": store.key, **about}), Fault.BLACK, about)
    findings = tmp_path / "images" / store.key / f"{'f' * 32}.json"
    findings.write_text(json.dumps(with_checksum({"faults": {"a": "unreadable"}})))
    assert "1 fault marker, 1 findings" in next(verify(tmp_path))
    findings.write_text(json.dumps(with_checksum({"faults": {"a": "ugly"}})))
    edit_json(files_of_kind(tmp_path, Kind.MARKER)[0], text="a dog")
    assert [line.rpartition(": ")[2] for line in collect_failure(verify(tmp_path))[:2]] == [
        "its name is not the key of what it says it was made from", "it names no findings",
    ]  # fmt: skip


def test_conflicting_feature_widths_are_both_reported(tmp_path: Path) -> None:
    for name, width in (("a", 4), ("b", 5)):
        FeatureStore(tmp_path, {"encoder": "e"}, {"source": name}).add([name], ["whole"], torch.eye(width)[None, :1])
    assert len(collect_failure(verify(tmp_path), "2 faults")) == 3


def test_verify_rejects_a_folder_without_a_store(tmp_path: Path) -> None:
    collect_failure(verify(tmp_path / "none"), "holds no store")
    assert not (tmp_path / "none").exists()


@settings(max_examples=100)
@given(data=st.binary(max_size=200), kind=st.sampled_from(["image", "json", "features"]))
def test_verify_reports_random_bytes(data: bytes, kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    place = {
        "image": f"images/{'a' * 32}/aa/{'a' * 32}.png", "json": f"prompts/{'a' * 32}.json",
        "features": f"features/{'a' * 32}/{'b' * 32}/{'c' * 32}.safetensors",
    }[kind]  # fmt: skip
    path = tmp_path_factory.mktemp("fuzz") / place
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    (item,) = walk(path.parents[len(place.split("/")) - 1])
    assert fault_in(item) is not None
