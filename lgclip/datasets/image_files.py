"""Locates, reads and names the images of file-based data sets."""

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
from lgclip.datasets.packed_strings import PackedHashes, PackedStrings
from lgclip.runtime.versions import STORE_SCHEMA
from lgclip.store.keys import content_key

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_MAX_LISTED = 6  # missing files in an error
LONGEST = 300
"""Maximum aspect ratio of an image: preprocessing resizes the shorter side to the encoder's input."""
CLASSNAMES = Path(__file__).parent / "classnames"
"""Lists of class names, `DATASET.LIST.txt`: one name per line, in the order of the class indices."""
# Above its first limit Pillow only warns, and does not say of which file. Said once: a filter around each reading
# would not be a thread's own.
warnings.simplefilter("error", Image.DecompressionBombWarning)


class ImageFiles(Dataset):
    """Provides labelled image files under one root.

    The key of an image is its path below the root, its size and its modification time, so that a folder
    can be moved and every split of a data set shares what is stored of an image.

    Args:
        name: Name of the data set.
        root: Folder of the files.
        files: Path of each image, relative to the root.
        labels: Class index of each image.
        class_names: Name of each class.
        split: Split of the images.
        names: List that the class names come from.
        context: Type of the classes.
        templates: Templates for the text baseline; None builds one from the context.
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
        self.name = name
        self.root = root
        self.files = PackedStrings(files)
        self.labels = tuple(labels)
        self.class_names = tuple(class_names)
        self.split = split
        self.names = names
        self.context = context
        self.templates = sentences(context, templates)
        self.training = training or Training()

    @cached_property
    def ids(self) -> Sequence[str]:
        # Path, size and modification time of a file: hashing 50,000 images at each start would cost minutes.
        stats = ((file, (self.root / file).stat()) for file in self.files)
        return PackedHashes(
            content_key({"file": file, "size": s.st_size, "changed": s.st_mtime_ns}) for file, s in stats
        )

    def image(self, index: int) -> Image.Image:
        return read_image(self.root / self.files[index])

    def where(self, index: int) -> str:
        return str(self.root / self.files[index])

    def original(self, index: int) -> Path | None:
        return self.root / self.files[index]

    def source(self) -> dict[str, object]:
        return {"dataset": self.name, "schema": STORE_SCHEMA}


def sentences(context: str, templates: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the text baseline's templates; CLIP's single one if none are given.

    Raises:
        ValueError: If one has no placeholder for the class name.
    """
    if templates is None:
        if context:
            return (f"a photo of a {{}}, {context}.",)
        return ("a photo of a {}.",)
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"dataset.templates: {template!r} has no {{}} for the class name")
    if not templates:
        raise ValueError("dataset.templates=[]: give one sentence at least, with {} for the class name")
    return tuple(templates)


def read_image(file: Path | BytesIO, where: str | None = None) -> Image.Image:
    """Decodes an image file to RGB: applies the EXIF orientation and reduces 16-bit grayscale to 8 bits.

    Args:
        file: The file, or its content.
        where: Its location, for error messages; None is its path.

    Raises:
        BadImageError: If its content cannot be decoded, or is too large or too long.
        ValueError: If it cannot be accessed.
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
            f"{place} cannot be read ({error.strerror}): this is an error of the file system, so the image is never "
            f"left out"
        ) from error
    except MemoryError:
        raise  # the machine is at fault, so the file must not be left out as damaged
    except Exception as error:  # a decoder may fail in any way over a damaged file
        raise BadImageError(place, _in_a_line(error)) from error


def _decoded(file: Path | BytesIO) -> Image.Image:
    with Image.open(file) as opened:
        # By the header, before any pixel is decoded.
        _check_size(*opened.size)
        if opened.format != "PNG":
            return _as_rgb(opened)
        opened.verify()  # decoding ends with the last pixel, before the checksum that detects a flipped bit
    # Pillow closes an image that was verified, so it is opened again.
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
    """Describes a file that Pillow does not identify; Pillow's own message contains a path or a memory address."""
    if isinstance(file, Path):
        with file.open("rb") as opened:
            head = opened.read(64)
    else:
        head = file.getvalue()[:64]
    head = head.lstrip()
    if not head:
        return "it is empty"
    # What a server sends in place of an image that is gone.
    if head.startswith((b"<", b"{")):
        return "it is a web page or other text"
    return "it is no image of a known kind"


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class IncompleteDatasetError(ValueError):
    """Reports required files of a data set that are missing; the message says where to get them.

    Args:
        dataset: Name of the data set.
        folder: Where they were expected.
        missing: Their names.
        hint: What to get and where to put it.
    """

    def __init__(self, dataset: str, folder: Path, missing: Sequence[str], hint: str) -> None:
        names = ", ".join(missing[:_MAX_LISTED])
        more = f" and {len(missing) - _MAX_LISTED} more" if len(missing) > _MAX_LISTED else ""
        super().__init__(f"dataset={dataset}: {folder} is not complete, missing: {names}{more}. {hint}")


