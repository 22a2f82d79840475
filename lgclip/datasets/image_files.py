"""Locates, reads and names the images of file-based data sets."""

import os
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from PIL import Image

from lgclip.datasets.base import Dataset, Training, checked_names
from lgclip.datasets.class_map import assign_names
from lgclip.datasets.content_ids import content_ids
from lgclip.datasets.image_decoding import read_image
from lgclip.datasets.image_tree import ImageTree, class_folders, drop_repeated, list_images
from lgclip.datasets.packed_strings import PackedHashes, PackedStrings
from lgclip.runtime.versions import STORE_SCHEMA

_MAX_LISTED = 6  # missing files in an error
CLASSNAMES = Path(__file__).parent / "classnames"
"""Lists of class names, `DATASET.LIST.txt`: one name per line, in the order of the class indices."""


class ImageFiles(Dataset):
    """Provides labelled image files under one root.

    The key of an image is the content of its file, so that a folder can be moved and every split of a data set shares
    what is stored of an image.

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
        return PackedHashes(content_ids(self.root, self.files))

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
    """Returns the names of a folder's subfolders, sorted; hidden ones and those of tools are skipped."""
    folders, tree = class_folders(root / folder)
    tree.report(root / folder)
    return folders


def images_below(root: Path, folder: str, tree: ImageTree | None = None) -> list[str]:
    """Returns the images in one folder, sorted, by their path below `root`.

    Args:
        root: The root.
        folder: The folder, relative to it.
        tree: Where to count what is left out; None logs it.
    """
    listed = list_images(root, folder, recursive=False)
    dropped = drop_repeated(root, listed.files, listed)
    if tree is None:
        listed.report(root)
    else:
        tree.add(listed)
    return [file for file in listed.files if file not in dropped]


def named(dataset: str, choice: str, folder_names: Sequence[str], *, sorted_by_name: bool = False) -> tuple[str, ...]:
    """Returns the class names of a data set from the requested list.

    Args:
        dataset: Name of the data set.
        choice: `folder` for the names that the data set's own files give, the name of a list in the
            package, or the path of a text file with one name per line, or FOLDER<TAB>NAME per line.
        folder_names: The names that the data set's own files give, by class index; empty where they give none.
        sorted_by_name: Whether the class indices are the order of these names; else the data set defines them.

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
    packaged = CLASSNAMES / f"{dataset}.{choice}.txt"
    if packaged.is_file():
        return checked_names(packaged.read_text(encoding="utf-8").splitlines(), unique=False)
    path = Path(choice).expanduser()
    if not path.is_file():
        raise ValueError(f"dataset.names={choice}: choose {ways}, or a text file with one name per line")
    names = assign_names(folder_names, path, choice, noun="classes", sorted_by_name=sorted_by_name)
    return checked_names(names, unique=False)


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
