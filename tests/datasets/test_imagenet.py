"""Tests ImageNet and its variants, each in the layout of its archive."""

import shutil
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import imagenet_trees as trees
import numpy as np
import pytest
from PIL import Image

from lgclip.datasets import imagenet
from lgclip.datasets.imagenet import ImageNet
from lgclip.datasets.imagenet_classes import wordnet_ids

WNIDS = wordnet_ids()
SOME = trees.SOME
IMAGENETTE = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]
TRUTH = [65, 970, 230, 0, 65]
"""Classes of a few validation images; the real first one is of class 65 too."""


def wnids(indices: Sequence[int]) -> list[str]:
    return [WNIDS[index] for index in indices]


@pytest.fixture
def sorted_tree(tmp_path: Path) -> Path:
    return trees.class_folders(tmp_path / "root", [f"val/{wnid}" for wnid in wnids(SOME)], per_class=2)


# The lists that the package holds.


@pytest.mark.parametrize("name", ["imagenet", "imagenet_r", "imagenet_a"])
def test_imagenet_classes_match_timm(name: str) -> None:
    info = resources.files("timm.data") / "_info"
    assert list(wordnet_ids(name)) == (info / f"{name}_synsets.txt").read_text().split()
    if name != "imagenet":
        indices = [int(line) for line in (info / f"{name}_indices.txt").read_text().split()]
        assert list(wordnet_ids(name)) == wnids(indices)


def test_imagenet_classes_are_in_wordnet_order() -> None:
    assert len(set(WNIDS)) == 1000
    assert list(WNIDS) == sorted(WNIDS)


def test_clip_names_match_open_clip() -> None:
    import open_clip

    names = imagenet.class_names("clip")
    assert names == tuple(open_clip.IMAGENET_CLASSNAMES)
    assert (len(names), len(set(names))) == (1000, 998)
    assert [i for i, name in enumerate(names) if name in ("missile", "sunglasses")] == [657, 744, 836, 837]


def test_torchvision_names_are_unique() -> None:
    from torchvision.models import ResNet50_Weights

    names = imagenet.class_names("torchvision")
    assert names == tuple(ResNet50_Weights.DEFAULT.meta["categories"])
    assert len(set(names)) == 1000


# ImageNet.


def test_folders_are_read_in_index_order(sorted_tree: Path) -> None:
    data = ImageNet(str(sorted_tree), classes=[701, 0, 65], counts=False)
    assert data.class_indices == (0, 65, 701)
    assert data.class_names == ("tench", "sea snake", "parachute")
    assert data.labels == (0, 0, 1, 1, 2, 2)
    assert data.files[2:4] == [f"val/{WNIDS[65]}/{WNIDS[65]}_{i}.JPEG" for i in range(2)]
    assert data.split == "val; 3 of 1000 classes (0 65 701); 6 of 150 images"
    assert data.source()["dataset"] == "imagenet"


def test_all_classes_can_be_selected(tmp_path: Path) -> None:
    root = trees.class_folders(tmp_path, [f"val/{wnid}" for wnid in WNIDS])
    data = ImageNet(str(root), counts=False)
    assert data.labels == data.class_indices == tuple(range(1000))
    assert (data.split, data.names, len(data.class_names)) == ("val; 1,000 of 50,000 images", "clip", 1000)
    subset = ImageNet(str(root), classes=IMAGENETTE, counts=False)
    assert [data.ids[index] for index in IMAGENETTE] == list(subset.ids), "what is known of an image is shared"
    assert subset.class_names == tuple(data.class_names[index] for index in IMAGENETTE)
    assert subset.source() == data.source()
    assert Counter(target_class.occurrence for target_class in data.target_classes) == {0: 998, 1: 2}
    second = ImageNet(str(root), classes=[744, 836], counts=False)
    assert [(c.name, c.occurrence) for c in second.target_classes] == [("missile", 1), ("sunglasses", 0)]


def test_unusual_image_formats_are_decoded(sorted_tree: Path) -> None:
    data = ImageNet(str(sorted_tree), classes=SOME, counts=False)
    kinds = []
    for index, file in enumerate(data.files):
        with Image.open(sorted_tree / file) as stored:
            kinds.append((stored.format, stored.mode))
            expected = np.asarray(stored.convert("RGB"))
        np.testing.assert_array_equal(data.image(index), expected)
    assert {("JPEG", "CMYK"), ("PNG", "RGBA"), ("JPEG", "L"), ("JPEG", "RGB")} <= set(kinds)


