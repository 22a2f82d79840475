"""A folder of the user's own images."""

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from PIL import Image

from lgclip.datasets.base import Dataset, checked_names
from lgclip.datasets.files import IMAGE_SUFFIXES, names_in, read_image
from lgclip.identity import SCHEMA, key_of
from lgclip.shown import one_line
from lgclip.texts import Texts

log = logging.getLogger(__name__)


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
        self.name = one_line(self.root.name)
        self.class_names = _names(folders, names)
        paths: list[str] = []
        labels: list[int] = []
        for label, folder in enumerate(folders):
            images = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            if not images:
                raise ValueError(f"class {label} has no image: {folder} holds no file named {'|'.join(IMAGE_SUFFIXES)}")
            paths += (path.relative_to(self.root).as_posix() for path in images)
            labels += [label] * len(images)
        self.files, self.labels = Texts(paths), tuple(labels)

    @cached_property
    def ids(self) -> Sequence[str]:
        stats = ((path, path.stat()) for path in map(self.original, range(len(self))))
        return Texts(key_of({"file": str(path), "size": s.st_size, "changed": s.st_mtime_ns}) for path, s in stats)

    def image(self, index: int) -> Image.Image:
        return read_image(self.original(index))

    def where(self, index: int) -> str:
        return str(self.original(index))

    def original(self, index: int) -> Path:
        return self.root / self.files[index]

    def source(self) -> dict[str, object]:
        return {"folder": str(self.root), "schema": SCHEMA}


def _names(folders: Sequence[Path], file: str | None) -> tuple[str, ...]:
    if file is None:
        return checked_names([folder.name.replace("_", " ") for folder in folders])
    path = Path(file).expanduser()
    if not path.is_file():
        raise ValueError(f"dataset.names={file}: no such file; it should hold one class name a line")
    return checked_names(names_in(path, file, len(folders), "folders"))
