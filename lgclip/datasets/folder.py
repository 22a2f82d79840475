"""Reads a folder of the user's own images."""

import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from PIL import Image

from lgclip.datasets.base import Dataset, checked_names
from lgclip.datasets.image_files import IMAGE_SUFFIXES, names_in, read_image
from lgclip.datasets.packed_strings import PackedHashes, PackedStrings
from lgclip.runtime.terminal import single_line
from lgclip.runtime.versions import STORE_SCHEMA
from lgclip.store.keys import content_key

log = logging.getLogger(__name__)


class Folder(Dataset):
    """Reads the user's own images, with one folder per class.

    Args:
        root: The folder; each folder inside it is a class, in the order of their names.
        names: A text file with one class name per line, in the order of the folders; None uses the
            folders' names, with `_` read as a space.
        train_root: Folder of the training images, with the same folder names; None if there are none.

    Raises:
        ValueError: If the folder is missing or empty, a class has no image, the names do not match
            the folders, or two classes have the same name.
    """

    name = "folder"
    split = "all"

    def __init__(self, root: str, names: str | None = None, train_root: str | None = None) -> None:
        self.root = Path(root).expanduser().absolute()
        self._train_root = train_root
        if not self.root.is_dir():
            raise ValueError(f"dataset.root={root}: no such folder; it should hold one folder of images per class")
        folders, hidden = _class_folders(self.root)
        if hidden:
            log.warning("%s: hidden folders are no classes: %s", root, ", ".join(map(str, hidden)))
        if not folders:
            raise ValueError(f"dataset.root={root}: no folder in it; it should hold one folder of images per class")
        self.name = single_line(self.root.name)
        self.class_names = _names(folders, names)
        # `_listed` fills it while the files are packed, so that the paths of all classes are never there at once.
        labels: list[int] = []
        self.files = PackedStrings(self._listed(folders, labels))
        self.labels = tuple(labels)

    def _listed(self, folders: Sequence[Path], labels: list[int]) -> Iterator[str]:
        """Yields each image's file and appends its class to the labels, class by class: a million paths take 300 MB."""
        for label, folder in enumerate(folders):
            images = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            if not images:
                raise ValueError(f"class {label} has no image: {folder} holds no file named {'|'.join(IMAGE_SUFFIXES)}")
            labels += [label] * len(images)
            yield from (path.relative_to(self.root).as_posix() for path in images)

    @cached_property
    def ids(self) -> Sequence[str]:
        stats = ((path, path.stat()) for path in map(self.original, range(len(self))))
        return PackedHashes(
            content_key({"file": str(path), "size": s.st_size, "changed": s.st_mtime_ns}) for path, s in stats
        )

    def image(self, index: int) -> Image.Image:
        return read_image(self.original(index))

    def where(self, index: int) -> str:
        return str(self.original(index))

    def original(self, index: int) -> Path:
        return self.root / self.files[index]

    def training_values(self) -> dict[str, object]:
        if self._train_root is None:
            raise ValueError(
                f"dataset=folder has no training split with dataset.root={self.root}: say where its training images "
                "lie by dataset.train_root=DIR, with folders of the same names"
            )
        folder = Path(self._train_root).expanduser().absolute()
        if not folder.is_dir():
            raise ValueError(
                f"dataset.train_root={self._train_root}: no such folder; it should hold one folder per class"
            )
        # Resolved, since a link to the evaluated images would make them training images.
        evaluated = self.root.resolve()
        training = folder.resolve()
        if evaluated == training or evaluated in training.parents or training in evaluated.parents:
            raise ValueError(
                f"dataset.train_root={self._train_root} and dataset.root={self.root} share images; keep them apart"
            )
        ours = {path.name for path in _class_folders(self.root)[0]}
        theirs = {path.name for path in _class_folders(folder)[0]}
        # One folder more or less would shift the index of every class behind it.
        if ours != theirs:
            raise ValueError(
                f"dataset.train_root={self._train_root} has not the class folders of dataset.root: "
                f"without {sorted(ours - theirs)[:6]}, with {sorted(theirs - ours)[:6]} besides"
            )
        return {"root": self._train_root, "train_root": None}

    def source(self) -> dict[str, object]:
        return {"folder": str(self.root), "schema": STORE_SCHEMA}


def _class_folders(root: Path) -> tuple[list[Path], list[Path]]:
    """Returns the sorted subfolders of a folder, and separately the hidden ones."""
    inside = sorted(path for path in root.iterdir() if path.is_dir())
    return [p for p in inside if not p.name.startswith(".")], [p for p in inside if p.name.startswith(".")]


def _names(folders: Sequence[Path], file: str | None) -> tuple[str, ...]:
    if file is None:
        return checked_names([folder.name.replace("_", " ") for folder in folders])
    path = Path(file).expanduser()
    if not path.is_file():
        raise ValueError(f"dataset.names={file}: no such file; it should hold one class name per line")
    return checked_names(names_in(path, file, len(folders), "folders"))
