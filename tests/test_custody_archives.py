"""`lgclip store export` and `import`: from one machine to another, whole or not at all, and nothing hostile."""

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
from custody_stores import entries, files
from worlds import FirstRun, World, judge, made, tree

from lgclip import transport
from lgclip.inventory import MANIFEST, Kind
from lgclip.retention import collect
from lgclip.store import StoreError
from lgclip.transport import ABOUT, FORMAT, export, import_archive
from lgclip.verification import verify

pytest_plugins = ("run_fixtures",)


@pytest.fixture
def archive(world: World, tmp_path: Path) -> Path:
    list(export(world.store, tmp_path / "out" / "store.tar"))
    return tmp_path / "out" / "store.tar"


def members(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}  # pyright: ignore[reportOptionalMemberAccess]


def pack(archive: Path, content: dict[str, bytes], *more: tarfile.TarInfo, sums: bool = True) -> Path:
    """An archive with a manifest that fits, and more members without content."""
    if sums:
        there = {name: data for name, data in content.items() if name not in (ABOUT, MANIFEST)}
        lines = "".join(f"{hashlib.sha256(there[name]).hexdigest()}  {name}\n" for name in sorted(there))
        content = {**content, MANIFEST: lines.encode()}
    with tarfile.open(archive, "w") as tar:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for info in more:
            tar.addfile(info)
    return archive


def test_what_was_made_on_one_machine_is_not_made_on_another(
    world: World, first_run: FirstRun, archive: Path, tmp_path: Path
) -> None:
    there = replace(world, store=tmp_path / "another machine" / "store")
    list(import_archive(there.store, archive))
    assert tree(there.store).keys() - {MANIFEST} == tree(world.store).keys()
    assert {name: tree(there.store)[name] for name in tree(world.store)} == tree(world.store)
    result = judge(there, tmp_path / "run")
    assert set(made(result).values()) == {0}
    assert result["metrics"] == first_run.result["metrics"]
    before, after = first_run.result["cost"], result["cost"]
    assert after["made_before"]["images"]["parts"], "its ledgers came too"
    assert before["towers"] == after["towers"]
    assert (tmp_path / "run" / "predictions.csv").read_bytes() == (first_run.folder / "predictions.csv").read_bytes()
    assert len(list(verify(there.store))) == 1
    assert [p.name for p in there.store.iterdir() if p.name.startswith(".")] == []


def test_a_run_alone_is_exported_with_all_that_it_needs(world: World, first_run: FirstRun, tmp_path: Path) -> None:
    judge(world, tmp_path / "other", "seed=1")
    (said,) = export(world.store, tmp_path / "one.tar", [first_run.folder])
    assert said.startswith(f"{tmp_path / 'one.tar'}: ")
    there = replace(world, store=tmp_path / "there")
    list(import_archive(there.store, tmp_path / "one.tar"))
    assert len(files(there.store, Kind.IMAGE)) == 9
    assert entries(there.store) == entries(first_run.world.store)
    assert set(made(judge(there, tmp_path / "run")).values()) == {0}


def test_a_run_that_lacks_something_is_not_exported(world: World, first_run: FirstRun, tmp_path: Path) -> None:
    files(world.store, Kind.IMAGE)[0].unlink()
    files(world.store, Kind.FEATURES)[0].unlink()
    with pytest.raises(ValueError, match=r"\d+ things that it needs are not in"):
        list(export(world.store, tmp_path / "one.tar", [first_run.folder]))
    assert not (tmp_path / "one.tar").exists()


def test_equal_stores_give_equal_archives_whatever_their_times(world: World, archive: Path, tmp_path: Path) -> None:
    shutil.copytree(world.store, tmp_path / "copy", copy_function=shutil.copyfile)
    list(export(tmp_path / "copy", tmp_path / "copy.tar"))
    assert (tmp_path / "copy.tar").read_bytes() == archive.read_bytes()


def test_importing_twice_places_nothing_and_keeps_what_is_there(archive: Path, tmp_path: Path) -> None:
    list(import_archive(tmp_path / "there", archive))
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "there" / "images").rglob("*")}
    (said,) = import_archive(tmp_path / "there", archive)
    assert "0 files, 0 bytes placed" in said
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "there" / "images").rglob("*")} == times


