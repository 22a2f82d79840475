"""Stores images in tar shards instead of single files: appended per batch, found by an index, written without a lock.

Every writer has its own shards with random names, so that no two processes or machines write to the same file. A
shard ends in two empty blocks, which the next batch overwrites. If that is interrupted, complete members are found by
their headers, and the rest is ignored.
"""

import hashlib
import math
import os
import secrets
import tarfile
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from lgclip.store import remote
from lgclip.store.atomic import WAY_OUT, WriteError, refusal
from lgclip.store.image_codec import JPEG, format_of
from lgclip.store.shard_index import (
    BLOCK,
    DIGITS,
    TRAILER,
    Listing,
    Member,
    joined,
    listing_of,
    name_of,
    read_index,
    read_listing,
    scan,
    write_index,
)

SHARD_IMAGES = 1000
"""Number of images and markers at which a shard is closed."""

SHARD_BYTES = 512_000_000
"""Number of bytes at which a shard is closed; the batch that reaches it is still written."""


class Shards:
    """Reads the shards of a folder by image id.

    Args:
        folder: `images/KEY/shards`, which need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listings: dict[str, Listing] = {}
        self._fresh: dict[tuple[str, bool], Member] = {}
        self._merge()

    def refresh(self) -> None:
        """Reads what is new: the index of a closed shard, the new headers of a growing one."""
        try:
            with os.scandir(self._folder) as entries:
                sizes = {entry.name: entry.stat().st_size for entry in entries if entry.name.endswith(".tar")}
        except FileNotFoundError:
            sizes = {}
        # Of images in an object store the index is enough; their shard is downloaded when one is read.
        sizes = {**remote.remote_shards(self._folder), **sizes}
        changed = self._listings.keys() != sizes.keys()
        now: dict[str, Listing] = {}
        # By name, so that for an image in two shards every process takes the same copy.
        for name in sorted(sizes):
            known = self._listings.get(name)
            if known is None or known.size != sizes[name]:
                known = self._read(self._folder / name, known, sizes[name])
                changed = True
            if known is not None:
                now[name] = known
        self._listings = now
        if changed:
            self._merge()

    def _read(self, shard: Path, known: Listing | None, size: int) -> Listing | None:
        try:
            # A shard only grows at its end, so its old members need not be read again. A shorter one was cut, and
            # what is known of it does not hold any more.
            if known is not None and known.end < shard.stat().st_size:
                return joined(known, listing_of(*scan(shard, known.end)))
            # Without a usable index the shard itself is needed, which may lie in an object store.
            if shard.exists() or (read_index(shard, size) is None and remote.fetch_file(shard)):
                return read_listing(shard)
            return read_listing(shard, size)
        except FileNotFoundError:  # another process has taken it away
            return None

    def _merge(self) -> None:
        """Sorts all ids; of duplicates the first shard's counts."""
        self._paths = [self._folder / name for name in self._listings]
        self._fresh.clear()
        self._tables = {fault: _Table(list(self._listings.values()), fault) for fault in (False, True)}

    def find(self, ids: Sequence[str], *, faults: bool = False) -> list[Member | None]:
        """Returns the locations of images, or of the markers in their place; None for those in no shard."""
        table = self._tables[faults]
        if not self._fresh and not len(table.ids):
            return [None] * len(ids)
        # What this process has written itself is not in the sorted tables before the next refresh.
        members = [self._fresh.get((name, faults)) for name in ids]
        for index, row in enumerate(table.rows(ids)):
            if row >= 0 and members[index] is None:
                shard, offset, size = table.places[row].tolist()
                name = name_of(ids[index], faults, bool(table.jpegs[row]))
                members[index] = Member(self._paths[shard], name, offset, size)
        return members

    def note(self, shard: Path, listing: Listing, new: Sequence[tuple[str, bool, Member]]) -> None:
        """Adds the entries that this process has written itself."""
        self._listings[shard.name] = listing
        self._fresh.update(((name, fault), member) for name, fault, member in new)


class _Table:
    """Stores sorted ids with their locations: shard, offset, size; and formats. Takes 57 bytes per image."""

    def __init__(self, listings: Sequence[Listing], fault: bool) -> None:
        # The empty arrays give the result its type when there are no shards.
        ids = [np.empty(0, f"S{DIGITS}")]
        places = [np.empty((0, 3), np.int64)]
        jpegs = [np.empty(0, bool)]
        for shard, listing in enumerate(listings):
            mask = listing.faults == fault
            ids.append(listing.ids[mask])
            places.append(np.column_stack([np.full(int(mask.sum()), shard), listing.spans[mask]]))
            jpegs.append(listing.jpegs[mask])
        all_ids = np.concatenate(ids)
        # Stable: of equal ids the one of the first shard stays first, and `rows` finds that one.
        order = np.argsort(all_ids, kind="stable")
        self.ids = all_ids[order]
        self.places = np.concatenate(places)[order]
        self.jpegs = np.concatenate(jpegs)[order]

    def rows(self, ids: Sequence[str]) -> list[int]:
        """Returns the row of each id; -1 for a missing one."""
        if not len(self.ids):
            return [-1] * len(ids)
        queries = np.array(ids, dtype=f"S{DIGITS}")
        # An id behind all others gets the position after the end; the comparison rejects the entry before it.
        rows = np.minimum(np.searchsorted(self.ids, queries), len(self.ids) - 1)
        return np.where(self.ids[rows] == queries, rows, -1).tolist()


