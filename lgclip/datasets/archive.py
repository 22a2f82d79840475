"""Archives from the network, unpacked so that nothing lands outside: checked first, then whole or absent."""

import calendar
import errno
import lzma
import os
import shutil
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")
"""Names that `unpack` knows to be archives."""

_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)
"""What the readers raise on a file that is cut or no archive."""


class ArchiveError(ValueError):
    """An archive is damaged, or holds something that is not unpacked; nothing of it was."""


@dataclass(frozen=True)
class _Member:
    """A file or folder of an archive.

    Attributes:
        parts: Its place, checked to lie inside.
        size: Bytes, for a file.
        changed: Time of its last change, in seconds since 1970.
        read: Opens a file; None for a folder.
    """

    parts: tuple[str, ...]
    size: int
    changed: float
    read: Callable[[], IO[bytes] | None] | None


def unpack(archive: Path, folder: Path) -> list[Path]:
    """Unpacks a tar or zip archive into a folder.

    Every member is checked before the first is written: only plain files and folders, no place outside,
    no name that stands there twice. Modes and owners are not taken over, times of change are.
    What is unpacked appears in one move a top-level entry, folders last; whatever goes wrong before,
    nothing does. `tarfile`'s own filters are not relied on: Python 3.11.0 has none, and later
    ones were found to be wrong.

    Args:
        archive: A `.tar`, `.tar.gz`, `.tgz` or `.zip`.
        folder: Where its top-level entries go; made if it is not there.

    Returns:
        The top-level entries.

    Raises:
        ArchiveError: If the archive is damaged or one member is not a plain file or folder inside.
    """
    tops, files, size = _checked(archive, folder)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ArchiveError(f"{archive}: {size / 1e9:.1f} GB unpacked, {folder} has {free / 1e9:.1f} GB left")
    aside = folder / f".{archive.name}.unpacking"  # one place, so that what a killed run left is found and removed
    shutil.rmtree(aside, ignore_errors=True)
    try:
        _write(archive, aside, files)
        places = [folder / top for top in tops]
        for place in sorted(places, key=lambda p: (aside / p.name).is_dir()):
            (aside / place.name).replace(place)
        return places
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _checked(archive: Path, folder: Path) -> tuple[list[str], int, int]:
    """Top-level entries, number of files and bytes of an archive without a hostile member."""
    seen: dict[tuple[str, ...], bool] = {}  # folded place -> whether it is a folder
    tops: dict[str, bool] = {}
    size = files = 0
    for member in _members(archive):
        is_folder = member.read is None
        # Where upper and lower case are one file, a second spelling would write over the first.
        folded = tuple(unicodedata.normalize("NFC", part).casefold() for part in member.parts)
        above = {folded[:n]: True for n in range(1, len(folded))}
        clash = next((place for place in above if seen.get(place) is False), None)
        if clash or (folded in seen and not (is_folder and seen[folded])):
            raise ArchiveError(f"{archive}: {'/'.join(member.parts)!r} stands in it twice; nothing was unpacked")
        seen |= {**above, folded: is_folder}
        top, *below = member.parts
        tops[top] = tops.get(top, False) or is_folder or bool(below)
        size, files = size + member.size, files + (not is_folder)
    if len({top.casefold() for top in tops}) < len(tops):
        raise ArchiveError(f"{archive}: {sorted(tops)} differ in their case alone; nothing was unpacked")
    for top, is_folder in tops.items():
        if os.path.lexists(folder / top) and (is_folder or (folder / top).is_dir()):
            raise ArchiveError(f"{folder / top} is there already; move it away to have {archive.name} unpacked")
    return list(tops), files, size


def _write(archive: Path, into: Path, files: int) -> None:
    with tqdm(total=files, desc=f"unpacking {archive.name}", unit=" file", disable=None, mininterval=0.5) as bar:
        into.mkdir()
        for member in _members(archive):  # checked again: the file may have been changed since
            place = into.joinpath(*member.parts)
            if member.read is None:
                place.mkdir(parents=True, exist_ok=True)
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            source = member.read()
            assert source is not None
            with source, place.open("xb") as target, _damage(archive):
                shutil.copyfileobj(source, target, 1 << 20)
            os.utime(place, (member.changed, member.changed))
            bar.update()


def _members(archive: Path) -> Iterator[_Member]:
    """The members of an archive, each checked to be a plain file or folder inside."""
    reader = _zip_members if archive.name.lower().endswith(".zip") else _tar_members
    with _damage(archive):
        yield from reader(archive)


@contextmanager
def _damage(archive: Path) -> Iterator[None]:
    try:
        yield
    except (*_DAMAGE, OSError) as error:
        # The system's; gzip's own have no number, and a member that says it is larger than any file has EINVAL.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        said = " ".join(str(error).split())
        raise ArchiveError(f"{archive} is damaged or no archive ({said}); delete it and get it again") from error


def _tar_members(archive: Path) -> Iterator[_Member]:
    with tarfile.open(archive, "r:*") as tar:
        for info in tar:
            if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
                kind = "a link" if info.issym() or info.islnk() else "no plain file"
                raise ArchiveError(f"{archive}: {info.name!r} is {kind}; nothing was unpacked")
            if parts := _inside(archive, info.name):
                read = None if info.isdir() else lambda info=info: tar.extractfile(info)
                yield _Member(parts, 0 if info.isdir() else info.size, info.mtime, read)
        assert tar.fileobj is not None
        while tar.fileobj.read(1 << 20):  # gzip's checksum stands at the end, where tarfile does not look
            pass


def _zip_members(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as packed:
        for info in packed.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                what = "a link" if kind == stat.S_IFLNK else "no plain file"
                raise ArchiveError(f"{archive}: {info.orig_filename!r} is {what}; nothing was unpacked")
            if info.flag_bits & 1:
                raise ArchiveError(f"{archive}: {info.filename!r} is encrypted; nothing was unpacked")
            if parts := _inside(archive, info.orig_filename):
                changed = calendar.timegm((*info.date_time, 0, 0, 0))
                read = None if info.is_dir() else lambda info=info: packed.open(info)
                yield _Member(parts, 0 if info.is_dir() else info.file_size, changed, read)


def _inside(archive: Path, name: str) -> tuple[str, ...]:
    """The parts of a member's name; none for the archive's own root."""
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    drive = bool(parts) and ":" in parts[0]
    if name.startswith("/") or drive or ".." in parts or "\\" in name or "\0" in name:
        raise ArchiveError(f"{archive}: {name!r} would lie outside; nothing was unpacked")
    return parts
