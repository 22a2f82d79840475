"""Reads CIFAR-10 from its binary version: the Python version, which torchvision reads, is pickled."""

from collections import defaultdict
from functools import cached_property
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image

from lgclip.datasets.content_ids import content_ids
from lgclip.datasets.label_files import Listing, lines
from lgclip.datasets.layout import Archive, Selection, Tree
from lgclip.datasets.public import PublicDataset
from lgclip.store.keys import content_key

IMAGES = {"official": {"train": 50_000, "test": 10_000}}
RECORD = 1 + 3 * 32 * 32
"""Bytes of an image: its label, then red, green and blue, row by row."""
_FILES = {"train": [f"data_batch_{n}.bin" for n in range(1, 6)], "test": ["test_batch.bin"]}
_URL = "https://www.cs.toronto.edu/~kriz/"
TREE = Tree(
    "cifar10",
    f"{_URL}cifar.html",
    (Archive(f"{_URL}cifar-10-binary.tar.gz", "cifar-10-batches-bin", "md5:c32a1d4ab5d03f1284b67883e8d87530"),),
    ("batches.meta.txt", *_FILES["train"], *_FILES["test"]),
    ("cifar-10-batches-bin", ""),
    images=IMAGES,
    classes=10,
    license="see its page",
)


class Cifar10(PublicDataset):
    """Reads CIFAR-10: ten classes, 32x32 pixels (Krizhevsky 2009)."""

    tree = TREE

    def read(self, folder: Path, selection: Selection) -> Listing:
        listing = Listing([line.strip() for line in lines(folder / "batches.meta.txt")])
        for part in selection.parts:
            for file in _FILES[part]:
                for label in _labels(folder / file, len(listing.class_names)):
                    listing.add(file, label)
        return listing

    @cached_property
    def records(self) -> tuple[tuple[str, int], ...]:
        """Returns the file of each image, and its number in that file."""
        numbers = defaultdict(count)
        return tuple((file, next(numbers[file])) for file in self.files)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        # Once a file: it holds 10,000 images.
        files = sorted(set(self.files))
        contents = dict(zip(files, content_ids(self.root, files), strict=True))
        return tuple(content_key({"file": contents[file], "record": n}) for file, n in self.records)

    def image(self, index: int) -> Image.Image:
        file, number = self.records[index]
        # Read, not mapped: a file that is cut while a run reads it would kill the process.
        record = np.fromfile(self.root / file, np.uint8, RECORD, offset=number * RECORD)
        if record.size != RECORD:
            raise ValueError(f"{self.root / file} is damaged: it ends within image {number}")
        planes = record[1:].reshape(3, 32, 32)  # color by color; Pillow wants pixel by pixel
        return Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))

    def where(self, index: int) -> str:
        file, number = self.records[index]
        return f"{self.root / file}, image {number}"

    def original(self, index: int) -> None:
        """Returns None, since an image is a part of a file."""


def _labels(path: Path, classes: int) -> list[int]:
    size = path.stat().st_size
    if not size or size % RECORD:
        raise ValueError(f"{path} is damaged: {size} bytes are no whole number of images of {RECORD} bytes")
    # Every 3,073rd byte of the file; the pixels in between are not read.
    labels = np.memmap(path, np.uint8, "r", shape=(size // RECORD, RECORD))[:, 0]
    if labels.max() >= classes:
        raise ValueError(f"{path} is damaged: it holds the label {labels.max()}, there are {classes} classes")
    return labels.tolist()
