"""Decodes image files of every kind to 8-bit RGB."""

import errno
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageStat, PngImagePlugin, UnidentifiedImageError

from lgclip.datasets.base import BadImageError
from lgclip.runtime.regular_files import IrregularFileError, regular_stat

MAX_PIXELS = "LGCLIP_MAX_IMAGE_PIXELS"
"""Environment variable with the maximum number of pixels of an image."""
MAX_ASPECT_RATIO = "LGCLIP_MAX_ASPECT_RATIO"
"""Environment variable with the maximum aspect ratio: preprocessing resizes the shorter side to the encoder's input."""
DEFAULT_MAX_PIXELS = 400_000_000
"""1.2 GB as RGB; a photograph of a phone has up to 200 million pixels."""
DEFAULT_MAX_ASPECT_RATIO = 300

FLAT_STD = 1.0
"""Gray levels of 255: an image is flat if every channel's standard deviation is below this.
A photograph of a plain wall has several, just from uneven light and sensor noise."""

RANGE_NOTE = "scaled by its own range"
"""Note of an image whose file states no range of values, or one that leaves no contrast."""
FLAT_NOTE = "without contrast"
"""Note of an image of a single color."""
NOTE = "lgclip_note"
"""Key in `Image.info` of a note on how an image was decoded."""

# Raster formats that a browser or a photo tool shows. Others that Pillow opens are left out on purpose: EPS starts
# Ghostscript, and FITS, HDF5 or GRIB hold measurements.
_FORMATS = (
    "JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "ICO", "CUR",
    "TGA", "PCX", "SGI", "QOI", "PSD", "DDS",
)  # fmt: skip
# TGA has no signature, so that any file may look like one.
_UNSIGNED = ("TGA",)

_WIDE_MODES = ("I", "F")  # and every mode that begins with I;16
_MIN_SAMPLE_VALUES = (280, 340)
_MAX_SAMPLE_VALUES = (281, 341)
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC = 262
_SAMPLE_FORMAT = 339
_UNSIGNED_SAMPLES = 1

_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How to turn an image upright, by its EXIF orientation."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")
_PNG_ORIENTATION = b"eXIf"
_PNG_METADATA = (
    b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"cICP", b"mDCV", b"cLLI", b"pHYs", b"tIME",
    b"bKGD", b"sBIT", b"hIST", b"sPLT", b"oFFs", b"pCAL", b"sCAL", b"sTER", b"caBX", b"iDOT", b"vpAg", b"acTL", b"fcTL",
    b"fdAT", b"IEND",
)  # fmt: skip
"""Chunks without which a PNG file shows the same picture."""
_CONVERT = "convert it to PNG or JPEG"

# Above its first limit Pillow only warns, and does not say of which file. Said once: a filter around each reading
# would not be a thread's own.
warnings.simplefilter("error", Image.DecompressionBombWarning)
# Notes on damaged metadata, which does not matter here. They carry no file name and would be one line per image.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
# Pillow's limit of 1 MB refuses images with large metadata, such as a color profile or a workflow of a generator.
PngImagePlugin.MAX_TEXT_CHUNK = 64 * 1024**2
PngImagePlugin.MAX_TEXT_MEMORY = 256 * 1024**2


def read_image(file: Path | BytesIO, where: str | None = None) -> Image.Image:
    """Decodes an image file to 8-bit RGB: applies the EXIF orientation, the range of its values and its alpha channel.

    Damaged metadata does not matter, damaged pixels do. `info[NOTE]` says if its values were scaled by their own range.

    Args:
        file: The file, or its content.
        where: Its location, for error messages; None is its path.

    Raises:
        BadImageError: If its content cannot be decoded, or is too large or too long.
        ValueError: If it cannot be accessed.
    """
    place = where or str(file)
    Image.MAX_IMAGE_PIXELS = max_pixels()
    try:
        if isinstance(file, Path):
            regular_stat(file)
        return _decoded(file)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImageError(place, _too_large()) from error
    except UnidentifiedImageError as error:
        raise BadImageError(place, _unlike_an_image(file)) from error
    except OSError as error:
        is_irregular = isinstance(error, IrregularFileError)
        # A decoder's own words, or a step to before the file's begin.
        if error.errno in (None, errno.EINVAL) and not is_irregular:
            raise BadImageError(place, _in_a_line(error)) from error
        raise ValueError(
            f"{place} cannot be read ({error.strerror}): this is an error of the file system, so the image is never "
            f"left out"
        ) from error
    except MemoryError:
        raise  # the machine is at fault, so the file must not be left out as damaged
    except Exception as error:  # a decoder may fail in any way over a damaged file
        raise BadImageError(place, _in_a_line(error)) from error


