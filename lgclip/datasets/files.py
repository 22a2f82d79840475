"""Data sets of image files: where they lie, how they are read, how they are named."""

import os
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lgclip.datasets.base import Dataset, checked_names
from lgclip.identity import SCHEMA, key_of

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
CLASSNAMES = Path(__file__).parents[1] / "classnames"
"""Lists of class names, `DATASET.LIST.txt`: one name a line, in the order of the class indices."""


class ImageFiles(Dataset):
    """Labelled image files under one root.

    The key of an image is its place under the root, its size and its time of change, so that a tree
    may be moved and every split of a data set shares what is known of an image.

    Args:
        name: The data set's name.
        root: Where the files lie.
        files: Each image, relative to the root.
        labels: Class index of each image.
        class_names: Name of each class.
        split: Which of the data set's images these are.
        names: Which list the class names are from.
        context: What kind of things the classes are.
        templates: Sentences for the text baseline; None makes one of the context.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        files: Sequence[str],
        labels: Sequence[int],
        class_names: Sequence[str],
        *,
        split: str,
        names: str,
        context: str = "",
        templates: Sequence[str] | None = None,
    ) -> None:
        self.name, self.root, self.files, self.labels = name, root, tuple(files), tuple(labels)
        self.class_names, self.split, self.names, self.context = tuple(class_names), split, names, context
        self.templates = tuple(templates or (f"a photo of a {{}}, {context}." if context else "a photo of a {}.",))

    @cached_property
    def ids(self) -> tuple[str, ...]:
        stats = ((file, (self.root / file).stat()) for file in self.files)
        return tuple(key_of({"file": file, "size": s.st_size, "changed": s.st_mtime_ns}) for file, s in stats)

    def image(self, index: int) -> Image.Image:
        return read_image(self.root / self.files[index])

    def source(self) -> dict[str, object]:
        return {"dataset": self.name, "schema": SCHEMA}


def read_image(path: Path) -> Image.Image:
    """An image file decoded to RGB: turned as its EXIF says, 16-bit greys brought to 8 bits.

    Raises:
        ValueError: If it cannot be decoded.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I;16"):  # Pillow would clip 16 bits at 255
                image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}); mend it or move it away") from error


def root_folder(dataset: str, root: str | os.PathLike[str] | None, inside: Sequence[str], hint: str) -> Path:
    """The folder of a data set, checked for what must lie in it.

    Args:
        dataset: The data set's name.
        root: The folder as given; None stands for `$LGCLIP_DATA/DATASET`, or else `data/DATASET`.
        inside: Files and folders that must be there, relative to it.
        hint: What to get and where to put it.

    Raises:
        ValueError: If the folder or something in it is missing.
    """
    folder = Path(root or Path(os.environ.get("LGCLIP_DATA", "data")) / dataset).expanduser().absolute()
    missing = [name for name in inside if not (folder / name).exists()] if folder.is_dir() else ["the folder itself"]
    if missing:
        raise ValueError(f"dataset={dataset}: {folder} is not complete, missing: {', '.join(missing)}. {hint}")
    return folder


def named(dataset: str, choice: str, found: Sequence[str]) -> tuple[str, ...]:
    """The class names of a data set, by the list that is asked for.

    Args:
        dataset: The data set's name.
        choice: `folder` for the names that the data set's own files give, the name of a list that the
            package holds, or the path of a text file with one name a line.
        found: The names that the data set's own files give, by class index.

    Raises:
        ValueError: If there is no such list or it does not fit.
    """
    if choice == "folder":
        return checked_names([name.replace("_", " ") for name in found], unique=False)
    shipped = CLASSNAMES / f"{dataset}.{choice}.txt"
    path = shipped if shipped.is_file() else Path(choice).expanduser()
    if not path.is_file():
        known = ["folder", *sorted(file.name.split(".")[1] for file in CLASSNAMES.glob(f"{dataset}.*.txt"))]
        raise ValueError(f"dataset.names={choice}: choose {' or '.join(known)}, or a text file with one name a line")
    try:
        names = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"dataset.names={choice} is not text in UTF-8 ({error})") from error
    if len(names) != len(found):
        raise ValueError(f"dataset.names={choice} holds {len(names)} names for {len(found)} classes")
    return checked_names(names, unique=False)


def check_counts(dataset: str, labels: Sequence[int], classes: int, images: int | None, hint: str) -> None:
    """Compares what was found with the official counts.

    Args:
        dataset: The data set's name.
        labels: Class index of each image found.
        classes: How many classes there must be, each with an image.
        images: How many images there must be; None if no official count is known.
        hint: What to do about it.

    Raises:
        ValueError: If a count is off; the message says which.
    """
    empty = sorted(set(range(classes)) - Counter(labels).keys())
    if empty:
        raise ValueError(f"dataset={dataset}: no image of classes {empty[:10]}, {len(empty)} in all. {hint}")
    if images is not None and len(labels) != images:
        raise ValueError(f"dataset={dataset}: {len(labels)} images found, the split has {images}. {hint}")
