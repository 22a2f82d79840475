"""Reads the images of shards in order: tar files, such as WebDataset's, and parquet files in the format of the Hub.

One image of a tar file, or a block of rows, is in memory at a time, whatever the size of the shard. The webdataset
package was considered: it decodes by itself, gives no name to a damaged file, and is no dependency of anything here.
"""

import tarfile
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import BinaryIO, NamedTuple

from PIL import Image

from lgclip.datasets.base import BadImageError
from lgclip.datasets.image_decoding import read_image
from lgclip.datasets.image_tree import IMAGE_SUFFIXES
from lgclip.datasets.parquet import iterate_images
from lgclip.datasets.samples import SampleFields, is_sample_file, read_samples
from lgclip.datasets.shard_files import ShardFile

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
        error: Reason why it could not be read; empty if it could.
        label: Its class as the shard states it; empty if it was not asked for.
    """

    where: str
    content: bytes
    error: str = ""
    label: str = ""

    def decode(self) -> Image.Image:
        """Returns the image in RGB.

        Raises:
            BadImageError: If it cannot be decoded.
        """
        if self.error:
            raise BadImageError(self.where, self.error)
        return read_image(BytesIO(self.content), self.where)


def is_shard(name: str) -> bool:
    """Checks by its name, path or URL whether a file holds many images."""
    return name.lower().endswith(SHARD_SUFFIXES)


def shard_images(shard: ShardFile, fields: SampleFields | None = None) -> Iterator[ShardImage]:
    """Yields the images of a shard; other members of a tar file, such as labels, are left out.

    Args:
        shard: The shard.
        fields: Field with the label of an image, of a parquet file the name of the column; None reads no label.

    Raises:
        ValueError: If it is damaged or cut, a parquet file has no column of images, or several, or a label is missing.
    """
    if shard.name.lower().endswith(".parquet"):
        for row, content, label in iterate_images(shard, fields.label if fields else None):
            error = "" if content else "it has no bytes: the image lies elsewhere"
            yield ShardImage(f"{shard.where}!{row}", content or b"", error, label)
        return
    number = 0
    try:
        # As a stream: an index of the members would grow with them.
        with shard.open() as file:
            # A compressed one has a checksum at its end.
            if shard.name.lower().endswith(".tar"):
                check_end(file)
            with tarfile.open(fileobj=file, mode="r|*") as archive:
                for image in _images(archive, shard, fields):
                    number += 1
                    yield image
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise ValueError(
            f"{shard.where}: it is damaged or cut after {number} images ({error}); get the shard again, or leave it out"
        ) from error


def check_end(file: BinaryIO) -> None:
    """Checks that a tar file ends as tar files do: one that was cut between two members would look complete.

    Args:
        file: The open file, which is at its start afterwards.

    Raises:
        tarfile.ReadError: If its end is missing.
    """
    size = file.seek(0, 2)
    file.seek(max(0, size - len(_END)))
    end = file.read()
    file.seek(0)
    if end != _END:
        raise tarfile.ReadError("its end is missing")


def _images(archive: tarfile.TarFile, shard: ShardFile, fields: SampleFields | None) -> Iterator[ShardImage]:
    if fields is not None:
        for name, content, label in read_samples(archive, shard.where, fields, _content):
            yield ShardImage(f"{shard.where}!{name}", *content, label)
        return
    for member in archive:
        if _is_image(member):
            yield ShardImage(f"{shard.where}!{member.name}", *_content(archive, member))


def _is_image(member: tarfile.TarInfo) -> bool:
    return is_sample_file(member) and member.name.lower().endswith(IMAGE_SUFFIXES)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[bytes, str]:
    """Returns the bytes of an image, and why they are not read."""
    if member.size > MAX_IMAGE_BYTES:
        return b"", f"it has {member.size} bytes, more than any image"
    file = archive.extractfile(member)
    assert file is not None, "it is a regular file"
    return file.read(), ""
