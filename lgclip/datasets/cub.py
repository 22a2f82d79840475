"""Reads Caltech-UCSD Birds 200-2011 by its own four text files; no library provides it."""

from dataclasses import replace
from pathlib import Path
from typing import Unpack

from lgclip.datasets.label_files import Listing, number, rows
from lgclip.datasets.layout import Archive, Selection, Tree
from lgclip.datasets.public import Options, PublicDataset

CLASSES = 200
IMAGES = {"official": {"train": 5994, "test": 5794}}
_PAGE = "https://data.caltech.edu/records/65de6-vp158"
TREE = Tree(
    "cub",
    _PAGE,
    (Archive(f"{_PAGE}/files/CUB_200_2011.tgz", "CUB_200_2011", "md5:97eceeb196236b17998738112f37df78"),),
    ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt", "images"),
    ("CUB_200_2011", ""),
    classes=CLASSES,
    license="see its page",
)


class Cub(PublicDataset):
    """Reads 200 bird species (CNS-TR-2011-001); `names=folder` turns `001.Laysan_Albatross` into "Laysan Albatross"."""

    def __init__(self, root: str | None = None, split: str = "official", **options: Unpack[Options]) -> None:
        super().__init__(root, split, **Options(names="folder", context="a type of bird") | options)

    def describe(self) -> Tree:
        return replace(TREE, images=IMAGES)  # here, so that a smaller copy can state its own counts

    def read(self, folder: Path, selection: Selection) -> Listing:
        # Three files state the name, class and part of each image, by its number.
        listing = Listing([name.partition(".")[2] or name for _, name in rows(folder / "classes.txt", 2)])
        names = dict(rows(folder / "images.txt", 2))
        labels = _column(folder / "image_class_labels.txt", names)
        is_train = _column(folder / "train_test_split.txt", names)
        codes = {"train": "1", "test": "0"}
        selected_codes = {codes[part] for part in selection.parts}
        for image, name in names.items():
            if is_train[image] in selected_codes:
                label = number(folder / "image_class_labels.txt", labels[image], len(listing.class_names))
                listing.add(f"images/{name}", label - 1)
        return listing


def _column(path: Path, names: dict[str, str]) -> dict[str, str]:
    """Returns the value that a file states for each image."""
    column = dict(rows(path, 2))
    if column.keys() != names.keys():
        odd = sorted(column.keys() ^ names.keys())[:5]
        raise ValueError(f"{path} and images.txt do not name the same images: {', '.join(odd)}")
    return column
