"""Image files of every kind become the 8-bit RGB picture that their file shows."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version
from PIL import Image, PngImagePlugin, TiffImagePlugin

from lgclip.datasets.base import BadImageError
from lgclip.datasets.image_decoding import FLAT_NOTE, RANGE_NOTE, image_note, is_flat, read_image

needs_pillow_13 = pytest.mark.skipif(
    Version(PIL.__version__) < Version("13"), reason="Pillow 12, which Gradio needs, reports such a file as damaged"
)

RAMP = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)
"""A gray picture with every kind of value."""


def encoded(image: Image.Image, kind: str, **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return io.BytesIO(file.getvalue())


def gray(file: io.BytesIO) -> np.ndarray:
    pixels = np.asarray(read_image(file, "here"))
    assert pixels.shape == (8, 8, 3)
    return pixels[..., 0].astype(int)


def pgm(maximum: int, values: np.ndarray, *, text: bool = False) -> io.BytesIO:
    rows = values.astype(">u2" if maximum > 255 else "u1")
    body = " ".join(map(str, values.ravel())).encode() if text else rows.tobytes()
    return io.BytesIO(b"P%d\n8 8\n%d\n" % (2 if text else 5, maximum) + body)


@pytest.mark.parametrize("maximum", [1, 15, 100, 255, 256, 1023, 4095, 65535])
@pytest.mark.parametrize("text", [False, True])
def test_pgm_is_scaled_by_its_maximum(maximum: int, text: bool) -> None:
    values = (RAMP.astype(int) * maximum / 255).round().astype(int)

    expected = (values / maximum * 255).round()
    assert np.abs(gray(pgm(maximum, values, text=text)) - expected).max() <= 1


@pytest.mark.parametrize(
    ("kind", "dtype", "factor"),
    [
        ("PNG", np.uint16, 257),
        ("TIFF", np.uint16, 257),
        ("TIFF", np.int32, 1),
        ("TIFF", np.int32, 257),
        ("TIFF", np.int32, 2**20),
        ("TIFF", np.float32, 1),
        ("TIFF", np.float32, 1 / 255),
        ("TIFF", np.float32, 1e6),
        ("PPM", np.uint16, 257),
        ("JPEG2000", np.uint16, 257),
    ],
)
def test_wide_gray_values_keep_their_contrast(kind: str, dtype: type, factor: float) -> None:
    file = encoded(Image.fromarray((RAMP.astype(np.float64) * factor).astype(dtype)), kind)

    assert np.abs(gray(file) - RAMP).max() <= 1


@pytest.mark.parametrize("byte_order", ["I;16", "I;16B", "I;16L"])
def test_byte_orders_of_16_bits_agree(byte_order: str) -> None:
    values = RAMP.astype(np.uint16) * 257
    stored = values.astype(">u2" if byte_order == "I;16B" else "<u2").tobytes()
    file = encoded(Image.frombytes(byte_order, (8, 8), stored), "TIFF")

    np.testing.assert_array_equal(gray(file), RAMP)


def tiff(values: np.ndarray, **tags: object) -> io.BytesIO:
    """Writes an uncompressed TIFF file of one strip by hand, since Pillow writes only some types."""
    kinds = {"u": 1, "i": 2, "f": 3}
    entries = {
        256: (4, values.shape[1]), 257: (4, values.shape[0]), 258: (3, values.itemsize * 8), 259: (3, 1),
        262: (3, tags.get("photometric", 1)), 273: (4, 8), 277: (3, 1), 278: (4, values.shape[0]),
        279: (4, values.nbytes), 339: (3, kinds[values.dtype.kind]),
    }  # fmt: skip
    if "maximum" in tags:
        entries[281] = (3, tags["maximum"])
    directory = struct.pack("<H", len(entries))
    for tag, (kind, value) in sorted(entries.items()):
        directory += struct.pack("<HHII", tag, kind, 1, value)
    content = struct.pack("<2sHI", b"II", 42, 8 + values.nbytes) + values.tobytes() + directory + bytes(4)
    return io.BytesIO(content)


@pytest.mark.parametrize("dtype", ["<u2", "<i2", "<u4", "<i4", "<f4"])
def test_integers_and_floats_of_tiff_agree(dtype: str) -> None:
    limit = 65535 if dtype == "<u2" else 30000
    values = (RAMP / 255 * limit).astype(dtype)

    assert np.abs(gray(tiff(values)) - RAMP).max() <= 1


def test_large_unsigned_values_of_tiff_do_not_turn_negative() -> None:
    values = (RAMP / 255 * (2**32 - 1)).astype("<u4")

    assert np.abs(gray(tiff(values)) - RAMP).max() <= 1


def test_stated_maximum_of_tiff_counts() -> None:
    """12 bits in 16, as scanners and microscopes write: half of the range stays half."""
    values = (RAMP / 255 * 2047).astype("<u2")

    assert np.abs(gray(tiff(values, maximum=4095)) - RAMP / 2).max() <= 1


@pytest.mark.parametrize("dtype", ["<u2", "<f4"])
def test_white_is_zero_is_inverted(dtype: str) -> None:
    values = (RAMP / 255 * (65535 if dtype == "<u2" else 1)).astype(dtype)

    assert np.abs(gray(tiff(values, photometric=0)) - (255 - RAMP.astype(int))).max() <= 1


def test_small_values_in_16_bits_are_scaled_and_noted() -> None:
    """8-bit values in a 16-bit file would be black: contrast that the file has reaches the encoder."""
    image = read_image(encoded(Image.fromarray(RAMP.astype(np.uint16)), "PNG"), "here")

    np.testing.assert_array_equal(np.asarray(image)[..., 0], RAMP)
    assert image_note(image) == f"{RANGE_NOTE} 0 to 255"


def test_values_that_are_not_finite_are_left_out() -> None:
    values = (RAMP / 255).astype(np.float32)
    values[0, 0] = np.nan
    values[0, 1] = np.inf

    pixels = gray(encoded(Image.fromarray(values), "TIFF"))

    assert np.abs(pixels[1:] - RAMP[1:]).max() <= 1
    with pytest.raises(BadImageError, match="none of its values is finite"):
        read_image(encoded(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF"), "here")


COLORS = np.stack([RAMP, RAMP[::-1], RAMP.T], axis=-1)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("1", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("RGB", "PNG"), ("RGBA", "PNG"), ("I;16", "PNG"),
        ("1", "TIFF"), ("L", "TIFF"), ("LA", "TIFF"), ("P", "TIFF"), ("RGB", "TIFF"), ("RGBA", "TIFF"),
        ("RGBX", "TIFF"), ("CMYK", "TIFF"),
        pytest.param("YCbCr", "TIFF", marks=needs_pillow_13), ("LAB", "TIFF"), ("I", "TIFF"), ("F", "TIFF"),
        ("L", "JPEG"), ("RGB", "JPEG"), ("CMYK", "JPEG"), ("P", "GIF"), ("L", "GIF"), ("RGB", "WEBP"), ("RGBA", "WEBP"),
        ("RGB", "AVIF"), ("RGBA", "AVIF"), ("1", "BMP"), ("L", "BMP"), ("P", "BMP"), ("RGB", "BMP"), ("RGBA", "BMP"),
        ("1", "PPM"), ("L", "PPM"), ("RGB", "PPM"), ("RGB", "JPEG2000"), ("L", "JPEG2000"), ("RGBA", "JPEG2000"),
        ("RGB", "TGA"), ("RGBA", "TGA"), ("P", "TGA"), ("RGB", "ICO"), ("RGB", "PCX"), ("RGB", "SGI"), ("RGBA", "DDS"),
    ],
)  # fmt: skip
def test_every_mode_and_format_shows_the_picture(mode: str, kind: str) -> None:
    """Against Pillow's own conversion of the image in memory; the compressed formats within their loss."""
    picture = Image.fromarray(np.kron(COLORS, np.ones((8, 8, 1), np.uint8)))
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.applyTransform(picture, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
        assert image is not None
        expected = picture
    elif mode == "I;16":
        image = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
        expected = picture.convert("L").convert("RGB")
    else:
        image = picture.convert(mode)
        expected = image.convert("RGB")
    if kind == "AVIF":
        pytest.importorskip("PIL._avif")

    decoded = np.asarray(read_image(encoded(image, kind), "here")).astype(int)

    lossy = kind in ("JPEG", "WEBP", "AVIF", "JPEG2000") or mode in ("LAB", "YCbCr", "CMYK")
    difference = np.abs(decoded - np.asarray(expected).astype(int))
    assert difference.mean() <= (12 if lossy else 0.51), mode
    assert decoded.std() > 10


def test_transparent_images_are_blended() -> None:
    """Black strokes on nothing are black on white, white ones white on black: neither is an image of one color."""
    alpha = np.zeros((8, 8), np.uint8)
    alpha[2:6, 2:6] = 255
    for shade, background in ((0, 255), (255, 0)):
        pixels = np.full((8, 8, 4), shade, np.uint8)
        pixels[..., 3] = alpha

        decoded = gray(encoded(Image.fromarray(pixels, "RGBA"), "PNG"))

        np.testing.assert_array_equal(decoded, np.where(alpha > 0, shade, background))


def test_empty_alpha_channel_is_ignored() -> None:
    pixels = np.dstack([COLORS, np.zeros((8, 8), np.uint8)])

    np.testing.assert_array_equal(gray(encoded(Image.fromarray(pixels, "RGBA"), "PNG")), COLORS[..., 0])


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P"])
def test_transparent_color_of_png_is_blended(mode: str) -> None:
    image = Image.fromarray(np.where(RAMP > 127, 255, 0).astype(np.uint8)).convert(mode)
    key = {"1": 0, "L": 0, "RGB": (0, 0, 0), "P": 0}[mode]

    decoded = read_image(encoded(image, "PNG", transparency=key), "here")

    assert not is_flat(decoded)


def test_flat_images_are_noted() -> None:
    assert image_note(read_image(encoded(Image.new("RGB", (8, 8), "red"), "PNG"), "here")) == FLAT_NOTE
    assert image_note(read_image(encoded(Image.fromarray(COLORS), "PNG"), "here")) == ""


# ------------------------------------------------------------------------------------------ damage outside the pixels


def with_exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = exif.tobytes()
    # A second tag whose value lies outside the block: what writes the tags again fails over it.
    head = content.index(b"MM") if b"MM" in content[:10] else content.index(b"II")
    order = ">" if content[head : head + 2] == b"MM" else "<"
    entry = struct.pack(f"{order}HHII", 0x010F, 2, 4000, 900000)
    count = struct.unpack(f"{order}H", content[head + 8 : head + 10])[0]
    body = content[: head + 8] + struct.pack(f"{order}H", count + 1) + entry + content[head + 10 :]
    return body


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientation_counts_next_to_a_broken_tag(orientation: int, kind: str) -> None:
    picture = Image.fromarray(np.kron(COLORS, np.ones((4, 8, 1), np.uint8)))
    plain = np.asarray(read_image(encoded(picture, kind), "here"))
    # How the EXIF standard defines the eight orientations, by NumPy.
    turned = {
        1: plain, 2: plain[:, ::-1], 3: plain[::-1, ::-1], 4: plain[::-1], 5: plain.transpose(1, 0, 2),
        6: np.rot90(plain, -1), 7: np.rot90(plain, 2).transpose(1, 0, 2), 8: np.rot90(plain),
    }  # fmt: skip

    decoded = read_image(encoded(picture, kind, exif=with_exif(orientation)), "here")

    np.testing.assert_array_equal(np.asarray(decoded), turned[orientation])


def chunk(kind: bytes, data: bytes, *, broken: bool = False) -> bytes:
    checksum = zlib.crc32(kind + data) ^ int(broken)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png_with(*extra: bytes, end: bool = True) -> io.BytesIO:
    content = encoded(Image.fromarray(COLORS), "PNG").getvalue()
    header, rest = content[:33], content[33:]
    if not end:
        rest = rest[: rest.index(b"IEND") - 4]
    return io.BytesIO(header + b"".join(extra) + rest)


@pytest.mark.parametrize(
    "file",
    [
        png_with(chunk(b"tEXt", b"Comment\0text", broken=True)),
        png_with(chunk(b"iTXt", b"not a text")),
        png_with(chunk(b"zTXt", b"Comment\0\0no zlib stream")),
        png_with(chunk(b"iCCP", b"profile\0\0no zlib stream", broken=True)),
        png_with(chunk(b"eXIf", b"no TIFF header", broken=True)),
        png_with(chunk(b"pHYs", b"\0", broken=True)),
        png_with(chunk(b"tIME", b"\0\0")),
        png_with(end=False),
    ],
    ids=["text checksum", "text", "compressed text", "profile", "EXIF", "resolution", "time", "no end"],
)
def test_damage_outside_the_pixels_does_not_matter(file: io.BytesIO) -> None:
    np.testing.assert_array_equal(np.asarray(read_image(file, "here")), COLORS)


def test_bytes_behind_the_end_do_not_matter() -> None:
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP"):
        clean = encoded(Image.fromarray(COLORS), kind)
        longer = io.BytesIO(clean.getvalue() + b"\0" * 1000 + b"trailer")

        np.testing.assert_array_equal(np.asarray(read_image(longer, "here")), np.asarray(read_image(clean, "here")))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_flipped_bit_of_png_is_noticed_or_harmless(data: st.DataObject) -> None:
    content = bytearray(png_with(chunk(b"tEXt", b"Comment\0a picture")).getvalue())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    try:
        decoded = read_image(io.BytesIO(bytes(content)), "here")
    except BadImageError:
        return
    np.testing.assert_array_equal(np.asarray(decoded), COLORS)


def test_large_metadata_is_read() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * 5_000_000, zip=True)

    np.testing.assert_array_equal(
        np.asarray(read_image(encoded(Image.fromarray(COLORS), "PNG", pnginfo=info), "here")), COLORS
    )


