"""ImageNet's 1000 classes: which a data set judges, where they lie in a tree, and what they are called.

A class is its index in the order of the WordNet ids, as in every published checkpoint; names are
shown, never looked up (the usual list has two "missile" and two "sunglasses").
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from lgclip.datasets.files import CLASSNAMES, images_below, named
from lgclip.identity import key_of

log = logging.getLogger(__name__)

NUM_CLASSES = 1000
_SHOWN = 12
"""A choice of more classes than this is shown by a key of it."""


class Chosen(NamedTuple):
    """The images of the classes that are judged.

    Attributes:
        indices: Index of each class among ImageNet's 1000, ascending.
        files: Each image, by its place.
        labels: Place of each image's class in `indices`.
        note: What to add to the split's name; empty if every class is judged.
    """

    indices: tuple[int, ...]
    files: tuple[str, ...]
    labels: tuple[int, ...]
    note: str


@lru_cache(maxsize=4)
def wordnet_ids(dataset: str = "imagenet") -> tuple[str, ...]:
    """WordNet ids of a data set's classes, in the order of ImageNet's indices."""
    return tuple((CLASSNAMES / f"{dataset}.wnids.txt").read_text(encoding="utf-8").split())


def chosen_indices(dataset: str, classes: Sequence[int] | None, held: Sequence[int]) -> tuple[int, ...]:
    """Which of ImageNet's classes are judged, ascending.

    Args:
        dataset: The data set's name.
        classes: Indices among ImageNet's 1000; None for all that the data set has. Those that it has not
            are left out with a warning, so that one list serves the whole family.
        held: The indices that the data set has.

    Raises:
        ValueError: If an index is no class of ImageNet, stands there twice, or none is left.
    """
    if classes is None:
        return tuple(held)
    wrong = [index for index in classes if not 0 <= index < NUM_CLASSES]
    twice = [index for index, times in Counter(classes).items() if times > 1]
    if wrong or twice:
        said = f"{wrong} are none of ImageNet's indices 0..999" if wrong else f"{twice} stand there twice"
        raise ValueError(f"dataset.classes: {said}")
    found, absent = sorted(set(classes) & set(held)), sorted(set(classes) - set(held))
    if not found:
        raise ValueError(f"dataset.classes={list(classes)[:_SHOWN]}: {dataset} has none of these classes")
    if absent:
        log.warning("%s has no images of classes %s: %d of %d judged", dataset, absent, len(found), len(classes))
    return tuple(found)


def choose(images: Mapping[int, Sequence[str]], indices: Sequence[int], held: int, official: int | None) -> Chosen:
    """The images of some classes, in the order of the classes.

    Args:
        images: Each class's images, by its index among ImageNet's 1000.
        indices: The classes that are judged.
        held: How many classes the data set has.
        official: How many images these classes have officially; None if that is not known.
    """
    files = tuple(file for index in indices for file in images[index])
    note = ""
    if len(indices) < held:
        shown = " ".join(map(str, indices))
        if len(indices) > _SHOWN:
            shown = f"list {key_of({'classes': list(indices)})[:8]}"
        note = f"; {len(indices)} of {held} classes ({shown})"
    if official is not None and len(files) != official:
        note += f"; {len(files):,} of {official:,} images"
    return Chosen(tuple(indices), files, tuple(i for i, index in enumerate(indices) for _ in images[index]), note)


def images_in(root: Path, folders: Iterable[str]) -> list[list[str]]:
    """The images in each folder, by their place under `root`; none for a folder that is not there."""
    return [images_below(root, folder) if (root / folder).is_dir() else [] for folder in folders]


def check_each(dataset: str, images: Mapping[int, Sequence[str]], each: int | None, hint: str) -> None:
    """Compares the images of every class with the official count.

    Args:
        dataset: The data set's name.
        images: Each class's images, by its index among ImageNet's 1000.
        each: How many images a class must have; None asks for one at least.
        hint: What to do about it.

    Raises:
        ValueError: If a class has another number of images; the message names the first few.
    """
    off = {index: len(files) for index, files in images.items() if (len(files) != each if each else not files)}
    if off:
        ids = wordnet_ids()
        shown = ", ".join(f"{ids[index]} (class {index}) has {count}" for index, count in list(off.items())[:5])
        wanted = f"{each} images" if each else "images"
        raise ValueError(
            f"dataset={dataset}: {len(off)} of {len(images)} classes have not the {wanted} they should: {shown}. {hint}"
        )


def class_names(choice: str, indices: Sequence[int], found: Sequence[str] | None = None) -> tuple[str, ...]:
    """Names of some of ImageNet's classes, by the list that is asked for.

    Args:
        choice: `clip`, `torchvision`, `wnids`, `folder` for the names that the tree itself gives, or a text
            file with 1000 lines, in the order of ImageNet's indices.
        indices: The classes that are judged.
        found: The 1000 names that the tree itself gives; None for the WordNet ids.

    Raises:
        ValueError: If there is no such list or it has not 1000 names.
    """
    every = named("imagenet", choice, found or wordnet_ids())
    return tuple(every[index] for index in indices)