def test_devkit_matches_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compares with torchvision's parser; only its check of the archive's hash is skipped."""
    from torchvision.datasets import imagenet as theirs

    root = trees.write(tmp_path / "root", [f"val/{trees.val_name(i)}" for i in range(1, len(TRUTH) + 1)])
    ids = trees.devkit(root, WNIDS, TRUTH)
    assert [ids[wnid] - 1 for wnid in WNIDS] != list(range(1000)), "the kit has an order of its own"
    data = ImageNet(str(root), classes=sorted(set(TRUTH)), names="folder", counts=False)
    assert data.class_indices is not None
    by_file = {Path(data.files[i]).name: data.class_indices[label] for i, label in enumerate(data.labels)}
    assert [by_file[trees.val_name(i)] for i in range(1, len(TRUTH) + 1)] == TRUTH
    assert data.class_names == tuple(f"word {WNIDS[index]}" for index in sorted(set(TRUTH)))
    assert data.names == "folder (meta.mat)"

    kit = Path(trees.DEVKIT).parts[0]
    shutil.make_archive(str(root / kit), "gztar", root, kit)
    monkeypatch.setattr(theirs, "_verify_archive", lambda *arguments: None)
    theirs.parse_devkit_archive(root)
    _, expected = theirs.load_meta_file(root)
    assert expected == wnids(TRUTH)


def test_kaggle_tree_uses_its_table(tmp_path: Path) -> None:
    base = trees.kaggle(tmp_path, WNIDS, TRUTH)
    data = ImageNet(str(tmp_path), classes=[65, 970], counts=False, names="folder")
    assert data.files == tuple(f"val/{trees.val_name(i)}" for i in (1, 5, 2))
    assert (data.labels, data.root) == ((0, 0, 1), base)
    assert data.class_names == (f"kind {WNIDS[65]}", f"kind {WNIDS[970]}")
    assert data.names == "folder (LOC_synset_mapping.txt)"


def test_bare_tree_uses_wordnet_ids(sorted_tree: Path) -> None:
    for names in ("folder", "wnids"):
        data = ImageNet(str(sorted_tree), classes=SOME, counts=False, names=names)
        assert data.class_names == tuple(wnids(SOME))
    assert ImageNet(str(sorted_tree), classes=SOME, counts=False, names="folder").names == "folder (WordNet ids)"


def test_names_file_follows_imagenet_indices(sorted_tree: Path, tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("\n".join(f"name {i}" for i in range(1000)))
    assert ImageNet(str(sorted_tree), names=str(file), classes=[65, 1], counts=False).class_names == (
        "name 1", "name 65"
    )  # fmt: skip
    file.write_text("tench\ngoldfish\n")
    with pytest.raises(ValueError, match="2 names for 1000 classes"):
        ImageNet(str(sorted_tree), names=str(file), classes=[0, 1], counts=False)


def test_train_is_a_split(tmp_path: Path) -> None:
    root = trees.class_folders(tmp_path, [f"train/{wnid}" for wnid in wnids(SOME)])
    trees.class_folders(tmp_path, [f"val/{wnid}" for wnid in wnids(SOME)])
    train, val = (ImageNet(str(root), split=s, classes=SOME, counts=False) for s in ("train", "val"))
    assert (train.split.split(";")[0], len(train)) == ("train", len(SOME))
    assert not set(train.files) & set(val.files)


def test_root_is_a_machine_setting(sorted_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sorted_tree.rename(sorted_tree.parent / "imagenet")
    monkeypatch.setenv("LGCLIP_DATA", str(sorted_tree.parent))
    assert len(ImageNet(classes=SOME, counts=False)) == 2 * len(SOME)


def test_missing_class_is_named(sorted_tree: Path) -> None:
    with pytest.raises(ValueError, match=rf"992 of 1000 classes .*: {WNIDS[3]} \(class 3\) has 0.*2012-downloads"):
        ImageNet(str(sorted_tree), counts=False)


def test_incomplete_class_is_named(tmp_path: Path) -> None:
    root = trees.class_folders(tmp_path, [f"val/{wnid}" for wnid in wnids([0, 1])], per_class=50)
    full_dataset = ImageNet(str(root), classes=[0, 1])
    assert (len(full_dataset), full_dataset.split) == (100, "val; 2 of 1000 classes (0 1)"), "a whole class has 50"
    (root / "val" / WNIDS[1] / f"{WNIDS[1]}_7.JPEG").unlink()
    (root / "val" / WNIDS[1] / f"._{WNIDS[1]}_7.JPEG").touch()  # what some systems leave beside a copy
    with pytest.raises(ValueError, match=rf"1 of 2 classes have not the 50 images .*: {WNIDS[1]} \(class 1\) has 49"):
        ImageNet(str(root), classes=[0, 1])
    assert len(ImageNet(str(root), classes=[0, 1], counts=False)) == 99


def test_image_count_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = trees.class_folders(tmp_path, [f"train/{wnid}" for wnid in WNIDS])
    with pytest.raises(ValueError, match="1000 images found, the split has 1281167"):
        ImageNet(str(root), split="train")
    monkeypatch.setitem(imagenet.IMAGES, "train", 1000)
    assert len(ImageNet(str(root), split="train")) == 1000


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([0, 1000], r"\[1000\] are none of ImageNet's indices 0..999"),
        ([-1], r"\[-1\] are none"),
        ([1, 0, 1], r"\[1\] occur twice"),
        ([], "has none of these classes"),
    ],
)
def test_invalid_class_selection_is_rejected(classes: list[int], message: str, sorted_tree: Path) -> None:
    with pytest.raises(ValueError, match=f"dataset.classes.*{message}"):
        ImageNet(str(sorted_tree), classes=classes, counts=False)


def test_long_class_selections_have_different_keys(tmp_path: Path) -> None:
    root = trees.class_folders(tmp_path, [f"val/{wnid}" for wnid in wnids(range(21))])
    splits = {ImageNet(str(root), classes=list(range(i, 20 + i)), counts=False).split for i in (0, 1)}
    assert len(splits) == 2
    assert all(split.startswith("val; 20 of 1000 classes (list ") for split in splits)


def corrupted_root(root: Path, damage: str) -> None:
    truth = root / trees.DEVKIT / "ILSVRC2012_validation_ground_truth.txt"
    match damage:
        case "no devkit":
            shutil.rmtree(root / Path(trees.DEVKIT).parts[0])
        case "no meta.mat":
            (root / trees.DEVKIT / "meta.mat").unlink()
        case "other meta.mat":
            (root / trees.DEVKIT / "meta.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
        case "short truth":
            truth.write_text("1\n2\n")
        case "wild truth":
            truth.write_text("1\n2\nx\n4\n5\n")
        case "unknown truth":
            truth.write_text("1\n2\n1002\n4\n5\n")  # the id of an inner node
        case "strange image":
            (root / "val" / trees.val_name(5)).rename(root / "val" / "mine.JPEG")
        case "no images":
            shutil.rmtree(root / "val")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no devkit", "not sorted by class, and there is neither .*ground_truth.txt nor LOC_val_solution.csv"),
        ("no meta.mat", r"meta\.mat is missing"),
        ("other meta.mat", r"meta\.mat is not the development kit's"),
        ("short truth", "lists 2 images, there are 5"),
        ("wild truth", "ILSVRC2012_val_00000003.JPEG the unknown id x"),
        ("unknown truth", "ILSVRC2012_val_00000003.JPEG the unknown id 1002"),
        ("strange image", "mine.JPEG no class"),
        ("no images", r"holds no folder val\. Register at https://image-net.org"),
    ],
)
def test_unreadable_flat_tree_is_explained(damage: str, message: str, tmp_path: Path) -> None:
    root = trees.write(tmp_path, [f"val/{trees.val_name(i)}" for i in range(1, 6)])
    trees.devkit(root, WNIDS, TRUTH)
    corrupted_root(root, damage)
    with pytest.raises(ValueError, match=f"dataset=imagenet.*{message}"):
        ImageNet(str(root), counts=False)


def test_missing_folder_explains_the_download(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the folder itself.*ILSVRC2012_img_val.tar.*dataset.root=DIR"):
        ImageNet(str(tmp_path / "absent"))
    with pytest.raises(ValueError, match=r"dataset.split=test: choose val or train"):
        ImageNet(str(tmp_path), split="test")