def test_limits_are_values_that_errors_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LGCLIP_MAX_IMAGE_PIXELS", "1000")
    with pytest.raises(BadImageError, match=r"more than 1,000 pixels; LGCLIP_MAX_IMAGE_PIXELS"):
        read_image(encoded(Image.new("RGB", (40, 40)), "PNG"), "here")
    monkeypatch.setenv("LGCLIP_MAX_IMAGE_PIXELS", "2000")
    assert read_image(encoded(Image.new("RGB", (40, 40)), "PNG"), "here").size == (40, 40)
    monkeypatch.setenv("LGCLIP_MAX_ASPECT_RATIO", "10")
    with pytest.raises(BadImageError, match=r"more than 10 times the other; LGCLIP_MAX_ASPECT_RATIO"):
        read_image(encoded(Image.new("RGB", (44, 4)), "PNG"), "here")
    monkeypatch.setenv("LGCLIP_MAX_IMAGE_PIXELS", "many")
    with pytest.raises(ValueError, match="LGCLIP_MAX_IMAGE_PIXELS=many: give a positive whole number"):
        read_image(encoded(Image.new("RGB", (4, 4)), "PNG"), "here")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG drawing; convert it"),
        (b"<?xml version='1.0'?>\n<svg/>", "SVG drawing; convert it"),
        (b"\0\0\0\x18ftypheic" + bytes(20), "HEIC photograph"),
        (b"\xff\x0a" + bytes(20), "JPEG XL image"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image of a known kind"),
    ],
)
def test_other_kinds_are_named(content: bytes, reason: str) -> None:
    with pytest.raises(BadImageError, match=reason):
        read_image(io.BytesIO(content), "here")


