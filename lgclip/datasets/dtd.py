"""Describable Textures Dataset."""

from collections.abc import Sequence
from dataclasses import replace

from lgclip.datasets.files import ImageFiles, folders_in, named
from lgclip.datasets.reading import index_of, lines
from lgclip.datasets.tree import Archive, Tree, chosen

CLASSES = 47
IMAGES = {f"partition{n}": {"train": 1_880, "val": 1_880, "test": 1_880} for n in range(1, 11)}

TREE = Tree(
    "dtd",
    "https://www.robots.ox.ac.uk/~vgg/data/dtd/",
    (
        Archive(
            "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
            "dtd",
            "md5:fff73e5086ae6bdbea199a49dfb8a4c1",
        ),
    ),
    ("images", "labels"),
    ("dtd", "", "dtd/dtd"),
)


class Dtd(ImageFiles):
    """47 textures (arXiv:1311.3618).

    Args:
        root: The folder that `dtd` lies in, or that folder; None: `$LGCLIP_DATA/dtd`, or else `data/dtd`.
        split: `partition1` to `partition10` (the test part of each, or `partition1-train`, `-val`, `-trainval`
            and so on), or `all`. Published figures are mostly of partition 1.
        names: `clip` or `folder` (the same words), or a text file.
        download: Whether to download what is missing.
        context: What kind of things the classes are.
        templates: Sentences for the text baseline; CoOp's single one (arXiv:2109.01134).
        counts: Whether the numbers of images must be the official ones.

    Raises:
        ValueError: If a file is missing, a line is damaged or a count is off; the message says which.
    """

    def __init__(
        self,
        root: str | None = None,
        split: str = "partition1",
        names: str = "clip",
        download: bool = False,
        context: str = "a texture",
        templates: Sequence[str] | None = ("{} texture.",),
        counts: bool = True,
    ) -> None:
        asked = chosen(split, IMAGES)
        listed = [f"labels/{part}{asked.partition.removeprefix('partition')}.txt" for part in asked.parts]
        tree = replace(TREE, inside=(*TREE.inside, *listed))
        place = tree.place(root, download)
        found = folders_in(place, "images")
        images = [(place / file, line.strip()) for file in listed for line in lines(place / file)]
        files = [f"images/{image}" for _, image in images]
        labels = [index_of(path, image.partition("/")[0], found) for path, image in images]
        shown = tree.check(place, files, labels, asked, CLASSES if counts else 0)
        super().__init__(
            "dtd", place, files, labels, named("dtd", names, found),
            split=shown, names=names, context=context, templates=templates, training=asked.training,
        )  # fmt: skip
