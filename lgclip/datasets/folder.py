"""Reads a folder of the user's own images."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from PIL import Image

from lgclip.datasets.base import Dataset, checked_names
from lgclip.datasets.class_map import assign_names, sort_folders
from lgclip.datasets.content_ids import content_ids
from lgclip.datasets.image_decoding import read_image
from lgclip.datasets.image_files import sentences
from lgclip.datasets.image_tree import NO_CLASS, ImageTree, class_folders, drop_repeated, list_images
from lgclip.datasets.packed_strings import PackedHashes, PackedStrings
from lgclip.runtime.terminal import single_line
from lgclip.runtime.versions import STORE_SCHEMA

log = logging.getLogger(__name__)

_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing", "eval", "evaluation", "dev"}
_TEST_NAMES = ("test", "testing", "eval", "evaluation", "val", "valid", "validation", "dev")
"""Names of the split to evaluate, the most likely first."""
_SHOWN = 10  # lines of the class map in the log


class Folder(Dataset):
    """Reads the user's own images, with one folder per class.

    All images of a class folder count, also in its subfolders and through links. What is not read (hidden files, those
    of operating systems, files that are no images) is counted and logged.

    Args:
        root: The folder; each folder inside it is a class, in the order of their names, or of their numbers if all
            are numbers.
        names: A text file with the class names: one per line in the order of the folders, or FOLDER<TAB>NAME per line.
            None uses the folders' names, with `_` read as a space.
        train_root: Folder of the training images, with the same folder names; None if there are none.
        context: Type of the classes, such as "a type of bird".
        templates: Templates for the text baseline; None builds one from the context.

    Raises:
        ValueError: If the folder is missing or empty, has one class or the folders of splits, a class has no image,
            the names do not match the folders, or two classes have the same name.
    """

    name = "folder"
    split = "all"

    def __init__(
        self,
        root: str,
        names: str | None = None,
        train_root: str | None = None,
        context: str = "",
        templates: Sequence[str] | None = None,
    ) -> None:
        self.root = Path(root).expanduser().absolute()
        self._train_root = train_root
        self.context = context
        self.templates = sentences(context, templates)
        if not self.root.is_dir():
            raise ValueError(f"dataset.root={root}: no such folder; it should hold one folder of images per class")
        names_of_folders, tree = class_folders(self.root)
        folders = sort_folders(names_of_folders)
        _check_level(root, self.root, folders, tree)
        self.name = single_line(self.root.name)
        self.class_names = _names(folders, names)
        self.folder_names = dict(zip(folders, self.class_names, strict=True))
        # `_listed` fills it while the files are packed, so that the paths of all classes are never there at once.
        labels: list[int] = []
        self.files = PackedStrings(self._listed(folders, labels, tree))
        self.labels = tuple(labels)
        dropped = drop_repeated(self.root, self.files, tree)
        if dropped:
            self._leave_out(dropped, tree)
        tree.report(self.root)
        self.files_left_out = dict(tree.left_out)
        self.files_noted = dict(tree.unusual)
        self._log_names(named=names is not None)

    def _listed(self, folders: Sequence[str], labels: list[int], tree: ImageTree) -> Iterator[str]:
        """Yields each image's file and appends its class to the labels, class by class: a million paths take 300 MB."""
        for label, folder in enumerate(folders):
            listed = list_images(self.root, folder, recursive=True)
            tree.add(listed)
            if not listed.files:
                reasons = ", ".join(f"{reason}: {count}" for reason, count in listed.left_out.items())
                left_out = f"; left out: {reasons}" if reasons else ""
                raise ValueError(f"class {label} has no image: {self.root / folder} holds none{left_out}")
            labels += [label] * len(listed.files)
            yield from listed.files

    def _leave_out(self, dropped: Mapping[str, str], tree: ImageTree) -> None:
        """Leaves out the files that are listed under another path already."""
        for path, other in dropped.items():
            # Of a link the file's own folder is the class. Two names of one file are equal, so that none is.
            if path not in tree.linked and path.partition("/")[0] != other.partition("/")[0]:
                raise ValueError(
                    f"{self.root}: {single_line(other)} and {single_line(path)} are one file in two classes; keep one"
                )
        remaining = [index for index, file in enumerate(self.files) if file not in dropped]
        self.labels = tuple(self.labels[index] for index in remaining)
        self.files = PackedStrings(self.files[index] for index in remaining)
        empty = sorted(set(range(len(self.class_names))) - set(self.labels))
        if empty:
            raise ValueError(
                f"class {empty[0]} ({self.class_names[empty[0]]!r}) has no image of its own: all its files are links "
                "to images of other classes"
            )

    def _log_names(self, *, named: bool) -> None:
        """Logs which name each folder has: a wrong order gives a wrong accuracy without any other sign."""
        if named:
            pairs = [f"{folder} = {name}" for folder, name in list(self.folder_names.items())[:_SHOWN]]
            more = len(self.folder_names) - len(pairs)
            suffix = f", {more} more in result.json" if more else ""
            log.info("%s: class names: %s%s", self.name, single_line("; ".join(pairs)), suffix)
        elif all(name.isdigit() for name in self.class_names):
            log.warning(
                "%s: the class folders are numbers, which say nothing to a language model or a text encoder; give "
                "names by dataset.names=FILE",
                self.root,
            )

    @cached_property
    def ids(self) -> Sequence[str]:
        return PackedHashes(content_ids(self.root, self.files))

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
        ours = set(self.folder_names)
        theirs = set(class_folders(folder)[0])
        # One folder more or less would shift the index of every class behind it.
        if ours != theirs:
            raise ValueError(
                f"dataset.train_root={self._train_root} has not the class folders of dataset.root: "
                f"without {sorted(ours - theirs)[:6]}, with {sorted(theirs - ours)[:6]} besides"
            )
        return {"root": self._train_root, "train_root": None}

    def source(self) -> dict[str, object]:
        # Without the folder: an image is known by its content wherever it lies.
        return {"dataset": "folder", "schema": STORE_SCHEMA}


