"""Reads and writes the layout of tar shards: members, the index of a shard, the manifest of a folder.

    images/KEY/shards/NAME.tar           ID.json and ID.png (or ID.jpg) of each image, as WebDataset reads them
    images/KEY/shards/NAME.safetensors   location of each image in the shard, written when it is closed
    images/KEY/shards/manifest.json      closed shards: images, faults, bytes, sha256

`__faults__/ID.json` marks an image that could not be used; WebDataset skips such members.
"""

import hashlib
import json
import logging
import os
import re
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, Shaped
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from lgclip.runtime.regular_files import read_bytes, read_text, regular_stat
from lgclip.store.atomic import atomic_write, write_json
from lgclip.store.image_codec import JPEG, PNG
from lgclip.store.remote import fetch_file

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
"""List of the closed shards, in their folder."""

FAULTS = "__faults__/"
"""Prefix of the names of fault markers."""

YOUNG = 3600.0
"""Seconds: a younger shard without an index may still be written."""

BLOCK = 512
"""Block size of a tar file, in bytes."""

TRAILER = bytes(2 * BLOCK)
"""The two empty blocks at the end of a tar file."""

DIGITS = 32
"""Maximum length of an image's id."""

NAME = re.compile(rf"(?P<fault>{FAULTS})?(?P<id>[0-9a-f]{{1,{DIGITS}}})\.(?P<kind>png|jpg|json)")
"""Names of members."""


class Member(NamedTuple):
    """Locates a file inside a shard.

    Attributes:
        shard: The shard.
        name: Name of the member.
        offset: Offset of its first byte.
        size: Number of bytes.
    """

    shard: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.shard}!{self.name}"

    def read_bytes(self) -> bytes:
        """Returns its bytes; fewer than `size` if the shard was truncated."""
        # A shard of an object store is downloaded when its first image is read.
        if not self.shard.exists():
            fetch_file(self.shard)
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


class Listing(NamedTuple):
    """Lists the content of a shard.

    Attributes:
        ids: Hexadecimal digits of each image or marker, in the order of the shard.
        spans: Offset and size of each.
        faults: Whether each is a marker.
        jpegs: Whether each is a JPEG; an image that is none is a PNG.
        end: End of the last complete member.
        size: Bytes of the shard when it was scanned.
        sha256: Hash of these bytes; empty if it was not computed.
    """

    ids: Shaped[np.ndarray, " n"]
    spans: Int64[np.ndarray, "n 2"]
    faults: Bool[np.ndarray, " n"]
    jpegs: Bool[np.ndarray, " n"]
    end: int
    size: int
    sha256: str = ""

    def members(self, shard: Path) -> list[tuple[str, bool, Member]]:
        """Yields the id, whether it is a marker, and the location of each."""
        members: list[tuple[str, bool, Member]] = []
        for digits, fault, is_jpeg, (offset, size) in zip(
            self.ids.tolist(), self.faults.tolist(), self.jpegs.tolist(), self.spans.tolist(), strict=True
        ):
            image_id = digits.decode()
            members.append((image_id, fault, Member(shard, name_of(image_id, fault, is_jpeg), offset, size)))
        return members


def name_of(image_id: str, fault: bool, is_jpeg: bool) -> str:
    """Returns the member name of an image, or of the marker in its place."""
    if fault:
        return f"{FAULTS}{image_id}.json"
    file_format = JPEG if is_jpeg else PNG
    return image_id + file_format.suffix


