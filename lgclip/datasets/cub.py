"""Caltech-UCSD Birds 200-2011, by its own four text files; no library ships it."""

from collections.abc import Sequence
from pathlib import Path

from lgclip.datasets.files import ImageFiles, named
from lgclip.datasets.reading import number, rows
from lgclip.datasets.tree import Archive, Tree, chosen

CLASSES = 200
IMAGES = {"official": {"train": 5994, "test": 5794}}

TREE = Tree(
    "cub",
    "https://data.caltech.edu/records/65de6-vp158",
    (
        Archive(
            "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
            "CUB_200_2011",
            "md5:97eceeb196236b17998738112f37df78",
        ),
    ),
    ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt", "images"),
    ("CUB_200_2011", ""),
)


class Cub(ImageFiles):
    """200 species of birds (CNS-TR-2011-001).

    Args:
        root: The folder that `CUB_200_2011` lies in, or that folder; None: `$LGCLIP_DATA/cub`, or else `data/cub`.
        split: `official` (its test part), `official-train`, or `all`.
        names: `folder` (`001.Black_footed_Albatross` is "Black footed Albatross"), or a text file.
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
        names: str = "folder",
        download: bool = False,
        context: str = "a type of bird",
        templates: Sequence[str] | None = None,
        counts: bool = True,
    ) -> None:
        asked = chosen(split, IMAGES)
        place = TREE.place(root, download)
        found = [name.partition(".")[2] or name for _, name in rows(place / "classes.txt", 2)]
        files, labels = _read(place, asked.parts, len(found))
        shown = TREE.check(place, files, labels, asked, CLASSES if counts else 0)
        super().__init__(
            "cub", place, files, labels, named("cub", names, found),
            split=shown, names=names, context=context, templates=templates, training=asked.training,
        )  # fmt: skip


def _read(place: Path, parts: Sequence[str], classes: int) -> tuple[list[str], list[int]]:
    """The images of some parts: three files say their name, class and part, by a number of theirs."""
    names = dict(rows(place / "images.txt", 2))
    said = {file: dict(rows(place / file, 2)) for file in ("image_class_labels.txt", "train_test_split.txt")}
    for file, content in said.items():
        if content.keys() != names.keys():
            odd = sorted(content.keys() ^ names.keys())[:5]
            raise ValueError(f"{place / file} and images.txt do not name the same images: {', '.join(odd)}")
    label_of, part_of = said["image_class_labels.txt"], said["train_test_split.txt"]
    wanted = {{"train": "1", "test": "0"}[part] for part in parts}
    chosen_ids = [image for image in names if part_of[image] in wanted]
    labels = [number(place / "image_class_labels.txt", label_of[image], classes) - 1 for image in chosen_ids]
    return [f"images/{names[image]}" for image in chosen_ids], labels
