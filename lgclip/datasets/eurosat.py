"""Reads EuroSAT (RGB): land use and land cover seen by Sentinel-2."""

from pathlib import Path
from typing import Unpack

from lgclip.datasets.label_files import Listing, coop_folders, list_lines
from lgclip.datasets.layout import Archive, Selection, Tree, coop_hint
from lgclip.datasets.public import Options, PublicDataset

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
_COPY = "https://huggingface.co/datasets/torchgeo/eurosat/resolve"
_IMAGES = f"{_COPY}/c877bcd43f099cd0196738f714544e355477f3fd"
_LISTS = f"{_COPY}/1ce6f1bfb56db63fd91b6ecc466ea67f2509774c"
TREE = Tree(
    "eurosat",
    "https://github.com/phelber/EuroSAT",
    (Archive(f"{_IMAGES}/EuroSAT.zip", "2750", "md5:c8fa014336c82ac7804f0398fcb19387"),),
    tuple(f"2750/{name}" for name in CLASSES),
    ("", "eurosat", "EuroSAT"),
    coop_hint(COOP, "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o", "2750"),
    IMAGES,
    split_files={"coop": (COOP,), "torchgeo": ("eurosat-{part}.txt",)},
    split_archives=(
        Archive(f"{_LISTS}/eurosat-train.txt", "eurosat-train.txt", "md5:908f142e73d6acdf3f482c5e80d851b1"),
        Archive(f"{_LISTS}/eurosat-val.txt", "eurosat-val.txt", "md5:95de90f2aa998f70a3b2416bfe0687b4"),
        Archive(f"{_LISTS}/eurosat-test.txt", "eurosat-test.txt", "md5:7ae5ab94471417b6e315763121e67c5f"),
    ),
    classes=len(CLASSES),
    license="MIT",
)


class EuroSat(PublicDataset):
    """Reads ten land-use classes, 27,000 images of 64x64 pixels (arXiv:1709.00029).

    It has no official split. Results on all images, on CoOp's split (arXiv:2109.01134) and on torchgeo's
    (arXiv:1911.06721) are not comparable, and neither are results with different lists of names.
    """

    tree = TREE

    def __init__(self, root: str | None = None, split: str = "all", **options: Unpack[Options]) -> None:
        defaults = Options(context="land in a satellite photo", templates=["a centered satellite photo of {}."])
        super().__init__(root, split, **defaults | options)

    def read(self, folder: Path, selection: Selection) -> Listing:
        listing = Listing(CLASSES)
        if selection.partition == "all":
            listing.add_folders(folder, TREE.inside)
        elif selection.partition == "coop":
            for image, label in coop_folders(folder / COOP, selection.parts, CLASSES, "is damaged"):
                listing.add(f"2750/{image}", label)
        else:
            for _, image in list_lines(folder, selection.files):  # such as AnnualCrop_1097.jpg
                file = f"2750/{image.rpartition('_')[0]}/{image}"
                listing.add_by_name(file, file.split("/")[1], folder)
        return listing