def scan(shard: Path, start: int = 0) -> tuple[list[Member], int, int]:
    """Scans a shard's headers for complete members, up to the first that is truncated or damaged.

    Args:
        shard: The shard.
        start: Offset of a header to start from.

    Returns:
        The members, the end of the last one, and the shard's size.
    """
    members: list[Member] = []
    regular_stat(shard)
    # Not `TarFile`, which neither says where a member ends nor stops quietly at a cut one, and which cannot begin
    # at a given offset of a shard that grows.
    with shard.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while start + BLOCK <= size:
            file.seek(start)
            try:
                info = tarfile.TarInfo.frombuf(file.read(BLOCK), "ascii", "strict")
            except (tarfile.HeaderError, UnicodeDecodeError):
                break
            # The content is padded to whole blocks; the double minus rounds up.
            after = start + BLOCK + -(-info.size // BLOCK) * BLOCK
            # A negative size would go backward and never end; tar's base-256 numbers allow it.
            if info.size < 0 or after > size:
                break
            # Links and folders have an empty name here, which `NAME` does not match. They are still skipped by
            # their size, so that what follows them is found.
            name = info.name if info.isreg() else ""
            members.append(Member(shard, name, start + BLOCK, info.size))
            start = after
    return members, start, size


def is_properly_closed(shard: Path, end: int) -> bool:
    """Checks whether only the two empty blocks follow the last complete member of a shard."""
    with shard.open("rb") as file:
        file.seek(end)
        return file.read(len(TRAILER) + 1) == TRAILER


def listing_of(members: Sequence[Member], end: int, size: int) -> Listing:
    """Lists the images and markers among the members of a shard."""
    ids: list[str] = []
    spans: list[tuple[int, int]] = []
    faults: list[bool] = []
    jpegs: list[bool] = []
    for member in members:
        match = NAME.fullmatch(member.name)
        # The JSON of an image is only read by external trainings: its text is inside the image too.
        if match and (match["fault"] or match["kind"] != "json"):
            ids.append(match["id"])
            spans.append((member.offset, member.size))
            faults.append(bool(match["fault"]))
            jpegs.append(match["kind"] == "jpg")
    return Listing(
        np.array(ids, dtype=f"S{DIGITS}"),
        np.array(spans, dtype=np.int64).reshape(-1, 2),  # without members NumPy would make it one-dimensional
        np.array(faults, dtype=bool),
        np.array(jpegs, dtype=bool),
        end,
        size,
    )


def joined(first: Listing, added: Listing) -> Listing:
    """Combines a listing with the members that were found after its end."""
    ids = np.concatenate([first.ids, added.ids])
    spans = np.concatenate([first.spans, added.spans])
    faults = np.concatenate([first.faults, added.faults])
    jpegs = np.concatenate([first.jpegs, added.jpegs])
    # Without a sum: that of the first is of fewer bytes.
    return Listing(ids, spans, faults, jpegs, added.end, added.size)


def index_of(shard: Path) -> Path:
    """Returns the path of a shard's index."""
    return shard.with_suffix(".safetensors")


def read_index(shard: Path, size: int | None = None) -> Listing | None:
    """Reads a shard's index; None if it is missing, unreadable or does not match the current state of the shard.

    Args:
        shard: The shard.
        size: Its size, if it lies in an object store; None for that of the file.
    """
    listing: Listing | None = None
    is_valid = False
    try:
        arrays = load(read_bytes(index_of(shard)))
        end, listed_size = arrays["shard"].tolist()
        # safetensors has no strings: an id is stored as a row of bytes.
        ids = np.ascontiguousarray(arrays["ids"]).view(f"S{DIGITS}")[:, 0]
        spans = arrays["spans"]
        faults = arrays["faults"].astype(bool)
        # Absent where all images are PNG.
        jpegs = arrays.get("jpegs", np.zeros(len(faults))).astype(bool)
        # A reader seeks to these offsets without looking at a header, so none may point outside the shard.
        is_valid = ids.shape == faults.shape == jpegs.shape and spans.shape == (len(ids), 2) and spans.dtype == np.int64
        is_valid &= bool((spans >= 0).all() and (spans.sum(axis=1) <= end).all())
        listing = Listing(ids, spans, faults, jpegs, end, listed_size, arrays["sha256"].tobytes().hex())
    except FileNotFoundError:
        return None
    except (SafetensorError, KeyError, ValueError, IndexError, TypeError):
        pass
    if listing is None or not is_valid:
        log.warning("%s is damaged; its shard is scanned instead", index_of(shard))
        return None
    if size is None:
        size = shard.stat().st_size
    if size < listing.size:
        log.warning("%s is cut; missing images are generated again", shard)
    # A longer shard was appended to after the index was written: the headers know what is new.
    if size != listing.size:
        return None
    return listing


def write_index(shard: Path, listing: Listing) -> None:
    """Writes the index of a shard atomically."""
    arrays = {
        "ids": listing.ids.view(np.uint8).reshape(-1, DIGITS),
        "spans": listing.spans,
        "faults": listing.faults.astype(np.uint8),
        "shard": np.array([listing.end, listing.size]),
        "sha256": np.frombuffer(bytes.fromhex(listing.sha256), dtype=np.uint8),
    }
    if listing.jpegs.any():
        arrays["jpegs"] = listing.jpegs.astype(np.uint8)
    with atomic_write(index_of(shard)) as temporary:
        save_file(arrays, temporary)


def read_listing(shard: Path, size: int | None = None) -> Listing:
    """Lists a shard by its index, or by its headers if the index is missing or outdated.

    Args:
        shard: The shard.
        size: As in `read_index`.
    """
    return read_index(shard, size) or listing_of(*scan(shard))


def read_index_sum(shard: Path) -> str:
    """Returns the sha256 of a closed shard's bytes as its index has it; empty if that is missing or unreadable."""
    try:
        return load(read_bytes(index_of(shard)))["sha256"].tobytes().hex()
    except (OSError, SafetensorError, KeyError, ValueError):
        return ""


def list_shards(folder: Path, now: float | None = None) -> None:
    """Writes the manifest of a folder's closed shards. A shard that a killed process left open is closed first.

    Args:
        folder: `images/KEY/shards`.
        now: Time, in seconds since 1970; None for the current time.
    """
    if now is None:
        now = time.time()
    rows = []
    for shard in sorted(folder.glob("*.tar")):
        listing = read_index(shard)
        if listing is None:
            listing = listing_of(*scan(shard))
            # Another process may write to a young shard at this moment. One with a damaged end is left to `verify`,
            # because an index would declare it closed and complete.
            if now - shard.stat().st_mtime < YOUNG or not is_properly_closed(shard, listing.end):
                continue
            with shard.open("rb") as file:
                listing = listing._replace(sha256=hashlib.file_digest(file, "sha256").hexdigest())
            write_index(shard, listing)
        faults = int(listing.faults.sum())
        count = {"images": len(listing.ids) - faults, "faults": faults}
        rows.append({"shard": shard.name, **count, "bytes": listing.size, "sha256": listing.sha256})
    if rows:
        write_json(folder / MANIFEST, {"shards": rows})
    else:
        (folder / MANIFEST).unlink(missing_ok=True)


def read_manifest(folder: Path) -> dict[str, tuple[int, str]]:
    """Returns bytes and sha256 of each listed shard, by name; empty if the manifest is missing or damaged."""
    try:
        rows = json.loads(read_text(folder / MANIFEST))["shards"]
        return {str(row["shard"]): (int(row["bytes"]), str(row["sha256"])) for row in rows}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
