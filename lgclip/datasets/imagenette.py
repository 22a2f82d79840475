"""Reads Imagenette: ten easy classes of ImageNet."""

from pathlib import Path
from typing import Unpack

from lgclip.datasets.label_files import Listing
from lgclip.datasets.layout import Archive, Selection, Tree
from lgclip.datasets.public import Options, PublicDataset

WORDNET_IDS = (
    "n01440764", "n02102040", "n02979186", "n03000684", "n03028079",
    "n03394916", "n03417042", "n03425413", "n03445777", "n03888257",
)  # fmt: skip
IMAGES = {"official": {"train": 9_469, "val": 3_925}}
_URL = "https://s3.amazonaws.com/fast-ai-imageclas"
ARCHIVES = {
    "full": Archive(f"{_URL}/imagenette2.tgz", "imagenette2", "md5:fe2fc210e6bb7c5664d602c3cd71e612"),
    "320px": Archive(f"{_URL}/imagenette2-320.tgz", "imagenette2-320", "md5:3df6f0d01a2c9592104656642f5e78a3"),
    "160px": Archive(f"{_URL}/imagenette2-160.tgz", "imagenette2-160", "md5:e793b78cc4c9e9a4ccc0c1155377a412"),
}


class Imagenette(PublicDataset):
    """Reads ten classes of ImageNet with another split (github.com/fastai/imagenette, second version).

    Its validation images are not ImageNet's: most were ImageNet's training images. `size` is `full`, or the length of
    the shorter side, `320px` or `160px`.
    """

    class_indices = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)

    def __init__(
        self, root: str | None = None, split: str = "official", size: str = "full", **options: Unpack[Options]
    ) -> None:
        if size not in ARCHIVES:
            raise ValueError(f"dataset.size={size}: choose {', '.join(ARCHIVES)}")
        self.size = size
        super().__init__(root, split, **options)

    def describe(self) -> Tree:
        variant = self.size
        # The full size is the usual one, and is not named in results.
        if variant == "full":
            variant = ""
        return Tree(
            "imagenette",
            "https://github.com/fastai/imagenette",
            (ARCHIVES[self.size],),
            (),
            (ARCHIVES[self.size].extracts, ""),
            images=IMAGES,
            split_files={"official": tuple(f"{{part}}/{wordnet_id}" for wordnet_id in WORDNET_IDS)},
            classes=len(WORDNET_IDS),
            license="Apache-2.0; the images are under ImageNet's terms",
            variant=variant,
        )

    def read(self, folder: Path, selection: Selection) -> Listing:
        listing = Listing(WORDNET_IDS)
        for part in selection.parts:
            listing.add_folders(folder, [f"{part}/{wordnet_id}" for wordnet_id in WORDNET_IDS])
        return listing
