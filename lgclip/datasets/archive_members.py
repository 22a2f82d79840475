"""Reads the members of foreign archives: every fault is one kind of error, and no header takes much memory.

`tarfile` and `zipfile` trust what they read: a damaged archive raises any of a dozen exceptions, an extended header is
read into memory whatever its size, and a damaged header in the middle of a tar counts as its end.
"""

import calendar
import errno
import math
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

MAX_HEADER_BYTES = 1 << 20
"""Maximum size of a member's extended headers; a path and a few attributes take a few kilobytes."""

_MAX_SHARED_BYTES = 1 << 16
"""Maximum size of all global headers, which are copied for each member."""

MAX_DIRECTORY_BYTES = 1 << 28
"""Maximum size of a zip's list of members: 100 bytes for each of 2.6 million files."""

_MAX_NAME_BYTES = 4096
_MAX_PART_BYTES = 255
_MAX_DEPTH = 64
"""Limits of file systems, and a number of folders that no data set reaches."""

_YEARS = (-(2.0**31), 2.0**33)
"""Modification times that every file system can hold: 1901 to 2242."""

_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
"""Compression of a zip's members. `zipfile` decodes the others without a limit: 4 kB of bzip2 become gigabytes."""

_EXTENDED = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip


class ArchiveError(ValueError):
    """Reports an archive that is damaged or has an unsafe member; nothing of it was unpacked."""


@dataclass(frozen=True)
class Member:
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


@contextmanager
def reported(archive: Path) -> Iterator[None]:
    """Turns every error of the readers into an `ArchiveError` that names the archive.

    Every exception, not a list of them: on damaged input the readers and decoders also raise struct.error, KeyError,
    OverflowError, RecursionError, UnicodeDecodeError and whatever the next version of Python adds.
    """
    try:
        yield
    except ArchiveError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and not _is_of_content(error):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ArchiveError(f"{archive} is damaged or no archive ({reason}); delete it and download it again") from error


