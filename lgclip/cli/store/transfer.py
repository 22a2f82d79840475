"""Moves a store, or what some runs need of it, between a folder and an object store, so that nobody makes it twice."""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lgclip.cli.store.archive import chosen
from lgclip.cli.store.entry_checks import fault_in, shard_names
from lgclip.cli.store.gc import Used, needed_by, with_companions
from lgclip.cli.store.inventory import COMPANIONS, ENTRIES, Item, Kind, amount, existing, walk
from lgclip.cli.store.pack import write_images
from lgclip.store.atomic import atomic_write
from lgclip.store.location import parse_location
from lgclip.store.mirror import Mirror
from lgclip.store.places import entry_of
from lgclip.store.remote import mirror_of
from lgclip.store.root import StoreError, check_writable, open_root
from lgclip.store.segments import add_lines, is_further
from lgclip.store.shard_index import index_of
from lgclip.store.tar_shards import Shards, ShardWriter


@dataclass
class _Count:
    """Counts the files that were moved, and those that existed already."""

    moved: int = 0
    size: int = 0
    existing: int = 0

    def add(self, size: int | None) -> None:
        """Counts a file of `size` bytes; None for one that existed."""
        if size is None:
            self.existing += 1
        else:
            self.moved += 1
            self.size += size


def push(root: Path, url: str, runs: Sequence[Path] = (), only: Sequence[str] = ()) -> Iterator[str]:
    """Copies a store in a folder, or what some runs need of it, to an object store.

    Every file is checked as `verify.verify` does before the first is moved. Images that are files go in shards. What
    is there already is not moved; after an interruption the same command goes on.

    Args:
        root: The store's folder.
        url: The object store.
        runs: Folders of finished runs or of sweeps, and saved classifiers; none for the complete store.
        only: Beginnings of places, such as `features/KEY`; none for all.

    Yields:
        A line on what was moved.

    Raises:
        ValueError: If there is no store, a run cannot be read or lacks something, a file is faulty, or the object
            store cannot be written.
    """
    cache, mirror = _opened(url)
    items = [item for item in chosen(existing(root), runs) if _is_within(item.place, only)]
    for item in items:
        fault = fault_in(item)
        if fault is not None:
            raise StoreError(f"{item.path}: {fault}; see lgclip store verify --repair. Nothing was moved")
    if not items:
        raise StoreError(f"{root} holds nothing to push")
    check_writable(cache)
    for entry in sorted({mirror.entry_of_file(item.place, item.path) for item in items}):
        mirror.fetch(entry, lists=True)
    count = _Count()
    images: dict[str, list[Item]] = {}
    for item in items:
        # A shard without an index may still grow.
        is_open = item.kind == Kind.SHARD and not index_of(item.path).exists()
        if item.kind in (Kind.IMAGE, Kind.MARKER) or is_open:
            images.setdefault(item.parts[1], []).append(item)
        elif item.kind != Kind.CHECKPOINT:
            count.add(item.size if _hand_over(mirror, item) else None)
    mirror.push()
    for key, members in images.items():
        _pack(mirror, key, members, count)
    yield f"{mirror.objects.url}: {amount(count.moved, count.size)} moved, {count.existing} were there"


def pull(root: Path, url: str, runs: Sequence[Path] = (), only: Sequence[str] = ()) -> Iterator[str]:
    """Copies an object store, or what some runs need of it, to a store in a folder.

    Args:
        root: The store's folder, created if needed.
        url: The object store.
        runs: Folders of finished runs or of sweeps, and saved classifiers; none for the complete store.
        only: Beginnings of places, such as `images/KEY`; none for all.

    Yields:
        A line on what was moved.

    Raises:
        ValueError: If the object store cannot be read, lacks what a run needs, or holds a faulty file.
    """
    cache, mirror = _opened(url)
    check_writable(root)
    if runs:
        used = needed_by(runs, cache)
        needed = _needed(cache, mirror, used)
    else:
        for entry in _entries(mirror, only):
            mirror.fetch(entry, shards=True)
        needed = [item for item in walk(cache) if item.kind in ENTRIES | COMPANIONS and item.kind != Kind.LIST]
    items = [item for item in needed if _is_within(item.place, only)]
    if not items:
        raise StoreError(f"{mirror.objects.url} holds nothing of that")
    for item in items:
        fault = fault_in(item)
        if fault is not None:
            raise StoreError(f"{mirror.objects.url}/{item.place}: {fault}; nothing was placed")
    count = _Count()
    for item in items:
        count.add(item.size if _place(item, root / item.place) else None)
    yield f"{root}: {amount(count.moved, count.size)} moved, {count.existing} were there"


