"""Data sets to judge on: images, labels, class names and the split, all keyed by class index."""

import logging
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lgclip.identity import SCHEMA, key_of

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


class Dataset(ABC):
    """Labelled images of named classes.

    Attributes:
        name: The data set's name, as shown in results.
        split: Which of its images these are.
        class_names: Name of each class; only shown and written into prompts, never looked up.
        labels: Class index of each image.
        ids: Content key of each image.
        templates: Sentences for the text baseline; `{}` is the class name.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    labels: tuple[int, ...]
    templates: tuple[str, ...] = ("a photo of a {}.",)

    @cached_property
    @abstractmethod
    def ids(self) -> tuple[str, ...]:
        """Content key of each image."""

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """The image at `index`, decoded to RGB.

        Raises:
            ValueError: If it cannot be decoded.
        """

    @abstractmethod
    def source(self) -> dict[str, object]:
        """What these images are, for the key of their features."""

    def __len__(self) -> int:
        return len(self.labels)


class Shapes(Dataset):
    """The 30 held-out kinds of the small world, 40 images each; no small model was trained on them."""

    name = "shapes"
    split = "test (held-out kinds)"

    def __init__(self) -> None:
        from lgclip.tiny.world import HELD_OUT_KINDS, TEST_IMAGES_PER_CLASS

        self.class_names = tuple(kind.name for kind in HELD_OUT_KINDS)
        self.labels = tuple(c for c in range(len(HELD_OUT_KINDS)) for _ in range(TEST_IMAGES_PER_CLASS))

    @cached_property
    def ids(self) -> tuple[str, ...]:
        return tuple(key_of({"shapes": index, "schema": SCHEMA}) for index in range(len(self)))

    def image(self, index: int) -> Image.Image:
        from lgclip.tiny.world import image_of

        return Image.fromarray(image_of("test", index))

    def source(self) -> dict[str, object]:
        return {"dataset": self.name, "schema": SCHEMA}


class Digits(Dataset):
    """The last 899 of scikit-learn's scans of handwritten digits, enlarged to 64x64.

    The first 898 were in the small models' pre-training, so these ten classes are not unseen, as
    most classes of public data sets are not unseen to CLIP and Stable Diffusion.
    """

    name = "digits"
    split = "second half"

    def __init__(self) -> None:
        from lgclip.tiny.world import SCANNED_DIGITS, scanned_digits

        self.class_names = SCANNED_DIGITS
        self._images, labels = scanned_digits(pretrain=False)
        self.labels = tuple(labels.tolist())

    @cached_property
    def ids(self) -> tuple[str, ...]:
        return tuple(key_of({"digits": index, "schema": SCHEMA}) for index in range(len(self)))

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self._images[index])

    def source(self) -> dict[str, object]:
        return {"dataset": self.name, "schema": SCHEMA}


class Folder(Dataset):
    """A folder of the user's own images, one folder a class.

    Args:
        root: The folder; each folder inside it is a class, in the order of their names.
        names: A text file with one class name a line, in the order of the folders; None takes the
            folders' names, with `_` read as a space.

    Raises:
        ValueError: If the folder is missing or empty, a class has no image, the names do not fit
            the folders, or two classes have one name.
    """

    name = "folder"
    split = "all"

    def __init__(self, root: str, names: str | None = None) -> None:
        self.root = Path(root).expanduser().absolute()
        if not self.root.is_dir():
            raise ValueError(f"dataset.root={root}: no such folder; it should hold one folder of images a class")
        inside = sorted(path for path in self.root.iterdir() if path.is_dir())
        folders = [path for path in inside if not path.name.startswith(".")]
        if len(folders) < len(inside):
            log.warning(
                "%s: hidden folders are no classes: %s", root, ", ".join(str(p) for p in inside if p not in folders)
            )
        if not folders:
            raise ValueError(f"dataset.root={root}: no folder in it; it should hold one folder of images a class")
        self.name = self.root.name
        self.class_names = _names(folders, names)
        self.paths: list[Path] = []
        labels: list[int] = []
        for label, folder in enumerate(folders):
            images = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            if not images:
                raise ValueError(f"class {label} has no image: {folder} holds no file named {'|'.join(IMAGE_SUFFIXES)}")
            self.paths += images
            labels += [label] * len(images)
        self.labels = tuple(labels)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        stats = [(path, path.stat()) for path in self.paths]
        return tuple(key_of({"file": str(path), "size": s.st_size, "changed": s.st_mtime_ns}) for path, s in stats)

    def image(self, index: int) -> Image.Image:
        path = self.paths[index]
        try:
            with Image.open(path) as file:
                image = ImageOps.exif_transpose(file)
                if image.mode.startswith("I;16"):  # Pillow would clip 16 bits at 255
                    image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
                return image.convert("RGB")
        except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path} cannot be read as an image ({error}); mend it or move it away") from error

    def source(self) -> dict[str, object]:
        return {"folder": str(self.root), "schema": SCHEMA}


def _names(folders: Sequence[Path], file: str | None) -> tuple[str, ...]:
    if file is None:
        names = [folder.name.replace("_", " ") for folder in folders]
    else:
        path = Path(file).expanduser()
        if not path.is_file():
            raise ValueError(f"dataset.names={file}: no such file; it should hold one class name a line")
        try:
            names = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"dataset.names={file} is not text in UTF-8 ({error})") from error
        while names and not names[-1].strip():
            names.pop()
        if len(names) != len(folders):
            raise ValueError(f"dataset.names={file} holds {len(names)} names for {len(folders)} folders")
    return checked_names(names)


def checked_names(names: Sequence[str]) -> tuple[str, ...]:
    """Class names as they go into prompts: one line each, no control characters, none twice.

    Raises:
        ValueError: If a name is empty, or two names differ in nothing but case and spaces.
    """
    clean = []
    for index, name in enumerate(names):
        text = "".join(" " if unicodedata.category(c) == "Cc" else c for c in unicodedata.normalize("NFC", name))
        text = " ".join(text.split())
        if not text:
            raise ValueError(f"class {index} has an empty name: {name!r}")
        clean.append(text)
    seen = Counter(name.casefold() for name in clean)
    for name in clean:
        if seen[name.casefold()] > 1:
            places = [i for i, other in enumerate(clean) if other.casefold() == name.casefold()]
            raise ValueError(
                f"classes {places} are all named {name!r}: give each a name of its own in dataset.names=FILE"
            )
    return tuple(clean)
