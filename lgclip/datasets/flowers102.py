"""Reads Oxford 102 Flowers; its labels are MATLAB files, and none of its files has class names."""

from pathlib import Path
from typing import Unpack

import numpy as np
from jaxtyping import Integer

from lgclip.datasets.label_files import Listing, coop_split
from lgclip.datasets.layout import Archive, Partitions, Selection, Tree, coop_hint
from lgclip.datasets.public import Options, PublicDataset

CLASSES = 102
IMAGES: Partitions = {
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
    coop_hint(COOP, "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT", "jpg"),
    IMAGES,
    split_files={"coop": (COOP,)},
    classes=CLASSES,
    license="see its page",
)


class Flowers102(PublicDataset):
    """Reads 102 species of flowers (Nilsback and Zisserman, ICVGIP 2008); `split=coop` is CoOp's (arXiv:2109.01134).

    The names that torchvision lists differ from CLIP's: they have "ball moss" and "pink-yellow dahlia?".
    """

    tree = TREE

    def __init__(self, root: str | None = None, split: str = "official", **options: Unpack[Options]) -> None:
        super().__init__(root, split, **Options(context="a type of flower") | options)

    def read(self, folder: Path, selection: Selection) -> Listing:
        listing = Listing([""] * CLASSES)
        labels = _numbers(folder / "imagelabels.mat", "labels", CLASSES)  # of image 1, 2, ...: both count from 1
        if selection.partition == "coop":
            path = folder / COOP
            for file, label in coop_split(path, selection.parts):
                # CoOp's labels count from 0, those of the MATLAB file from 1.
                image = file.removeprefix("image_").removesuffix(".jpg")
                is_valid = image.isdigit() and 1 <= int(image) <= len(labels)
                if not is_valid or labels[int(image) - 1] - 1 != label:
                    raise ValueError(f"{path} does not fit imagelabels.mat: {file} has the label {label}")
                listing.add(f"jpg/{file}", label)
            return listing
        for part in selection.parts:
            for image in _numbers(folder / "setid.mat", _PARTS[part], len(labels)).tolist():
                listing.add(f"jpg/image_{image:05d}.jpg", int(labels[image - 1]) - 1)
        return listing


def _numbers(path: Path, key: str, most: int) -> Integer[np.ndarray, " n"]:
    """Reads a row of integers from 1 to `most` from a MATLAB file."""
    from scipy.io import loadmat

    try:
        row = np.asarray(loadmat(path)[key]).ravel()
    except Exception as error:  # SciPy may raise any error on a damaged file
        raise ValueError(f"{path} is damaged: no {key!r} can be read from it ({error})") from error
    if row.dtype.kind not in "iuf" or not row.size or (row != row.round()).any():
        raise ValueError(f"{path} is damaged: {key!r} is not a row of integers")
    if row.min() < 1 or row.max() > most:
        raise ValueError(f"{path} is damaged: {key!r} runs from {row.min()} to {row.max()}, not within 1 to {most}")
    return row.astype(np.int64)
