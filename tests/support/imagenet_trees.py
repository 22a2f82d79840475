"""Writes ImageNet, its variants and RESISC45 as their archives unpack, with images in the formats they contain."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

DEVKIT = "ILSVRC2012_devkit_t12/data"
SOME = (0, 1, 2, 65, 217, 482, 701, 974)
"""Indices of the classes that a small tree has."""


def content(number: int, kind: str = "JPEG", mode: str = "RGB") -> bytes:
    """Returns a small image, all different."""
    patches = np.random.default_rng(number).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(patches).resize((20, 16)).convert(mode).save(file, kind)
    return file.getvalue()


def odd(number: int) -> bytes:
    """Returns an image as `content` does, in formats that ImageNet has under the name .JPEG: CMYK, PNG, gray."""
    kind, mode = {1: ("JPEG", "CMYK"), 2: ("PNG", "RGBA"), 3: ("JPEG", "L")}.get(number, ("JPEG", "RGB"))
    return content(number, kind, mode)


def write(root: Path, files: Iterable[str]) -> Path:
    """Writes an image at each path."""
    for number, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(odd(number))
    return root


def class_folders(root: Path, folders: Sequence[str], per_class: int = 1, suffix: str = ".JPEG") -> Path:
    """Creates one folder per class with so many images."""
    return write(
        root, [f"{folder}/{Path(folder).name}_{i}{suffix}" for folder, i in product(folders, range(per_class))]
    )


def val_name(number: int) -> str:
    """Returns the name of a validation image, counted from 1."""
    return f"ILSVRC2012_val_{number:08}.JPEG"


def devkit(root: Path, wnids: Sequence[str], truth: Sequence[int]) -> dict[str, int]:
    """Writes the development kit's meta.mat and ground truth.

    Args:
        root: The folder above.
        wnids: The 1000 classes, by ImageNet's index.
        truth: Index of each validation image's class.

    Returns:
        ILSVRC id of each class: another order than that of the indices, as in the real kit.
    """
    from scipy.io import savemat

    order = np.random.default_rng(5).permutation(len(wnids))
    ids: dict[str, int] = {wnids[int(index)]: number for number, index in enumerate(order, 1)}
    kind = [
        ("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O"),
        ("children", "O"), ("wordnet_height", "O"), ("num_train_images", "O"),
    ]  # fmt: skip
    rows = [(n, wnid, f"word {wnid}, other word", "a thing", 0, np.zeros(0), 0, 1300) for wnid, n in ids.items()]
    rows += [(1001 + i, f"n0000000{i}", "entity", "all", 2, np.array([1, 2]), 1, 0) for i in range(3)]  # inner nodes
    table = np.zeros((len(rows), 1), dtype=kind)
    for place, row in enumerate(rows):
        table[place, 0] = row
    folder = root / DEVKIT
    folder.mkdir(parents=True)
    savemat(folder / "meta.mat", {"synsets": table})
    lines = [str(ids[wnids[index]]) for index in truth]
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("\n".join(lines) + "\n")
    return ids


def kaggle(root: Path, wnids: Sequence[str], truth: Sequence[int]) -> Path:
    """Writes Kaggle's tree: validation images in one folder, a table of boxes, and a list of synonyms."""
    base = write(root / "ILSVRC/Data/CLS-LOC", [f"val/{val_name(i)}" for i in range(1, len(truth) + 1)])
    rows = [(val_name(i).removesuffix(".JPEG"), f"{wnids[index]} 1 2 3 4 ") for i, index in enumerate(truth, 1)]
    with (root / "LOC_val_solution.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("ImageId", "PredictionString"), *reversed(rows)])  # in no order
    (root / "LOC_synset_mapping.txt").write_text("".join(f"{wnid} kind {wnid}, other name\n" for wnid in wnids))
    return base


def resisc45(root: Path, classes: Sequence[str], parts: Mapping[str, Sequence[int]]) -> Path:
    """Writes NWPU-RESISC45 and torchgeo's lists: the images with these numbers of every class in each part."""
    for part, numbers in parts.items():
        names = [f"{name}_{number:03}.jpg" for name, number in product(classes, numbers)]
        write(root / "NWPU-RESISC45", [f"{name.rpartition('_')[0]}/{name}" for name in names])
        (root / f"resisc45-{part}.txt").write_text("\n".join(reversed(names)) + "\n")
    return root
