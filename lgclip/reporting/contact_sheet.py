"""Writes a contact sheet of the synthetic images, next to one real image of each class."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from lgclip.classifier.sheet import (
    FAINT,
    GAP,
    LARGE_TILE,
    MAX_CLASSES,
    MAX_IMAGES,
    NAME_WIDTH,
    PAPER,
    SMALL_TILE,
    TEXT,
    fit_text,
    square_tile,
)
from lgclip.datasets.base import Dataset
from lgclip.diffuser.base import SyntheticImages
from lgclip.methods.base import Predictions
from lgclip.store.atomic import atomic_write


def contact_sheet(
    path: Path,
    class_names: Sequence[str],
    synthetic: Sequence[Sequence[Image.Image]],
    real: Sequence[Image.Image],
    notes: Sequence[str],
    tile: int | None = None,
) -> None:
    """Writes the sheet: one row per class, first a real image, then the synthetic ones.

    Args:
        path: PNG file to write.
        class_names: Name of each class; at most `MAX_CLASSES` are shown.
        synthetic: Images of each class; at most `MAX_IMAGES` are shown.
        real: One real image of each class.
        notes: Caption of each class, such as its accuracy.
        tile: Side of a tile in pixels; None chooses it by the size of the real images.
    """
    if tile is None:
        is_small = all(max(image.size) <= SMALL_TILE for image in real[:MAX_CLASSES])
        tile = SMALL_TILE if is_small else LARGE_TILE
    # A sheet of a thousand classes would be 68,000 pixels high.
    rows = min(len(class_names), MAX_CLASSES)
    columns = min(MAX_IMAGES, max((len(images) for images in synthetic), default=0))
    step = tile + GAP
    head = 28
    font = ImageFont.load_default(13)
    small = ImageFont.load_default(11)
    title = "generated from its name" if columns else ""
    width = max(step * columns, math.ceil(small.getlength(title)))  # a single image is narrower than its title
    sheet = Image.new("RGB", (NAME_WIDTH + step + width + 3 * GAP, head + rows * step + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 8), "class", FAINT, small)
    draw.text((NAME_WIDTH, 8), "real", FAINT, small)
    draw.text((NAME_WIDTH + step + 2 * GAP, 8), title, FAINT, small)
    for row in range(rows):
        top = head + row * step
        draw.text((GAP, top + tile // 2 - 16), fit_text(class_names[row], font, NAME_WIDTH - 2 * GAP), TEXT, font)
        draw.text((GAP, top + tile // 2 + 4), notes[row], FAINT, small)
        sheet.paste(square_tile(real[row], tile), (NAME_WIDTH, top))
        for column, image in enumerate(synthetic[row][:columns]):
            sheet.paste(square_tile(image, tile), (NAME_WIDTH + step * (column + 1) + 2 * GAP, top))
    with atomic_write(path) as temporary:
        # Level 1 is several times faster than the default and costs little on photographs.
        sheet.save(temporary, format="PNG", compress_level=1)


def sheet_of(
    path: Path,
    dataset: Dataset,
    synthetic_images: SyntheticImages | None,
    predictions: Predictions,
    tile: int | None = None,
) -> None:
    """Writes a run's sheet: its classes with their accuracy.

    Of more than `MAX_CLASSES` classes those with the lowest accuracy are shown, worst first.

    Args:
        path: PNG file to write.
        dataset: The real images.
        synthetic_images: The synthetic images; None if the method needs none.
        predictions: The predictions for all real images.
        tile: Side of a tile in pixels; None chooses it by the size of the real images.
    """
    num_classes = len(dataset.class_names)
    total = torch.bincount(predictions.label, minlength=num_classes)
    correct = torch.bincount(predictions.label[predictions.rank == 0], minlength=num_classes)
    classes = list(range(num_classes))
    if num_classes > MAX_CLASSES:
        accuracy = correct / total
        # A stable sort: of equal accuracies the first classes are shown.
        classes = torch.sort(accuracy, stable=True).indices[:MAX_CLASSES].tolist()
    row_of = {class_index: row for row, class_index in enumerate(classes)}
    synthetic: list[list[Image.Image]] = [[] for _ in classes]
    for place, prompt in enumerate(synthetic_images.prompts if synthetic_images else ()):
        row = row_of.get(prompt.class_index)
        if row is None or len(synthetic[row]) >= MAX_IMAGES:
            continue
        assert synthetic_images is not None
        # Only what is shown is decoded: images are read from the disk. Of those that were not stored there is none.
        if synthetic_images.paths[place] is not None:
            synthetic[row].append(synthetic_images.image(place))
    real = [dataset.image(int(predictions.index[predictions.label == c][0])) for c in classes]
    notes = [f"{int(correct[c])} of {int(total[c])} correct" for c in classes]
    contact_sheet(path, [dataset.class_names[c] for c in classes], synthetic, real, notes, tile)