def test_two_stores_become_one_and_their_ledgers_too(
    world: World, first_run: FirstRun, archive: Path, tmp_path: Path
) -> None:
    other = replace(world, store=tmp_path / "other")
    judge(other, tmp_path / "run", "seed=1")
    (ledger,) = [path for path in files(other.store, Kind.LEDGER) if "images" in path.parts]
    towers = files(other.store, Kind.TOWERS)[0].read_bytes()
    mine = ledger.read_bytes()
    list(import_archive(other.store, archive))
    same = world.store / ledger.relative_to(other.store)
    assert ledger.read_bytes() == mine + same.read_bytes()
    assert files(other.store, Kind.TOWERS)[0].read_bytes() == towers
    list(import_archive(other.store, archive))
    assert ledger.read_bytes() == mine + same.read_bytes()
    assert set(made(judge(other, tmp_path / "again")).values()) == {0}
    assert set(made(judge(other, tmp_path / "again1", "seed=1")).values()) == {0}


def test_an_entry_with_other_bytes_is_an_error_that_names_it(archive: Path, world: World) -> None:
    path = files(world.store, Kind.PROMPTS)[0]
    path.write_text(json.dumps({**json.loads(path.read_text()), "prompts": ["other"]}))
    files(world.store, Kind.IMAGE)[0].unlink()
    before = tree(world.store)
    with pytest.raises(StoreError, match=rf"1 entries .* other bytes: prompts/{path.name}; nothing was placed"):
        list(import_archive(world.store, archive))
    assert tree(world.store) == before


