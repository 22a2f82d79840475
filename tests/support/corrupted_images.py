"""Creates unreadable images with every kind of corruption."""

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image


def build_png(width: int, height: int) -> bytes:
    """Builds a PNG that declares a size and holds a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def flip_bit(content: bytes, bit: int) -> bytes:
    """Returns the bytes with one bit flipped."""
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << (bit % 8)
    return bytes(changed)


def encode_image(kind: str, seed: int = 0, size: tuple[int, int] = (48, 40)) -> bytes:
    """Encodes an intact image in a format of Pillow."""
    patches = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(patches).resize(size).save(buffer, kind)
    return buffer.getvalue()


CORRUPTIONS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda content: content[: len(content) // 2], "[Tt]runcated"),
    "empty": (lambda _: b"", "it is empty"),
    "flipped": (lambda content: flip_bit(content, 4 * len(content)), ""),
    "html": (lambda _: b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>", "a web page or other text"),
    "noise": (lambda _: np.random.default_rng(1).bytes(500), "no image of a known kind"),
    "no_pixels": (lambda _: build_png(0, 8), ""),
    "bomb": (lambda _: build_png(25_000, 25_000), "more than 400,000,000 pixels"),  # Pillow alone only warns
    "great_bomb": (lambda _: build_png(60_000, 60_000), "more than 400,000,000 pixels"),
    "thread": (lambda _: encode_image("PNG", size=(1, 400)), "1 x 400 pixels, one side more than 300 times the other"),
}
"""What each damage makes of a whole PNG, and words of the reason that is told."""

FULL_IMAGE = 2
"""Whole pictures in each class of `damaged_folder`."""


def make_corrupted_folder(root: Path) -> dict[str, Path]:
    """Creates three classes with two intact images each and corrupted ones; returns the latter by corruption."""
    bad: dict[str, Path] = {}
    for index, (name, (spoil, _)) in enumerate(CORRUPTIONS.items()):
        folder = root / ("blue_moon", "green_ring", "red star")[index % 3]
        folder.mkdir(parents=True, exist_ok=True)
        bad[name] = folder / f"1_{name}.{'jpg' if name == 'html' else 'png'}"  # between 0.png and 2.png
        bad[name].write_bytes(spoil(encode_image("PNG", seed=index)))
    for c, folder in enumerate(sorted(root.iterdir())):
        for i in range(FULL_IMAGE):
            (folder / f"{2 * i}.png").write_bytes(encode_image("PNG", seed=100 + 10 * c + i))
    return bad
