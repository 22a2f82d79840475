"""EuroSAT (RGB): land use and land cover seen by Sentinel-2."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lgclip.datasets.files import ImageFiles, images_below, named
from lgclip.datasets.reading import coop_split, index_of, lines
from lgclip.datasets.tree import Archive, Tree, chosen

CLASSES = (
    "AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial",
    "Pasture", "PermanentCrop", "Residential", "River", "SeaLake",
)  # fmt: skip
IMAGES = {
    "all": {"all": 27_000},
    "coop": {"train": 13_500, "val": 5_400, "test": 8_100},
    "torchgeo": {"train": 16_200, "val": 5_400, "test": 5_400},
}
COOP = "split_zhou_EuroSAT.json"

TREE = Tree(
    "eurosat",
    "https://github.com/phelber/EuroSAT",
    (
        Archive(
            "https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
            "2750",
            "md5:c8fa014336c82ac7804f0398fcb19387",
        ),
    ),
    tuple(f"2750/{name}" for name in CLASSES),
    ("", "eurosat", "EuroSAT"),
)
_LISTS = "https://huggingface.co/datasets/torchgeo/eurosat/resolve/1ce6f1bfb56db63fd91b6ecc466ea67f2509774c"
LISTS = {
    "train": Archive(f"{_LISTS}/eurosat-train.txt", "eurosat-train.txt", "md5:908f142e73d6acdf3f482c5e80d851b1"),
    "val": Archive(f"{_LISTS}/eurosat-val.txt", "eurosat-val.txt", "md5:95de90f2aa998f70a3b2416bfe0687b4"),
    "test": Archive(f"{_LISTS}/eurosat-test.txt", "eurosat-test.txt", "md5:7ae5ab94471417b6e315763121e67c5f"),
}


class EuroSat(ImageFiles):
    """Ten kinds of land, 27,000 images of 64x64 pixels (arXiv:1709.00029).

    The data set has no split of its own, and results on different ones are not comparable.

    Args:
        root: The folder that `2750` lies in; None: `$LGCLIP_DATA/eurosat`, or else `data/eurosat`.
        split: `all`, `coop` (arXiv:2109.01134; its test part, or `coop-train`, `-val`, `-trainval`), or
            `torchgeo` (arXiv:1911.06721; likewise).
        names: `clip`, `coop`, `folder`, or a text file; they decide the result.
        download: Whether to download what is missing.
        context: What kind of things the classes are.
        templates: Sentences for the text baseline.
        counts: Whether the numbers of images must be the official ones.

    Raises:
        ValueError: If a file is missing, a line is damaged or a count is off; the message says which.
    """

    def __init__(
        self,
        root: str | None = None,
        split: str = "all",
        names: str = "clip",
        download: bool = False,
        context: str = "land in a satellite photo",
        templates: Sequence[str] | None = ("a centered satellite photo of {}.",),
        counts: bool = True,
    ) -> None:
        asked = chosen(split, IMAGES)
        lists: tuple[Archive, ...] = ()
        tree = TREE
        if asked.partition == "torchgeo":
            lists = tuple(LISTS[part] for part in asked.parts)
        elif asked.partition == "coop":
            drive = "https://drive.google.com/file/d/1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o/view"
            hand = f"{COOP} is got by hand: {drive} (CoOp's DATASETS.md); put it beside 2750"
            tree = replace(tree, inside=(*tree.inside, COOP), by_hand=hand)
        inside = (*tree.inside, *(part.gives for part in lists))
        tree = replace(tree, archives=(*tree.archives, *lists), inside=inside)
        place = tree.place(root, download)
        files = _read(place, asked.partition, asked.parts)
        labels = [index_of(place, file.split("/")[1], CLASSES) for file in files]
        shown = tree.check(place, files, labels, asked, len(CLASSES) if counts else 0)
        super().__init__(
            "eurosat", place, files, labels, named("eurosat", names, CLASSES),
            split=shown, names=names, context=context, templates=templates, training=asked.training,
        )  # fmt: skip


def _read(place: Path, partition: str, parts: Sequence[str]) -> list[str]:
    if partition == "all":
        return [file for name in CLASSES for file in images_below(place, f"2750/{name}")]
    if partition == "torchgeo":  # lines such as AnnualCrop_1097.jpg
        entries = [line.strip() for part in parts for line in lines(place / f"eurosat-{part}.txt")]
        return [f"2750/{entry.rpartition('_')[0]}/{entry}" for entry in entries]
    files = []
    for part in parts:
        for image, label in coop_split(place / COOP, part):
            if index_of(place / COOP, image.split("/")[0], CLASSES) != label:
                raise ValueError(f"{place / COOP} is damaged: {image} has the label {label}")
            files.append(f"2750/{image}")
    return files
