"""Reads the images of shards in order: tar files, such as WebDataset's, and parquet files in the format of the Hub.

One image of a tar file, or a block of rows, is in memory at a time, whatever the size of the shard. The webdataset
package was considered: it decodes by itself, gives no name to a damaged file, and is no dependency of anything here.
"""

import tarfile
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from lgclip.datasets.base import BadImageError
from lgclip.datasets.image_decoding import read_image
from lgclip.datasets.image_tree import IMAGE_SUFFIXES
from lgclip.datasets.parquet import iterate_images

SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".parquet")
"""Endings of files that hold many images."""

MAX_IMAGE_BYTES = 2**30
"""Size of a file in a shard from which on it is not read: no image is that large, and it would not fit into memory."""

_BLOCK = 512
_END = bytes(2 * _BLOCK)


class ShardImage(NamedTuple):
    """Holds the file of an image in a shard.

    Attributes:
        where: Its location, `SHARD!NAME` or `SHARD!ROW`.
        content: Its bytes; empty where it could not be read.
        error: Why it could not be read; empty if it could.
    """

    where: str
    content: bytes
    error: str = ""

    def decode(self) -> Image.Image:
        """Returns the image in RGB.

        Raises:
            BadImageError: If it cannot be decoded.
        """
        if self.error:
            raise BadImageError(self.where, self.error)
        return read_image(BytesIO(self.content), self.where)


def is_shard(path: Path) -> bool:
    """Checks by its name whether a file holds many images."""
    return path.name.lower().endswith(SHARD_SUFFIXES)


def shard_images(path: Path) -> Iterator[ShardImage]:
    """Yields the images of a shard; other members of a tar file, such as labels, are left out.

    Args:
        path: The shard.

    Raises:
        ValueError: If it is damaged or cut, or a parquet file has no column of images, or several.
    """
    if path.name.lower().endswith(".parquet"):
        for row, content in iterate_images(path):
            error = "" if content else "it has no bytes: the image lies elsewhere"
            yield ShardImage(f"{path}!{row}", content or b"", error)
        return
    number = 0
    try:
        _check_end(path)
        # As a stream: an index of the members would grow with them.
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                if not _is_image(member):
                    continue
                number += 1
                yield _read(archive, member, path)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise ValueError(
            f"{path}: it is damaged or cut after {number} images ({error}); get the shard again, or leave it out"
        ) from error


def _check_end(path: Path) -> None:
    """Checks that a tar file ends as tar files do: one that was cut between two members would look complete."""
    if not path.name.lower().endswith(".tar"):
        return  # a compressed one has a checksum at its end
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - len(_END)))
        if file.read() != _END:
            raise tarfile.ReadError("its end is missing")


def _is_image(member: tarfile.TarInfo) -> bool:
    return member.isfile() and member.name.lower().endswith(IMAGE_SUFFIXES)


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> ShardImage:
    where = f"{path}!{member.name}"
    if member.size > MAX_IMAGE_BYTES:
        return ShardImage(where, b"", f"it has {member.size} bytes, more than any image")
    file = archive.extractfile(member)
    assert file is not None, "it is a regular file"
    return ShardImage(where, file.read())