def is_image(file: Path) -> bool:
    """Returns whether a file's content begins like an image, whatever its name."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=[name for name in _formats() if name not in _UNSIGNED]):
                return True
    except Image.DecompressionBombError:
        return True  # too large an image is an image: it is refused with its size when it is read
    except Exception:  # no plugin accepts it, or one fails over it
        return False


def is_flat(image: Image.Image) -> bool:
    """Returns whether an RGB image has no contrast: each channel's standard deviation is below `FLAT_STD`."""
    return max(ImageStat.Stat(image).stddev) < FLAT_STD


def image_note(image: Image.Image) -> str:
    """Returns a note on the unusual format of an image that `read_image` has decoded; empty for none."""
    notes = [str(image.info[NOTE])] if NOTE in image.info else []
    if is_flat(image):
        notes.insert(0, FLAT_NOTE)
    return ", ".join(notes)


def max_pixels() -> int:
    """Returns the maximum number of pixels of an image.

    Raises:
        ValueError: If `$LGCLIP_MAX_IMAGE_PIXELS` is no positive number.
    """
    return _limit(MAX_PIXELS, DEFAULT_MAX_PIXELS)


def _limit(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not (text.isascii() and text.isdigit() and int(text)):
        raise ValueError(f"{variable}={text}: give a positive whole number")
    return int(text)


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)  # AVIF is missing in some builds of Pillow


