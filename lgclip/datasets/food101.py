"""Reads Food-101."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Unpack

from lgclip.datasets.label_files import Listing, coop_folders, json_of
from lgclip.datasets.layout import Archive, Partitions, Selection, Tree, coop_hint
from lgclip.datasets.public import Options, PublicDataset

CLASSES = 101
IMAGES: Partitions = {
    "official": {"train": 75_750, "test": 25_250},
    "coop": {"train": None, "val": None, "test": None},  # no counts were found in print
}
COOP = "split_zhou_Food101.json"
TREE = Tree(
    "food101",
    "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
    (Archive("http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz", "food-101", "md5:85eeb15f3717b99a5da872d97d918f87"),),
    ("meta/train.json", "meta/test.json", "images"),
    ("food-101", ""),
    coop_hint(COOP, "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl", "images"),
    IMAGES,
    split_files={"coop": (COOP,)},
    classes=CLASSES,
    license="scientific fair use; the images are Foodspotting's",
)


class Food101(PublicDataset):
    """Reads 101 dishes (Bossard et al., ECCV 2014); the training labels are noisy, the test labels are not.

    LGCLIP's release evaluates CoOp's split (arXiv:2109.01134), `split=coop`.
    """

    tree = TREE

    def __init__(self, root: str | None = None, split: str = "official", **options: Unpack[Options]) -> None:
        # CLIP's template has no article before a dish.
        defaults = Options(context="a type of food", templates=["a photo of {}, a type of food."])
        super().__init__(root, split, **defaults | options)

    def read(self, folder: Path, selection: Selection) -> Listing:
        images_of = {part: _read_meta(folder / "meta" / f"{part}.json") for part in ("train", "test")}
        # The official classes.txt is in this order too.
        listing = Listing(sorted({*images_of["train"], *images_of["test"]}))
        if selection.partition == "coop":
            path = folder / COOP
            for file, label in coop_folders(path, selection.parts, listing.class_names, "does not fit meta"):
                listing.add(f"images/{file.removesuffix('.jpg')}.jpg", label)
            return listing
        for part in selection.parts:
            for images in images_of[part].values():
                for image in images:
                    listing.add_by_name(f"images/{image}.jpg", image.partition("/")[0], folder)
        return listing


def _read_meta(path: Path) -> Mapping[str, Sequence[str]]:
    """Reads the images of each dish."""
    content = json_of(path)
    if not isinstance(content, dict) or not all(isinstance(images, list) for images in content.values()):
        raise ValueError(f"{path} is damaged: it is not a list of images per class")
    return content
