"""Draws the synthetic images of a classifier's classes, and reads them from the drawing again."""

import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lgclip.store.atomic import atomic_write

MAX_CLASSES = 40
MAX_IMAGES = 10
SMALL_TILE, LARGE_TILE = 64, 128
"""Side of a tile in pixels, for images that are no larger than the first, and for photographs."""
GAP = 4
NAME_WIDTH = 170
_HEAD = 28
PAPER = (255, 255, 255)
TEXT = (30, 30, 30)
FAINT = (120, 120, 120)


def square_tile(image: Image.Image, tile: int) -> Image.Image:
    """Returns the center square of an image, resized."""
    side = min(image.size)
    # A center crop, where the object is in most data sets, without distortion.
    left = (image.width - side) // 2
    top = (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((tile, tile), Image.Resampling.BICUBIC)


def fit_text(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Returns a text, cut with an ellipsis where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def strip_of(images: Sequence[Image.Image]) -> Image.Image | None:
    """Returns the first images of a class in a row; None if there is none."""
    shown = images[:MAX_IMAGES]
    if not shown:
        return None
    tile = SMALL_TILE if all(max(image.size) <= SMALL_TILE for image in shown) else LARGE_TILE
    strip = Image.new("RGB", ((tile + GAP) * len(shown) - GAP, tile), PAPER)
    for column, image in enumerate(shown):
        strip.paste(square_tile(image, tile), (column * (tile + GAP), 0))
    return strip


def tiles_of(strip: Image.Image | None) -> list[Image.Image]:
    """Returns the images of a strip; the first tile is that of the first synthetic image of its class."""
    if strip is None:
        return []
    tile = strip.height
    return [strip.crop((left, 0, left + tile, tile)) for left in range(0, strip.width, tile + GAP)]


def without_tiles(strip: Image.Image | None, places: Sequence[int]) -> Image.Image | None:
    """Returns a strip without some of its images; None if there is none left."""
    return strip_of([tile for place, tile in enumerate(tiles_of(strip)) if place not in places])


def joined_strips(first: Image.Image | None, second: Image.Image | None, images: int) -> Image.Image | None:
    """Returns a strip with the images of both.

    Args:
        first: Strip of a class.
        second: Strip of further images of it.
        images: Number of images that the class has so far. If not all of them are in the strip, nothing is added: a
            tile's place is that of its image.
    """
    tiles = tiles_of(first)
    if len(tiles) < images:
        return first
    return strip_of([*tiles, *tiles_of(second)])


def write_sheet(path: Path, names: Sequence[str], strips: Sequence[Image.Image | None]) -> list[list[int]]:
    """Writes the sheet: a row per class, its name and its images.

    Args:
        path: PNG file to write.
        names: Name of each class; at most `MAX_CLASSES` are shown.
        strips: Images of each class, from `strip_of`; a class without images has its name alone.

    Returns:
        Box of each strip as left, top, right and bottom pixel, by which `read_strips` finds it; empty for none.

    Raises:
        WriteError: If the system refuses it.
    """
    shown = list(zip(names, strips, strict=True))[:MAX_CLASSES]
    font = ImageFont.load_default(13)
    small = ImageFont.load_default(11)
    title = "generated from its name"
    width = max([math.ceil(small.getlength(title)), *(strip.width for _, strip in shown if strip)])
    heights = [strip.height if strip else SMALL_TILE // 2 for _, strip in shown]
    sheet = Image.new("RGB", (NAME_WIDTH + width + GAP, _HEAD + sum(heights) + GAP * len(shown)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 8), "class", FAINT, small)
    draw.text((NAME_WIDTH, 8), title, FAINT, small)
    boxes: list[list[int]] = []
    top = _HEAD
    for (name, strip), height in zip(shown, heights, strict=True):
        draw.text((GAP, top + height // 2 - 9), fit_text(name, font, NAME_WIDTH - 2 * GAP), TEXT, font)
        box: list[int] = []
        if strip is not None:
            sheet.paste(strip, (NAME_WIDTH, top))
            box = [NAME_WIDTH, top, NAME_WIDTH + strip.width, top + height]
        boxes.append(box)
        top += height + GAP
    with atomic_write(path) as temporary:
        sheet.save(temporary, format="PNG")
    return boxes


def read_strips(content: bytes, boxes: Sequence[Sequence[int]], count: int) -> tuple[Image.Image | None, ...]:
    """Returns the images of each class from a sheet; None where there is none.

    Args:
        content: The PNG file.
        boxes: What `write_sheet` returned.
        count: Number of classes.

    Raises:
        ValueError: If it is no image or smaller than its boxes.
    """
    try:
        with Image.open(BytesIO(content), formats=("PNG",)) as opened:
            sheet = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"it is no PNG image ({error})") from error
    strips: list[Image.Image | None] = []
    for box in boxes[:count]:
        if not box:
            strips.append(None)
            continue
        left, top, right, bottom = box
        if not 0 <= left < right <= sheet.width or not 0 <= top < bottom <= sheet.height:
            raise ValueError(f"it has {sheet.width} x {sheet.height} pixels, too few for its classes")
        strips.append(sheet.crop((left, top, right, bottom)))
    return (*strips, *[None] * (count - len(strips)))