def test_names_in_any_bytes_are_read(tmp_path: Path) -> None:
    path = tmp_path / b"\xff\xfe.png".decode("utf-8", "surrogateescape")
    Image.fromarray(COLORS).save(path)

    np.testing.assert_array_equal(np.asarray(read_image(path)), COLORS)


@needs_pillow_13
def test_broken_tags_of_tiff_do_not_matter() -> None:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[270] = "description"
    content = bytearray(encoded(Image.fromarray(COLORS), "TIFF", tiffinfo=info).getvalue())
    entry = content.index(struct.pack("<HH", 270, 2))
    content[entry + 4 : entry + 12] = struct.pack("<II", 50_000, 900_000)  # beyond the end of the file

    np.testing.assert_array_equal(np.asarray(read_image(io.BytesIO(bytes(content)), "here")), COLORS)


@settings(max_examples=200, deadline=None)
@given(st.data())
@pytest.mark.parametrize("kind", ["JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "JPEG2000", "QOI"])
def test_damaged_files_give_an_image_or_one_error(kind: str, data: st.DataObject) -> None:
    """Whatever bytes are flipped or cut, no other exception than the reader's own."""
    content = bytearray(_SAMPLES[kind]())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    try:
        image = read_image(io.BytesIO(bytes(content)), "here")
    except BadImageError:
        return
    assert image.mode == "RGB"


def _sample(kind: str) -> Callable[[], bytes]:
    return lambda: encoded(Image.fromarray(COLORS), kind).getvalue()


_SAMPLES = {kind: _sample(kind) for kind in ("JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "JPEG2000", "QOI")}
