"""Reads Oxford-IIIT Pet."""

from pathlib import Path
from typing import Unpack

from lgclip.datasets.label_files import Listing, number, rows
from lgclip.datasets.layout import Archive, Selection, Tree
from lgclip.datasets.public import Options, PublicDataset

CLASSES = 37
IMAGES = {"official": {"trainval": 3_680, "test": 3_669}}
_URL = "https://www.robots.ox.ac.uk/~vgg/data/pets/"
TREE = Tree(
    "pets",
    _URL,
    (
        Archive(f"{_URL}data/images.tar.gz", "images", "md5:5c4f3ee8e5d25df40f4fd59a7f44e54c"),
        Archive(f"{_URL}data/annotations.tar.gz", "annotations", "md5:95a8c909bbe2e81eed6a22bccdf3f68f"),
    ),
    ("images", "annotations/trainval.txt", "annotations/test.txt"),
    ("", "oxford-iiit-pet"),
    images=IMAGES,
    classes=CLASSES,
    license="CC BY-SA 4.0",
)


class Pets(PublicDataset):
    """Reads 37 breeds of cats and dogs (Parkhi et al., CVPR 2012)."""

    tree = TREE

    def __init__(self, root: str | None = None, split: str = "official", **options: Unpack[Options]) -> None:
        super().__init__(root, split, **Options(context="a type of pet") | options)

    def read(self, folder: Path, selection: Selection) -> Listing:
        # Cats' files begin with a capital, dogs' do not: sorting names puts all cats first, and every
        # class after Abyssinian would have another's label. The numbers in the files are the labels.
        breeds: dict[int, str] = {}
        listing = Listing([])
        for part in ("trainval", "test"):  # the names of all classes are in both together
            path = folder / "annotations" / f"{part}.txt"
            for image, label, _, _ in rows(path, 4):
                index = number(path, label, CLASSES) - 1
                breed = image.rpartition("_")[0]
                if breeds.setdefault(index, breed) != breed:
                    raise ValueError(f"{path} is damaged: class {label} is {breed} and {breeds[index]}")
                if part in selection.parts:
                    listing.add(f"images/{image}.jpg", index)
        listing.class_names = [breeds.get(index, "") for index in range(CLASSES)]
        return listing
