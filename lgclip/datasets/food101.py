"""Food-101."""

from collections.abc import Sequence

from lgclip.datasets.files import ImageFiles, named
from lgclip.datasets.reading import json_of
from lgclip.datasets.tree import Archive, Tree, chosen

CLASSES = 101
IMAGES = {"official": {"train": 75_750, "test": 25_250}}

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
        split: `official` (its test part), `official-train`, or `all`.
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
        asked = chosen(split, IMAGES)
        place = TREE.place(root, download)
        listed = {part: json_of(place / "meta" / f"{part}.json") for part in ("train", "test")}
        for part, content in listed.items():
            if not isinstance(content, dict) or not all(isinstance(images, list) for images in content.values()):
                raise ValueError(f"{place / 'meta' / part}.json is damaged: it is no list of images a class")
        found = sorted({name for content in listed.values() for name in content})
        entries = [(image, name) for part in asked.parts for name, images in listed[part].items() for image in images]
        files = [f"images/{image}.jpg" for image, _ in entries]
        index = {name: at for at, name in enumerate(found)}
        labels = [index[name] for _, name in entries]
        shown = TREE.check(place, files, labels, asked, CLASSES if counts else 0)
        super().__init__(
            "food101", place, files, labels, named("food101", names, found),
            split=shown, names=names, context=context, templates=templates,
        )  # fmt: skip
