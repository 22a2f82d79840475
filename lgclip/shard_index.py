"""How images lie in tar shards, and where each is: members, the index of a shard, the manifest of a folder.

    images/KEY/shards/NAME.tar           ID.json and ID.png of each image, as WebDataset reads them
    images/KEY/shards/NAME.safetensors   where each image lies in it, once it is closed
    images/KEY/shards/manifest.json      the closed shards: images, faults, bytes, sha256

`__faults__/ID.json` stands in place of an image that could not be used; WebDataset passes such members over.
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

from lgclip.whole import write_json, write_whole

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
"""List of the closed shards, in their folder."""

FAULTS = "__faults__/"
"""Begins the names of members that stand in place of images."""

YOUNG = 3600.0
"""Seconds: a shard without an index that is younger may be written to at this moment."""

BLOCK = 512
"""What everything in a tar file is a multiple of, in bytes."""

TRAILER = bytes(2 * BLOCK)
"""The two empty blocks at the end of a tar file."""

DIGITS = 32
"""Of an image's id, at most."""

NAME = re.compile(rf"(?P<fault>{FAULTS})?(?P<id>[0-9a-f]{{1,{DIGITS}}})\.(?P<kind>png|json)")
"""Names of members."""


class Member(NamedTuple):
    """A file inside a shard.

    Attributes:
        shard: The shard.
        name: The member's name.
        offset: Where its bytes begin.
        size: How many there are.
    """

    shard: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.shard}!{self.name}"

    def read_bytes(self) -> bytes:
        """Its bytes; fewer than `size` if the shard was cut."""
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


class Listing(NamedTuple):
    """What lies in a shard.

    Attributes:
        ids: Hexadecimal digits of each image or marker, in the order of the shard.
        spans: Where the bytes of each begin, and how many there are.
        faults: Whether each is a marker.
        end: Where the last whole member ends.
        size: Bytes of the shard when it was looked at.
        sha256: Of these bytes; empty if it was not taken.
    """

    ids: Shaped[np.ndarray, " n"]
    spans: Int64[np.ndarray, "n 2"]
    faults: Bool[np.ndarray, " n"]
    end: int
    size: int
    sha256: str = ""

    def members(self, shard: Path) -> list[tuple[str, bool, Member]]:
        """Id, whether it is a marker, and place of each."""
        rows = zip(self.ids.tolist(), self.faults.tolist(), self.spans.tolist(), strict=True)
        return [(i.decode(), fault, Member(shard, name_of(i.decode(), fault), *span)) for i, fault, span in rows]


def name_of(image_id: str, fault: bool) -> str:
    """The member that is an image, or the marker in its place."""
    return f"{FAULTS}{image_id}.json" if fault else f"{image_id}.png"


def scan(shard: Path, start: int = 0) -> tuple[list[Member], int, int]:
    """The whole members of a shard by its headers, up to the first that is cut or damaged.

    Args:
        shard: The shard.
        start: Where to begin, at a header.

    Returns:
        The members, where the last one ends, and the shard's size.
    """
    found: list[Member] = []
    with shard.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while start + BLOCK <= size:
            file.seek(start)
            try:
                info = tarfile.TarInfo.frombuf(file.read(BLOCK), "ascii", "strict")
            except (tarfile.HeaderError, UnicodeDecodeError):
                break
            after = start + BLOCK + -(-info.size // BLOCK) * BLOCK
            if info.size < 0 or after > size:
                break
            found.append(Member(shard, info.name if info.isreg() else "", start + BLOCK, info.size))
            start = after
    return found, start, size


def ends_well(shard: Path, end: int) -> bool:
    """Whether nothing but the two empty blocks stands behind the last whole member of a shard."""
    with shard.open("rb") as file:
        file.seek(end)
        return file.read(len(TRAILER) + 1) == TRAILER


def listing_of(members: Sequence[Member], end: int, size: int) -> Listing:
    """The images and markers among the members of a shard."""
    told = [(match, member) for member in members if (match := NAME.fullmatch(member.name))]
    told = [(match, member) for match, member in told if match["fault"] or match["kind"] == "png"]
    return Listing(
        np.array([match["id"] for match, _ in told], dtype=f"S{DIGITS}"),
        np.array([member[2:] for _, member in told], dtype=np.int64).reshape(-1, 2),
        np.array([bool(match["fault"]) for match, _ in told], dtype=bool),
        end,
        size,
    )


def joined(first: Listing, more: Listing) -> Listing:
    """A listing, and what was found behind its end."""
    ids, spans, faults = (np.concatenate(pair) for pair in zip(first[:3], more[:3], strict=True))
    return Listing(ids, spans, faults, more.end, more.size)


def index_of(shard: Path) -> Path:
    """Where the index of a shard lies."""
    return shard.with_suffix(".safetensors")


def read_index(shard: Path) -> Listing | None:
    """What the index says; None if there is none, if it cannot be read, or if it is of another state of the shard."""
    try:
        found = load(index_of(shard).read_bytes())
        end, size = found["shard"].tolist()
        ids = np.ascontiguousarray(found["ids"]).view(f"S{DIGITS}")[:, 0]
        spans, faults = found["spans"], found["faults"].astype(bool)
        fits = ids.shape == faults.shape and spans.shape == (len(ids), 2) and spans.dtype == np.int64
        fits &= bool((spans >= 0).all() and (spans.sum(axis=1) <= end).all())
        listing = Listing(ids, spans, faults, end, size, found["sha256"].tobytes().hex())
    except FileNotFoundError:
        return None
    except (SafetensorError, KeyError, ValueError, IndexError, TypeError):
        listing, fits = None, False
    if listing is None or not fits:
        log.warning("%s is damaged; its shard is looked through instead", index_of(shard))
        return None
    size = shard.stat().st_size
    if size < listing.size:
        log.warning("%s is cut; what it lacks is drawn again", shard)
    return listing if size == listing.size else None


def write_index(shard: Path, listing: Listing) -> None:
    """Writes the index of a shard, whole or not at all."""
    arrays = {
        "ids": listing.ids.view(np.uint8).reshape(-1, DIGITS),
        "spans": listing.spans,
        "faults": listing.faults.astype(np.uint8),
        "shard": np.array([listing.end, listing.size]),
        "sha256": np.frombuffer(bytes.fromhex(listing.sha256), dtype=np.uint8),
    }
    with write_whole(index_of(shard)) as temporary:
        save_file(arrays, temporary)


def look(shard: Path) -> Listing:
    """What lies in a shard: by its index, or by its headers if that is missing or does not fit."""
    return read_index(shard) or listing_of(*scan(shard))


def list_shards(folder: Path, now: float | None = None) -> None:
    """Writes the manifest of a folder's closed shards. A shard that a killed process left is closed first.

    Args:
        folder: `images/KEY/shards`.
        now: Time, in seconds since 1970; None for the clock's.
    """
    at = time.time() if now is None else now
    rows = []
    for shard in sorted(folder.glob("*.tar")):
        listing = read_index(shard)
        if listing is None:
            listing = listing_of(*scan(shard))
            if at - shard.stat().st_mtime < YOUNG or not ends_well(shard, listing.end):
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
    """Bytes and sha256 of each listed shard, by its name; empty if there is no manifest, or a damaged one."""
    try:
        rows = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["shards"]
        return {str(row["shard"]): (int(row["bytes"]), str(row["sha256"])) for row in rows}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
