"""Implements the base class of public data sets: a reader declares the files and parses the labels."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, TypedDict

from lgclip.datasets.image_files import ImageFiles, named
from lgclip.datasets.label_files import Listing
from lgclip.datasets.layout import Selection, Tree


class Options(TypedDict, total=False):
    """Declares the keyword arguments of `PublicDataset` that every reader takes."""

    names: str
    download: bool
    context: str
    templates: Sequence[str] | None
    counts: bool


class PublicDataset(ImageFiles):
    """Reads a public data set from its published files.

    Args:
        root: The folder that its archives were unpacked in, or the one inside; None: `$LGCLIP_DATA/DATASET`, or else
            `data/DATASET`.
        split: The split: `PARTITION`, `PARTITION-PART` or `all`, see `lgclip.datasets.layout`.
        names: `folder` for the names that its files give, a list in the package, such as `clip`, or a text
            file with one name per line.
        download: Whether to download what is missing.
        context: Type of the classes.
        templates: Templates for the text baseline; None builds one from the context.
        counts: Whether the numbers of images must match the official ones.

    Raises:
        ValueError: If a file is missing or damaged or a count does not match; the message says which.
    """

    tree: ClassVar[Tree]

    def __init__(
        self,
        root: str | None = None,
        split: str = "official",
        names: str = "clip",
        download: bool = False,
        context: str = "",
        templates: Sequence[str] | None = None,
        counts: bool = True,
    ) -> None:
        selection, tree = self.describe().select(split)
        folder = tree.place(root, download)
        listing = self.read(folder, selection)
        title = tree.check(folder, listing, selection, counts)
        class_names = named(tree.name_lists or tree.dataset, names, listing.class_names)
        super().__init__(
            tree.dataset, folder, listing.files, listing.labels, class_names,
            split=title, names=names, context=context, templates=templates, training=selection.training,
        )  # fmt: skip

    def describe(self) -> Tree:
        """Returns the description of the data set, or of the variant that the arguments select."""
        return self.tree

    @abstractmethod
    def read(self, folder: Path, selection: Selection) -> Listing:
        """Reads the labels of the selected images from the data set's files."""
