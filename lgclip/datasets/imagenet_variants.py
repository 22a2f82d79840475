"""ImageNet's classes in other images: V2, Sketch, Renditions, natural adversarial examples."""

from collections.abc import Sequence
from typing import NamedTuple

from lgclip.datasets.base import Training
from lgclip.datasets.files import ImageFiles, check_counts, root_folder
from lgclip.datasets.imagenet_classes import (
    NUM_CLASSES,
    check_each,
    choose,
    chosen_indices,
    class_names,
    images_in,
    wordnet_ids,
)

TRAINING = Training(lacking=": its images are for tests alone; train on dataset=imagenet, and judge this one beside it")
V2_FOLDERS = {
    "matched-frequency": "imagenetv2-matched-frequency-format-val",
    "threshold-0.7": "imagenetv2-threshold0.7-format-val",
    "top-images": "imagenetv2-top-images-format-val",
}
_V2_HINT = (
    "Get {archive} from https://huggingface.co/datasets/vaishaal/ImageNetV2, unpack it so that the folder holds "
    "{inside}/0 ... {inside}/999, and say where it is by dataset.root=DIR"
)


class Shift(NamedTuple):
    """A data set of ImageNet's classes in folders named by WordNet id.

    Attributes:
        inside: The folder that its archive unpacks to.
        classes: The list of its classes' WordNet ids.
        images: Official number of images.
        hint: What to get.
    """

    inside: str
    classes: str
    images: int
    hint: str


SHIFTS = {
    "imagenet_sketch": Shift(
        "sketch", "imagenet", 50_889,
        "Get ImageNet-Sketch.zip by the link at https://github.com/HaohanWang/ImageNet-Sketch, or from "
        "https://huggingface.co/datasets/songweig/imagenet_sketch",
    ),
    "imagenet_r": Shift(
        "imagenet-r", "imagenet_r", 30_000,
        "Get imagenet-r.tar by the link at https://github.com/hendrycks/imagenet-r",
    ),
    "imagenet_a": Shift(
        "imagenet-a", "imagenet_a", 7_500,
        "Get imagenet-a.tar by the link at https://github.com/hendrycks/natural-adv-examples",
    ),
}  # fmt: skip


class ImageNetV2(ImageFiles):
    """ImageNet-V2 (https://arxiv.org/abs/1902.10811): new test images, ten a class, chosen in three ways.

    Its folders are class indices, which are ordered as numbers: 2 comes before 10.

    Args:
        root: The folder; None stands for `$LGCLIP_DATA/imagenet_v2`, or else `data/imagenet_v2`. It holds
            `imagenetv2-matched-frequency-format-val/0` and so on.
        split: `matched-frequency`, `threshold-0.7` or `top-images`, 10,000 images each.
        names: `clip`, `torchvision`, `folder` (the WordNet ids), or a text file with 1000 lines.
        classes: Indices of the classes to judge; None for all 1000.
        context: What kind of things the classes are.
        templates: Sentences for the text baseline.
        counts: Whether the numbers of images must be the official ones.

    Attributes:
        class_indices: Index of each class among ImageNet's 1000.

    Raises:
        ValueError: If a folder or an image is missing; the message says which.
    """

    def __init__(
        self,
        root: str | None = None,
        split: str = "matched-frequency",
        names: str = "clip",
        classes: Sequence[int] | None = None,
        context: str = "",
        templates: Sequence[str] | None = None,
        counts: bool = True,
    ) -> None:
        if split not in V2_FOLDERS:
            raise ValueError(f"dataset.split={split}: choose {' or '.join(V2_FOLDERS)}")
        inside = V2_FOLDERS[split]
        hint = _V2_HINT.format(archive=f"{inside.removesuffix('-format-val')}.tar.gz", inside=inside)
        folder = root_folder("imagenet_v2", root, [inside], hint)
        indices = chosen_indices("imagenet_v2", classes, range(NUM_CLASSES))
        images = dict(zip(indices, images_in(folder, [f"{inside}/{index}" for index in indices]), strict=True))
        check_each("imagenet_v2", images, 10 if counts else None, hint)
        chosen = choose(images, indices, NUM_CLASSES, 10 * len(indices))
        super().__init__(
            "imagenet_v2", folder, chosen.files, chosen.labels, class_names(names, indices),
            split=split + chosen.note, names=names, context=context, templates=templates, training=TRAINING,
        )  # fmt: skip
        self.class_indices = chosen.indices


class ImageNetShift(ImageFiles):
    """ImageNet-Sketch, -R or -A: other kinds of images of ImageNet's classes, in folders of WordNet ids.

    -R and -A have 200 of the 1000 classes and are judged over those, which is the same as masking the
    logits of the other 800.

    Args:
        name: `imagenet_sketch` (https://arxiv.org/abs/1905.13549; 1000 classes, 50,889 images),
            `imagenet_r` (https://arxiv.org/abs/2006.16241; 200, 30,000) or
            `imagenet_a` (https://arxiv.org/abs/1907.07174; 200, 7,500).
        root: The folder of the class folders, or the one above it; None stands for `$LGCLIP_DATA/NAME`,
            or else `data/NAME`.
        names: `clip`, `torchvision`, `folder` (the WordNet ids), or a text file with 1000 lines, in the order of
            ImageNet's indices.
        classes: Indices of the classes to judge among ImageNet's 1000; None for all that there are.
            Those that the data set has not are left out with a warning.
        context: What kind of things the classes are.
        templates: Sentences for the text baseline.
        counts: Whether the number of images must be the official one.

    Attributes:
        class_indices: Index of each class among ImageNet's 1000.

    Raises:
        ValueError: If a folder or an image is missing; the message says which.
    """

    def __init__(
        self,
        name: str,
        root: str | None = None,
        names: str = "clip",
        classes: Sequence[int] | None = None,
        context: str = "",
        templates: Sequence[str] | None = None,
        counts: bool = True,
    ) -> None:
        if name not in SHIFTS:
            raise ValueError(f"dataset.name={name}: choose {' or '.join(SHIFTS)}")
        inside, listed, official, what = SHIFTS[name]
        held = wordnet_ids(listed)
        hint = (
            f"{what}, unpack it so that the folder holds {inside}/{held[0]}/*, and say where it is by dataset.root=DIR"
        )
        folder = root_folder(name, root, [], hint)
        folder = folder / inside if (folder / inside).is_dir() else folder
        every = wordnet_ids()
        places = tuple(every.index(wnid) for wnid in held)
        indices = chosen_indices(name, classes, places)
        images = dict(zip(indices, images_in(folder, [every[index] for index in indices]), strict=True))
        check_each(name, images, None, hint)
        official = official if len(indices) == len(held) else None  # how many a class has was not published
        chosen = choose(images, indices, len(held), official)
        if counts:
            check_counts(name, chosen.labels, len(indices), official, hint)
        super().__init__(
            name, folder, chosen.files, chosen.labels, class_names(names, indices),
            split="all" + chosen.note, names=names, context=context, templates=templates, training=TRAINING,
        )  # fmt: skip
        self.class_indices = chosen.indices
