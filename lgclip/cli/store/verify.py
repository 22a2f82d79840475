"""Checks every file of a store, and reports or quarantines faulty ones."""

import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from lgclip.cli.store.entry_checks import fault_in, width_of
from lgclip.cli.store.image_checks import TORN, inside
from lgclip.cli.store.inventory import (
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
from lgclip.store.keys import digest_of
from lgclip.store.root import StoreError
from lgclip.store.shard_index import index_of, list_shards
from lgclip.store.tar_shards import ShardWriter


def verify(root: Path, *, repair: bool = False, manifest: bool = False, now: int | None = None) -> Iterator[str]:
    """Checks every file of a store.

    Args:
        root: The store's folder.
        repair: Whether to move faulty files into quarantine, so that a run recomputes them.
        manifest: Whether to write a manifest of the valid files; an existing one is then ignored.
        now: Time, in nanoseconds since 1970; None for the current time.

    Yields:
        A line per fault, and a summary.

    Raises:
        StoreError: If there is no store, or if faulty files remain.
    """
    existing(root)
    # A shard without an index and a list may still grow, so it gets no sum; listing closes those that are complete.
    if manifest:
        for folder in sorted(root.glob("images/*/shards")):
            list_shards(folder)
    listed = {} if manifest else read_manifest(root / MANIFEST)
    check = _StoreCheck(root, listed)
    faulty = []
    for item, fault in check.faults(time.time_ns() if now is None else now, sums=manifest):
        faulty.append((item, fault))
        yield f"{item.place}: {fault}"
    missing = sorted(listed.keys() - check.places)
    for place in missing:
        yield f"{place}: it is in {MANIFEST} and not in the store"
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(check.counts.items())) or "nothing"
    yield f"{root}: {amount(sum(check.counts.values()), check.size)} ({counts}), {len(faulty) + len(missing)} faults"
    remaining = len(faulty) + len(missing)
    if repair and remaining:
        # A link may lead to the user's own files; to move it could break what they have set up on purpose.
        going = [item for item, _ in faulty if item.kind != Kind.LINK]
        # Before the move, as what is sound in a faulty shard is read from its present path.
        indexes = _rescue([item for item in going if item.kind == Kind.SHARD])
        moved = list(dict.fromkeys([*(item.place for item in going), *indexes]))
        _move(root, moved)
        # The lists of shards still name those that were moved.
        for folder in {item.path.parent for item in going if item.kind in (Kind.SHARD, Kind.LIST)}:
            list_shards(folder)
        if manifest:
            check.forget(moved)
        else:
            forget(root, {*moved, *missing})
        remaining = len(faulty) - len(going)
        yield f"{len(moved)} files moved to {root / QUARANTINE}; a run makes again what it needs of them"
    if manifest:
        write_manifest(root / MANIFEST, check.sums)
        yield f"{root / MANIFEST}: {len(check.sums)} sums"
    if remaining:
        # As an error, so that a script sees the faults by the exit status.
        advice = "--repair moves them into quarantine, and a run makes them"
        if repair:
            advice = "links are left where they are"
        raise StoreError(f"{remaining} faults in {root}; {advice}")


class _StoreCheck:
    """Collects the results of a check of a store.

    Args:
        root: The store's folder.
        listed: Hashes of its manifest, by path.
    """

    def __init__(self, root: Path, listed: Mapping[str, str]) -> None:
        self._root = root
        self._listed = listed
        self._written = (root / MANIFEST).stat().st_mtime_ns if listed else 0
        self.counts: Counter[str] = Counter()
        self.size = 0
        self.places = set[str]()
        self.sums = dict[str, str]()
        self._widths: defaultdict[str, dict[Item, int]] = defaultdict(dict)

    def faults(self, now: int, *, sums: bool) -> Iterator[tuple[Item, str]]:
        """Yields every faulty file and its fault."""
        for item in walk(self._root):
            if item.kind == Kind.LEFTOVER and now - item.appeared < HOUR:
                continue  # it is being written, perhaps
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
        """Drops the hashes of files that were moved away."""
        for place in places:
            self.sums.pop(place, None)

    def _sum_fault(self, item: Item) -> str | None:
        listed = self._listed.get(item.place)
        # A run adds sentences to a class's prompts; every other entry is written once.
        if listed is None or (item.kind == Kind.PROMPTS and item.changed > self._written):
            return None
        if digest_of(item.path) == listed:
            return None
        return f"its bytes are not those of {MANIFEST}"

    def _odd(self, widths: Mapping[Item, int]) -> Iterator[tuple[Item, str]]:
        """Yields chunks of one encoder with another dimension than most: their name does not say whose they are."""
        # Features of one encoder have one width. Where two widths are equally frequent, the correct one is unknown,
        # so all of them are faulty and are made again.
        (usual, most), *others = Counter(widths.values()).most_common()
        doubtful = bool(others) and others[0][1] == most
        for item, width in widths.items():
            if doubtful or width != usual:
                self.sums.pop(item.place, None)
                yield item, f"features of width {width} among others by the same encoder of {_others(widths, width)}"


def _grows(item: Item) -> bool:
    """Checks whether runs append to a file."""
    return item.kind in CHANGING or (item.kind == Kind.SHARD and not index_of(item.path).exists())


def _others(widths: Mapping[Item, int], width: int) -> str:
    return ", ".join(str(other_width) for other_width in sorted(set(widths.values()) - {width}))


def _rescue(shards: Sequence[Item]) -> list[str]:
    """Writes the valid entries of faulty shards to new ones; returns the paths of the old ones' indexes."""
    indexes = []
    for item in shards:
        writer = ShardWriter(item.path.parent)
        for member in inside(item.path):
            if member.fault is None and member.is_marker:
                writer.add_fault(member.name, member.data)
            elif member.fault is None:
                writer.add(member.name, member.data, member.about)
            # After each one: a shard may be larger than the memory.
            writer.flush()
        writer.close()
        index = index_of(item.path)
        if index.exists():
            indexes.append(index.relative_to(item.root).as_posix())
    return indexes


def _move(root: Path, places: list[str]) -> None:
    for place in places:
        target = root / QUARANTINE / place
        number = 0
        while target.exists():  # nothing is lost, however often the same file was faulty
            number += 1
            target = root / QUARANTINE / f"{place}.{number}"
        target.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # another process has taken it away
            shutil.move(root / place, target)  # across disks too
