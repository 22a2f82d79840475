"""Encodes synthetic images as PNG or JPEG files, with what each was made from inside, and reads that back.

PNG has it in the text chunk `lgclip`, JPEG in its comment.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    from PIL.Image import Image

LOSSLESS = "png"
"""Value of `diffuser.image_format` that keeps every pixel."""

_COMPRESSION = 1
"""Level of PNG's lossless compression: twice as fast as Pillow's default of 6, an eighth larger."""

_SUBSAMPLING = "4:4:4"
"""JPEG's full resolution of color: objects of the small world differ by color, and some are a few pixels wide."""

_QUALITY = re.compile(r"jpeg-([1-9]|[1-9][0-9]|100)")

_COMMENT = b"\xff\xfe"
_COMMENT_BYTES = 65_533
"""Maximum number of bytes of one comment segment of JPEG."""


class FileFormat(NamedTuple):
    """Describes the files of a format.

    Attributes:
        name: Pillow's name.
        suffix: Suffix of its files.
        start: The first bytes.
        end: The last bytes.
    """

    name: str
    suffix: str
    start: bytes
    end: bytes


PNG = FileFormat("PNG", ".png", b"\x89PNG\r\n\x1a\n", b"\x00\x00\x00\x00IEND\xaeB`\x82")
"""Files of PNG; their end cannot occur before it."""

JPEG = FileFormat("JPEG", ".jpg", b"\xff\xd8\xff", b"\xff\xd9")
"""Files of JPEG; inside, a byte of 255 is followed by a zero, so that its end cannot occur in the pixels."""

FORMATS = (PNG, JPEG)
"""Formats of stored images."""


@dataclass(frozen=True)
class ImageCodec:
    """Encodes pixels to the bytes of a file.

    Attributes:
        quality: Quality of JPEG, 1 to 100; None for PNG.
    """

    quality: int | None = None

    @property
    def file_format(self) -> FileFormat:
        """Returns the format of its files."""
        return PNG if self.quality is None else JPEG

    @property
    def is_lossless(self) -> bool:
        """Returns whether the decoded pixels are those that were encoded."""
        return self.quality is None

    def encode(self, pixels: UInt8[np.ndarray, "h w 3"], metadata: Mapping[str, object]) -> bytes:
        """Encodes an image.

        Args:
            pixels: The image.
            metadata: Inputs of the image.

        Returns:
            The bytes of a file; equal arguments give equal bytes.
        """
        # Imported here: whoever only lists shards needs no Pillow.
        from PIL import Image
        from PIL.PngImagePlugin import PngInfo

        image = Image.fromarray(pixels)
        text = json.dumps(metadata, ensure_ascii=False)
        buffer = BytesIO()
        if self.quality is None:
            # iTXt is the only text chunk of PNG that holds UTF-8.
            about = PngInfo()
            about.add_itxt("lgclip", text)
            image.save(buffer, format="PNG", pnginfo=about, compress_level=_COMPRESSION)
        else:
            # Not Pillow's argument `comment`, which writes one segment only: a prompt may be longer.
            image.save(
                buffer, format="JPEG", quality=self.quality, subsampling=_SUBSAMPLING, extra=_comments(text.encode())
            )
        return buffer.getvalue()


DEFAULT_CODEC = ImageCodec()
"""PNG."""


def codec_of(image_format: str) -> ImageCodec:
    """Returns the codec of a value of `diffuser.image_format`.

    Args:
        image_format: `png`, or `jpeg-QUALITY` as in `jpeg-95`.

    Raises:
        ValueError: If it is neither.
    """
    if image_format == LOSSLESS:
        return DEFAULT_CODEC
    match = _QUALITY.fullmatch(image_format)
    if match is None:
        raise ValueError(
            f"diffuser.image_format={image_format}: choose png, or jpeg-QUALITY with a quality of 1 to 100, as in "
            "jpeg-95"
        )
    return ImageCodec(int(match[1]))


def format_of(data: bytes) -> FileFormat:
    """Returns the format of an image file by its first bytes; PNG for what is neither."""
    return JPEG if data.startswith(JPEG.start) else PNG


def read_metadata(image: "Image") -> str:
    """Returns the JSON of what an image was made from; empty if there is none.

    Args:
        image: An image that Pillow has opened from a file of `FORMATS`.
    """
    if image.format != JPEG.name:
        return str(image.info.get("lgclip") or "")
    segments: list[bytes] = [content for name, content in getattr(image, "applist", ()) if name == "COM"]
    try:
        return b"".join(segments).decode()
    except UnicodeDecodeError:
        return ""


def _comments(text: bytes) -> bytes:
    """Returns comment segments of JPEG that hold a text."""
    segments = bytearray()
    for start in range(0, len(text), _COMMENT_BYTES):
        part = text[start : start + _COMMENT_BYTES]
        # The length counts its own two bytes.
        segments += _COMMENT + (len(part) + 2).to_bytes(2) + part
    return bytes(segments)
