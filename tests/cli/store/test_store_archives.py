"""Tests `lgclip store export` and `import`: complete transfers between machines, and malicious archives."""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from factories import FirstRun, Sandbox, computed_counts, evaluate_run, read_tree
from store_maintenance import files_of_kind, read_entries

from lgclip.cli.store import archive as transport
from lgclip.cli.store.archive import ABOUT, FORMAT, export, import_archive
from lgclip.cli.store.gc import collect
from lgclip.cli.store.inventory import MANIFEST, Kind
from lgclip.cli.store.verify import verify
from lgclip.store.root import StoreError

pytest_plugins = ("run_fixtures",)


@pytest.fixture
def archive(sandbox: Sandbox, tmp_path: Path) -> Path:
    list(export(sandbox.store, tmp_path / "out" / "store.tar"))
    return tmp_path / "out" / "store.tar"


def members(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}  # pyright: ignore[reportOptionalMemberAccess]


def pack(archive: Path, content: dict[str, bytes], *members: tarfile.TarInfo, sums: bool = True) -> Path:
    """Writes an archive with a matching manifest and optional extra members without content."""
    if sums:
        files = {name: data for name, data in content.items() if name not in (ABOUT, MANIFEST)}
        lines = "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
        content = {**content, MANIFEST: lines.encode()}
    with tarfile.open(archive, "w") as tar:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for info in members:
            tar.addfile(info)
    return archive


@pytest.mark.slow
def test_imported_store_is_reused(sandbox: Sandbox, first_run: FirstRun, archive: Path, tmp_path: Path) -> None:
    target_sandbox = replace(sandbox, store=tmp_path / "another machine" / "store")
    list(import_archive(target_sandbox.store, archive))
    assert read_tree(target_sandbox.store).keys() - {MANIFEST} == read_tree(sandbox.store).keys()
    assert {name: read_tree(target_sandbox.store)[name] for name in read_tree(sandbox.store)} == read_tree(
        sandbox.store
    )
    result = evaluate_run(target_sandbox, tmp_path / "run")
    assert set(computed_counts(result).values()) == {0}
    assert result["metrics"] == first_run.result["metrics"]
    before = first_run.result["cost"]
    after = result["cost"]
    assert after["computed_before"]["images"]["parts"], "its ledgers came too"
    assert before["towers"] == after["towers"]
    assert (tmp_path / "run" / "predictions.csv").read_bytes() == (first_run.folder / "predictions.csv").read_bytes()
    assert len(list(verify(target_sandbox.store))) == 1
    assert [p.name for p in target_sandbox.store.iterdir() if p.name.startswith(".")] == []


def test_export_contains_everything_a_run_needs(sandbox: Sandbox, first_run: FirstRun, tmp_path: Path) -> None:
    evaluate_run(sandbox, tmp_path / "other", "seed=1")
    (line,) = export(sandbox.store, tmp_path / "one.tar", [first_run.folder])
    assert line.startswith(f"{tmp_path / 'one.tar'}: ")
    target_sandbox = replace(sandbox, store=tmp_path / "there")
    list(import_archive(target_sandbox.store, tmp_path / "one.tar"))
    assert len(files_of_kind(target_sandbox.store, Kind.IMAGE)) == 9
    assert read_entries(target_sandbox.store) == read_entries(first_run.sandbox.store)
    assert set(computed_counts(evaluate_run(target_sandbox, tmp_path / "run")).values()) == {0}


def test_export_rejects_incomplete_runs(sandbox: Sandbox, first_run: FirstRun, tmp_path: Path) -> None:
    files_of_kind(sandbox.store, Kind.IMAGE)[0].unlink()
    files_of_kind(sandbox.store, Kind.FEATURES)[0].unlink()
    with pytest.raises(ValueError, match=r"\d+ entries that it needs are not in"):
        list(export(sandbox.store, tmp_path / "one.tar", [first_run.folder]))
    assert not (tmp_path / "one.tar").exists()


