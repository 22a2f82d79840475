"""Imagenette: ten easy classes of ImageNet."""

from collections.abc import Sequence

from lgclip.datasets.files import ImageFiles, images_below, named
from lgclip.datasets.tree import Archive, Tree, chosen

WORDNET_IDS = (
    "n01440764", "n02102040", "n02979186", "n03000684", "n03028079",
    "n03394916", "n03417042", "n03425413", "n03445777", "n03888257",
)  # fmt: skip
INDICES = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)
"""Index of each among ImageNet's 1000 classes."""
IMAGES = {"official": {"train": 9_469, "val": 3_925}}
_URL = "https://s3.amazonaws.com/fast-ai-imageclas"
ARCHIVES = {
    "full": Archive(f"{_URL}/imagenette2.tgz", "imagenette2", "md5:fe2fc210e6bb7c5664d602c3cd71e612"),
    "320px": Archive(f"{_URL}/imagenette2-320.tgz", "imagenette2-320", "md5:3df6f0d01a2c9592104656642f5e78a3"),
    "160px": Archive(f"{_URL}/imagenette2-160.tgz", "imagenette2-160", "md5:e793b78cc4c9e9a4ccc0c1155377a412"),
}


class Imagenette(ImageFiles):
    """Ten classes of ImageNet, divided anew (github.com/fastai/imagenette, the second version).

    Its validation images are not ImageNet's: most were ImageNet's training images.

    Args:
        root: The folder that `imagenette2` (`-320`, `-160`) lies in, or that folder; None: `$LGCLIP_DATA/imagenette`,
            or else `data/imagenette`.
        split: `official` (its validation part), `official-train`, or `all`.
        size: `full`, `320px` or `160px`, the shorter side.
        names: `clip` (as in CLIP's list for ImageNet), `torchvision`, `folder` (the WordNet ids), or a text file.
        download: Whether to download what is missing.
        context: What kind of things the classes are.
        templates: Sentences for the text baseline; None makes one of the context.
        counts: Whether the numbers of images must be the official ones.

    Raises:
        ValueError: If a folder is missing or a count is off; the message says which.
    """

    def __init__(
        self,
        root: str | None = None,
        split: str = "official",
        size: str = "full",
        names: str = "clip",
        download: bool = False,
        context: str = "",
        templates: Sequence[str] | None = None,
        counts: bool = True,
    ) -> None:
        if size not in ARCHIVES:
            raise ValueError(f"dataset.size={size}: choose {', '.join(ARCHIVES)}")
        asked = chosen(split, IMAGES)
        folders = [f"{part}/{wordnet_id}" for part in asked.parts for wordnet_id in WORDNET_IDS]
        page, archive = "https://github.com/fastai/imagenette", ARCHIVES[size]
        tree = Tree("imagenette", page, (archive,), tuple(folders), (archive.gives, ""))
        place = tree.place(root, download)
        listed = [images_below(place, folder) for folder in folders]
        files = [file for inside in listed for file in inside]
        labels = [at % len(WORDNET_IDS) for at, inside in enumerate(listed) for _ in inside]
        shown = tree.check(place, files, labels, asked, len(WORDNET_IDS) if counts else 0)
        super().__init__(
            "imagenette", place, files, labels, named("imagenette", names, WORDNET_IDS),
            split=shown if size == "full" else f"{shown}, {size}",
            names=names, context=context, templates=templates, training=asked.training,
        )  # fmt: skip
        self.class_indices = INDICES
