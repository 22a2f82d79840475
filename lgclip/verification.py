"""Every file of a store is looked at, and what is faulty is told, or moved out of the way."""

import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from lgclip.drawn_inspection import TORN, inside
from lgclip.identity import digest_of
from lgclip.inspection import fault_in, width_of
from lgclip.inventory import (
    CHANGING,
    HOUR,
    MANIFEST,
    QUARANTINE,
    Item,
    Kind,
    amount,
    existing,
    forget,
    read_manifest,
    walk,
    write_manifest,
)
from lgclip.shard_index import index_of, list_shards
from lgclip.store import StoreError
from lgclip.tar_store import ShardWriter


def verify(root: Path, *, repair: bool = False, manifest: bool = False, now: int | None = None) -> Iterator[str]:
    """Looks at every file of a store.

    Args:
        root: The store's folder.
        repair: Whether to move faulty files into quarantine, from where a run makes them again.
        manifest: Whether to write a manifest of what is in order; one that is there already is not looked at.
        now: Time, in nanoseconds since 1970; None for the clock's.

    Yields:
        A line a fault, and what was counted.

    Raises:
        StoreError: If there is no store, or if faulty files are left where they are.
    """
    existing(root)
    if manifest:
        for folder in sorted(root.glob("images/*/shards")):
            list_shards(folder)
    listed = {} if manifest else read_manifest(root / MANIFEST)
    seen, faulty = _Seen(root, listed), []
    for item, fault in seen.look(time.time_ns() if now is None else now, sums=manifest):
        faulty.append((item, fault))
        yield f"{item.place}: {fault}"
    gone = sorted(listed.keys() - seen.places)
    for place in gone:
        yield f"{place}: it is in {MANIFEST} and not in the store"
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(seen.counts.items())) or "nothing"
    yield f"{root}: {amount(sum(seen.counts.values()), seen.size)} ({counts}), {len(faulty) + len(gone)} faults"
    left = len(faulty) + len(gone)
    if repair and left:
        going = [item for item, _ in faulty if item.kind != Kind.LINK]
        indexes = _rescue([item for item in going if item.kind == Kind.SHARD])
        moved = list(dict.fromkeys([*(item.place for item in going), *indexes]))
        _move(root, moved)
        for folder in {item.path.parent for item in going if item.kind in (Kind.SHARD, Kind.LIST)}:
            list_shards(folder)
        if manifest:
            seen.forget(moved)
        else:
            forget(root, {*moved, *gone})
        left = len(faulty) - len(going)
        yield f"{len(moved)} files moved to {root / QUARANTINE}; a run makes again what it needs of them"
    if manifest:
        write_manifest(root / MANIFEST, seen.sums)
        yield f"{root / MANIFEST}: {len(seen.sums)} sums"
    if left:
        way = "links are left where they are" if repair else "--repair moves them into quarantine, and a run makes them"
        raise StoreError(f"{left} faults in {root}; {way}")


class _Seen:
    """What a look at a store has found so far.

    Args:
        root: The store's folder.
        listed: Sums of its manifest, by place.
    """

    def __init__(self, root: Path, listed: Mapping[str, str]) -> None:
        self._root, self._listed = root, listed
        self._written = (root / MANIFEST).stat().st_mtime_ns if listed else 0
        self.counts: Counter[str] = Counter()
        self.size, self.places, self.sums = 0, set[str](), dict[str, str]()
        self._widths: defaultdict[str, dict[Item, int]] = defaultdict(dict)

    def look(self, now: int, *, sums: bool) -> Iterator[tuple[Item, str]]:
        """Every faulty file and what is wrong with it."""
        for item in walk(self._root):
            if item.kind == Kind.LEFTOVER and now - item.came < HOUR:
                continue
            try:
                fault = fault_in(item) or self._sum_fault(item)
                if fault is None and item.kind == Kind.FEATURES:
                    self._widths[item.parts[1]][item] = width_of(item.path)
                if fault == TORN and now - item.changed < HOUR:  # a run is at work on it, perhaps
                    fault = None
                if sums and fault is None and not _grows(item):
                    self.sums[item.place] = digest_of(item.path)
            except FileNotFoundError:  # another process has taken it away
                continue
            self.counts[item.kind] += 1
            self.size += item.size
            if item.place in self._listed:
                self.places.add(item.place)
            if fault is not None:
                yield item, fault
        for widths in self._widths.values():
            yield from self._odd(widths)

    def forget(self, places: Iterable[str]) -> None:
        """Drops the sums of files that were moved away."""
        for place in places:
            self.sums.pop(place, None)

    def _sum_fault(self, item: Item) -> str | None:
        listed = self._listed.get(item.place)
        # A run adds sentences to a class's prompts; every other entry is written once.
        if listed is None or (item.kind == Kind.PROMPTS and item.changed > self._written):
            return None
        return None if digest_of(item.path) == listed else f"its bytes are not those of {MANIFEST}"

    def _odd(self, widths: Mapping[Item, int]) -> Iterator[tuple[Item, str]]:
        """Chunks of one encoder with another width than most: their name does not say whose they are."""
        (usual, most), *others = Counter(widths.values()).most_common()
        doubtful = bool(others) and others[0][1] == most
        for item, width in widths.items():
            if doubtful or width != usual:
                self.sums.pop(item.place, None)
                yield item, f"features of width {width} among others by the same encoder of {_others(widths, width)}"


def _grows(item: Item) -> bool:
    """Whether runs write to a file again."""
    return item.kind in CHANGING or (item.kind == Kind.SHARD and not index_of(item.path).exists())


def _others(widths: Mapping[Item, int], width: int) -> str:
    return ", ".join(str(other) for other in sorted(set(widths.values()) - {width}))


def _rescue(shards: Sequence[Item]) -> list[str]:
    """Writes what is whole of faulty shards to new ones; returns the places of the old ones' indexes."""
    indexes = []
    for item in shards:
        writer = ShardWriter(item.path.parent)
        for one in inside(item.path):
            if one.fault is None and one.is_marker:
                writer.add_fault(one.name, one.data)
            elif one.fault is None:
                writer.add(one.name, one.data, one.about)
            writer.flush()
        writer.close()
        index = index_of(item.path)
        if index.exists():
            indexes.append(index.relative_to(item.root).as_posix())
    return indexes


def _move(root: Path, places: list[str]) -> None:
    for place in places:
        target = root / QUARANTINE / place
        at = 0
        while target.exists():  # nothing is lost, however often the same file was faulty
            at += 1
            target = root / QUARANTINE / f"{place}.{at}"
        target.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # another process has taken it away
            shutil.move(root / place, target)  # across disks too
