"""NWPU-RESISC45: scenes from above, by their class folders and torchgeo's lists of the splits."""

from collections.abc import Sequence
from pathlib import Path

from lgclip.datasets.files import CLASSNAMES, ImageFiles, images_below, named
from lgclip.datasets.reading import index_of, lines
from lgclip.datasets.tree import Archive, Chosen, Tree, chosen

_PARTITIONS = {"all": {"all": 31_500}, "torchgeo": {"train": 18_900, "val": 6_300, "test": 6_300}}
_INSIDE = "NWPU-RESISC45"
_COPY = "https://huggingface.co/datasets/torchgeo/resisc45/resolve/a826b44d938a883185f11ebe3d512d38b464312f"
_MD5 = {  # as torchgeo states them, torchgeo/datasets/resisc45.py
    "train": "b5a4c05a37de15e4ca886696a85c403e",
    "val": "a0770cee4c5ca20b8c32bbd61e114805",
    "test": "3dda9e4988b47eb1de9f07993653eb08",
}
_IMAGES = Archive(f"{_COPY}/NWPU-RESISC45.zip", _INSIDE, "md5:75206b2e16446591afa88e2628744886")


class Resisc45(ImageFiles):
    """NWPU-RESISC45 (https://doi.org/10.1109/JPROC.2017.2675998): 45 kinds of scenes, 700 images each.

    Args:
        root: The folder; None stands for `$LGCLIP_DATA/resisc45`, or else `data/resisc45`. It holds
            `NWPU-RESISC45/airplane/airplane_001.jpg` and torchgeo's `resisc45-test.txt` and so on.
        split: `torchgeo` (its test images, https://arxiv.org/abs/1911.06721), `torchgeo-train`,
            `torchgeo-val`, `torchgeo-trainval` or `all`.
        names: `clip` or `folder`, which are the same words here, or a text file with one name a line.
        download: Whether to download what is missing (427 MB).
        context: What kind of things the classes are.
        templates: Sentences for the text baseline, the first of OpenAI's 18 for this data set; None makes one of the
            context.
        counts: Whether the numbers of images must be the official ones.

    Raises:
        ValueError: If a folder, a list or an image is missing; the message says which.
    """

    def __init__(
        self,
        root: str | None = None,
        split: str = "torchgeo",
        names: str = "clip",
        download: bool = False,
        context: str = "a type of scene in satellite imagery",
        templates: Sequence[str] | None = ("satellite imagery of {}.",),
        counts: bool = True,
    ) -> None:
        choice = chosen(split, _PARTITIONS)
        classes = [name.replace(" ", "_") for name in lines(CLASSNAMES / "resisc45.clip.txt")]
        tree = _tree(choice, classes)
        folder = tree.place(root, download)
        if choice.partition == "all":
            each = [images_below(folder, f"{_INSIDE}/{name}") for name in classes]
            files = [file for images in each for file in images]
            labels = [index for index, images in enumerate(each) for _ in images]
        else:
            listed = [
                (folder / _list(part), name.strip()) for part in choice.parts for name in lines(folder / _list(part))
            ]
            # A name is its class and a number: railway_station_001.jpg
            labels = [index_of(path, name.rpartition("_")[0], classes) for path, name in listed]
            files = [f"{_INSIDE}/{classes[label]}/{name}" for label, (_, name) in zip(labels, listed, strict=True)]
        shown = tree.check(folder, files, labels, choice, len(classes) if counts else 0)
        super().__init__(
            "resisc45", folder, files, labels, named("resisc45", names, classes),
            split=shown, names=names, context=context, templates=templates, training=choice.training,
        )  # fmt: skip


def _list(part: str) -> str:
    return f"resisc45-{part}.txt"


def _tree(choice: Chosen, classes: Sequence[str]) -> Tree:
    """What must be there for a split; `all` needs no list."""
    lists = [part for part in choice.parts if part in _MD5]
    return Tree(
        "resisc45",
        "https://huggingface.co/datasets/torchgeo/resisc45",
        (_IMAGES, *(Archive(f"{_COPY}/{_list(part)}", _list(part), f"md5:{_MD5[part]}") for part in lists)),
        (*(str(Path(_INSIDE) / name) for name in classes), *(_list(part) for part in lists)),
    )
