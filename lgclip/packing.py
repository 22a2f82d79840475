"""Images of a store from files into shards, small shards into full ones, and all of them back into files."""

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image

from lgclip.inspection import fault_in, shard_names
from lgclip.inventory import Item, Kind, existing, forget, walk
from lgclip.shard_index import MANIFEST, YOUNG, index_of, list_shards, look, read_index
from lgclip.store import StoreError
from lgclip.tar_store import SHARD_BYTES, SHARD_IMAGES, ShardWriter
from lgclip.whole import write_json, write_whole

_BATCH = 64


def pack(root: Path) -> Iterator[str]:
    """Puts images and markers into shards, those of shards that are less than half full too.

    What was packed is deleted once it lies on the disk in its new place; if that is interrupted, the same images lie
    there twice, and packing again goes on. To be done while no run is at work.

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
    count = shards = 0
    for key, own in by_key.items():
        folder = root / "images" / key / "shards"
        small = [item for item in own if item.kind != Kind.SHARD or _is_small(item)]
        if len(small) < 2 and all(item.kind == Kind.SHARD for item in small):
            continue
        before = {item.path for item in own if item.kind == Kind.SHARD}
        known = {name for item in own if item not in small for name in shard_names(item.path)}
        count += _write(ShardWriter(folder), small, known)
        shards += len(set(folder.glob("*.tar")) - before)
        _delete(root, small)
        list_shards(folder)
    many = "shards" if shards != 1 else "shard"
    yield f"{root}: {count} images and markers in {shards} {many}" if count else f"{root}: nothing to pack"


def unpack(root: Path) -> Iterator[str]:
    """Puts what lies in shards into files. The rest is as of `pack`."""
    items, count = _sound(root, {Kind.SHARD}), 0
    for item in items:
        for name, is_marker, member in look(item.path).members(item.path):
            target = item.path.parent.parent / name[:2] / f"{name}{'.fault.json' if is_marker else '.png'}"
            target.parent.mkdir(exist_ok=True)
            if is_marker:
                write_json(target, json.loads(member.read_bytes()))
            else:
                with write_whole(target) as temporary:
                    temporary.write_bytes(member.read_bytes())
            count += 1
        _delete(root, [item])
    for folder in {item.path.parent for item in items}:
        list_shards(folder)
        if not list(folder.glob("*.tar")):
            (folder / MANIFEST).unlink(missing_ok=True)
            folder.rmdir()
    yield f"{root}: {count} images and markers in files" if count else f"{root}: nothing to unpack"


def _sound(root: Path, kinds: set[Kind]) -> list[Item]:
    """The files of some kinds, each looked at; not shards that a run may be writing."""
    found = []
    for item in walk(existing(root)):
        if item.kind not in kinds or (item.kind == Kind.SHARD and _is_written(item.path)):
            continue
        fault = fault_in(item)
        if fault is not None:
            raise StoreError(f"{item.path}: {fault}; see lgclip store verify --repair. Nothing was packed or unpacked")
        found.append(item)
    return found


def _is_written(shard: Path) -> bool:
    return read_index(shard) is None and time.time() - shard.stat().st_mtime < YOUNG


def _is_small(item: Item) -> bool:
    return item.size < SHARD_BYTES / 2 and len(look(item.path).ids) < SHARD_IMAGES / 2


def _write(writer: ShardWriter, items: Sequence[Item], known: set[str]) -> int:
    """Writes each image and marker that is not known yet; how many there were."""
    waiting = count = 0
    for name, is_marker, data in _contents(items):
        if name in known:
            continue
        known.add(name)
        if is_marker:
            writer.add_fault(name, data)
        else:
            with Image.open(BytesIO(data)) as image:
                writer.add(name, data, str(image.info["lgclip"]).encode())
        count, waiting = count + 1, waiting + 1
        if waiting == _BATCH:
            writer.flush()
            waiting = 0
    writer.close()
    return count


def _contents(items: Sequence[Item]) -> Iterator[tuple[str, bool, bytes]]:
    for item in items:
        if item.kind == Kind.SHARD:
            for name, is_marker, member in look(item.path).members(item.path):
                yield name, is_marker, member.read_bytes()
        else:
            yield item.path.name.partition(".")[0], item.kind == Kind.MARKER, item.path.read_bytes()


def _delete(root: Path, items: Sequence[Item]) -> None:
    for item in items:
        item.path.unlink()
        index_of(item.path).unlink(missing_ok=True)
    forget(root, {place for item in items for place in (item.place, item.place.replace(".tar", ".safetensors"))})
