"""Oxford 102 Flowers; its labels are MATLAB files, its class names are in no file of it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from lgclip.datasets.files import ImageFiles, named
from lgclip.datasets.reading import coop_split
from lgclip.datasets.tree import Archive, Chosen, Tree, chosen

CLASSES = 102
IMAGES: dict[str, dict[str, int | None]] = {
    "official": {"train": 1_020, "val": 1_020, "test": 6_149},
    "coop": {"train": None, "val": None, "test": 2_463},  # no count was found in print for the first two
}
COOP = "split_zhou_OxfordFlowers.json"
_URL = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
_PARTS = {"train": "trnid", "val": "valid", "test": "tstid"}

TREE = Tree(
    "flowers102",
    _URL,
    (
        Archive(f"{_URL}102flowers.tgz", "jpg", "md5:52808999861908f626f3c1f4e79d11fa"),
        Archive(f"{_URL}imagelabels.mat", "imagelabels.mat", "md5:e0620be6f572b9609742df49c70aed4d"),
        Archive(f"{_URL}setid.mat", "setid.mat", "md5:a5357ecc9cb78c4bef273ce3793fc85c"),
    ),
    ("jpg", "imagelabels.mat", "setid.mat"),
    ("", "flowers-102"),
)


class Flowers102(ImageFiles):
    """102 kinds of flowers (Nilsback and Zisserman, ICVGIP 2008).

    Args:
        root: The folder that `jpg` lies in; None: `$LGCLIP_DATA/flowers102`, or else `data/flowers102`.
        split: `official` (its test part), `official-train`, `-val`, `-trainval`, `all`, or `coop`
            (arXiv:2109.01134; its test part, or `coop-train` and so on).
        names: `clip`, `torchvision` (which has "ball moss" and "pink-yellow dahlia?"), or a text file.
        download: Whether to download what is missing.
        context: What kind of things the classes are.
        templates: Sentences for the text baseline; None makes one of the context.
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
        context: str = "a type of flower",
        templates: Sequence[str] | None = None,
        counts: bool = True,
    ) -> None:
        asked, tree = chosen(split, IMAGES), TREE
        if asked.partition == "coop":
            drive = "https://drive.google.com/file/d/1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT/view"
            hand = f"{COOP} is got by hand: {drive} (CoOp's DATASETS.md); put it beside jpg"
            tree = replace(tree, inside=(*tree.inside, COOP), by_hand=hand)
        place = tree.place(root, download)
        files, labels = _read(place, asked)
        shown = tree.check(place, files, labels, asked, CLASSES if counts else 0)
        super().__init__(
            "flowers102", place, files, labels, named("flowers102", names, ("",) * CLASSES),
            split=shown, names=names, context=context, templates=templates, training=asked.training,
        )  # fmt: skip


def _read(place: Path, asked: Chosen) -> tuple[list[str], list[int]]:
    label_of = _numbers(place / "imagelabels.mat", "labels", CLASSES)  # of image 1, 2, ...: both count from 1
    if asked.partition == "coop":
        return _coop(place / COOP, asked.parts, label_of)
    images = [
        image for part in asked.parts for image in _numbers(place / "setid.mat", _PARTS[part], len(label_of)).tolist()
    ]
    return [f"jpg/image_{image:05d}.jpg" for image in images], [int(label_of[image - 1]) - 1 for image in images]


def _coop(path: Path, parts: Sequence[str], label_of: Integer[np.ndarray, " n"]) -> tuple[list[str], list[int]]:
    entries = [entry for part in parts for entry in coop_split(path, part)]
    for file, label in entries:
        image = file.removeprefix("image_").removesuffix(".jpg")
        if not image.isdigit() or not 1 <= int(image) <= len(label_of) or label_of[int(image) - 1] - 1 != label:
            raise ValueError(f"{path} does not fit imagelabels.mat: {file} has the label {label}")
    return [f"jpg/{file}" for file, _ in entries], [label for _, label in entries]


def _numbers(path: Path, key: str, most: int) -> Integer[np.ndarray, " n"]:
    """A MATLAB file's row of numbers from 1 to `most`."""
    from scipy.io import loadmat

    try:
        found = np.asarray(loadmat(path)[key]).ravel()
    except Exception as error:  # SciPy raises as it likes on a damaged file
        raise ValueError(f"{path} is damaged: no {key!r} can be read from it ({error})") from error
    if found.dtype.kind not in "iuf" or not found.size or (found != found.round()).any():
        raise ValueError(f"{path} is damaged: {key!r} is no row of whole numbers")
    if found.min() < 1 or found.max() > most:
        raise ValueError(f"{path} is damaged: {key!r} runs from {found.min()} to {found.max()}, not within 1 to {most}")
    return found.astype(np.int64)
