"""FGVC-Aircraft."""

from collections.abc import Sequence
from dataclasses import replace

from lgclip.datasets.files import ImageFiles, named
from lgclip.datasets.reading import index_of, lines, rows
from lgclip.datasets.tree import Archive, Tree, chosen

LEVELS = {"variant": ("variants.txt", 100), "family": ("families.txt", 70), "manufacturer": ("manufacturers.txt", 30)}
"""File with the classes of each level, and how many there are."""
IMAGES = {"official": {"train": 3_334, "val": 3_333, "test": 3_333}}

TREE = Tree(
    "fgvc_aircraft",
    "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
    (
        # The one checksum that was found in print is of the file as some clients unzip it on the way.
        Archive(
            "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
            "fgvc-aircraft-2013b",
        ),
    ),
    ("images",),
    ("fgvc-aircraft-2013b/data", "data", ""),
)


class FgvcAircraft(ImageFiles):
    """Aircraft by variant, family or manufacturer (arXiv:1306.5151).

    Args:
        root: The folder that `fgvc-aircraft-2013b` lies in, or that folder; None: `$LGCLIP_DATA/fgvc_aircraft`, or
            else `data/fgvc_aircraft`.
        split: `official` (its test part), `official-train`, `-val`, `-trainval`, or `all`.
        level: `variant` (100 classes), `family` (70) or `manufacturer` (30).
        names: `clip` (variants alone), `folder` (as in the files), or a text file.
        download: Whether to download what is missing.
        context: What kind of things the classes are.
        templates: Sentences for the text baseline; None makes one of the context.
        counts: Whether the numbers of images must be the official ones.

    Raises:
        ValueError: If a file is missing, a line is damaged or a count is off; the message says which.
    """

    def __init__(
        self,
        root: str | None = None,
        split: str = "official",
        level: str = "variant",
        names: str = "clip",
        download: bool = False,
        context: str = "a type of aircraft",
        templates: Sequence[str] | None = None,
        counts: bool = True,
    ) -> None:
        if level not in LEVELS:
            raise ValueError(f"dataset.level={level}: choose {', '.join(LEVELS)}")
        classes, how_many = LEVELS[level]
        asked = chosen(split, IMAGES)
        listed = [f"images_{level}_{part}.txt" for part in asked.parts]
        tree = replace(TREE, inside=(*TREE.inside, classes, *listed))
        place = tree.place(root, download)
        found = [line.strip() for line in lines(place / classes)]
        entries = [(place / file, *row) for file in listed for row in rows(place / file, 2)]
        files = [f"images/{image}.jpg" for _, image, _ in entries]
        labels = [index_of(path, name, found) for path, _, name in entries]
        shown = tree.check(place, files, labels, asked, how_many if counts else 0)
        lists = "fgvc_aircraft" if level == "variant" else f"fgvc_aircraft_{level}"
        super().__init__(
            "fgvc_aircraft", place, files, labels, named(lists, names, found),
            split=shown if level == "variant" else f"{shown}, by {level}",
            names=names, context=context, templates=templates, training=asked.training,
        )  # fmt: skip