def root_folder(dataset: str, root: str | os.PathLike[str] | None, inside: Sequence[str], hint: str) -> Path:
    """Returns the folder of a data set, checked for its required content.

    Args:
        dataset: Name of the data set.
        root: The folder from the config; None uses `$LGCLIP_DATA/DATASET`, or else `data/DATASET`.
        inside: Required files and folders, relative to it.
        hint: What to get and where to put it.

    Raises:
        ValueError: If the folder or something in it is missing.
    """
    folder = Path(root or Path(os.environ.get("LGCLIP_DATA", "data")) / dataset).expanduser().absolute()
    missing = ["the folder itself"]
    if folder.is_dir():
        missing = [name for name in inside if not (folder / name).exists()]
    if missing:
        raise IncompleteDatasetError(dataset, folder, missing, hint)
    return folder


def folders_in(root: Path, folder: str) -> list[str]:
    """Returns the names of a folder's subfolders, sorted; hidden ones are skipped."""
    return sorted(path.name for path in (root / folder).iterdir() if path.is_dir() and not path.name.startswith("."))


def images_below(root: Path, folder: str) -> list[str]:
    """Returns the images in one folder, sorted, by their path below `root`; hidden files are skipped."""
    inside = (path.name for path in (root / folder).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    return [f"{folder}/{name}" for name in sorted(inside) if not name.startswith(".")]


def named(dataset: str, choice: str, folder_names: Sequence[str]) -> tuple[str, ...]:
    """Returns the class names of a data set from the requested list.

    Args:
        dataset: Name of the data set.
        choice: `folder` for the names that the data set's own files give, the name of a list in the
            package, or the path of a text file with one name per line.
        folder_names: The names that the data set's own files give, by class index; empty where they give none.

    Raises:
        ValueError: If the list does not exist or does not match.
    """
    lists = sorted(file.name.split(".")[1] for file in CLASSNAMES.glob(f"{dataset}.*.txt"))
    choices = lists
    if all(folder_names):
        choices = ["folder", *lists]
    ways = " or ".join(choices)
    if choice == "folder":
        if not all(folder_names):
            raise ValueError(f"dataset.names=folder: the files of {dataset} do not name every class; choose {ways}")
        return checked_names([name.replace("_", " ") for name in folder_names], unique=False)
    # The package's own lists first, so that a file of the working directory that is named `clip` changes nothing.
    path = CLASSNAMES / f"{dataset}.{choice}.txt"
    if not path.is_file():
        path = Path(choice).expanduser()
    if not path.is_file():
        raise ValueError(f"dataset.names={choice}: choose {ways}, or a text file with one name per line")
    return checked_names(names_in(path, choice, len(folder_names)), unique=False)


def names_in(path: Path, choice: str, classes: int, what: str = "classes") -> list[str]:
    """Reads class names from a text file, one a line.

    Args:
        path: The file.
        choice: The user's name for it.
        classes: Required number of names.
        what: What the names refer to, for error messages.

    Raises:
        ValueError: If it is not text or holds another number of names.
    """
    try:
        names = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"dataset.names={choice} is not text in UTF-8 ({error})") from error
    if len(names) != classes:
        raise ValueError(f"dataset.names={choice} holds {len(names)} names for {classes} {what}")
    return names


def check_counts(dataset: str, labels: Sequence[int], classes: int, images: int | None, hint: str) -> None:
    """Compares the number of images and classes with the official counts.

    Args:
        dataset: Name of the data set.
        labels: Class index of each image.
        classes: Required number of classes, each with an image.
        images: Required number of images; None if no official count is known.
        hint: How to fix a mismatch.

    Raises:
        ValueError: If a count does not match; the message says which.
    """
    empty = sorted(set(range(classes)) - Counter(labels).keys())
    if empty:
        raise ValueError(f"dataset={dataset}: no image of classes {empty[:10]}, {len(empty)} in all. {hint}")
    if images is not None and len(labels) != images:
        raise ValueError(f"dataset={dataset}: {len(labels)} images found, the split has {images}. {hint}")
