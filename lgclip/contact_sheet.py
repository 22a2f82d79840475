"""A picture of what the prototypes are made of, beside one real image of each class."""

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lgclip.datasets.base import Dataset
from lgclip.diffuser.base import Pictures
from lgclip.methods.base import Judged
from lgclip.whole import write_whole

TILE = 64
"""Side of a small picture, in pixels."""
GAP = 4
NAME_WIDTH = 170
MAX_CLASSES = 40
MAX_IMAGES = 10
_PAPER, _TEXT, _FAINT = (255, 255, 255), (30, 30, 30), (120, 120, 120)


def _square(picture: Image.Image) -> Image.Image:
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side)).resize((TILE, TILE), Image.Resampling.BICUBIC)


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def contact_sheet(
    path: Path,
    class_names: Sequence[str],
    synthetic: Sequence[Sequence[Image.Image]],
    real: Sequence[Image.Image],
    notes: Sequence[str],
) -> None:
    """Writes the sheet: a row a class, first a real image, then the synthetic ones.

    Args:
        path: PNG file to write.
        class_names: Name of each class shown; at most `MAX_CLASSES` are.
        synthetic: Images of each class; at most `MAX_IMAGES` are shown.
        real: One real image of each class.
        notes: A word on each class, such as its accuracy.
    """
    rows = min(len(class_names), MAX_CLASSES)
    columns = min(MAX_IMAGES, max((len(images) for images in synthetic), default=0))
    step = TILE + GAP
    head = 28
    font, small = ImageFont.load_default(13), ImageFont.load_default(11)
    title = "drawn from its name" if columns else ""
    drawn = max(step * columns, math.ceil(small.getlength(title)))  # a single image is narrower than its title
    sheet = Image.new("RGB", (NAME_WIDTH + step + drawn + 3 * GAP, head + rows * step + GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, 8), "class", _FAINT, small)
    pen.text((NAME_WIDTH, 8), "real", _FAINT, small)
    pen.text((NAME_WIDTH + step + 2 * GAP, 8), title, _FAINT, small)
    for row in range(rows):
        top = head + row * step
        pen.text((GAP, top + 16), _fit(class_names[row], font, NAME_WIDTH - 2 * GAP), _TEXT, font)
        pen.text((GAP, top + 36), notes[row], _FAINT, small)
        sheet.paste(_square(real[row]), (NAME_WIDTH, top))
        for column, picture in enumerate(synthetic[row][:columns]):
            sheet.paste(_square(picture), (NAME_WIDTH + step * (column + 1) + 2 * GAP, top))
    with write_whole(path) as temporary:
        sheet.save(temporary, format="PNG", compress_level=1)


def sheet_of(path: Path, dataset: Dataset, drawing: Pictures | None, judged: Judged) -> None:
    """Writes a run's sheet: the classes that come first, with their accuracy.

    Args:
        path: PNG file to write.
        dataset: Where the real images are.
        drawing: The synthetic images; None if the method needs none.
        judged: The judgement of every real image.
    """
    shown = range(min(MAX_CLASSES, len(dataset.class_names)))
    synthetic: list[list[Image.Image]] = [[] for _ in shown]
    for at, prompt in enumerate(drawing.prompts if drawing else ()):
        if prompt.class_index in shown and len(synthetic[prompt.class_index]) < MAX_IMAGES:
            assert drawing is not None
            synthetic[prompt.class_index].append(drawing.image(at))
    real, notes = [], []
    for c in shown:
        own = judged.label == c
        real.append(dataset.image(int(judged.index[own][0])))
        notes.append(f"{int((judged.rank[own] == 0).sum())} of {int(own.sum())} right")
    contact_sheet(path, dataset.class_names, synthetic, real, notes)