def _decoded(file: Path | BytesIO) -> Image.Image:
    try:
        return _decode_strictly(file)
    except (MemoryError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise
    except Exception:
        repaired = _png_without_metadata(file)
        if repaired is None:
            raise
        return _decode_strictly(BytesIO(repaired))


def _decode_strictly(file: Path | BytesIO) -> Image.Image:
    with Image.open(file, formats=_formats()) as opened:
        # By the header, before any pixel is decoded.
        _check_size(*opened.size)
        if opened.format != "PNG":
            return to_rgb(opened)
        opened.verify()  # decoding ends with the last pixel, before the checksum that detects a flipped bit
    # Pillow closes an image that was verified, so it is opened again.
    with Image.open(file, formats=_formats()) as opened:
        return to_rgb(opened)


def _png_without_metadata(file: Path | BytesIO) -> bytes | None:
    """Returns a PNG file with only the chunks that hold its pixels; None if these are damaged, or it is no PNG.

    Browsers show such images: a wrong checksum of a comment, an end that is missing or bytes behind it change no pixel.
    """
    if isinstance(file, Path):
        with file.open("rb") as opened:
            if opened.read(len(_PNG_SIGNATURE)) != _PNG_SIGNATURE:
                return None
            content = _PNG_SIGNATURE + opened.read()
    else:
        content = file.getvalue()
    if not content.startswith(_PNG_SIGNATURE):
        return None
    parts = [_PNG_SIGNATURE]
    for kind, data, is_intact in _png_chunks(content):
        # A damaged chunk of an unknown type may be one of pixels whose type is what was damaged.
        if not is_intact and kind not in _PNG_METADATA:
            return None
        if is_intact and kind in (*_PNG_PIXELS, _PNG_ORIENTATION):
            parts.append(_png_chunk(kind, data))
    parts.append(_png_chunk(b"IEND", b""))
    return b"".join(parts)


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """Yields type, data and whether the checksum fits, of each chunk up to the end."""
    position = len(_PNG_SIGNATURE)
    while position + 12 <= len(content):
        length, kind = struct.unpack(">I4s", content[position : position + 8])
        data = content[position + 8 : position + 8 + length]
        checksum = content[position + 8 + length : position + 12 + length]
        yield kind, data, checksum == struct.pack(">I", zlib.crc32(kind + data))
        if kind == b"IEND":
            return
        position += 12 + length


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def to_rgb(opened: Image.Image) -> Image.Image:
    """Turns an image of any Pillow mode into an upright image of 8-bit RGB.

    Wide gray values (16 or 32 bits, floats) are scaled from the range that the file states, else from their own range.
    An alpha channel is blended with white as on a web page, or with black where nothing else has contrast.
    """
    _load(opened)
    image = _upright(opened)
    note = ""
    if image.mode in _WIDE_MODES or image.mode.startswith("I;16"):
        image, note = _scaled(image, _tags(opened))
    if image.mode == "LAB":
        # Pillow's `convert` has no such conversion.
        transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
        converted = ImageCms.applyTransform(image, transform)
        assert converted is not None
        image = converted
    if image.has_transparency_data:
        image = _blended(image)
    image = image.convert("RGB")
    image.info = {NOTE: note} if note else {}
    return image


def _load(opened: Image.Image) -> None:
    """Decodes the pixels; damaged tags of a TIFF file are ignored if its pixels can be decoded."""
    try:
        opened.load()
    except Exception:
        # The tags are read again after the pixels, and an error there would take a good image for a bad one.
        if opened.format != "TIFF" or not _has_pixels(opened):
            raise


def _has_pixels(image: Image.Image) -> bool:
    return not getattr(image, "tile", None) and bool(image.im)


def _upright(image: Image.Image) -> Image.Image:
    # Not by ImageOps.exif_transpose, which writes the tags again and fails over any that is damaged.
    orientation: int | None = None
    # Tags that cannot be parsed say nothing about the orientation.
    with suppress(Exception):
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    if orientation is None:
        with suppress(struct.error):
            orientation = _stored_orientation(image)
    if orientation not in _TRANSPOSES:
        return image
    return image.transpose(_TRANSPOSES[orientation])


def _stored_orientation(image: Image.Image) -> int | None:
    """Reads the orientation from the bytes of the EXIF block.

    Pillow before 13, which Gradio still needs, stops at the first damaged tag and loses those behind it.
    """
    block: bytes = image.info.get("exif", b"").removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return None
    (start,) = struct.unpack_from(f"{order}I", block, 4)
    (count,) = struct.unpack_from(f"{order}H", block, start)
    for entry in range(count):
        tag, _, _, value = struct.unpack_from(f"{order}HHIH", block, start + 2 + 12 * entry)
        if tag == ExifTags.Base.Orientation:
            return value
    return None


def _tags(image: Image.Image) -> dict[int, object]:
    """Returns the tags of a TIFF file by number; empty for other formats."""
    return dict(getattr(image, "tag_v2", {}))


def _scaled(image: Image.Image, tags: dict[int, object]) -> tuple[Image.Image, str]:
    """Scales wide gray values to 8 bits; also returns a note if their own range was used."""
    values = np.asarray(image)
    if tags.get(_SAMPLE_FORMAT) == (_UNSIGNED_SAMPLES,) and values.dtype == np.int32:
        values = values.view(np.uint32)  # Pillow has no mode for them
    values = values.astype(np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        raise ValueError("none of its values is finite")
    lowest = float(values[finite].min())
    highest = float(values[finite].max())
    note = ""
    gray = None
    stated = _stated_range(image, tags, lowest, highest)
    if stated:
        gray = _rescale(values, finite, *stated)
    if gray is None or (gray.std() < FLAT_STD and lowest < highest):
        # No range is stated, or contrast that is in the file would be lost, as of small numbers in 16 bits.
        note = f"{RANGE_NOTE} {lowest:g} to {highest:g}"
        gray = _rescale(values, finite, lowest, highest)
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero
        gray = 255 - gray
    return Image.fromarray(gray), note


def _stated_range(
    image: Image.Image, tags: dict[int, object], lowest: float, highest: float
) -> tuple[float, float] | None:
    """Returns the range of values that a file or its format states; None if it states none."""
    low = next((tags[tag] for tag in _MIN_SAMPLE_VALUES if tag in tags), 0)
    high = next((tags[tag] for tag in _MAX_SAMPLE_VALUES if tag in tags), None)
    if high is not None:
        stated = float(np.max(np.asarray(high))) - float(np.min(np.asarray(low)))
        if stated > 0:
            return float(np.min(np.asarray(low))), float(np.max(np.asarray(high)))
    if image.mode.startswith("I;16"):
        bits = tags.get(_BITS_PER_SAMPLE, (16,))
        return 0.0, 2.0 ** int(np.max(np.asarray(bits))) - 1
    if image.mode == "I" and image.format == "PPM":
        return 0.0, 65535.0  # Pillow has scaled the file's maximum to this
    # Numbers without a stated range: the usual ones are taken where all values lie inside.
    if image.mode == "F" and lowest >= 0 and highest <= 1:
        return 0.0, 1.0
    if lowest >= 0 and highest <= 255:
        return 0.0, 255.0
    return None


def _rescale(values: np.ndarray, finite: np.ndarray, low: float, high: float) -> np.ndarray:
    scaled = np.where(finite, values, low) - low
    if high > low:
        scaled *= 255 / (high - low)
    return scaled.round().clip(0, 255).astype(np.uint8)


def _blended(image: Image.Image) -> Image.Image:
    """Blends an image with a background by its alpha channel: white, or black where white leaves no contrast."""
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    rgba = image.convert("RGBA")
    alpha = rgba.getchannel("A")
    low, high = alpha.getextrema()
    opaque = rgba.convert("RGB")
    if (low, high) == (255, 255):
        return opaque
    blended = []
    for shade in ("white", "black"):
        background = Image.new("RGB", rgba.size, shade)
        background.paste(opaque, mask=alpha)
        if not is_flat(background):
            return background
        blended.append(background)
    if not is_flat(opaque):  # some programs write an empty alpha channel
        return opaque
    return blended[0]


def _check_size(width: int, height: int) -> None:
    short, long = sorted((width, height))
    if short < 1:
        raise ValueError(f"it is {width} x {height} pixels")
    if width * height > max_pixels():
        raise ValueError(_too_large())
    ratio = _limit(MAX_ASPECT_RATIO, DEFAULT_MAX_ASPECT_RATIO)
    if long > ratio * short:
        raise ValueError(
            f"it is {width} x {height} pixels, one side more than {ratio} times the other; {MAX_ASPECT_RATIO} sets "
            "this limit"
        )


def _too_large() -> str:
    return f"it has more than {max_pixels():,} pixels; {MAX_PIXELS} sets this limit"


def _unlike_an_image(file: Path | BytesIO) -> str:
    """Describes a file that Pillow does not identify; Pillow's own message contains a path or a memory address."""
    if isinstance(file, Path):
        with file.open("rb") as opened:
            head = opened.read(1024)
    else:
        head = file.getvalue()[:1024]
    head = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not head:
        return "it is empty"
    if b"<svg" in head:
        return f"it is an SVG drawing; {_CONVERT}"
    brand = head[8:12] if head[4:8] == b"ftyp" else b""
    for name, is_kind in (
        ("a HEIC photograph", brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")),
        ("an AVIF image", brand in (b"avif", b"avis")),
        ("a JPEG XL image", head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL "))),
    ):
        if is_kind:
            return f"it is {name}, which this build of Pillow cannot decode; {_CONVERT}"
    # What a server sends in place of an image that is gone.
    if head.startswith((b"<", b"{")):
        return "it is a web page or other text"
    return "it is no image of a known kind"


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
