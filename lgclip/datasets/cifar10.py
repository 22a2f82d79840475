"""CIFAR-10, from its binary version: the Python version, which torchvision reads, is pickled."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from lgclip.datasets.base import Dataset
from lgclip.datasets.files import check_counts, named, sentences
from lgclip.datasets.reading import lines
from lgclip.datasets.tree import Archive, Tree, chosen
from lgclip.identity import SCHEMA, key_of

CLASSES = 10
IMAGES = {"official": {"train": 50_000, "test": 10_000}}
RECORD = 1 + 3 * 32 * 32
"""Bytes of an image: its label, then red, green and blue, row by row."""
_FILES = {"train": [f"data_batch_{n}.bin" for n in range(1, 6)], "test": ["test_batch.bin"]}

TREE = Tree(
    "cifar10",
    "https://www.cs.toronto.edu/~kriz/cifar.html",
    (
        Archive(
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            "cifar-10-batches-bin",
            "md5:c32a1d4ab5d03f1284b67883e8d87530",
        ),
    ),
    ("batches.meta.txt", *_FILES["train"], *_FILES["test"]),
    ("cifar-10-batches-bin", ""),
)


class Cifar10(Dataset):
    """Ten kinds of things, 32x32 pixels (Krizhevsky 2009).

    Args:
        root: The folder that `cifar-10-batches-bin` lies in, or that folder; None: `$LGCLIP_DATA/cifar10`, or else
            `data/cifar10`.
        split: `official` (its test part), `official-train`, or `all`.
        names: `clip` or `folder` (the same words), or a text file.
        download: Whether to download what is missing.
        context: What kind of things the classes are.
        templates: Sentences for the text baseline; None makes one of the context.
        counts: Whether the numbers of images must be the official ones.

    Raises:
        ValueError: If a file is missing or damaged or a count is off; the message says which.
    """

    name = "cifar10"

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
        asked = chosen(split, IMAGES)
        self.root = TREE.place(root, download)
        found = [line.strip() for line in lines(self.root / "batches.meta.txt")]
        files = [file for part in asked.parts for file in _FILES[part]]
        read = {file: _labels(self.root / file, len(found)) for file in files}
        self.records = tuple((file, at) for file, labels in read.items() for at in range(len(labels)))
        self.labels = tuple(label for labels in read.values() for label in labels)
        if counts:
            check_counts("cifar10", self.labels, CLASSES, asked.images, "Set dataset.counts=false for a part of it.")
        self.split, self.training = asked.shown_with(len(self.labels)), asked.training
        self.names, self.class_names = names, named("cifar10", names, found)
        self.context, self.templates = context, sentences(context, templates)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        stats = {file: (self.root / file).stat() for file, _ in self.records}
        return tuple(
            key_of({"file": file, "record": at, "size": stats[file].st_size, "changed": stats[file].st_mtime_ns})
            for file, at in self.records
        )

    def image(self, index: int) -> Image.Image:
        file, at = self.records[index]
        record = np.fromfile(self.root / file, np.uint8, RECORD, offset=at * RECORD)
        if record.size != RECORD:
            raise ValueError(f"{self.root / file} is damaged: it ends within image {at}")
        return Image.fromarray(np.ascontiguousarray(_pixels(record[1:])))

    def where(self, index: int) -> str:
        file, at = self.records[index]
        return f"{self.root / file}, image {at}"

    def source(self) -> dict[str, object]:
        return {"dataset": self.name, "schema": SCHEMA}


def _labels(path: Path, classes: int) -> list[int]:
    size = path.stat().st_size
    if not size or size % RECORD:
        raise ValueError(f"{path} is damaged: {size} bytes are no whole number of images of {RECORD} bytes")
    labels = np.memmap(path, np.uint8, "r", shape=(size // RECORD, RECORD))[:, 0]
    if labels.max() >= classes:
        raise ValueError(f"{path} is damaged: it holds the label {labels.max()}, there are {classes} classes")
    return labels.tolist()


def _pixels(planes: UInt8[np.ndarray, " 3072"]) -> UInt8[np.ndarray, "32 32 3"]:
    return planes.reshape(3, 32, 32).transpose(1, 2, 0)
