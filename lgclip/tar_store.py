"""Images in tar shards instead of a file each: appended a batch at a time, found by an index, written without a lock.

Every writer has shards of its own, whose names are drawn by lot, so that no two processes or machines write to one
file. A shard ends in two empty blocks, over which the next batch is written. Whatever cuts that short, what is whole
is found by the headers, and the rest is no part of the shard.
"""

import hashlib
import os
import secrets
import tarfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from lgclip.shard_index import (
    BLOCK,
    DIGITS,
    TRAILER,
    Listing,
    Member,
    joined,
    listing_of,
    look,
    name_of,
    scan,
    write_index,
)
from lgclip.whole import WAY_OUT, WriteError, refusal

SHARD_IMAGES = 1000
"""A shard is closed when it holds so many images and markers, or"""

SHARD_BYTES = 512_000_000
"""so many bytes; the batch that comes to it is still written."""


class Shards:
    """The shards of a folder, read by id.

    Args:
        folder: `images/KEY/shards`, there or not.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, Listing] = {}
        self._fresh: dict[tuple[str, bool], Member] = {}
        self._merge()

    def refresh(self) -> None:
        """Reads what has come since: the index of a closed shard, the new headers of one that grows."""
        try:
            with os.scandir(self._folder) as found:
                sizes = {entry.name: entry.stat().st_size for entry in found if entry.name.endswith(".tar")}
        except FileNotFoundError:
            sizes = {}
        changed = self._known.keys() != sizes.keys()
        now: dict[str, Listing] = {}
        for name in sorted(sizes):
            known = self._known.get(name)
            if known is None or known.size != sizes[name]:
                known, changed = self._read(self._folder / name, known), True
            if known is not None:
                now[name] = known
        self._known = now
        if changed:
            self._merge()

    def _read(self, shard: Path, known: Listing | None) -> Listing | None:
        try:
            if known is not None and known.end < shard.stat().st_size:
                return joined(known, listing_of(*scan(shard, known.end)))
            return look(shard)
        except FileNotFoundError:  # another process has taken it away
            return None

    def _merge(self) -> None:
        """Sorts all ids; of equal ones the first shard's counts."""
        self._paths = [self._folder / name for name in self._known]
        self._fresh.clear()
        self._tables = {fault: _Table(list(self._known.values()), fault) for fault in (False, True)}

    def find(self, ids: Sequence[str], *, faults: bool = False) -> list[Member | None]:
        """Where images, or the markers in their places, lie; None for what is in no shard."""
        table = self._tables[faults]
        if not self._fresh and not len(table.ids):
            return [None] * len(ids)
        found = [self._fresh.get((name, faults)) for name in ids]
        for at, row in enumerate(table.rows(ids)):
            if row >= 0 and found[at] is None:
                shard, offset, size = table.places[row].tolist()
                found[at] = Member(self._paths[shard], name_of(ids[at], faults), offset, size)
        return found

    def note(self, shard: Path, listing: Listing, new: Sequence[tuple[str, bool, Member]]) -> None:
        """Takes in what this process has written itself."""
        self._known[shard.name] = listing
        self._fresh.update(((name, fault), member) for name, fault, member in new)


class _Table:
    """Ids in order, and where each lies: shard, offset, size. 56 bytes an image."""

    def __init__(self, listings: Sequence[Listing], fault: bool) -> None:
        own = [listing.faults == fault for listing in listings]
        parts = zip(listings, own, strict=True)
        places = [np.column_stack([np.full(int(m.sum()), at), o.spans[m]]) for at, (o, m) in enumerate(parts)]
        ids = [listing.ids[mine] for listing, mine in zip(listings, own, strict=True)]
        self.ids = np.concatenate([np.empty(0, f"S{DIGITS}"), *ids])
        self.places = np.concatenate([np.empty((0, 3), np.int64), *places])
        order = np.argsort(self.ids, kind="stable")
        self.ids, self.places = self.ids[order], self.places[order]

    def rows(self, ids: Sequence[str]) -> list[int]:
        """The row of each id; -1 for one that is not there."""
        if not len(self.ids):
            return [-1] * len(ids)
        wanted = np.array(ids, dtype=f"S{DIGITS}")
        rows = np.minimum(np.searchsorted(self.ids, wanted), len(self.ids) - 1)
        return np.where(self.ids[rows] == wanted, rows, -1).tolist()


