"""Stores synthetic images, as PNG or JPEG files or in tar shards, each written atomically."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from lgclip.runtime.regular_files import regular_stat
from lgclip.store import remote
from lgclip.store.atomic import atomic_write, write_json
from lgclip.store.cost_log import COST_LOG
from lgclip.store.image_codec import DEFAULT_CODEC, FORMATS, ImageCodec
from lgclip.store.keys import FileStamp, content_key, file_stamp
from lgclip.store.shard_index import Member, list_shards
from lgclip.store.tar_shards import ShardWriter, shards_in

log = logging.getLogger(__name__)

OPEN_SECONDS = 300.0
"""Time after which a shard of a store with a URL is closed, and then uploaded, however few images it has."""

_ENDS = {file_format.suffix: file_format.end for file_format in FORMATS}
"""The last bytes of a file, by its suffix."""


class ImageStore:
    """Stores the images of one diffuser; `ab/abcd....fault.json` marks an unusable image.

    Args:
        root: The store's folder.
        inputs: Inputs that identify the diffuser.
        in_shards: Whether new images go to tar shards; they are written when `flush` is called.
        codec: Format of the images; one that is not lossless has to be among `inputs`.
    """

    def __init__(
        self,
        root: Path,
        inputs: Mapping[str, object],
        *,
        in_shards: bool = False,
        codec: ImageCodec = DEFAULT_CODEC,
    ) -> None:
        self._root = root
        self._inputs = dict(inputs)
        self.key = content_key(inputs)
        self._folder = root / "images" / self.key
        self.cost_log = self._folder / COST_LOG
        self.in_shards = in_shards
        self.codec = codec
        self._shards = shards_in(self._folder / "shards")
        # A machine may be lost at any moment, and a shard is uploaded once it is closed.
        seconds = OPEN_SECONDS if remote.is_remote(root) else math.inf
        self._writer = ShardWriter(self._folder / "shards", seconds=seconds)
        self.refresh()

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process looks at the folder itself, and writes shards of its own.
        return partial(ImageStore, in_shards=self.in_shards, codec=self.codec), (self._root, self._inputs)

    def refresh(self) -> None:
        """Reads new entries of shards that other processes have written."""
        remote.fetch(self._folder)
        self._shards.refresh()

    def path(self, image_id: str) -> Path:
        """Returns the path of an image that is stored as its own file, whether or not it exists."""
        return self._folder / image_id[:2] / f"{image_id}{self.codec.file_format.suffix}"

    def places(self, image_ids: Sequence[str]) -> list[Path | Member | None]:
        """Returns the locations of images; None for a missing or truncated one, which is then generated again."""
        places: list[Path | Member | None] = [*self._shards.find(image_ids)]
        for index, image_id in enumerate(image_ids):
            # Shards first: their index is in memory, whereas a file costs a system call.
            if places[index] is None:
                places[index] = self._file(image_id)
        return places

    def has(self, image_id: str) -> bool:
        """Checks whether an image is stored."""
        return self.places([image_id])[0] is not None

    def _file(self, image_id: str) -> Path | None:
        path = self.path(image_id)
        try:
            # The stamp is part of the cache's key: a file that was generated again is checked again.
            if _is_closed(path, file_stamp(path)):
                return path
        except FileNotFoundError:
            pass
        return None

    def fault(self, image_id: str) -> str | None:
        """Returns the recorded fault of an image; None if there is none."""
        inside = self._shards.find([image_id], faults=True)[0]
        marker = inside or self._marker(image_id)
        try:
            if isinstance(marker, Path):
                regular_stat(marker)
                content = marker.read_bytes()
            else:
                # Of a shard that is not here only the marker is read: its images may not be needed.
                content = remote.read_part(marker.shard, marker.offset, marker.size) or marker.read_bytes()
            return str(json.loads(content)["fault"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, RecursionError):
            log.warning("%s is damaged; the image is generated again", marker)
            return None

    def put_fault(self, image_id: str, fault: str, metadata: Mapping[str, object]) -> None:
        """Writes a marker in place of an unusable image; remove the marker to generate the image again."""
        self._spell_out()
        marker = {"fault": fault, **metadata}
        if self.in_shards:
            self._writer.add_fault(image_id, _json(marker))
        else:
            write_json(self._marker(image_id), marker)

    def _marker(self, image_id: str) -> Path:
        return self.path(image_id).with_suffix(".fault.json")

    def _spell_out(self) -> None:
        if not (self._folder / "inputs.json").exists():
            write_json(self._folder / "inputs.json", self._inputs)

    def put(self, image_id: str, pixels: UInt8[np.ndarray, "h w 3"], metadata: Mapping[str, object]) -> None:
        """Writes one image in the store's format, with its inputs in it."""
        self._spell_out()
        # The inputs travel inside the image. `verify` computes the id from them, and an image that is copied out of
        # the store still says what it shows.
        # Encoded in memory for both layouts, so that a file and a member of a shard are equal byte for byte.
        content = self.codec.encode(pixels, metadata)
        if self.in_shards:
            self._writer.add(image_id, content, _json(metadata))
            return
        path = self.path(image_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)

    def flush(self) -> None:
        """Appends all images since the last call to a shard, in one write."""
        self._writer.flush()

    def close(self) -> None:
        """Closes this process's shard: writes its index; later images go to another shard."""
        self._writer.close()

    def list_shards(self) -> None:
        """Writes the manifest of the shards, if there are any."""
        if self.in_shards:
            list_shards(self._folder / "shards")


def _json(content: Mapping[str, object]) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode()


@lru_cache(maxsize=65536)
def _is_closed(path: Path, stamp: FileStamp) -> bool:
    """Checks whether a file has the end of its format; cached, since the jobs of a sweep ask repeatedly."""
    end = _ENDS[path.suffix]
    with path.open("rb") as file:
        # Only the end, because decoding all images before each run would take too long, and a cut is the usual
        # damage. Flipped bits are noticed when the image is decoded.
        file.seek(max(0, stamp.size - len(end)))
        is_complete = file.read() == end
    if not is_complete:
        log.warning("%s is %s; the image is generated again", path, "cut" if stamp.size else "empty")
    return is_complete
