"""ImageNet (ILSVRC 2012), the user's own copy, in any of the three layouts that it is kept in."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from lgclip.datasets.base import Training
from lgclip.datasets.files import ImageFiles, check_counts, images_below, root_folder
from lgclip.datasets.imagenet_classes import (
    NUM_CLASSES,
    check_each,
    choose,
    chosen_indices,
    class_names,
    images_in,
    wordnet_ids,
)

IMAGES = {"val": 50_000, "train": 1_281_167}
"""Official number of images of each split (Russakovsky et al. 2015, table 2)."""
_EACH = {"val": 50, "train": None}
_TRAINING = {
    "val": Training({"split": "train"}),
    "train": Training(lacking=" beside dataset.split=train: choose dataset.split=val, which leaves images to train on"),
}
_BASES = ("", "ILSVRC/Data/CLS-LOC")  # as image-net.org's archives are usually unpacked, and as Kaggle's is
_DEVKIT = Path("ILSVRC2012_devkit_t12/data")
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_SOLUTION = "LOC_val_solution.csv"
_MAPPING = "LOC_synset_mapping.txt"
_HINT = (
    "Register at https://image-net.org/challenges/LSVRC/2012/2012-downloads.php, get ILSVRC2012_img_val.tar and "
    "ILSVRC2012_devkit_t12.tar.gz (for split=train ILSVRC2012_img_train.tar, a tar of one tar a class), and unpack "
    "them so that the folder holds {split}/n01440764/*.JPEG (one folder a class), or "
    f"val/ILSVRC2012_val_00000001.JPEG ... beside {_DEVKIT.parent}/, or Kaggle's ILSVRC/Data/CLS-LOC/{{split}} beside "
    f"{_SOLUTION}; say where it is by dataset.root=DIR"
)


class ImageNet(ImageFiles):
    """ImageNet's validation or training images (https://arxiv.org/abs/1409.0575); terms: non-commercial research.

    Args:
        root: The folder; None stands for `$LGCLIP_DATA/imagenet`, or else `data/imagenet`. It holds
            `SPLIT/WNID/*.JPEG`, or `val/ILSVRC2012_val_*.JPEG` beside the unpacked devkit, or Kaggle's tree.
        split: `val` (50,000 images) or `train` (1,281,167).
        names: `clip` (OpenAI's curated list), `torchvision` (1000 that differ), `folder` (the first of each
            class's synonyms in Kaggle's or the devkit's list, or else the WordNet id), `wnids`, or a text file with
            1000 lines.
        classes: Indices of the classes to judge; None for all 1000. ImageNette is
            [0, 217, 482, 491, 497, 566, 569, 571, 574, 701].
        context: What kind of things the classes are.
        templates: Sentences for the text baseline.
        counts: Whether the numbers of images must be the official ones.

    Attributes:
        class_indices: Index of each class among ImageNet's 1000.

    Raises:
        ValueError: If a folder, a class, an image or the ground truth is missing; the message says which.
    """

    def __init__(
        self,
        root: str | None = None,
        split: str = "val",
        names: str = "clip",
        classes: Sequence[int] | None = None,
        context: str = "",
        templates: Sequence[str] | None = None,
        counts: bool = True,
    ) -> None:
        if split not in IMAGES:
            raise ValueError(f"dataset.split={split}: choose {' or '.join(IMAGES)}")
        hint = _HINT.format(split=split)
        folder = root_folder("imagenet", root, [], hint)
        base = next((folder / base for base in _BASES if (folder / base / split).is_dir()), None)
        if base is None:
            raise ValueError(f"dataset=imagenet: {folder} holds no folder {split}. {hint}")
        indices = chosen_indices("imagenet", classes, range(NUM_CLASSES))
        images = dict(zip(indices, images_in(base, [f"{split}/{wordnet_ids()[i]}" for i in indices]), strict=True))
        flat = not any(images.values()) and _flat(folder, base, split, hint)
        if flat:
            images = {index: flat[index] for index in indices}
        each = _EACH[split]
        official = IMAGES[split] if len(indices) == NUM_CLASSES else each and each * len(indices)
        check_each("imagenet", images, each if counts else None, hint)
        chosen = choose(images, indices, NUM_CLASSES, official)
        if counts:
            check_counts("imagenet", chosen.labels, len(indices), official, hint)
        found, said = _found_names(folder) if names == "folder" else (None, "")
        super().__init__(
            "imagenet", base, chosen.files, chosen.labels, class_names(names, indices, found),
            split=split + chosen.note, names=names + said, context=context, templates=templates,
            training=_TRAINING[split],
        )  # fmt: skip
        self.class_indices = chosen.indices


def _flat(folder: Path, base: Path, split: str, hint: str) -> Mapping[int, Sequence[str]]:
    """Each class's images where all lie in one folder; empty if there are none."""
    files = images_below(base, split)
    if not files:
        return {}
    truth = _devkit_truth(folder, len(files)) or _kaggle_truth(folder)
    if not truth:
        needed = f"neither {_DEVKIT / _TRUTH} nor {_SOLUTION}"
        raise ValueError(f"dataset=imagenet: {folder / split} is not sorted by class, and there is {needed}. {hint}")
    places = {wnid: index for index, wnid in enumerate(wordnet_ids())}
    images: dict[int, list[str]] = {index: [] for index in range(NUM_CLASSES)}
    for file in files:
        wnid = truth.get(Path(file).stem)
        if wnid not in places:
            raise ValueError(f"dataset=imagenet: the ground truth gives {file} {wnid or 'no class'}. {hint}")
        images[places[wnid]].append(file)
    return images


def _devkit_truth(folder: Path, images: int) -> dict[str, str]:
    """WordNet id of each validation image by the development kit; empty if it is not there.

    Line i of the text is the ILSVRC id of image i. These ids have an order of their own, told in meta.mat.
    """
    path = folder / _DEVKIT / _TRUTH
    if not path.is_file():
        return {}
    ids = {str(number): wnid for number, wnid, _ in _synsets(folder)}
    lines = path.read_text(encoding="utf-8").split()
    if len(lines) < images:
        raise ValueError(f"dataset=imagenet: {path} tells of {len(lines)} images, there are {images}")
    return {f"ILSVRC2012_val_{i:08}": ids.get(line, f"the unknown id {line}") for i, line in enumerate(lines, 1)}


def _synsets(folder: Path) -> list[tuple[int, str, str]]:
    """ILSVRC id, WordNet id and words of each class in the development kit's meta.mat."""
    from scipy.io import loadmat

    path = folder / _DEVKIT / "meta.mat"
    if not path.is_file():
        raise ValueError(f"dataset=imagenet: {path} is missing, which tells what the ground truth's numbers stand for")
    try:
        table = loadmat(path, squeeze_me=True)["synsets"]
        every = [(int(row["ILSVRC2012_ID"]), str(row["WNID"]), str(row["words"])) for row in table]
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"dataset=imagenet: {path} is not the development kit's ({error})") from error
    classes = set(wordnet_ids())
    return [row for row in every if row[1] in classes]  # the rest are the inner nodes of the hierarchy


