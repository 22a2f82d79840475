"""Reads the Describable Textures Dataset."""

from pathlib import Path
from typing import Unpack

from lgclip.datasets.image_files import folders_in
from lgclip.datasets.label_files import Listing, list_lines
from lgclip.datasets.layout import Archive, Selection, Tree
from lgclip.datasets.public import Options, PublicDataset

CLASSES = 47
IMAGES = {f"partition{n}": {"train": 1_880, "val": 1_880, "test": 1_880} for n in range(1, 11)}
_URL = "https://www.robots.ox.ac.uk/~vgg/data/dtd/"
TREE = Tree(
    "dtd",
    _URL,
    (Archive(f"{_URL}download/dtd-r1.0.1.tar.gz", "dtd", "md5:fff73e5086ae6bdbea199a49dfb8a4c1"),),
    ("images", "labels"),
    ("dtd", "", "dtd/dtd"),
    images=IMAGES,
    split_files={f"partition{n}": (f"labels/{{part}}{n}.txt",) for n in range(1, 11)},
    classes=CLASSES,
    license="for research",
)


class Dtd(PublicDataset):
    """Reads 47 textures (arXiv:1311.3618) with ten official partitions; published results mostly use `partition1`."""

    tree = TREE

    def __init__(self, root: str | None = None, split: str = "partition1", **options: Unpack[Options]) -> None:
        # CoOp's template (arXiv:2109.01134).
        super().__init__(root, split, **Options(context="a texture", templates=["{} texture."]) | options)

    def read(self, folder: Path, selection: Selection) -> Listing:
        listing = Listing(folders_in(folder, "images"))
        for path, image in list_lines(folder, selection.files):
            listing.add_by_name(f"images/{image}", image.partition("/")[0], path)
        return listing
