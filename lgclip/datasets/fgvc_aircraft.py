"""Reads FGVC-Aircraft."""

from dataclasses import replace
from pathlib import Path
from typing import Unpack

from lgclip.datasets.label_files import Listing, lines, rows
from lgclip.datasets.layout import Archive, Selection, Tree
from lgclip.datasets.public import Options, PublicDataset

LEVELS = {"variant": ("variants.txt", 100), "family": ("families.txt", 70), "manufacturer": ("manufacturers.txt", 30)}
"""File with the classes of each level, and how many there are."""
IMAGES = {"official": {"train": 3_334, "val": 3_333, "test": 3_333}}
_URL = "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/"
TREE = Tree(
    "fgvc_aircraft",
    _URL,
    # The only checksum that was found in print is of the file as some clients unzip it on the way.
    (Archive(f"{_URL}archives/fgvc-aircraft-2013b.tar.gz", "fgvc-aircraft-2013b"),),
    ("images",),
    ("fgvc-aircraft-2013b/data", "data", ""),
    images=IMAGES,
    license="non-commercial research",
)


class FgvcAircraft(PublicDataset):
    """Reads aircraft by `level`: variant, family or manufacturer (arXiv:1306.5151); CLIP names only variants."""

    def __init__(
        self, root: str | None = None, split: str = "official", level: str = "variant", **options: Unpack[Options]
    ) -> None:
        if level not in LEVELS:
            raise ValueError(f"dataset.level={level}: choose {', '.join(LEVELS)}")
        self.level = level
        super().__init__(root, split, **Options(context="a type of aircraft") | options)

    def describe(self) -> Tree:
        class_file, classes = LEVELS[self.level]
        split_files = {"official": (f"images_{self.level}_{{part}}.txt",)}
        tree = replace(TREE, inside=("images", class_file), split_files=split_files, classes=classes)
        if self.level == "variant":
            return tree
        return replace(tree, variant=f"by {self.level}", name_lists=f"fgvc_aircraft_{self.level}")

    def read(self, folder: Path, selection: Selection) -> Listing:
        class_file, _ = LEVELS[self.level]
        listing = Listing([line.strip() for line in lines(folder / class_file)])
        for file in selection.files:
            for image, class_name in rows(folder / file, 2):
                listing.add_by_name(f"images/{image}.jpg", class_name, folder / file)
        if self.level == "variant":
            # GRIP's list of the variants (arXiv:2306.01669) is sorted without regard to case, the archive's with it.
            names = listing.class_names
            self.draw_order = tuple(sorted(range(len(names)), key=lambda index: names[index].casefold()))
        return listing