def test_archives_of_equal_stores_are_equal(sandbox: Sandbox, archive: Path, tmp_path: Path) -> None:
    shutil.copytree(sandbox.store, tmp_path / "copy", copy_function=shutil.copyfile)
    list(export(tmp_path / "copy", tmp_path / "copy.tar"))
    assert (tmp_path / "copy.tar").read_bytes() == archive.read_bytes()


def test_import_is_idempotent(archive: Path, tmp_path: Path) -> None:
    list(import_archive(tmp_path / "there", archive))
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "there" / "images").rglob("*")}
    (line,) = import_archive(tmp_path / "there", archive)
    assert "0 files, 0 bytes placed" in line
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "there" / "images").rglob("*")} == times


@pytest.mark.slow
def test_import_merges_stores_and_cost_logs(
    sandbox: Sandbox, first_run: FirstRun, archive: Path, tmp_path: Path
) -> None:
    other_sandbox = replace(sandbox, store=tmp_path / "other")
    evaluate_run(other_sandbox, tmp_path / "run", "seed=1")
    (cost_log,) = [path for path in files_of_kind(other_sandbox.store, Kind.COST_LOG) if "images" in path.parts]
    towers = files_of_kind(other_sandbox.store, Kind.TOWERS)[0].read_bytes()
    mine = cost_log.read_bytes()
    list(import_archive(other_sandbox.store, archive))
    copied_log = sandbox.store / cost_log.relative_to(other_sandbox.store)
    assert cost_log.read_bytes() == mine + copied_log.read_bytes()
    assert files_of_kind(other_sandbox.store, Kind.TOWERS)[0].read_bytes() == towers
    list(import_archive(other_sandbox.store, archive))
    assert cost_log.read_bytes() == mine + copied_log.read_bytes()
    assert set(computed_counts(evaluate_run(other_sandbox, tmp_path / "again")).values()) == {0}
    assert set(computed_counts(evaluate_run(other_sandbox, tmp_path / "again1", "seed=1")).values()) == {0}


def test_import_rejects_conflicting_entries(archive: Path, sandbox: Sandbox) -> None:
    path = files_of_kind(sandbox.store, Kind.PROMPTS)[0]
    path.write_text(json.dumps({**json.loads(path.read_text()), "prompts": ["other"]}))
    files_of_kind(sandbox.store, Kind.IMAGE)[0].unlink()
    before = read_tree(sandbox.store)
    with pytest.raises(StoreError, match=rf"1 entries .* other bytes: prompts/{path.name}; nothing was placed"):
        list(import_archive(sandbox.store, archive))
    assert read_tree(sandbox.store) == before


def test_imported_entries_are_recent(archive: Path, tmp_path: Path) -> None:
    target = tmp_path / "there"
    list(import_archive(target, archive))
    before = read_tree(target)
    list(collect(target, older_than=1, yes=True))
    assert read_tree(target) == before


@pytest.mark.parametrize("kind", [Kind.IMAGE, Kind.PROMPTS, Kind.FEATURES, Kind.INPUTS, Kind.COST_LOG])
def test_export_skips_faulty_entries(kind: Kind, sandbox: Sandbox, tmp_path: Path) -> None:
    files_of_kind(sandbox.store, kind)[0].write_text("<html>")
    with pytest.raises(StoreError, match="Nothing was written"):
        list(export(sandbox.store, tmp_path / "out.tar"))
    assert not list(tmp_path.glob("*out.tar*"))


def test_export_skips_foreign_files(sandbox: Sandbox, tmp_path: Path) -> None:
    (sandbox.store / "prompts" / ".env").write_text("KEY=secret")
    (sandbox.store / "prompts" / ".abc.json.a1b2c3_4").write_text("being written")
    with pytest.raises(StoreError, match=r"\.env: nothing that belongs to a store; move it away"):
        list(export(sandbox.store, tmp_path / "out.tar"))
    (sandbox.store / "prompts" / ".env").unlink()
    list(export(sandbox.store, tmp_path / "out.tar"))
    assert b"being written" not in (tmp_path / "out.tar").read_bytes()


