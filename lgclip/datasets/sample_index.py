"""Indexes the samples of a tar shard in WebDataset's layout: where each image lies, its content key and its label.

A shard is read once; its index is cached, so that a later run reads no shard to list its images.
"""

import hashlib
import json
import logging
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from lgclip.datasets.content_ids import content_id
from lgclip.datasets.image_shards import check_end
from lgclip.datasets.samples import SampleFields, read_samples
from lgclip.datasets.shard_files import ShardFile
from lgclip.store.atomic import atomic_write
from lgclip.store.keys import content_key
from lgclip.store.location import cache_folder

log = logging.getLogger(__name__)

_CACHE = "lgclip-shard-indexes"
_VERSION = 1
_DOWNLOADS = 4
"""Shards that are downloaded at once."""
_BLOCK = 2**20


@dataclass(frozen=True)
class SampleIndex:
    """Lists the images of a shard.

    Attributes:
        offsets: Where the bytes of each image begin in the shard.
        sizes: Number of its bytes.
        keys: Content key of each image.
        labels: Label of each image, as the shard states it.
        names: Name of each image's file in the shard.
    """

    offsets: Int[np.ndarray, " n"]
    sizes: Int[np.ndarray, " n"]
    keys: UInt8[np.ndarray, "n 16"]
    labels: list[str]
    names: list[str]


def index_shards(shards: list[ShardFile], fields: SampleFields) -> Iterator[SampleIndex]:
    """Yields the index of each shard in order; those that are not cached are read, and downloaded ahead.

    Raises:
        ValueError: If a shard is damaged or compressed, or a sample has no label, no image, or several.
    """
    # Shards are read by this thread alone: reading headers holds the interpreter's lock, and threads took four times
    # as long.
    with ThreadPoolExecutor(_DOWNLOADS) as downloads:
        for start in range(0, len(shards), _DOWNLOADS):
            block = shards[start : start + _DOWNLOADS]
            fetched = [downloads.submit(_fetch, shard, fields) for shard in block]
            for shard, future in zip(block, fetched, strict=True):
                future.result()
                yield index_of(shard, fields)


def _fetch(shard: ShardFile, fields: SampleFields) -> None:
    """Downloads a shard that has to be read."""
    if shard.location is not None and not _path(shard, fields).exists():
        shard.fetch()


def _path(shard: ShardFile, fields: SampleFields) -> Path:
    """Returns the file that caches the index of a shard."""
    name = content_key({"shard": shard.key, "image": fields.image, "label": fields.label, "version": _VERSION})
    return cache_folder().expanduser().absolute() / _CACHE / f"{name}.npz"


def index_of(shard: ShardFile, fields: SampleFields) -> SampleIndex:
    """Returns the index of a shard, from the cache or by reading it.

    Raises:
        ValueError: As in `index_shards`.
    """
    path = _path(shard, fields)
    index = _read(path)
    if index is None:
        index = _indexed(shard, fields)
        _write(path, index)
    return index


def _indexed(shard: ShardFile, fields: SampleFields) -> SampleIndex:
    entries: list[tuple[int, int, bytes]] = []
    labels: list[str] = []
    names: list[str] = []
    try:
        with shard.open() as file, tarfile.open(fileobj=file, mode="r:") as archive:
            check_end(file)
            for name, entry, label in read_samples(archive, shard.where, fields, _entry):
                names.append(name)
                entries.append(entry)
                labels.append(label)
    except (tarfile.TarError, EOFError, OSError) as error:
        way_out = "get the shard again"
        if shard.name.lower().endswith(("gz", "bz2", "xz", "zst")):
            way_out = "its images cannot be read one by one while it is compressed: unpack it, such as by gunzip"
        raise ValueError(
            f"{shard.where}: it is damaged or no tar file after {len(names)} samples ({error}); {way_out}"
        ) from error
    return SampleIndex(
        offsets=np.array([offset for offset, _, _ in entries], np.int64),
        sizes=np.array([size for _, size, _ in entries], np.int64),
        keys=np.frombuffer(b"".join(key for _, _, key in entries), np.uint8).reshape(-1, 16),
        labels=labels,
        names=names,
    )


def _entry(archive: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[int, int, bytes]:
    """Returns offset, size and content key of an image."""
    content = archive.extractfile(member)
    assert content is not None, "it is a regular file"
    digest = hashlib.sha256()
    remaining = member.size
    while block := content.read(_BLOCK):
        digest.update(block)
        remaining -= len(block)
    if remaining:
        raise EOFError(f"{member.name} is cut")
    return member.offset_data, member.size, bytes.fromhex(content_id(digest.hexdigest()))


def _read(path: Path) -> SampleIndex | None:
    """Returns a cached index; None if there is none, or it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    try:
        checksum, body = content[:32], content[32:]
        if hashlib.sha256(body).digest() != checksum:
            raise ValueError("its checksum is wrong")
        with np.load(BytesIO(body), allow_pickle=False) as arrays:
            texts = json.loads(arrays["texts"].tobytes())
            return SampleIndex(arrays["offsets"], arrays["sizes"], arrays["keys"], texts["labels"], texts["names"])
    except Exception as error:  # a damaged zip file fails in many ways; the shard is read again
        log.warning("%s is damaged (%s); the shard is read again", path, error)
        return None


def _write(path: Path, index: SampleIndex) -> None:
    body = BytesIO()
    texts = json.dumps({"labels": index.labels, "names": index.names}).encode()
    np.savez(body, offsets=index.offsets, sizes=index.sizes, keys=index.keys, texts=np.frombuffer(texts, np.uint8))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_bytes(hashlib.sha256(body.getvalue()).digest() + body.getvalue())
    except OSError as error:  # a cache is no condition of a run
        log.debug("no cache of indexes in %s: %s", path.parent, error)