@lru_cache(maxsize=16)
def shards_in(folder: Path) -> Shards:
    """The shards of a folder; those of a sweep's jobs are read once a process."""
    return Shards(folder)


class ShardWriter:
    """Writes shards of its own: what is added is kept until `flush` appends it in one go.

    Args:
        folder: `images/KEY/shards`, made when the first batch comes.
        images: See `SHARD_IMAGES`.
        size: See `SHARD_BYTES`.
    """

    def __init__(self, folder: Path, images: int = SHARD_IMAGES, size: int = SHARD_BYTES) -> None:
        self._folder, self._most, self._room = folder, images, size
        self._waiting: list[tuple[str, bool, bytes, bytes]] = []
        self._begin()

    def _begin(self) -> None:
        self._shard = self._folder / f"{secrets.token_hex(16)}.tar"
        self._held, self._digest = listing_of([], 0, 0), hashlib.sha256()

    def add(self, image_id: str, png: bytes, about: bytes) -> None:
        """An image and the JSON of what it was made from. May be called from several threads."""
        self._waiting.append((image_id, False, about, png))

    def add_fault(self, image_id: str, about: bytes) -> None:
        """A marker in place of an image."""
        self._waiting.append((image_id, True, b"", about))

    def flush(self) -> None:
        """Appends what waits; a shard that is full by then is closed.

        Raises:
            WriteError: If the system refuses it; the shard is then as it was before.
        """
        batch, self._waiting = self._waiting, []
        if not batch:
            return
        data, members = bytearray(), list[Member]()
        for image_id, fault, about, content in batch:
            if not fault:
                data += _packed(f"{image_id}.json", about)  # first, so that an image that is whole has it
            name = name_of(image_id, fault)
            members.append(Member(self._shard, name, self._held.end + len(data) + BLOCK, len(content)))
            data += _packed(name, content)
        self._folder.mkdir(parents=True, exist_ok=True)
        _append(self._shard, self._held.end, bytes(data))
        self._digest.update(data)
        end = self._held.end + len(data)
        self._held = joined(self._held, listing_of(members, end, end + len(TRAILER)))
        new = [(image_id, fault, member) for (image_id, fault, *_), member in zip(batch, members, strict=True)]
        shards_in(self._folder).note(self._shard, self._held, new)
        if len(self._held.ids) >= self._most or end >= self._room:
            self.close()

    def close(self) -> None:
        """Appends what waits, and writes the index of the last shard; the next batch begins another."""
        self.flush()
        if not self._held.end:
            return
        with self._shard.open("rb") as file:
            os.fsync(file.fileno())  # the index must not outlive what it tells of
        digest = self._digest.copy()
        digest.update(TRAILER)
        write_index(self._shard, self._held._replace(sha256=digest.hexdigest()))
        self._begin()


def _packed(name: str, content: bytes) -> bytes:
    info = tarfile.TarInfo(name)  # no owner, no time: equal images give equal bytes
    info.size = len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % BLOCK)


def _append(shard: Path, end: int, data: bytes) -> None:
    """Writes a batch behind the last; opened anew each time, so that other machines see it."""
    with shard.open("r+b" if end else "xb", buffering=0) as file:
        file.seek(end)
        left = memoryview(data + TRAILER)
        try:
            while left:
                left = left[file.write(left) :]
        except OSError as error:
            file.truncate(end)
            raise WriteError(f"{shard}: {refusal(error) or error}; {WAY_OUT}") from error