def test_export_reports_files_that_change(sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack_one = transport._pack

    def late(tar: tarfile.TarFile, item: Any, expected: str) -> None:
        data = item.path.read_bytes()
        item.path.write_bytes(data[:-9] if item.kind == Kind.IMAGE else data)
        pack_one(tar, item, expected)

    monkeypatch.setattr(transport, "_pack", late)
    with pytest.raises(StoreError, match="changes while it is read"):
        list(export(sandbox.store, tmp_path / "out.tar"))
    assert not list(tmp_path.glob("*out.tar*"))


def test_import_requires_a_tar_and_a_store(sandbox: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"ends in \.tar"):
        list(export(sandbox.store, tmp_path / "out.zip"))
    with pytest.raises(StoreError, match="holds no store"):
        list(export(tmp_path / "none", tmp_path / "out.tar"))
    with pytest.raises(StoreError, match="no such file"):
        list(import_archive(tmp_path / "there", tmp_path / "none.tar"))


def link(name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = to
    return info


KEY = "a" * 32
Change = Callable[[dict[str, bytes]], dict[str, bytes]]
MALICIOUS_ARCHIVES: dict[str, tuple[Change, list[tarfile.TarInfo], bool, str]] = {
    "a place outside": (lambda m: {**m, "../escaped": b"x"}, [], True, "would lie outside"),
    "an absolute place": (lambda m: {**m, "/tmp/escaped": b"x"}, [], True, "would lie outside"),
    "a link": (dict, [link(f"prompts/{KEY}.json", "/etc/passwd")], True, "is a link"),
    "a hard link": (dict, [link(f"prompts/{KEY}.json", ABOUT, tarfile.LNKTYPE)], True, "is a link"),
    "a device": (dict, [link(f"prompts/{KEY}.json", "", tarfile.CHRTYPE)], True, "no plain file"),
    "a pipe": (dict, [link(f"prompts/{KEY}.json", "", tarfile.FIFOTYPE)], True, "no plain file"),
    "a foreign file": (lambda m: {**m, "prompts/run.sh": b"x"}, [], True, "belongs to a store"),
    "a hidden file": (lambda m: {**m, f"images/{KEY}/.x.a1b2c3_4": b"x"}, [], True, "interrupted"),
    "a pickle": (lambda m: {**m, f"features/{KEY}/{KEY}/x.pt": b"\x80\x04."}, [], True, "belongs to a store"),
    "a file at the top": (lambda m: {**m, "sitecustomize.py": b"x"}, [], True, "belongs to a store"),
    "quarantine": (lambda m: {**m, f"quarantine/prompts/{KEY}.json": b"{}"}, [], True, r"lacks 1 files"),
    "a faulty entry": (lambda m: {**m, f"prompts/{KEY}.json": b"{}"}, [], True, "does not say what it was made from"),
    "no manifest": (lambda m: {n: d for n, d in m.items() if n != MANIFEST}, [], False, "differs from its manifest"),
    "an entry next to the manifest": (
        lambda m: {**m, f"prompts/{KEY}.json": b"{}"},
        [],
        False,
        "differs from its manifest",
    ),
    "an entry that lacks": (
        lambda m: {n: d for n, d in m.items() if not n.startswith("prompts")},
        [],
        False,
        "lacks 4 files",
    ),
    "another schema": (lambda m: {**m, ABOUT: json.dumps({**FORMAT, "schema": 99}).encode()}, [], True, "'schema': 99"),
    "another format": (lambda m: {**m, ABOUT: json.dumps({**FORMAT, "format": 2}).encode()}, [], True, "'format': 2"),
    "no archive of a store": (lambda m: {n: d for n, d in m.items() if n != ABOUT}, [], True, "no archive of a store"),
    "about that is no JSON": (lambda m: {**m, ABOUT: b"["}, [], True, "no archive of a store"),
    "no entry": (lambda m: {ABOUT: m[ABOUT]}, [], True, "lacks 0 files"),
}


@pytest.mark.parametrize("case", MALICIOUS_ARCHIVES)
def test_import_rejects_malicious_archives(case: str, archive: Path, tmp_path: Path) -> None:
    change, extra_members, sums, message = MALICIOUS_ARCHIVES[case]
    bad = pack(tmp_path / "bad.tar", change(members(archive)), *extra_members, sums=sums)
    target = tmp_path / "there"
    list(import_archive(target, pack(tmp_path / "good.tar", members(archive))))
    files_of_kind(target, Kind.IMAGE)[0].unlink()
    before = read_tree(target)
    baselines = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=message):
        list(import_archive(target, bad))
    assert read_tree(target) == before
    assert sorted(tmp_path.iterdir()) == baselines
    assert not Path("/tmp/escaped").exists()


CUTS = {
    "everything is gone": (lambda member: 0, r"no archive|damaged"),
    # tarfile takes what is left of a header for the end of the archive.
    "in the header of a member": (lambda member: member.offset + 100, r"lacks \d+ files? of its manifest"),
    "in the data of a member": (lambda member: member.offset_data + member.size // 2, "damaged"),
    "between two members": (lambda member: member.offset, r"lacks \d+ files? of its manifest"),
}
"""Where an archive is cut, relative to a member in its middle, and what the error says."""


@pytest.mark.parametrize("place", CUTS)
def test_import_rejects_truncated_archives(place: str, archive: Path, tmp_path: Path) -> None:
    length, message = CUTS[place]
    with tarfile.open(archive) as tar:
        infos = tar.getmembers()
    member = max(infos[2:], key=lambda info: info.size)  # after the manifest, and long enough to be cut
    archive.write_bytes(archive.read_bytes()[: length(member)])
    with pytest.raises(ValueError, match=message):
        list(import_archive(tmp_path / "there", archive))
    assert read_tree(tmp_path / "there") == {}


def test_import_detects_flipped_bits(archive: Path, tmp_path: Path) -> None:
    data = bytearray(archive.read_bytes())
    with tarfile.open(archive) as tar:
        chunk = next(info for info in tar if info.name.endswith(".safetensors"))
    data[chunk.offset_data + chunk.size - 9] ^= 1  # of a number, which stays of unit length
    archive.write_bytes(data)
    with pytest.raises(StoreError, match="differs from its manifest"):
        list(import_archive(tmp_path / "there", archive))
    assert read_tree(tmp_path / "there") == {}


def test_failed_import_is_rolled_back(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    move = transport._move
    moved = []

    def full(path: Path, target: Path) -> None:
        if len(moved) == 7:
            raise OSError(28, "No space left on device")
        moved.append(target)
        move(path, target)

    monkeypatch.setattr(transport, "_move", full)
    with pytest.raises(OSError, match="No space"):
        list(import_archive(tmp_path / "there", archive))
    assert len(moved) == 7
    assert read_tree(tmp_path / "there") == {}


def test_import_works_across_file_systems(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_file = Path.replace

    def across(self: Path, target: Path) -> Path:
        if ".import." in str(self):
            raise OSError(18, "Invalid cross-device link")
        return replace_file(self, target)

    destination = tmp_path / "there"
    elsewhere = tmp_path / "elsewhere"
    destination.mkdir()
    elsewhere.mkdir()
    (destination / "images").symlink_to(elsewhere)
    unpacked = transport.unpack

    def unpack(path: Path, folder: Path) -> list[Path]:
        tops = unpacked(path, folder)
        monkeypatch.setattr(Path, "replace", across)
        return tops

    monkeypatch.setattr(transport, "unpack", unpack)
    list(import_archive(destination, archive))
    assert len(files_of_kind(destination, Kind.IMAGE)) == 9
    assert len(list(elsewhere.rglob("*.png"))) == 9
    assert (destination / "images").is_symlink()
