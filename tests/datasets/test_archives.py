"""Tests archives that are complete, damaged, or try to leave their folder."""

import io
import os
import stat
import tarfile
import zipfile
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lgclip.datasets import archive as archives
from lgclip.datasets.archive import ArchiveError, unpack


def remaining_files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def tar_of(path: Path, *members: tarfile.TarInfo | tuple[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:  # pyright: ignore[reportArgumentType, reportCallIssue]
        for member in members:
            if isinstance(member, tuple):
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                info.mtime = 1_300_000_000
                tar.addfile(info, io.BytesIO(member[1]))
            else:
                tar.addfile(member)
    return path


def zip_of(path: Path, *members: zipfile.ZipInfo | tuple[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as packed:
        for member in members:
            if isinstance(member, tuple):
                packed.writestr(zipfile.ZipInfo(member[0], (2011, 3, 13, 7, 6, 40)), member[1])
            else:
                packed.writestr(member, b"/etc/passwd")
    return path


GOOD = (("set/images/a.jpg", b"a" * 10), ("set/images/b.jpg", b"b"), ("set/names.txt", b"a\nb\n"), ("note.txt", b"n"))


@pytest.mark.parametrize("name", ["set.tar", "set.tar.gz", "set.tgz", "set.zip", "SET.ZIP"])
def test_archive_is_extracted_completely(name: str, tmp_path: Path) -> None:
    make = zip_of if name.lower().endswith("zip") else tar_of
    folder = tmp_path / "in" / "here"
    tops = unpack(make(tmp_path / name, *GOOD), folder)
    assert {path.name for path in tops} == remaining_files(folder) == {"set", "note.txt"}
    for place, content in GOOD:
        assert (folder / place).read_bytes() == content
        assert (folder / place).stat().st_mtime == 1_300_000_000, "image ids depend on it"
    with pytest.raises(ArchiveError, match="set is there already"):
        unpack(tmp_path / name, folder)


def info(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.linkname = link
    return member


HOSTILE_TARS = {
    "absolute": [("/tmp/escaped", b"x")],
    "parent": [("../escaped", b"x")],
    "deep parent": [("set/../../escaped", b"x")],
    "windows": [("..\\escaped", b"x")],
    "drive": [("C:/escaped", b"x")],
    "symlink": [info("set/link", tarfile.SYMTYPE, "/etc/passwd")],
    "symlink inside": [info("set/link", tarfile.SYMTYPE, "b.jpg")],
    "symlinked parent": [info("set/up", tarfile.SYMTYPE, "../.."), ("set/up/escaped", b"x")],
    "hardlink": [info("set/link", tarfile.LNKTYPE, "/etc/passwd")],
    "device": [info("set/device", tarfile.CHRTYPE)],
    "block device": [info("set/device", tarfile.BLKTYPE)],
    "pipe": [info("set/pipe", tarfile.FIFOTYPE)],
    "twice": [("set/c.jpg", b"1"), ("set/c.jpg", b"2")],
    "twice by case": [("set/C.jpg", b"1"), ("set/c.jpg", b"2")],
    "twice by accent": [("set/caf\u00e9", b"1"), ("set/cafe\u0301", b"2")],
    "folder by case": [("SET/c.jpg", b"1")],
    "file as folder": [("set/c", b"1"), ("set/c/d", b"2")],
    "folder as file": [("set/c/d", b"1"), ("set/c", b"2")],
}


@pytest.mark.parametrize("case", HOSTILE_TARS)
def test_malicious_tar_is_rejected(case: str, tmp_path: Path) -> None:
    path = tar_of(tmp_path / "set.tar.gz", *GOOD, *HOSTILE_TARS[case])
    before = remaining_files(tmp_path)
    with pytest.raises(ArchiveError, match=r"nothing was unpacked$"):
        unpack(path, tmp_path / "a" / "folder")
    assert remaining_files(tmp_path) == before, "not even the folder is made"
    assert not Path("/tmp/escaped").exists()


def entry(name: str, mode: int = 0, flags: int = 0) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo("placeholder")
    member.filename = name
    member.external_attr = mode << 16
    member.flag_bits = flags
    member.create_system = 3
    return member


HOSTILE_ZIPS = {
    "absolute": ("/tmp/escaped", b"x"),
    "zip slip": ("set/../../escaped", b"x"),
    "windows": entry("..\\escaped"),
    "drive": ("C:/escaped", b"x"),
    "symlink": entry("set/link", stat.S_IFLNK | 0o777),
    "device": entry("set/device", stat.S_IFCHR | 0o666),
    "pipe": entry("set/pipe", stat.S_IFIFO | 0o666),
    "twice by case": ("set/NAMES.txt", b"x"),
}


@pytest.mark.parametrize("case", HOSTILE_ZIPS)
def test_malicious_zip_is_rejected(case: str, tmp_path: Path) -> None:
    path = zip_of(tmp_path / "set.zip", *GOOD, HOSTILE_ZIPS[case])
    before = remaining_files(tmp_path)
    with pytest.raises(ArchiveError, match=r"nothing was unpacked$"):
        unpack(path, tmp_path / "folder")
    assert remaining_files(tmp_path) == before


def test_encrypted_zip_is_rejected(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "set.zip", *GOOD)
    content = bytearray(path.read_bytes())
    offset = content.index(b"PK\x01\x02")
    content[offset + 8] |= 1  # the flag in the first entry of the list at the end
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match="encrypted"):
        unpack(path, tmp_path / "folder")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (name, damage)
        for name, damage in product(("set.tar.gz", "set.tar", "set.zip"), ("cut", "empty", "text", "flipped"))
        if (name, damage) != ("set.tar", "flipped")  # a plain tar has no checksum of its content
    ],
)
def test_damaged_archive_is_rejected(name: str, damage: str, tmp_path: Path) -> None:
    big = ("set/big.bin", np.random.default_rng(0).bytes(200_000))
    path = (zip_of if name.endswith("zip") else tar_of)(tmp_path / name, *GOOD, big, **_plain(name))
    content = path.read_bytes()
    middle = len(content) // 2
    damaged = {
        "cut": content[:middle],
        "empty": b"",
        "text": b"<html>moved</html>" * 100,
        "flipped": content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :],
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(ArchiveError, match=r"damaged or no archive .*delete it and download it again"):
        unpack(path, tmp_path / "folder")
    assert not remaining_files(tmp_path / "folder")


def _plain(name: str) -> dict[str, str]:
    return {"mode": "w"} if name == "set.tar" else {}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_interrupted_extraction_leaves_nothing(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tar_of(tmp_path / "set.tar.gz", *GOOD)
    copied = []

    def copy(source: io.BufferedIOBase, target: io.BufferedIOBase, size: int) -> None:
        copied.append(target.write(source.read()))
        if len(copied) == 3:
            raise error

    monkeypatch.setattr(archives, "shutil", SimpleNamespace(**{**vars(archives.shutil), "copyfileobj": copy}))
    with pytest.raises(type(error)):
        unpack(path, tmp_path / "folder")
    assert not remaining_files(tmp_path / "folder")
    monkeypatch.undo()
    unpack(path, tmp_path / "folder")
    assert remaining_files(tmp_path / "folder") == {"set", "note.txt"}


def test_folders_are_moved_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks that a run killed between two moves leaves no folder that looks complete."""
    moved = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: (moved.append(target.name), replace(self, target)))
    unpack(
        tar_of(tmp_path / "set.tar", ("a/x", b"1"), ("b.txt", b"2"), ("c/x", b"3"), ("d.txt", b"4")), tmp_path / "in"
    )
    assert moved == ["b.txt", "d.txt", "a", "c"]


def test_leftovers_of_killed_runs_are_removed(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "set.tar.gz", *GOOD)
    folder = tmp_path / "folder"
    rest = folder / ".set.tar.gz.unpacking" / "set"
    rest.mkdir(parents=True)
    (rest / "half.jpg").write_bytes(b"half")
    (folder / "note.txt").write_text("of the killed run: files come before folders")
    unpack(path, folder)
    assert remaining_files(folder) == {"set", "note.txt"}
    assert remaining_files(folder / "set") == {"images", "names.txt"}
    assert (folder / "note.txt").read_bytes() == b"n"


def test_existing_links_are_not_followed(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "set.tar.gz", *GOOD)
    folder = tmp_path / "folder"
    outside = tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (folder / "set").symlink_to(outside)
    with pytest.raises(ArchiveError, match="set is there already"):
        unpack(path, folder)
    assert not remaining_files(outside)


def test_modes_and_owners_are_not_extracted(tmp_path: Path) -> None:
    computed = info("set/run")
    computed.mode = 0o6777
    computed.uid = 12345
    unpack(tar_of(tmp_path / "set.tar", computed), tmp_path / "folder")
    mode = (tmp_path / "folder" / "set" / "run").stat()
    assert mode.st_uid == os.getuid()
    assert not mode.st_mode & 0o6111


def test_archive_larger_than_the_disk_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tar_of(tmp_path / "set.tar.gz", *GOOD)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(ArchiveError, match=r"0\.0 GB unpacked"):
        unpack(path, tmp_path / "folder")
    assert not remaining_files(tmp_path / "folder")
