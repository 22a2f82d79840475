"""Unpacks downloaded archives safely: checks all members first, then everything appears atomically or not at all."""

import os
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from lgclip.datasets.archive_members import ArchiveError, Member, reported, tar_members, zip_members

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")
"""Suffixes that `unpack` recognizes as archives."""

MAX_MEMBERS = 2_500_000
"""Maximum number of members: ImageNet has 1.4 million images. A compressed archive could hold billions of them."""


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
    temporary = folder / f".{archive.name}.unpacking"  # one place, so that what a killed run left is found and removed
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _write(archive, temporary, files)
        places = [folder / top for top in tops]
        # Files first: a data set is found by its folder, which must not exist before everything else does.
        for place in sorted(places, key=lambda p: (temporary / p.name).is_dir()):
            (temporary / place.name).replace(place)
        return places
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _checked(archive: Path, folder: Path) -> tuple[list[str], int, int]:
    """Checks all members of an archive; returns its top-level entries, number of files and bytes."""
    seen: dict[str, bool] = {}  # folded path -> whether it is a folder
    tops: dict[str, bool] = {}
    size = 0
    files = 0
    for member in _members(archive):
        is_folder = member.read is None
        # Where upper and lower case are one file, a second spelling would write over the first.
        *above, last = (unicodedata.normalize("NFC", part).casefold() for part in member.parts)
        path = ""
        is_clash = False
        for part in above:
            path = f"{path}{part}/"
            is_clash = is_clash or not seen.setdefault(path, True)
        # A file cannot also be a folder. Folders may come several times, and often have no entry of their own.
        path = f"{path}{last}/"
        if is_clash or (path in seen and not (is_folder and seen[path])):
            raise ArchiveError(f"{archive}: {'/'.join(member.parts)!r} occurs twice in it; nothing was unpacked")
        seen[path] = is_folder
        # Each member may name folders of its own.
        if len(seen) > 2 * MAX_MEMBERS:
            raise ArchiveError(f"{archive}: it has more than {MAX_MEMBERS:,} folders; nothing was unpacked")
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
            with reported(archive):
                _write_member(into.joinpath(*member.parts), member)
            bar.update(member.read is not None)


def _write_member(place: Path, member: Member) -> None:
    if member.read is None:
        place.mkdir(parents=True, exist_ok=True)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    source = member.read()
    assert source is not None
    # "x" fails on a file that is there, should two names be one file in a way that was not thought of.
    with source, place.open("xb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    # An image's id holds its time: equal copies of an archive must give equal ids on every machine.
    os.utime(place, (member.changed, member.changed))


def _members(archive: Path) -> Iterator[Member]:
    """Yields the members of an archive, each checked to be a plain file or folder inside the target."""
    with reported(archive):
        members = tar_members(archive)
        if archive.name.lower().endswith(".zip"):
            members = zip_members(archive)
        for count, member in enumerate(members):
            if count >= MAX_MEMBERS:
                raise ArchiveError(f"{archive}: it has more than {MAX_MEMBERS:,} members; nothing was unpacked")
            yield member
