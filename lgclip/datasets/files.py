"""Data sets of image files: where they lie, how they are read, how they are named."""

import errno
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lgclip.datasets.base import BadImageError, Dataset, Training, checked_names
from lgclip.identity import SCHEMA, key_of
from lgclip.texts import Keys, Texts

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
LONGEST = 300
"""How many times longer than the other a side may be: preprocessing brings the shorter one to the encoder's input."""
CLASSNAMES = Path(__file__).parents[1] / "classnames"
"""Lists of class names, `DATASET.LIST.txt`: one name a line, in the order of the class indices."""
# Above its first limit Pillow only warns, and does not say of which file. Said once: a filter around each reading
# would not be a thread's own.
warnings.simplefilter("error", Image.DecompressionBombWarning)


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
        training: Where the training images are; None if there are none.
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
        training: Training | None = None,
    ) -> None:
        self.name, self.root, self.files, self.labels = name, root, Texts(files), tuple(labels)
        self.class_names, self.split, self.names, self.context = tuple(class_names), split, names, context
        self.templates = sentences(context, templates)
        self.training = training or Training()

    @cached_property
    def ids(self) -> Sequence[str]:
        # Where a file lies, its size and its time: hashing 50,000 images at each start would cost minutes.
        stats = ((file, (self.root / file).stat()) for file in self.files)
        return Keys(key_of({"file": file, "size": s.st_size, "changed": s.st_mtime_ns}) for file, s in stats)

    def image(self, index: int) -> Image.Image:
        return read_image(self.original(index))

    def where(self, index: int) -> str:
        return str(self.original(index))

    def original(self, index: int) -> Path:
        return self.root / self.files[index]

    def source(self) -> dict[str, object]:
        return {"dataset": self.name, "schema": SCHEMA}


def sentences(context: str, templates: Sequence[str] | None) -> tuple[str, ...]:
    """The text baseline's templates; CLIP's single one if none are given.

    Raises:
        ValueError: If one has no place for the class name.
    """
    if templates is None:
        return (f"a photo of a {{}}, {context}." if context else "a photo of a {}.",)
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"dataset.templates: {template!r} has no {{}} for the class name")
    if not templates:
        raise ValueError("dataset.templates=[]: give one sentence at least, with {} for the class name")
    return tuple(templates)


def read_image(file: Path | BytesIO, where: str | None = None) -> Image.Image:
    """An image file decoded to RGB: turned as its EXIF says, 16-bit greys brought to 8 bits.

    Args:
        file: The file, or what is in it.
        where: Where it is, for the error; None is its path.

    Raises:
        BadImageError: If what is in it cannot be decoded, or is too large or too long.
        ValueError: If it cannot be got at.
    """
    place = where or str(file)
    try:
        return _decoded(file)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImageError(place, _too_large(Image.MAX_IMAGE_PIXELS or 0)) from error
    except UnidentifiedImageError as error:
        raise BadImageError(place, _unlike_an_image(file)) from error
    except OSError as error:
        if error.errno in (None, errno.EINVAL):  # a decoder's own words, or a step to before the file's begin
            raise BadImageError(place, _in_a_line(error)) from error
        raise ValueError(
            f"{place} cannot be read ({error.strerror}): that is no fault of its content, so it is never left out"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # a decoder may fail in any way over a damaged file
        raise BadImageError(place, _in_a_line(error)) from error


def _decoded(file: Path | BytesIO) -> Image.Image:
    with Image.open(file) as opened:
        _check_size(*opened.size)
        if opened.format != "PNG":
            return _as_rgb(opened)
        opened.verify()  # decoding ends with the last pixel, before the sum that tells of a flipped bit
    with Image.open(file) as opened:
        return _as_rgb(opened)


def _as_rgb(opened: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I;16"):  # Pillow would clip 16 bits at 255
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    return image.convert("RGB")


def _check_size(width: int, height: int) -> None:
    short, long = sorted((width, height))
    if short < 1:
        raise ValueError(f"it is {width} x {height} pixels")
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise ValueError(_too_large(Image.MAX_IMAGE_PIXELS))
    if long > LONGEST * short:
        raise ValueError(f"it is {width} x {height} pixels, one side more than {LONGEST} times the other")


def _too_large(limit: int) -> str:
    return f"it has more than {limit:,} pixels, Pillow's limit"


def _unlike_an_image(file: Path | BytesIO) -> str:
    """What a file is whose kind Pillow does not know; its own words tell a path, or a place in memory."""
    with file.open("rb") if isinstance(file, Path) else BytesIO(file.getvalue()) as opened:
        head = opened.read(64).lstrip()
    if not head:
        return "it is empty"
    return "it is a web page or other text" if head.startswith((b"<", b"{")) else "it is no image of a known kind"


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


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


def folders_in(root: Path, folder: str) -> list[str]:
    """Names of the folders inside one, sorted; hidden ones are passed over."""
    return sorted(path.name for path in (root / folder).iterdir() if path.is_dir() and not path.name.startswith("."))


def images_below(root: Path, folder: str) -> list[str]:
    """The images in one folder, sorted, by their place under `root`; hidden files are passed over."""
    inside = (path.name for path in (root / folder).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    return [f"{folder}/{name}" for name in sorted(inside) if not name.startswith(".")]


def named(dataset: str, choice: str, found: Sequence[str]) -> tuple[str, ...]:
    """The class names of a data set, by the list that is asked for.

    Args:
        dataset: The data set's name.
        choice: `folder` for the names that the data set's own files give, the name of a list that the
            package holds, or the path of a text file with one name a line.
        found: The names that the data set's own files give, by class index; empty where they give none.

    Raises:
        ValueError: If there is no such list or it does not fit.
    """
    lists = sorted(file.name.split(".")[1] for file in CLASSNAMES.glob(f"{dataset}.*.txt"))
    ways = " or ".join([*(["folder"] if all(found) else []), *lists])
    if choice == "folder":
        if not all(found):
            raise ValueError(f"dataset.names=folder: the files of {dataset} name not every class; choose {ways}")
        return checked_names([name.replace("_", " ") for name in found], unique=False)
    shipped = CLASSNAMES / f"{dataset}.{choice}.txt"
    path = shipped if shipped.is_file() else Path(choice).expanduser()
    if not path.is_file():
        raise ValueError(f"dataset.names={choice}: choose {ways}, or a text file with one name a line")
    return checked_names(names_in(path, choice, len(found)), unique=False)


def names_in(path: Path, choice: str, classes: int, what: str = "classes") -> list[str]:
    """The class names in a text file, one a line.

    Args:
        path: The file.
        choice: How the user called it.
        classes: How many names it must hold.
        what: What they are names of.

    Raises:
        ValueError: If it is no text or holds another number of names.
    """
    try:
        names = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"dataset.names={choice} is not text in UTF-8 ({error})") from error
    if len(names) != classes:
        raise ValueError(f"dataset.names={choice} holds {len(names)} names for {classes} {what}")
    return names


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
