"""Handles ImageNet's 1000 classes: which of them a data set has, where their images are, and their names.

A class is identified by its index in the order of the WordNet ids, as in every published checkpoint; names are
only displayed, never looked up (the usual list has two "missile" and two "sunglasses").
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypedDict

from lgclip.datasets.base import Training
from lgclip.datasets.image_files import CLASSNAMES, ImageFiles, check_counts, images_below, named
from lgclip.datasets.image_tree import ImageTree
from lgclip.store.keys import content_key
from lgclip.types import count_earlier

log = logging.getLogger(__name__)

NUM_CLASSES = 1000
_MAX_LISTED = 12
"""A selection of more classes than this is shown by its key."""


class ClassOptions(TypedDict, total=False):
    """Declares the keyword arguments of `ImageNetImages` that every data set of ImageNet's classes takes."""

    names: str
    classes: Sequence[int] | None
    context: str
    templates: Sequence[str] | None
    counts: bool


@dataclass(frozen=True)
class ClassFolders:
    """Describes a folder tree with images of ImageNet's classes.

    Attributes:
        dataset: Name of the data set.
        root: The folder that all paths are relative to.
        folders: The folder of each class, by its index among ImageNet's 1000, ascending.
        split: Split of the images.
        images: Official number of images.
        images_per_class: Official number of images of each class; None if they differ or were not published.
        hint: What to get and where to put it.
        license: License of the images.
        training: Where the training images are.
    """

    dataset: str
    root: Path
    folders: Mapping[int, str]
    split: str
    images: int
    images_per_class: int | None
    hint: str
    license: str
    training: Training


class ImageNetImages(ImageFiles):
    """Provides images of ImageNet's classes from the user's own copy.

    Args:
        tree: Where they are.
        names: `clip` (OpenAI's curated list), `torchvision` (1000 that differ), `wnids`, `folder` (those that the
            folder tree gives, or else the WordNet ids), or a text file with 1000 lines, in the order of ImageNet's
            indices.
        classes: Indices of the classes to evaluate among ImageNet's 1000; None for all that the data set has.
            ImageNette is [0, 217, 482, 491, 497, 566, 569, 571, 574, 701].
        context: Type of the classes.
        templates: Templates for the text baseline; None builds one from the context.
        counts: Whether the numbers of images must match the official ones.

    Attributes:
        class_indices: Index of each class among ImageNet's 1000.

    Raises:
        ValueError: If a folder, a class, an image or the ground truth is missing; the message says which.
    """

    def __init__(
        self,
        tree: ClassFolders,
        names: str = "clip",
        classes: Sequence[int] | None = None,
        context: str = "",
        templates: Sequence[str] | None = None,
        counts: bool = True,
    ) -> None:
        indices = chosen_indices(tree.dataset, classes, tuple(tree.folders))
        images = self.list_images(tree, indices)
        check_each(tree.dataset, images, tree.images_per_class if counts else None, tree.hint)
        official: int | None = tree.images
        note = ""
        if len(indices) < len(tree.folders):
            # Without a count for each class, how many images some of them should have is unknown.
            official = None if tree.images_per_class is None else tree.images_per_class * len(indices)
            note = f"; {len(indices)} of {len(tree.folders)} classes ({_abbreviated(indices)})"
        files: list[str] = []
        labels: list[int] = []
        for label, index in enumerate(indices):
            files += images[index]
            labels += [label] * len(images[index])
        if official not in (None, len(files)):
            note += f"; {len(files):,} of {official:,} images"
        if counts:
            check_counts(tree.dataset, labels, len(indices), official, tree.hint)
        all_names, list_name = self.name_classes(names)
        occurrences = count_earlier(all_names)
        super().__init__(
            tree.dataset, tree.root, files, labels, [all_names[index] for index in indices],
            split=tree.split + note, names=list_name, context=context, templates=templates, training=tree.training,
        )  # fmt: skip
        self.class_indices = indices
        # Of all 1000: with `classes` the second "missile" stays the second, although the first is left out.
        self.occurrences = tuple(occurrences[index] for index in indices)

    def list_images(self, tree: ClassFolders, indices: Sequence[int]) -> dict[int, Sequence[str]]:
        """Returns the images of each class; empty for a missing folder."""
        images: dict[int, Sequence[str]] = {}
        listed = ImageTree()
        for index in indices:
            folder = tree.folders[index]
            # An absent folder is no error here: the images may lie in another layout, or the check of the counts
            # names all classes without images at once.
            images[index] = []
            if (tree.root / folder).is_dir():
                images[index] = images_below(tree.root, folder, listed)
        listed.report(tree.root)
        return images

    def name_classes(self, names: str) -> tuple[tuple[str, ...], str]:
        """Returns the names of all 1000 classes, and the name of their list as shown in results."""
        return class_names(names), names


