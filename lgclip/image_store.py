"""Synthetic images, a PNG file each or in tar shards; every one is whole or absent."""

import json
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lgclip.identity import key_of
from lgclip.ledger import LEDGER
from lgclip.shard_index import Member, list_shards
from lgclip.tar_store import ShardWriter, shards_in
from lgclip.whole import write_json, write_whole

log = logging.getLogger(__name__)

KEPT = ("files", "tar")
"""How new images are kept: a PNG file each, or in tar shards. What is there is found either way."""

PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
"""The last bytes of a PNG file."""


class ImageStore:
    """The images of one diffuser; `ab/abcd....fault.json` stands in place of one that could not be used.

    Args:
        root: The store's folder.
        inputs: What the diffuser is made of.
        in_shards: Whether new images go to tar shards; they do so when `flush` is called.
    """

    def __init__(self, root: Path, inputs: Mapping[str, object], *, in_shards: bool = False) -> None:
        self._inputs = dict(inputs)
        self.key = key_of(inputs)
        self._folder = root / "images" / self.key
        self.ledger = self._folder / LEDGER
        self.in_shards = in_shards
        self._shards = shards_in(self._folder / "shards")
        self._writer = ShardWriter(self._folder / "shards")
        self.refresh()

    def refresh(self) -> None:
        """Reads what shards other processes have written."""
        self._shards.refresh()

    def path(self, image_id: str) -> Path:
        """The file of an image's own in which it lies, or would lie."""
        return self._folder / image_id[:2] / f"{image_id}.png"

    def places(self, image_ids: Sequence[str]) -> list[Path | Member | None]:
        """Where images lie; None for one that is not there, or is plainly cut, which is then drawn again."""
        found: list[Path | Member | None] = [*self._shards.find(image_ids)]
        return [self._file(name) if at is None else at for name, at in zip(image_ids, found, strict=True)]

    def has(self, image_id: str) -> bool:
        """Whether an image is there."""
        return self.places([image_id])[0] is not None

    def _file(self, image_id: str) -> Path | None:
        path = self.path(image_id)
        try:
            stats = path.stat()
            return path if _ends_well(path, stats.st_size, stats.st_mtime_ns) else None
        except FileNotFoundError:
            return None

    def fault(self, image_id: str) -> str | None:
        """What was wrong with an image that could not be used; None if nothing is known of it."""
        inside = self._shards.find([image_id], faults=True)[0]
        marker = inside or self._marker(image_id)
        try:
            return str(json.loads(marker.read_bytes())["fault"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, RecursionError):
            log.warning("%s is damaged; the image is drawn again", marker)
            return None

    def put_fault(self, image_id: str, fault: str, made_from: Mapping[str, object]) -> None:
        """Writes a marker in place of an image that could not be used; remove it to have it drawn again."""
        self._spell_out()
        marker = {"fault": fault, **made_from}
        if self.in_shards:
            self._writer.add_fault(image_id, _json(marker))
        else:
            write_json(self._marker(image_id), marker)

    def _marker(self, image_id: str) -> Path:
        return self.path(image_id).with_suffix(".fault.json")

    def _spell_out(self) -> None:
        if not (self._folder / "inputs.json").exists():
            write_json(self._folder / "inputs.json", self._inputs)

    def put(self, image_id: str, pixels: UInt8[np.ndarray, "h w 3"], made_from: Mapping[str, object]) -> None:
        """Writes one image as PNG, with what it was made from in its text."""
        self._spell_out()
        about = PngInfo()
        about.add_itxt("lgclip", json.dumps(made_from, ensure_ascii=False))
        held = BytesIO()
        Image.fromarray(pixels).save(held, format="PNG", pnginfo=about)
        if self.in_shards:
            self._writer.add(image_id, held.getvalue(), _json(made_from))
            return
        path = self.path(image_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(path) as temporary:
            temporary.write_bytes(held.getvalue())

    def flush(self) -> None:
        """Appends what was put since the last time to a shard, in one go."""
        self._writer.flush()

    def close(self) -> None:
        """Closes this process's shard: its index is written, and what comes goes to another."""
        self._writer.close()

    def list_shards(self) -> None:
        """Writes the manifest of the shards, if there are any."""
        if self.in_shards:
            list_shards(self._folder / "shards")


def _json(content: Mapping[str, object]) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode()


@lru_cache(maxsize=65536)
def _ends_well(path: Path, size: int, changed: int) -> bool:
    """Whether a file ends as a PNG does; looked at once, a sweep's jobs ask again and again."""
    with path.open("rb") as file:
        file.seek(max(0, size - len(PNG_END)))
        whole = file.read() == PNG_END
    if not whole:
        log.warning("%s is %s; the image is drawn again", path, "cut" if size else "empty")
    return whole