@lru_cache(maxsize=16)
def shards_in(folder: Path) -> Shards:
    """Returns the shards of a folder; the jobs of a sweep in one process share them."""
    return Shards(folder)


class ShardWriter:
    """Writes shards of its own: new entries are buffered until `flush` appends them in one write.

    Args:
        folder: `images/KEY/shards`, created with the first batch.
        images: See `SHARD_IMAGES`.
        size: See `SHARD_BYTES`.
        seconds: Time after which a shard is closed, however small it is.
    """

    def __init__(
        self, folder: Path, images: int = SHARD_IMAGES, size: int = SHARD_BYTES, seconds: float = math.inf
    ) -> None:
        self._folder = folder
        self._most = images
        self._room = size
        self._seconds = seconds
        self._waiting: list[tuple[str, bool, bytes, bytes]] = []
        self._begin()

    def _begin(self) -> None:
        # From the system's generator and not from a seeded one, which would give two processes the same name.
        self._shard = self._folder / f"{secrets.token_hex(16)}.tar"
        self._listing = listing_of([], 0, 0)
        # The sum is updated with each batch: a closed shard of 512 MB need not be read again for it.
        self._digest = hashlib.sha256()
        self._begun = time.monotonic()

    def add(self, image_id: str, content: bytes, about: bytes) -> None:
        """Buffers an image, which is named by its format, and the JSON of its inputs. Thread-safe."""
        self._waiting.append((image_id, False, about, content))

    def add_fault(self, image_id: str, about: bytes) -> None:
        """Buffers a marker in place of an image."""
        self._waiting.append((image_id, True, b"", about))

    def flush(self) -> None:
        """Appends the buffered entries; closes the shard if it is full.

        Raises:
            WriteError: If the system refuses it; the shard is then unchanged.
        """
        batch = self._waiting
        self._waiting = []
        if not batch:
            return
        data = bytearray()
        members: list[Member] = []
        for image_id, fault, about, content in batch:
            if not fault:
                # Before the image, so that an image that survives a cut has its text too.
                data += _packed(f"{image_id}.json", about)
            name = name_of(image_id, fault, format_of(content) == JPEG)
            members.append(Member(self._shard, name, self._listing.end + len(data) + BLOCK, len(content)))
            data += _packed(name, content)
        self._folder.mkdir(parents=True, exist_ok=True)
        if not self._listing.end:
            self._begun = time.monotonic()
        _append(self._shard, self._listing.end, bytes(data))
        self._digest.update(data)
        end = self._listing.end + len(data)
        self._listing = joined(self._listing, listing_of(members, end, end + len(TRAILER)))
        new = [(image_id, fault, member) for (image_id, fault, *_), member in zip(batch, members, strict=True)]
        shards_in(self._folder).note(self._shard, self._listing, new)
        is_old = time.monotonic() - self._begun >= self._seconds
        if len(self._listing.ids) >= self._most or end >= self._room or is_old:
            self.close()

    def close(self) -> None:
        """Appends the buffered entries, and writes the index of the last shard; the next batch starts another one."""
        self.flush()
        if not self._listing.end:
            return
        with self._shard.open("rb") as file:
            # After a power cut an index may only describe bytes that are on the disk.
            os.fsync(file.fileno())
        # The empty blocks are part of the file but not of the running sum, since the next batch overwrites them.
        digest = self._digest.copy()
        digest.update(TRAILER)
        write_index(self._shard, self._listing._replace(sha256=digest.hexdigest()))
        self._begin()


def _packed(name: str, content: bytes) -> bytes:
    # No owner and no time, so that equal images give equal bytes, and a shard's sum depends on its content alone.
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % BLOCK)


def _append(shard: Path, end: int, data: bytes) -> None:
    """Appends a batch; the file is reopened each time, so that other machines see the new content."""
    # "x" fails where a file of that name exists: two writers must never share a shard.
    mode = "r+b" if end else "xb"
    with shard.open(mode, buffering=0) as file:
        file.seek(end)
        remaining = memoryview(data + TRAILER)
        try:
            # An unbuffered write may take only a part, for example when the disk is nearly full.
            while remaining:
                remaining = remaining[file.write(remaining) :]
        except OSError as error:
            file.truncate(end)
            raise WriteError(f"{shard}: {refusal(error) or error}; {WAY_OUT}") from error