def _opened(url: str) -> tuple[Path, Mirror]:
    """Returns the cache of an object store, and what connects the two."""
    if parse_location(url) is None:
        raise StoreError(
            f"{url}: name an object store, as in s3://BUCKET/PREFIX; folders are copied by export and import"
        )
    cache = open_root(url)
    mirror = mirror_of(cache)
    assert mirror is not None
    return cache, mirror


def _is_within(place: str, only: Sequence[str]) -> bool:
    return not only or any(place.startswith(beginning.strip("/")) for beginning in only)


def _entries(mirror: Mirror, only: Sequence[str]) -> list[str]:
    """Returns the entries of an object store, by one listing of it."""
    entries = {entry_of(place) for place in mirror.objects.ls() if "/" in place}
    # The prompts of a generator have its key there, and that of each class here.
    return sorted(entry for entry in entries if entry.startswith("prompts/") or _is_within(entry, only))


def _needed(cache: Path, mirror: Mirror, used: Used) -> list[Item]:
    """Returns the files that some runs need; downloads the shards of their images."""
    for key in used.images:
        shards = Shards(cache / "images" / key / "shards")
        shards.refresh()
        names = sorted(used.generated)
        members = [*shards.find(names), *shards.find(names, faults=True)]
        for shard in sorted({member.shard for member in members if member is not None}):
            mirror.fetch_file(shard)
    files = list(walk(cache))
    entries = [item for item in files if item.kind in ENTRIES and used.needs(item)]
    companions = [item for item in files if item.kind in COMPANIONS and item.kind != Kind.LIST]
    near, _ = with_companions(entries, companions)
    return sorted([*entries, *near], key=lambda item: item.place)


def _hand_over(mirror: Mirror, item: Item) -> bool:
    """Adds a file to the cache of an object store, for upload; returns whether the cache lacked it."""
    if mirror.has(item.place, item.path):
        return False
    target = mirror.root / item.place
    # What is in the cache already waits for its upload, since an earlier command was interrupted.
    if not _place(item, target):
        mirror.written(target)
    return True


def _place(item: Item, target: Path) -> bool:
    """Copies a file of one store into another, unless that has it; returns whether it was copied."""
    if item.kind == Kind.COST_LOG:
        return add_lines(target, item.path.read_bytes().splitlines()) > 0
    if target.exists() and not (item.kind == Kind.PROMPTS and is_further(item.path, target)):
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as temporary:
        _copy(item.path, temporary)
    return True


def _copy(path: Path, temporary: Path) -> None:
    # A link takes no room; entries are never written in place, but replaced.
    temporary.unlink()
    try:
        os.link(path, temporary)
    except OSError:
        shutil.copyfile(path, temporary)


def _pack(mirror: Mirror, key: str, items: Sequence[Item], count: _Count) -> None:
    """Packs the images and markers that an object store lacks into shards, and uploads these."""
    folder = mirror.root / "images" / key / "shards"
    shards = Shards(folder)
    shards.refresh()
    names = [name for item in items for name in _names_in(item)]
    pairs = zip(names, shards.find(names), shards.find(names, faults=True), strict=True)
    stored = {name for name, image, marker in pairs if image is not None or marker is not None}
    before = len(stored)
    written = write_images(ShardWriter(folder), items, stored)
    mirror.push()
    # The images lie in the other store already: their copy is downloaded again where it is read.
    for shard in folder.glob("*.tar"):
        if written and mirror.has(shard.relative_to(mirror.root).as_posix(), shard):
            shard.unlink()
    count.existing += before
    count.moved += written
    # By their mean size: which of them were there, only their names say.
    count.size += sum(item.size for item in items) * written // max(1, len(names))


def _names_in(item: Item) -> set[str]:
    """Returns the ids of the images in a file."""
    if item.kind == Kind.SHARD:
        return shard_names(item.path)
    return {item.path.name.partition(".")[0]}
