"""Indexes the samples of a tar shard in WebDataset's layout: where each image lies, its content key and its label.

Files of a sample follow each other and share the part of their name before the first dot: `0001.jpg`, `0001.cls`. A
shard is read once, as a stream; its index is cached, so that a later run reads no shard to list its images.
"""

import hashlib
import json
import logging
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from lgclip.datasets.content_ids import content_id
from lgclip.datasets.image_tree import IMAGE_SUFFIXES
from lgclip.datasets.shard_files import ShardFile
from lgclip.store.atomic import atomic_write
from lgclip.store.keys import content_key
from lgclip.store.location import cache_folder

log = logging.getLogger(__name__)

FOLDER = "folder"
"""Label that is the first folder of an image's name in the shard."""

_JSON = "json."
_CACHE = "lgclip-shard-indexes"
_VERSION = 1
_MAX_LABEL_BYTES = 2**20
_READERS = 4
"""Shards that are indexed at once: reading and hashing release the interpreter's lock."""
_BLOCK = 2**20


@dataclass(frozen=True)
class SampleFields:
    """Says which files of a sample hold its image and its label.

    Attributes:
        image: Extension of the image, such as `jpg`; None for the only one that is an image's.
        label: Extension of a file that holds the class, as its index or its name; `json.KEY` for a value of `.json`;
            `folder` for the first folder of the image's name.

    Raises:
        ValueError: If the label is neither.
    """

    image: str | None = None
    label: str = "cls"

    def __post_init__(self) -> None:
        if not self.label or self.label in ("json", _JSON):
            raise ValueError(
                f"dataset.label={self.label}: give an extension such as cls, json.KEY for a value of the sample's "
                f".json, or {FOLDER}"
            )

    def is_image(self, extension: str) -> bool:
        """Checks whether a file with this extension, without its first dot, is the sample's image."""
        if self.image is not None:
            return extension == self.image.lower().removeprefix(".")
        return f".{extension}".endswith(IMAGE_SUFFIXES)

    def is_label(self, extension: str) -> bool:
        """Checks whether a file with this extension holds the sample's label."""
        return extension == ("json" if self.label.startswith(_JSON) else self.label.lower().removeprefix("."))

    def parse(self, content: bytes, where: str) -> str:
        """Returns the label that the content of a label's file states.

        Raises:
            ValueError: If it is no text, or the JSON has no such key.
        """
        try:
            text = content.decode("utf-8-sig").strip()
            if not self.label.startswith(_JSON):
                return text
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: its label cannot be read ({error})") from error
        key = self.label.removeprefix(_JSON)
        value = values.get(key) if isinstance(values, dict) else None
        # A truth value is a number to Python.
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise ValueError(f"{where}: dataset.label={self.label}: {value!r} is neither the index nor name of a class")
        return str(value)


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