def test_what_is_imported_is_young(archive: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    list(import_archive(there, archive))
    before = tree(there)
    list(collect(there, older_than=1, yes=True))
    assert tree(there) == before


@pytest.mark.parametrize("kind", [Kind.IMAGE, Kind.PROMPTS, Kind.FEATURES, Kind.INPUTS, Kind.LEDGER])
def test_what_is_faulty_is_not_exported(kind: Kind, world: World, tmp_path: Path) -> None:
    files(world.store, kind)[0].write_text("<html>")
    with pytest.raises(StoreError, match="Nothing was written"):
        list(export(world.store, tmp_path / "out.tar"))
    assert not list(tmp_path.glob("*out.tar*"))


def test_what_is_no_entry_is_not_exported(world: World, tmp_path: Path) -> None:
    (world.store / "prompts" / ".env").write_text("KEY=secret")
    (world.store / "prompts" / ".abc.json.a1b2c3_4").write_text("being written")
    with pytest.raises(StoreError, match=r"\.env: nothing that belongs to a store; move it away"):
        list(export(world.store, tmp_path / "out.tar"))
    (world.store / "prompts" / ".env").unlink()
    list(export(world.store, tmp_path / "out.tar"))
    assert b"being written" not in (tmp_path / "out.tar").read_bytes()


def test_a_file_that_changes_while_it_is_packed_is_said(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_one = transport._pack

    def late(tar: tarfile.TarFile, item: Any, expected: str) -> None:
        data = item.path.read_bytes()
        item.path.write_bytes(data[:-9] if item.kind == Kind.IMAGE else data)
        pack_one(tar, item, expected)

    monkeypatch.setattr(transport, "_pack", late)
    with pytest.raises(StoreError, match="changes while it is read"):
        list(export(world.store, tmp_path / "out.tar"))
    assert not list(tmp_path.glob("*out.tar*"))


def test_an_archive_is_a_tar_and_a_store_is_there(world: World, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"ends in \.tar"):
        list(export(world.store, tmp_path / "out.zip"))
    with pytest.raises(StoreError, match="holds no store"):
        list(export(tmp_path / "none", tmp_path / "out.tar"))
    with pytest.raises(StoreError, match="no such file"):
        list(import_archive(tmp_path / "there", tmp_path / "none.tar"))


def link(name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


KEY = "a" * 32
Change = Callable[[dict[str, bytes]], dict[str, bytes]]
HOSTILE: dict[str, tuple[Change, list[tarfile.TarInfo], bool, str]] = {
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
    "no manifest": (lambda m: {n: d for n, d in m.items() if n != MANIFEST}, [], False, "not what its manifest says"),
    "an entry beside the manifest": (lambda m: {**m, f"prompts/{KEY}.json": b"{}"}, [], False, "not what its manifest"),
    "an entry that lacks": (
        lambda m: {n: d for n, d in m.items() if not n.startswith("prompts")}, [], False, "lacks 4 files"
    ),
    "another schema": (lambda m: {**m, ABOUT: json.dumps({**FORMAT, "schema": 99}).encode()}, [], True, "'schema': 99"),
    "another format": (lambda m: {**m, ABOUT: json.dumps({**FORMAT, "format": 2}).encode()}, [], True, "'format': 2"),
    "no archive of a store": (lambda m: {n: d for n, d in m.items() if n != ABOUT}, [], True, "no archive of a store"),
    "about that is no JSON": (lambda m: {**m, ABOUT: b"["}, [], True, "no archive of a store"),
    "no entry": (lambda m: {ABOUT: m[ABOUT]}, [], True, "lacks 0 files"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_archive_leaves_nothing(what: str, archive: Path, tmp_path: Path) -> None:
    change, more, sums, said = HOSTILE[what]
    bad = pack(tmp_path / "bad.tar", change(members(archive)), *more, sums=sums)
    there = tmp_path / "there"
    list(import_archive(there, pack(tmp_path / "good.tar", members(archive))))
    files(there, Kind.IMAGE)[0].unlink()
    before, beside = tree(there), sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=said):
        list(import_archive(there, bad))
    assert tree(there) == before
    assert sorted(tmp_path.iterdir()) == beside
    assert not Path("/tmp/escaped").exists()


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.7])
def test_a_cut_archive_leaves_nothing(keep: float, archive: Path, tmp_path: Path) -> None:
    archive.write_bytes(archive.read_bytes()[: int(keep * archive.stat().st_size)])
    with pytest.raises(ValueError, match=r"damaged|no archive"):
        list(import_archive(tmp_path / "there", archive))
    assert tree(tmp_path / "there") == {}


def test_a_flipped_bit_in_an_archive_is_found(archive: Path, tmp_path: Path) -> None:
    data = bytearray(archive.read_bytes())
    with tarfile.open(archive) as tar:
        chunk = next(info for info in tar if info.name.endswith(".safetensors"))
    data[chunk.offset_data + chunk.size - 9] ^= 1  # of a number, which stays of unit length
    archive.write_bytes(data)
    with pytest.raises(StoreError, match="not what its manifest says"):
        list(import_archive(tmp_path / "there", archive))
    assert tree(tmp_path / "there") == {}


def test_if_placing_fails_what_was_placed_is_taken_away(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move, moved = transport._move, []

    def full(path: Path, target: Path) -> None:
        if len(moved) == 7:
            raise OSError(28, "No space left on device")
        moved.append(target)
        move(path, target)

    monkeypatch.setattr(transport, "_move", full)
    with pytest.raises(OSError, match="No space"):
        list(import_archive(tmp_path / "there", archive))
    assert len(moved) == 7
    assert tree(tmp_path / "there") == {}


def test_a_folder_on_another_disk_is_written_to(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_file = Path.replace

    def across(self: Path, target: Path) -> Path:
        if ".import." in str(self):
            raise OSError(18, "Invalid cross-device link")
        return replace_file(self, target)

    there, elsewhere = tmp_path / "there", tmp_path / "elsewhere"
    there.mkdir()
    elsewhere.mkdir()
    (there / "images").symlink_to(elsewhere)
    unpacked = transport.unpack

    def unpack(path: Path, folder: Path) -> list[Path]:
        tops = unpacked(path, folder)
        monkeypatch.setattr(Path, "replace", across)
        return tops

    monkeypatch.setattr(transport, "unpack", unpack)
    list(import_archive(there, archive))
    assert len(files(there, Kind.IMAGE)) == 9
    assert len(list(elsewhere.rglob("*.png"))) == 9
    assert (there / "images").is_symlink()
