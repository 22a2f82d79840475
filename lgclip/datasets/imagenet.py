"""Reads ImageNet (ILSVRC 2012), the user's own copy, in any of its three common layouts."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from lgclip.datasets.base import Training
from lgclip.datasets.image_files import images_below, root_folder
from lgclip.datasets.imagenet_classes import ClassFolders, ClassOptions, ImageNetImages, class_names, wordnet_ids
from lgclip.runtime.regular_files import read_text

IMAGES = {"val": 50_000, "train": 1_281_167}
"""Official number of images of each split (Russakovsky et al. 2015, table 2)."""
_IMAGES_PER_CLASS = {"val": 50, "train": None}
_TRAINING = {
    "val": Training({"split": "train"}),
    "train": Training(lacking=" with dataset.split=train: choose dataset.split=val, which leaves images to train on"),
}
_BASES = ("", "ILSVRC/Data/CLS-LOC")  # as image-net.org's archives are usually unpacked, and as Kaggle's is
_DEVKIT = Path("ILSVRC2012_devkit_t12/data")
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_SOLUTION = "LOC_val_solution.csv"
_MAPPING = "LOC_synset_mapping.txt"
_HINT = (
    "Register at https://image-net.org/challenges/LSVRC/2012/2012-downloads.php, get ILSVRC2012_img_val.tar and "
    "ILSVRC2012_devkit_t12.tar.gz (for split=train ILSVRC2012_img_train.tar, a tar of one tar a class), and unpack "
    "them so that the folder holds {split}/n01440764/*.JPEG (one folder per class), or "
    f"val/ILSVRC2012_val_00000001.JPEG ... beside {_DEVKIT.parent}/, or Kaggle's ILSVRC/Data/CLS-LOC/{{split}} beside "
    f"{_SOLUTION}; set dataset.root=DIR"
)


class ImageNet(ImageNetImages):
    """Reads ImageNet's validation or training images (https://arxiv.org/abs/1409.0575).

    Args:
        root: The folder; None uses `$LGCLIP_DATA/imagenet`, or else `data/imagenet`. It holds
            `SPLIT/WNID/*.JPEG`, or `val/ILSVRC2012_val_*.JPEG` next to the unpacked devkit, or Kaggle's layout.
        split: `val` (50,000 images) or `train` (1,281,167).
        options: See `ImageNetImages`.
    """

    def __init__(self, root: str | None = None, split: str = "val", **options: Unpack[ClassOptions]) -> None:
        if split not in IMAGES:
            raise ValueError(f"dataset.split={split}: choose {' or '.join(IMAGES)}")
        hint = _HINT.format(split=split)
        self._folder = root_folder("imagenet", root, [], hint)
        bases = [self._folder / base for base in _BASES if (self._folder / base / split).is_dir()]
        if not bases:
            raise ValueError(f"dataset=imagenet: {self._folder} holds no folder {split}. {hint}")
        tree = ClassFolders(
            "imagenet",
            bases[0],
            folders={index: f"{split}/{wordnet_id}" for index, wordnet_id in enumerate(wordnet_ids())},
            split=split,
            images=IMAGES[split],
            images_per_class=_IMAGES_PER_CLASS[split],
            hint=hint,
            license="non-commercial research",
            training=_TRAINING[split],
        )
        super().__init__(tree, **options)

    def list_images(self, tree: ClassFolders, indices: Sequence[int]) -> dict[int, Sequence[str]]:
        images = super().list_images(tree, indices)
        if any(images.values()):
            return images
        files = images_below(tree.root, tree.split)
        if not files:
            return images
        # All images are in one folder, so their classes are in a table.
        truth = _devkit_truth(self._folder, len(files)) or _kaggle_truth(self._folder)
        if not truth:
            raise ValueError(
                f"dataset=imagenet: {self._folder / tree.split} is not sorted by class, and there is neither "
                f"{_DEVKIT / _TRUTH} nor {_SOLUTION}. {tree.hint}"
            )
        index_of = {wordnet_id: index for index, wordnet_id in enumerate(wordnet_ids())}
        # All 1000 classes, so that a wrong table is noticed even if only some classes are evaluated.
        images_of: dict[int, list[str]] = {index: [] for index in index_of.values()}
        for file in files:
            wordnet_id = truth.get(Path(file).stem)
            if wordnet_id not in index_of:
                raise ValueError(
                    f"dataset=imagenet: the ground truth gives {file} {wordnet_id or 'no class'}. {tree.hint}"
                )
            images_of[index_of[wordnet_id]].append(file)
        return {index: images_of[index] for index in indices}

    def name_classes(self, names: str) -> tuple[tuple[str, ...], str]:
        if names != "folder":
            return super().name_classes(names)
        if (self._folder / _MAPPING).is_file():
            origin = _MAPPING
            lines = read_text(self._folder / _MAPPING).splitlines()
            words = dict(line.split(maxsplit=1) for line in lines if line.strip())
        elif (self._folder / _DEVKIT / "meta.mat").is_file():
            origin = "meta.mat"
            words = {wordnet_id: words for _, wordnet_id, words in _synsets(self._folder)}
        else:
            return class_names(names), "folder (WordNet ids)"
        missing = [wordnet_id for wordnet_id in wordnet_ids() if wordnet_id not in words]
        if missing:
            raise ValueError(f"dataset.names=folder: {origin} names {len(missing)} classes not, such as {missing[0]}")
        first_synonyms = [words[wordnet_id].split(",")[0].strip() for wordnet_id in wordnet_ids()]
        return class_names(names, first_synonyms), f"folder ({origin})"


def _devkit_truth(folder: Path, images: int) -> dict[str, str]:
    """Returns the WordNet id of each validation image from the development kit; empty if there is none.

    Line i of the text is the ILSVRC id of image i. These ids have their own order, defined in meta.mat.
    """
    path = folder / _DEVKIT / _TRUTH
    if not path.is_file():
        return {}
    ids = {str(number): wnid for number, wnid, _ in _synsets(folder)}
    lines = read_text(path).split()
    # Fewer images than lines are a part of the set, which is allowed; more have no label.
    if len(lines) < images:
        raise ValueError(f"dataset=imagenet: {path} lists {len(lines)} images, there are {images}")
    return {f"ILSVRC2012_val_{i:08}": ids.get(line, f"the unknown id {line}") for i, line in enumerate(lines, 1)}


def _synsets(folder: Path) -> list[tuple[int, str, str]]:
    """Returns ILSVRC id, WordNet id and words of each class from the development kit's meta.mat."""
    from scipy.io import loadmat

    path = folder / _DEVKIT / "meta.mat"
    if not path.is_file():
        raise ValueError(f"dataset=imagenet: {path} is missing, which defines the numbers of the ground truth")
    try:
        table = loadmat(path, squeeze_me=True)["synsets"]
        every = [(int(row["ILSVRC2012_ID"]), str(row["WNID"]), str(row["words"])) for row in table]
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"dataset=imagenet: {path} is not the development kit's ({error})") from error
    classes = set(wordnet_ids())
    return [row for row in every if row[1] in classes]  # the rest are the inner nodes of the hierarchy


def _kaggle_truth(folder: Path) -> dict[str, str]:
    """Returns the WordNet id of each validation image from Kaggle's table; empty if there is none."""
    path = folder / _SOLUTION
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = [(row.get("ImageId", ""), (row.get("PredictionString") or "").split()) for row in csv.DictReader(file)]
    return {image: words[0] for image, words in rows if words}  # the rest of the words are boxes
