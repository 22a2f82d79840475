"""Packs the images of a store from files into shards, small shards into full ones, and unpacks them into files."""

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image

from lgclip.cli.store.entry_checks import fault_in, shard_names
from lgclip.cli.store.inventory import Item, Kind, existing, forget, walk
from lgclip.store.atomic import atomic_write, write_json
from lgclip.store.image_codec import read_metadata
from lgclip.store.root import StoreError
from lgclip.store.shard_index import MANIFEST, YOUNG, index_of, list_shards, read_index, read_listing
from lgclip.store.tar_shards import SHARD_BYTES, SHARD_IMAGES, ShardWriter

_BATCH = 64  # images between two flushes to the disk, each of which takes milliseconds


def pack(root: Path) -> Iterator[str]:
    """Packs images and markers into shards, including those of shards that are less than half full.

    Packed files are deleted once they are on the disk in their new place; after an interruption the same images exist
    twice, and packing again continues. No run may be at work meanwhile.

    Args:
        root: The store's folder.

    Yields:
        A line on what was packed.

    Raises:
        StoreError: If there is no store, or something in it is faulty; nothing is packed then.
    """
    items = _sound(root, {Kind.IMAGE, Kind.MARKER, Kind.SHARD})
    by_key: defaultdict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_key[item.parts[1]].append(item)
    count = 0
    shards = 0
    for key, members in by_key.items():
        folder = root / "images" / key / "shards"
        small = [item for item in members if item.kind != Kind.SHARD or _is_small(item)]
        # One small shard alone would be written again as the same small shard, at each call.
        if len(small) < 2 and all(item.kind == Kind.SHARD for item in small):
            continue
        before = {item.path for item in members if item.kind == Kind.SHARD}
        # An interrupted packing leaves images both in a file and in a full shard: these are deleted, not packed twice.
        packed: set[str] = set()
        for item in members:
            if item not in small:
                packed |= shard_names(item.path)
        count += write_images(ShardWriter(folder), small, packed)
        shards += len(set(folder.glob("*.tar")) - before)
        # Only now, when the writer has closed its shards: until then the old files are the only sure copy.
        _delete(root, small)
        list_shards(folder)
    if not count:
        yield f"{root}: nothing to pack"
        return
    noun = "shard" if shards == 1 else "shards"
    yield f"{root}: {count} images and markers in {shards} {noun}"


def unpack(root: Path) -> Iterator[str]:
    """Unpacks shards into files; see `pack` for the rest."""
    items = _sound(root, {Kind.SHARD})
    count = 0
    for item in items:
        for name, is_marker, member in read_listing(item.path).members(item.path):
            suffix = ".fault.json" if is_marker else Path(member.name).suffix
            target = item.path.parent.parent / name[:2] / f"{name}{suffix}"
            target.parent.mkdir(exist_ok=True)
            if is_marker:
                write_json(target, json.loads(member.read_bytes()))
            else:
                with atomic_write(target) as temporary:
                    temporary.write_bytes(member.read_bytes())
            count += 1
        _delete(root, [item])
    for folder in {item.path.parent for item in items}:
        list_shards(folder)
        # The list would still name shards that are gone, which is a fault to `verify`.
        if not list(folder.glob("*.tar")):
            (folder / MANIFEST).unlink(missing_ok=True)
            folder.rmdir()
    yield f"{root}: {count} images and markers in files" if count else f"{root}: nothing to unpack"


def _sound(root: Path, kinds: set[Kind]) -> list[Item]:
    """Returns the files of some types, each checked; without shards that a run may be writing."""
    # All are checked before the first one is moved: the originals are deleted in the end, so a fault that came along
    # would be the only copy.
    sound = []
    for item in walk(existing(root)):
        if item.kind not in kinds or (item.kind == Kind.SHARD and _is_written(item.path)):
            continue
        fault = fault_in(item)
        if fault is not None:
            raise StoreError(f"{item.path}: {fault}; see lgclip store verify --repair. Nothing was packed or unpacked")
        sound.append(item)
    return sound


def _is_written(shard: Path) -> bool:
    return read_index(shard) is None and time.time() - shard.stat().st_mtime < YOUNG


def _is_small(item: Item) -> bool:
    return item.size < SHARD_BYTES / 2 and len(read_listing(item.path).ids) < SHARD_IMAGES / 2


def write_images(writer: ShardWriter, items: Sequence[Item], packed: set[str]) -> int:
    """Writes images and markers to shards, and closes the last one.

    Args:
        writer: Writes the shards.
        items: Files of images, markers and shards.
        packed: Names of images that are left out; those that are written are added.

    Returns:
        The number of images and markers.
    """
    waiting = 0
    count = 0
    for name, is_marker, data in _contents(items):
        if name in packed:
            continue
        packed.add(name)
        if is_marker:
            writer.add_fault(name, data)
        else:
            with Image.open(BytesIO(data)) as image:
                writer.add(name, data, read_metadata(image).encode())
        count += 1
        waiting += 1
        if waiting == _BATCH:
            writer.flush()
            waiting = 0
    writer.close()
    return count


def _contents(items: Sequence[Item]) -> Iterator[tuple[str, bool, bytes]]:
    for item in items:
        if item.kind == Kind.SHARD:
            for name, is_marker, member in read_listing(item.path).members(item.path):
                yield name, is_marker, member.read_bytes()
        else:
            yield item.path.name.partition(".")[0], item.kind == Kind.MARKER, item.path.read_bytes()


def _delete(root: Path, items: Sequence[Item]) -> None:
    places = set[str]()
    for item in items:
        item.path.unlink()
        index_of(item.path).unlink(missing_ok=True)
        places |= {item.place, item.place.replace(".tar", ".safetensors")}  # a shard and its index
    forget(root, places)