def _check_level(root_text: str, root: Path, folders: Sequence[str], tree: ImageTree) -> None:
    """Checks that the folders inside a root are classes, and not splits or a level too high or too low.

    Raises:
        ValueError: If they are not; the message says which folder to give.
    """
    loose = tree.left_out[NO_CLASS]
    if not folders and loose:
        raise ValueError(
            f"dataset.root={root_text}: it holds {loose} images and no folder; it should hold one folder of images per "
            f"class. If it is itself the folder of a class, give its parent: dataset.root={root.parent}"
        )
    if not folders:
        raise ValueError(f"dataset.root={root_text}: no folder in it; it should hold one folder of images per class")
    splits = {folder.casefold(): folder for folder in folders if folder.casefold() in _SPLIT_NAMES}
    inner = {folder: class_folders(root / folder)[0] for folder in splits.values()}
    # Classes may well be named "test" and "train": the folders of a split hold folders, and of other splits the same.
    if splits and (len(splits) == len(folders) or len(splits) > 1) and all(inner.values()):
        split = next((splits[name] for name in _TEST_NAMES if name in splits), next(iter(splits.values())))
        raise ValueError(
            f"dataset.root={root_text}: its folders {', '.join(splits.values())} are splits, not classes; give one of "
            f"them: dataset.root={root / split}"
        )
    if len(folders) == 1:
        inside = class_folders(root / folders[0])[0]
        advice = "a classifier needs two at least"
        if inside:
            advice = f"if the classes are the folders in it, give dataset.root={root / folders[0]}"
        raise ValueError(f"dataset.root={root_text}: only one class folder, {folders[0]}; {advice}")


def _names(folders: Sequence[str], file: str | None) -> tuple[str, ...]:
    if file is None:
        return checked_names([folder.replace("_", " ") for folder in folders])
    path = Path(file).expanduser()
    if not path.is_file():
        raise ValueError(f"dataset.names={file}: no such file; it should hold one class name per line")
    return checked_names(assign_names(folders, path, file))
