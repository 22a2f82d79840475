"""Reads NWPU-RESISC45, aerial scenes, by its class folders and torchgeo's lists of the splits."""

from pathlib import Path
from typing import Unpack

from lgclip.datasets.image_files import CLASSNAMES
from lgclip.datasets.label_files import Listing, lines, list_lines
from lgclip.datasets.layout import Archive, Selection, Tree
from lgclip.datasets.public import Options, PublicDataset

_PARTITIONS = {"all": {"all": 31_500}, "torchgeo": {"train": 18_900, "val": 6_300, "test": 6_300}}
_INSIDE = "NWPU-RESISC45"
_COPY = "https://huggingface.co/datasets/torchgeo/resisc45/resolve/a826b44d938a883185f11ebe3d512d38b464312f"
_MD5 = {  # as torchgeo states them, torchgeo/datasets/resisc45.py
    "train": "b5a4c05a37de15e4ca886696a85c403e",
    "val": "a0770cee4c5ca20b8c32bbd61e114805",
    "test": "3dda9e4988b47eb1de9f07993653eb08",
}
_IMAGES = Archive(f"{_COPY}/NWPU-RESISC45.zip", _INSIDE, "md5:75206b2e16446591afa88e2628744886")


class Resisc45(PublicDataset):
    """Reads 45 scene classes, 700 images each (https://doi.org/10.1109/JPROC.2017.2675998), from torchgeo's copy.

    The split `torchgeo` is of https://arxiv.org/abs/1911.06721; `all` needs no list.
    """

    def __init__(self, root: str | None = None, split: str = "torchgeo", **options: Unpack[Options]) -> None:
        # The first of OpenAI's 18 templates for this data set.
        defaults = Options(context="a type of scene in satellite imagery", templates=["satellite imagery of {}."])
        super().__init__(root, split, **defaults | options)

    def describe(self) -> Tree:
        return Tree(
            "resisc45",
            "https://huggingface.co/datasets/torchgeo/resisc45",
            (_IMAGES,),
            tuple(f"{_INSIDE}/{name}" for name in _classes()),
            images=_PARTITIONS,
            split_files={"torchgeo": ("resisc45-{part}.txt",)},
            split_archives=tuple(
                Archive(f"{_COPY}/resisc45-{part}.txt", f"resisc45-{part}.txt", f"md5:{md5}")
                for part, md5 in _MD5.items()
            ),
            classes=45,
            license="CC BY-NC 4.0, as torchgeo's copy states",
        )

    def read(self, folder: Path, selection: Selection) -> Listing:
        listing = Listing(_classes())
        if selection.partition == "all":
            listing.add_folders(folder, [f"{_INSIDE}/{name}" for name in listing.class_names])
        for path, image in list_lines(folder, selection.files):
            class_name = image.rpartition("_")[0]  # railway_station_001.jpg
            listing.add_by_name(f"{_INSIDE}/{class_name}/{image}", class_name, path)
        return listing


def _classes() -> list[str]:
    return [name.replace(" ", "_") for name in lines(CLASSNAMES / "resisc45.clip.txt")]