def _kaggle_truth(folder: Path) -> dict[str, str]:
    """WordNet id of each validation image by Kaggle's table; empty if it is not there."""
    path = folder / _SOLUTION
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = [(row.get("ImageId", ""), (row.get("PredictionString") or "").split()) for row in csv.DictReader(file)]
    return {image: words[0] for image, words in rows if words}  # the rest of the words are boxes


def _found_names(folder: Path) -> tuple[tuple[str, ...] | None, str]:
    """The names that the tree itself gives, the first of each class's synonyms, and where they stand."""
    if (folder / _MAPPING).is_file():
        lines = (folder / _MAPPING).read_text(encoding="utf-8").splitlines()
        words = dict(line.split(maxsplit=1) for line in lines if line.strip())
        said = _MAPPING
    elif (folder / _DEVKIT / "meta.mat").is_file():
        words, said = {wnid: words for _, wnid, words in _synsets(folder)}, "meta.mat"
    else:
        return None, " (WordNet ids)"
    missing = [wnid for wnid in wordnet_ids() if wnid not in words]
    if missing:
        raise ValueError(f"dataset.names=folder: {said} names {len(missing)} classes not, such as {missing[0]}")
    return tuple(words[wnid].split(",")[0].strip() for wnid in wordnet_ids()), f" ({said})"