@lru_cache(maxsize=4)
def wordnet_ids(dataset: str = "imagenet") -> tuple[str, ...]:
    """Returns the WordNet ids of a data set's classes, in the order of ImageNet's indices."""
    return tuple((CLASSNAMES / f"{dataset}.wnids.txt").read_text(encoding="utf-8").split())


def chosen_indices(dataset: str, classes: Sequence[int] | None, available: Sequence[int]) -> tuple[int, ...]:
    """Returns the indices of the ImageNet classes to evaluate, ascending.

    Args:
        dataset: Name of the data set.
        classes: Indices among ImageNet's 1000; None for all that the data set has. Those that it lacks
            are left out with a warning, so that one list serves the whole family.
        available: The indices that the data set has.

    Raises:
        ValueError: If an index is not a class of ImageNet or is a duplicate, or none is left.
    """
    if classes is None:
        return tuple(available)
    invalid = [index for index in classes if not 0 <= index < NUM_CLASSES]
    twice = [index for index, times in Counter(classes).items() if times > 1]
    if invalid:
        raise ValueError(f"dataset.classes: {invalid} are none of ImageNet's indices 0..999")
    if twice:
        raise ValueError(f"dataset.classes: {twice} occur twice")
    present = sorted(set(classes) & set(available))
    absent = sorted(set(classes) - set(available))
    if not present:
        raise ValueError(f"dataset.classes={list(classes)[:_MAX_LISTED]}: {dataset} has none of these classes")
    if absent:
        log.warning("%s has no images of classes %s: %d of %d evaluated", dataset, absent, len(present), len(classes))
    return tuple(present)


def _abbreviated(indices: Sequence[int]) -> str:
    if len(indices) > _MAX_LISTED:
        return f"list {content_key({'classes': list(indices)})[:8]}"
    return " ".join(map(str, indices))


def check_each(dataset: str, images: Mapping[int, Sequence[str]], images_per_class: int | None, hint: str) -> None:
    """Compares the number of images of every class with the official count.

    Args:
        dataset: Name of the data set.
        images: The images of each class, by its index among ImageNet's 1000.
        images_per_class: Required number of images per class; None requires at least one.
        hint: How to fix a mismatch.

    Raises:
        ValueError: If a class has another number of images; the message names the first few.
    """
    invalid: dict[int, int] = {}
    for index, files in images.items():
        count = len(files)
        if count == 0 or (images_per_class and count != images_per_class):
            invalid[index] = count
    if invalid:
        ids = wordnet_ids()
        examples = ", ".join(f"{ids[index]} (class {index}) has {count}" for index, count in list(invalid.items())[:5])
        required = f"{images_per_class} images" if images_per_class else "images"
        raise ValueError(
            f"dataset={dataset}: {len(invalid)} of {len(images)} classes have not the {required} they should: "
            f"{examples}. {hint}"
        )


def class_names(choice: str, folder_names: Sequence[str] | None = None) -> tuple[str, ...]:
    """Returns the names of ImageNet's 1000 classes.

    Args:
        choice: `clip`, `torchvision`, `wnids`, `folder` for the names that the folder tree itself gives, or a text
            file with 1000 lines, in the order of ImageNet's indices.
        folder_names: The 1000 names that the folder tree itself gives; None for the WordNet ids.

    Raises:
        ValueError: If the list does not exist or does not have 1000 names.
    """
    return named("imagenet", choice, folder_names or wordnet_ids())