def _is_of_content(error: OSError) -> bool:
    """Checks whether an error of the system is due to the archive and not to the disk."""
    # gzip's own have no errno; a member that claims to be larger than any file has EINVAL.
    if error.errno in (None, errno.EINVAL, errno.EOVERFLOW):
        return True
    # A name that the target's file system cannot hold, or takes for one that is there.
    return error.errno in (errno.ENAMETOOLONG, errno.EILSEQ, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


class _Header(tarfile.TarInfo):
    """Counts what the headers of one archive take.

    Attributes:
        pending: Bytes of the extended headers since the last member.
        shared: Bytes of all global headers.
        last: The block that was read last as a header.
    """

    pending: ClassVar[int] = 0
    shared: ClassVar[int] = 0
    last: ClassVar[bytes] = b""


def _make_header_class() -> type[_Header]:
    """Returns a class of tar headers that bounds what is read for one member; one class for each archive."""

    class Header(_Header):
        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "Header":
            Header.last = bytes(buf)
            header = super().frombuf(buf, encoding, errors)
            if header.size < 0:
                raise tarfile.TarError(f"a header states {header.size} bytes")
            if header.type == tarfile.GNUTYPE_SPARSE:
                raise tarfile.TarError("it holds sparse files")
            if header.type not in _EXTENDED:
                Header.pending = 0
                return header
            # Headers may be chained, and global ones are kept, so both are limited in total.
            Header.pending += header.size + tarfile.BLOCKSIZE
            if header.type == tarfile.XGLTYPE:
                Header.shared += header.size
            if Header.pending > MAX_HEADER_BYTES or Header.shared > _MAX_SHARED_BYTES:
                raise tarfile.TarError(f"its headers are larger than {MAX_HEADER_BYTES >> 20} MiB")
            return header

        # The list of a sparse file's parts in the newest form, which is in its data and read until it ends; in the
        # older forms it is in the extended header.
        def _proc_gnusparse_10(self, *_: Any) -> None:
            raise tarfile.TarError("it holds sparse files")

    return Header


def tar_members(archive: Path) -> Iterator[Member]:
    """Yields the members of a tar archive."""
    headers = _make_header_class()
    with tarfile.open(archive, "r:*", tarinfo=headers) as tar:
        for info in tar:
            # A link may point outside, and a later member be written through it.
            if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
                kind = "a link" if info.issym() or info.islnk() else "no plain file"
                raise ArchiveError(f"{archive}: {info.name!r} is {kind}; nothing was unpacked")
            # An extended header can replace the size of the header itself.
            if info.size < 0:
                raise ArchiveError(f"{archive}: {info.name!r} states {info.size} bytes; nothing was unpacked")
            parts = _inside(archive, info.name)
            if not parts:
                continue
            changed = _checked_time(archive, info.name, info.mtime)
            if info.isdir():
                yield Member(parts, 0, changed, None)
            else:
                # The default binds this member; a plain lambda would read whichever comes last.
                yield Member(parts, info.size, changed, lambda info=info: tar.extractfile(info))
            # `tarfile` keeps a list of all members, which only finding one by its name needs.
            tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
        # `tarfile` takes a damaged header for the end, and what follows would be lost.
        # A tar that was cut between two members is read as far as it goes: callers compare with a list of its files.
        if any(headers.last) and len(headers.last) == tarfile.BLOCKSIZE:
            raise tarfile.TarError("a header is damaged")
        assert tar.fileobj is not None
        while tar.fileobj.read(1 << 20):  # gzip's checksum is at the end, which tarfile does not read
            pass


def zip_members(archive: Path) -> Iterator[Member]:
    """Yields the members of a zip archive."""
    with archive.open("rb") as file, zipfile.ZipFile(_BoundedFile(file)) as packed:  # pyright: ignore
        for info in packed.infolist():
            # Unix keeps the mode in the upper half; it is 0 in an archive from another system.
            mode = stat.S_IFMT(info.external_attr >> 16)
            if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
                kind = "a link" if mode == stat.S_IFLNK else "no plain file"
                raise ArchiveError(f"{archive}: {info.orig_filename!r} is {kind}; nothing was unpacked")
            if info.flag_bits & 1:
                raise ArchiveError(f"{archive}: {info.filename!r} is encrypted; nothing was unpacked")
            if info.compress_type not in _METHODS:
                raise ArchiveError(
                    f"{archive}: {info.filename!r} is compressed by method {info.compress_type}, and only `stored` and "
                    "`deflate` are read; nothing was unpacked: pack it again"
                )
            # The original name: `zipfile` cuts `filename` at a zero byte, and the rest would go unchecked.
            parts = _inside(archive, info.orig_filename)
            if not parts:
                continue
            changed = _checked_time(archive, info.orig_filename, _seconds(info.date_time))
            if info.is_dir():
                yield Member(parts, 0, changed, None)
            else:
                yield Member(parts, info.file_size, changed, lambda info=info: packed.open(info))


class _BoundedFile:
    """Refuses to read a zip's list of members in one piece if it is larger than any data set's.

    `zipfile` reads as many bytes as the end of the archive states, before it looks at the first of them.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if size > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"its list of members has {size} bytes")
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _seconds(date_time: tuple[int, int, int, int, int, int]) -> int:
    """Returns the seconds since 1970 of a zip's date.

    It is a local time without a zone. Read as UTC, it is the same on every machine. Writers that keep no dates leave
    0, which is month 0 and day 0 of 1980.
    """
    year, month, day, hour, minute, second = date_time
    return calendar.timegm((year, min(max(month, 1), 12), max(day, 1), hour, minute, second, 0, 0, 0))


def _checked_time(archive: Path, name: str, changed: float) -> float:
    if not (math.isfinite(changed) and _YEARS[0] <= changed <= _YEARS[1]):
        raise ArchiveError(f"{archive}: {name!r} was changed at {changed}, which is no date; nothing was unpacked")
    return changed


def _inside(archive: Path, name: str) -> tuple[str, ...]:
    """Returns the path components of a member's name; empty for the archive's own root."""
    size = len(os.fsencode(name))
    if size > _MAX_NAME_BYTES:
        raise ArchiveError(f"{archive}: {name[:60]!r}... is a path of {size} bytes; nothing was unpacked")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    # On Windows "C:x" is a place on another disk, and a backslash separates folders.
    has_drive = bool(parts) and ":" in parts[0]
    if name.startswith("/") or has_drive or ".." in parts or "\\" in name or "\0" in name:
        raise ArchiveError(f"{archive}: {name!r} would lie outside; nothing was unpacked")
    if len(parts) > _MAX_DEPTH or any(len(os.fsencode(part)) > _MAX_PART_BYTES for part in parts):
        raise ArchiveError(f"{archive}: {name[:60]!r}... is too long or too deep a path; nothing was unpacked")
    return parts