@dataclass
class _Sample:
    """Collects the files of one sample."""

    key: str
    images: list[tuple[str, int, int, bytes]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    extensions: list[str] = field(default_factory=list)


def index_shards(shards: list[ShardFile], fields: SampleFields) -> Iterator[SampleIndex]:
    """Yields the index of each shard in order; those that are not cached are read, several at once.

    Raises:
        ValueError: If a shard is damaged or compressed, or a sample has no label, no image, or several.
    """
    with ThreadPoolExecutor(_READERS) as readers:
        # In blocks: results that are not taken yet would be kept.
        for start in range(0, len(shards), 2 * _READERS):
            yield from readers.map(lambda shard: index_of(shard, fields), shards[start : start + 2 * _READERS])


def index_of(shard: ShardFile, fields: SampleFields) -> SampleIndex:
    """Returns the index of a shard, from the cache or by reading it.

    Raises:
        ValueError: As in `index_shards`.
    """
    name = content_key({"shard": shard.key, "image": fields.image, "label": fields.label, "version": _VERSION})
    path = cache_folder().expanduser().absolute() / _CACHE / f"{name}.npz"
    index = _read(path)
    if index is None:
        index = _indexed(shard, fields)
        _write(path, index)
    return index


def _indexed(shard: ShardFile, fields: SampleFields) -> SampleIndex:
    rows: list[tuple[str, int, int, bytes]] = []
    labels: list[str] = []
    for sample in _samples(shard, fields):
        rows.append(_only_image(sample, shard, fields))
        labels.append(_only_label(sample, shard, fields))
    return SampleIndex(
        offsets=np.array([offset for _, offset, _, _ in rows], np.int64),
        sizes=np.array([size for _, _, size, _ in rows], np.int64),
        keys=np.frombuffer(b"".join(key for _, _, _, key in rows), np.uint8).reshape(-1, 16),
        labels=labels,
        names=[name for name, _, _, _ in rows],
    )


def _samples(shard: ShardFile, fields: SampleFields) -> Iterator[_Sample]:
    """Yields the samples of a shard, in order."""
    number = 0
    sample: _Sample | None = None
    try:
        with shard.open() as file, tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                # tarfile keeps every member that it has read.
                archive.members = []  # pyright: ignore[reportAttributeAccessIssue]
                folder, _, last = member.name.removeprefix("./").rpartition("/")
                # Hidden files, those of macOS, and files on the shard as a whole, as in webdataset.
                if not member.isfile() or last.startswith((".", "__")):
                    continue
                if member.issparse():
                    raise tarfile.ReadError(f"{member.name} is sparse, and is not stored as it is")
                stem, _, extension = last.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if sample is None or sample.key != key:
                    if sample is not None:
                        yield sample
                        number += 1
                    sample = _Sample(key)
                _add(sample, archive, member, extension.lower(), fields)
            _check_end(archive, file, shard.size)
    except (tarfile.TarError, EOFError, OSError) as error:
        way_out = "get the shard again"
        if shard.name.lower().endswith(("gz", "bz2", "xz", "zst")):
            way_out = "its images cannot be read one by one while it is compressed: unpack it, such as by gunzip"
        raise ValueError(
            f"{shard.where}: it is damaged or no tar file after {number} samples ({error}); {way_out}"
        ) from (error)
    if sample is not None:
        yield sample


def _check_end(archive: tarfile.TarFile, file: Any, size: int) -> None:
    """Checks that the shard ends as tar files do: one that was cut between two members would look complete."""
    end = 2 * tarfile.BLOCKSIZE
    file.seek(max(0, size - end))
    if file.read() != bytes(end):
        raise tarfile.ReadError("its end is missing")


def _add(
    sample: _Sample, archive: tarfile.TarFile, member: tarfile.TarInfo, extension: str, fields: SampleFields
) -> None:
    sample.extensions.append(extension)
    if fields.is_image(extension):
        content = archive.extractfile(member)
        assert content is not None, "it is a regular file"
        digest = hashlib.sha256()
        left = member.size
        while block := content.read(_BLOCK):
            digest.update(block)
            left -= len(block)
        if left:
            raise EOFError(f"{member.name} is cut")
        key = bytes.fromhex(content_id(digest.hexdigest()))
        sample.images.append((member.name, member.offset_data, member.size, key))
    elif fields.is_label(extension):
        content = archive.extractfile(member)
        assert content is not None, "it is a regular file"
        if member.size > _MAX_LABEL_BYTES:
            raise ValueError(f"{member.name} in the shard: {member.size:,} bytes are no label")
        sample.labels.append(fields.parse(content.read(), f"{member.name} in the shard"))


def _only_image(sample: _Sample, shard: ShardFile, fields: SampleFields) -> tuple[str, int, int, bytes]:
    if len(sample.images) == 1:
        return sample.images[0]
    extensions = ", ".join(sample.extensions)
    if not sample.images:
        raise ValueError(
            f"{shard.where}: sample {sample.key} has no image; its files end in {extensions}. Say which is the image "
            "by dataset.image=EXTENSION"
        )
    raise ValueError(
        f"{shard.where}: sample {sample.key} has {len(sample.images)} images; its files end in {extensions}. Choose "
        "one by dataset.image=EXTENSION"
    )


def _only_label(sample: _Sample, shard: ShardFile, fields: SampleFields) -> str:
    if fields.label == FOLDER:
        name = sample.images[0][0].removeprefix("./")
        folder, slash, _ = name.partition("/")
        if not slash:
            raise ValueError(f"{shard.where}: {name} lies in no folder; dataset.label={FOLDER} takes its class from it")
        return folder
    if len(sample.labels) == 1 and sample.labels[0]:
        return sample.labels[0]
    state = "more than one" if len(sample.labels) > 1 else "an empty" if sample.labels else "no"
    raise ValueError(
        f"{shard.where}: sample {sample.key} has {state} label ({fields.label}); its files end in "
        f"{', '.join(sample.extensions)}. Say what holds the class by dataset.label=EXTENSION, json.KEY or {FOLDER}"
    )


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
