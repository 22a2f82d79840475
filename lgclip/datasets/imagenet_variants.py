"""Reads variants of ImageNet: V2, Sketch, Renditions, natural adversarial examples."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Unpack

from lgclip.datasets.base import Training
from lgclip.datasets.image_files import root_folder
from lgclip.datasets.imagenet_classes import NUM_CLASSES, ClassFolders, ClassOptions, ImageNetImages, wordnet_ids

TRAINING = Training(lacking=": its images are for tests only; train on dataset=imagenet, and evaluate on this one")
V2_FOLDERS = {
    "matched-frequency": "imagenetv2-matched-frequency-format-val",
    "threshold-0.7": "imagenetv2-threshold0.7-format-val",
    "top-images": "imagenetv2-top-images-format-val",
}
_V2_HINT = (
    "Get {archive} from https://huggingface.co/datasets/vaishaal/ImageNetV2, unpack it so that the folder holds "
    "{inside}/0 ... {inside}/999, and set dataset.root=DIR"
)


class Shift(NamedTuple):
    """Describes a variant with ImageNet's classes in folders named by WordNet id.

    Attributes:
        inside: The folder that its archive unpacks to.
        classes: The list of its classes' WordNet ids.
        images: Official number of images.
        hint: What to get.
        license: Its license.
    """

    inside: str
    classes: str
    images: int
    hint: str
    license: str


SHIFTS = {
    "imagenet_sketch": Shift(
        "sketch", "imagenet", 50_889,
        "Get ImageNet-Sketch.zip by the link at https://github.com/HaohanWang/ImageNet-Sketch, or from "
        "https://huggingface.co/datasets/songweig/imagenet_sketch",
        "the repository is under MIT",
    ),
    "imagenet_r": Shift(
        "imagenet-r", "imagenet_r", 30_000,
        "Get imagenet-r.tar by the link at https://github.com/hendrycks/imagenet-r",
        "see its page",
    ),
    "imagenet_a": Shift(
        "imagenet-a", "imagenet_a", 7_500,
        "Get imagenet-a.tar by the link at https://github.com/hendrycks/natural-adv-examples",
        "the repository is under MIT",
    ),
}  # fmt: skip


class ImageNetV2(ImageNetImages):
    """Reads ImageNet-V2 (https://arxiv.org/abs/1902.10811): new test images, ten a class, selected in three ways.

    Its folders are class indices, which are sorted as numbers: 2 comes before 10.

    Args:
        root: The folder that holds `imagenetv2-matched-frequency-format-val/0` and so on; None uses
            `$LGCLIP_DATA/imagenet_v2`, or else `data/imagenet_v2`.
        split: `matched-frequency`, `threshold-0.7` or `top-images`, 10,000 images each; `all` for the three together,
            as papers report them pooled. They share images, which then count more than once.
        options: See `ImageNetImages`.
    """

    def __init__(
        self, root: str | None = None, split: str = "matched-frequency", **options: Unpack[ClassOptions]
    ) -> None:
        if split not in (*V2_FOLDERS, "all"):
            raise ValueError(f"dataset.split={split}: choose {', '.join(V2_FOLDERS)} or all")
        self._variants = list(V2_FOLDERS.values()) if split == "all" else [V2_FOLDERS[split]]
        archives = ", ".join(f"{inside.removesuffix('-format-val')}.tar.gz" for inside in self._variants)
        hint = _V2_HINT.format(archive=archives, inside=self._variants[0])
        folder = root_folder("imagenet_v2", root, self._variants, hint)
        variants = len(self._variants)
        tree = ClassFolders(
            "imagenet_v2",
            folder,
            folders={index: str(index) for index in range(NUM_CLASSES)},
            split=split,
            images=10 * NUM_CLASSES * variants,
            images_per_class=10 * variants,
            hint=hint,
            license="MIT",
            training=TRAINING,
        )
        super().__init__(tree, **options)

    def list_images(self, tree: ClassFolders, indices: Sequence[int]) -> dict[int, Sequence[str]]:
        images: dict[int, Sequence[str]] = {index: [] for index in indices}
        for inside in self._variants:
            folders = {index: f"{inside}/{tree.folders[index]}" for index in indices}
            for index, files in super().list_images(replace(tree, folders=folders), indices).items():
                images[index] = [*images[index], *files]
        return images


class ImageNetShift(ImageNetImages):
    """Reads ImageNet-Sketch, -R or -A: other styles of images of ImageNet's classes, in folders of WordNet ids.

    -R and -A have 200 of the 1000 classes and are evaluated on those, which is the same as masking the
    logits of the other 800. Those of `classes` that the data set lacks are left out with a warning.

    Args:
        name: `imagenet_sketch` (https://arxiv.org/abs/1905.13549; 1000 classes, 50,889 images),
            `imagenet_r` (https://arxiv.org/abs/2006.16241; 200, 30,000) or
            `imagenet_a` (https://arxiv.org/abs/1907.07174; 200, 7,500).
        root: The folder of the class folders, or its parent; None uses `$LGCLIP_DATA/NAME`,
            or else `data/NAME`.
        options: See `ImageNetImages`.
    """

    def __init__(self, name: str, root: str | None = None, **options: Unpack[ClassOptions]) -> None:
        if name not in SHIFTS:
            raise ValueError(f"dataset.name={name}: choose {' or '.join(SHIFTS)}")
        shift = SHIFTS[name]
        ids = wordnet_ids(shift.classes)
        hint = (
            f"{shift.hint}, unpack it so that the folder holds {shift.inside}/{ids[0]}/*, and say where it is by "
            "dataset.root=DIR"
        )
        folder = root_folder(name, root, [], hint)
        # With or without the folder that the archive unpacks to: an image's id is its place below, the same for both.
        if (folder / shift.inside).is_dir():
            folder /= shift.inside
        tree = ClassFolders(
            name,
            folder,
            folders={wordnet_ids().index(wordnet_id): wordnet_id for wordnet_id in ids},
            split="all",
            images=shift.images,
            images_per_class=None,
            hint=hint,
            license=shift.license,
            training=TRAINING,
        )
        super().__init__(tree, **options)
