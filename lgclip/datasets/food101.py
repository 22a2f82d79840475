"""Food-101."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lgclip.datasets.files import ImageFiles, named
from lgclip.datasets.reading import coop_split, index_of, json_of
from lgclip.datasets.tree import Archive, Tree, chosen

CLASSES = 101
IMAGES: dict[str, dict[str, int | None]] = {
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
)


class Food101(ImageFiles):
    """101 dishes (Bossard et al., ECCV 2014); the training labels are noisy, the test labels are not.

    Args:
        root: The folder that `food-101` lies in, or that folder; None: `$LGCLIP_DATA/food101`, or else `data/food101`.
        split: `official` (its test part), `official-train`, `all`, or `coop` (arXiv:2109.01134, which LGCLIP's
            release judges on; its test part, or `coop-train` and so on).
        names: `clip` or `folder` (the same words), or a text file.
        download: Whether to download what is missing.
        context: What kind of things the classes are.
        templates: Sentences for the text baseline; CLIP's has no article before a dish.
        counts: Whether the numbers of images must be the official ones.

    Raises:
        ValueError: If a file is missing or damaged or a count is off; the message says which.
    """

    def __init__(
        self,
        root: str | None = None,
        split: str = "official",
        names: str = "clip",
        download: bool = False,
        context: str = "a type of food",
        templates: Sequence[str] | None = ("a photo of {}, a type of food.",),
        counts: bool = True,
    ) -> None:
        asked, tree = chosen(split, IMAGES), TREE
        if asked.partition == "coop":
            drive = "https://drive.google.com/file/d/1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl/view"
            hand = f"{COOP} is got by hand: {drive} (CoOp's DATASETS.md); put it beside images"
            tree = replace(tree, inside=(*tree.inside, COOP), by_hand=hand)
        place = tree.place(root, download)
        listed = {part: json_of(place / "meta" / f"{part}.json") for part in ("train", "test")}
        for part, content in listed.items():
            if not isinstance(content, dict) or not all(isinstance(images, list) for images in content.values()):
                raise ValueError(f"{place / 'meta' / part}.json is damaged: it is no list of images a class")
        found = sorted({name for content in listed.values() for name in content})
        images = _coop(place / COOP, asked.parts, found) if asked.partition == "coop" else _listed(listed, asked.parts)
        files = [f"images/{image}.jpg" for image in images]
        labels = [index_of(place, image.partition("/")[0], found) for image in images]
        shown = tree.check(place, files, labels, asked, CLASSES if counts else 0)
        super().__init__(
            "food101", place, files, labels, named("food101", names, found),
            split=shown, names=names, context=context, templates=templates, training=asked.training,
        )  # fmt: skip


def _listed(listed: Mapping[str, Mapping[str, Sequence[str]]], parts: Sequence[str]) -> list[str]:
    return [image for part in parts for images in listed[part].values() for image in images]


def _coop(path: Path, parts: Sequence[str], classes: Sequence[str]) -> list[str]:
    images = []
    for part in parts:
        for file, label in coop_split(path, part):
            if index_of(path, file.partition("/")[0], classes) != label:
                raise ValueError(f"{path} does not fit meta: {file} has the label {label}")
            images.append(file.removesuffix(".jpg"))
    return images
