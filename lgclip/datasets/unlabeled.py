"""Provides images without their labels: of a data set, or of a folder."""

from pathlib import Path

from lgclip.datasets.base import Dataset
from lgclip.datasets.image_files import ImageFiles
from lgclip.datasets.image_tree import NESTED, drop_repeated, list_images
from lgclip.datasets.subsets import Part

CLASS_NAME = "unlabelled"
"""Name of the only class of unlabelled images, for messages."""


class Unlabeled(Part):
    """Provides evenly spaced images of a data set, all with the label 0, so that nothing can read their classes.

    Args:
        full: The complete data set.
        limit: Maximum number of images; None for all.
    """

    def __init__(self, full: Dataset, limit: int | None = None) -> None:
        count = len(full)
        size = count if limit is None else min(limit, count)
        # Evenly spaced and not the first ones, because data sets are often sorted by class.
        super().__init__(full, [place * count // size for place in range(size)])
        self.labels = (0,) * size
        self.class_names = (CLASS_NAME,)
        self.class_indices = None
        self.occurrences = None
        self.draw_order = None

    def description(self, index: int) -> str | None:
        # A description names the class.
        return None


def unlabeled_folder(root: Path, option: str) -> ImageFiles:
    """Returns the images below a folder, whatever its sub-folders are called.

    Args:
        root: The folder.
        option: Setting that names it, for the error.

    Raises:
        ValueError: If it holds no image.
    """
    tree = list_images(root, "", recursive=True)
    dropped = drop_repeated(root, tree.files, tree)
    tree.unusual.pop(NESTED, None)  # sub-folders are no classes here
    tree.report(root)
    files = [file for file in tree.files if file not in dropped]
    if not files:
        raise ValueError(f"{option}={root}: no image in it or its sub-folders; give a folder of images")
    return ImageFiles("unlabelled images", root, files, [0] * len(files), (CLASS_NAME,), split="all", names="none")
