"""Unpacks downloaded archives safely: checks all members first, then everything appears atomically or not at all."""

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
"""Suffixes that `unpack` recognizes as archives."""

_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)
"""Errors of the readers on a file that is truncated or not an archive."""


class ArchiveError(ValueError):
    """Reports an archive that is damaged or has an unsafe member; nothing of it was unpacked."""


@dataclass(frozen=True)
class _Member:
    """Describes a file or folder of an archive.

    Attributes:
        parts: Components of its path, checked to stay inside the target folder.
        size: Bytes, for a file.
        changed: Modification time, in seconds since 1970.
        read: Opens a file; None for a folder.
    """

    parts: tuple[str, ...]
    size: int
    changed: float
    read: Callable[[], IO[bytes] | None] | None


def unpack(archive: Path, folder: Path) -> list[Path]:
    """Unpacks a tar or zip archive into a folder.

    Every member is checked before the first is written: only plain files and folders, no path outside the target,
    no duplicate name. Modes and owners are not restored, modification times are. Each top-level entry appears by one
    atomic move, folders last; after an error before that, nothing appears. `tarfile`'s own filters are not relied on:
    Python 3.11.0 has none, and later versions had security bugs.

    Args:
        archive: A `.tar`, `.tar.gz`, `.tgz` or `.zip`.
        folder: Target of its top-level entries; created if needed.

    Returns:
        The top-level entries.

    Raises:
        ArchiveError: If the archive is damaged or a member is not a plain file or folder inside the target.
    """
    tops, files, size = _checked(archive, folder)
    # The sizes are those that the archive states. If they are wrong, a full disk is an error as for any other archive.
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ArchiveError(f"{archive}: {size / 1e9:.1f} GB unpacked, {folder} has {free / 1e9:.1f} GB left")
    aside = folder / f".{archive.name}.unpacking"  # one place, so that what a killed run left is found and removed
    shutil.rmtree(aside, ignore_errors=True)
    try:
        _write(archive, aside, files)
        places = [folder / top for top in tops]
        # Files first: a data set is found by its folder, which must not exist before everything else does.
        for place in sorted(places, key=lambda p: (aside / p.name).is_dir()):
            (aside / place.name).replace(place)
        return places
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _checked(archive: Path, folder: Path) -> tuple[list[str], int, int]:
    """Checks all members of an archive; returns its top-level entries, number of files and bytes."""
    seen: dict[tuple[str, ...], bool] = {}  # folded place -> whether it is a folder
    tops: dict[str, bool] = {}
    size = files = 0
    for member in _members(archive):
        is_folder = member.read is None
        # Where upper and lower case are one file, a second spelling would write over the first.
        folded = tuple(unicodedata.normalize("NFC", part).casefold() for part in member.parts)
        above = {folded[:n]: True for n in range(1, len(folded))}
        # A file cannot also be a folder. Folders may come several times, and often have no entry of their own.
        clash = next((place for place in above if seen.get(place) is False), None)
        if clash or (folded in seen and not (is_folder and seen[folded])):
            raise ArchiveError(f"{archive}: {'/'.join(member.parts)!r} occurs twice in it; nothing was unpacked")
        seen |= {**above, folded: is_folder}
        top, *below = member.parts
        tops[top] = tops.get(top, False) or is_folder or bool(below)
        size += member.size
        files += not is_folder
    if len({top.casefold() for top in tops}) < len(tops):
        raise ArchiveError(f"{archive}: {sorted(tops)} differ only in case; nothing was unpacked")
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
            # "x" fails on a file that is there, should two names be one file in a way that was not thought of.
            with source, place.open("xb") as target, _damage(archive):
                shutil.copyfileobj(source, target, 1 << 20)
            # An image's id holds its time: equal copies of an archive must give equal ids on every machine.
            os.utime(place, (member.changed, member.changed))
            bar.update()


def _members(archive: Path) -> Iterator[_Member]:
    """Yields the members of an archive, each checked to be a plain file or folder inside the target."""
    reader = _zip_members if archive.name.lower().endswith(".zip") else _tar_members
    with _damage(archive):
        yield from reader(archive)


@contextmanager
def _damage(archive: Path) -> Iterator[None]:
    try:
        yield
    except (*_DAMAGE, OSError) as error:
        # The system's; gzip's own have no errno, and a member that claims to be larger than any file has EINVAL.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        reason = " ".join(str(error).split())
        raise ArchiveError(f"{archive} is damaged or no archive ({reason}); delete it and download it again") from error


def _tar_members(archive: Path) -> Iterator[_Member]:
    with tarfile.open(archive, "r:*") as tar:
        for info in tar:
            # A link may point outside, and a later member be written through it.
            if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
                kind = "a link" if info.issym() or info.islnk() else "no plain file"
                raise ArchiveError(f"{archive}: {info.name!r} is {kind}; nothing was unpacked")
            parts = _inside(archive, info.name)
            if not parts:
                continue
            if info.isdir():
                yield _Member(parts, 0, info.mtime, None)
            else:
                # The default binds this member; a plain lambda would read whichever comes last.
                yield _Member(parts, info.size, info.mtime, lambda info=info: tar.extractfile(info))
        assert tar.fileobj is not None
        while tar.fileobj.read(1 << 20):  # gzip's checksum is at the end, which tarfile does not read
            pass


def _zip_members(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as packed:
        for info in packed.infolist():
            # Unix keeps the mode in the upper half; it is 0 in an archive from another system.
            mode = stat.S_IFMT(info.external_attr >> 16)
            if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
                kind = "a link" if mode == stat.S_IFLNK else "no plain file"
                raise ArchiveError(f"{archive}: {info.orig_filename!r} is {kind}; nothing was unpacked")
            if info.flag_bits & 1:
                raise ArchiveError(f"{archive}: {info.filename!r} is encrypted; nothing was unpacked")
            # The original name: `zipfile` cuts `filename` at a zero byte, and the rest would go unchecked.
            parts = _inside(archive, info.orig_filename)
            if not parts:
                continue
            # A zip has local times without a zone. Read as UTC, they are the same on every machine.
            changed = calendar.timegm((*info.date_time, 0, 0, 0))
            if info.is_dir():
                yield _Member(parts, 0, changed, None)
            else:
                yield _Member(parts, info.file_size, changed, lambda info=info: packed.open(info))


def _inside(archive: Path, name: str) -> tuple[str, ...]:
    """Returns the path components of a member's name; empty for the archive's own root."""
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    # On Windows "C:x" is a place on another disk, and a backslash separates folders.
    has_drive = bool(parts) and ":" in parts[0]
    if name.startswith("/") or has_drive or ".." in parts or "\\" in name or "\0" in name:
        raise ArchiveError(f"{archive}: {name!r} would lie outside; nothing was unpacked")
    return parts
