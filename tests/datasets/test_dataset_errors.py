"""Tests partial or damaged trees of public data sets: the message names the file and the fix."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_trees import TREES, build_all_trees, load_dataset

from lgclip.datasets import cifar10, cub, dtd, eurosat, fgvc_aircraft, flowers102, food101, imagenette, pets

MODULES = {
    "cub": cub, "eurosat": eurosat, "flowers102": flowers102, "food101": food101, "pets": pets, "dtd": dtd,
    "fgvc_aircraft": fgvc_aircraft, "cifar10": cifar10, "imagenette": imagenette,
}  # fmt: skip
CopiedTree = Callable[[str], Path]


@pytest.fixture(scope="module")
def dataset_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_all_trees(tmp_path_factory.mktemp("data"))


@pytest.fixture
def copied_tree(dataset_root: Path, tmp_path: Path) -> CopiedTree:
    """Returns a function that copies a tree, which the test may damage."""
    return lambda name: Path(shutil.copytree(dataset_root / name, tmp_path / name))


def test_class_without_images_is_named(copied_tree: CopiedTree) -> None:
    root = copied_tree("eurosat")
    for path in (root / "2750" / "River").iterdir():
        path.unlink()
    with pytest.raises(Exception, match=r"no image of classes \[8\], 1 in all"):
        load_dataset("eurosat", root, counts=True)
    assert 8 not in load_dataset("eurosat", root).labels


@pytest.mark.parametrize("name", TREES)
def test_missing_tree_explains_the_download(name: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"not complete, missing: ") as raised:
        load_dataset(name, tmp_path / "nowhere")
    message = str(raised.value)
    for archive in imagenette.ARCHIVES.values() if name == "imagenette" else MODULES[name].TREE.archives:
        assert archive.url in message
        break
    assert f"unpack it in {tmp_path / 'nowhere'}" in message
    assert "dataset.download=true" in message


def test_manual_downloads_are_explained(copied_tree: CopiedTree) -> None:
    for name, file in {"eurosat": eurosat.COOP, "flowers102": flowers102.COOP}.items():
        root = copied_tree(name)
        (root / file).unlink()
        load_dataset(name, root)
        with pytest.raises(
            Exception, match=rf"missing: {file}\. .*must be downloaded by hand: https://drive\.google\.com/file/d/"
        ):
            load_dataset(name, root, "split=coop")


LOSSES = [
    ("cub", "CUB_200_2011/classes.txt", [], "missing: classes.txt"),
    ("cub", "CUB_200_2011/train_test_split.txt", [], "missing: train_test_split.txt"),
    ("eurosat", "2750/River", [], "missing: 2750/River"),
    ("eurosat", "eurosat-val.txt", ["split=torchgeo-val"], "missing: eurosat-val.txt"),
    ("flowers102", "imagelabels.mat", [], "missing: imagelabels.mat"),
    ("food101", "food-101/meta/test.json", [], "missing: meta/test.json"),
    ("pets", "annotations/test.txt", [], "missing: annotations/test.txt"),
    ("dtd", "dtd/labels/test7.txt", ["split=partition7"], "missing: labels/test7.txt"),
    ("fgvc_aircraft", "fgvc-aircraft-2013b/data/variants.txt", [], "missing: variants.txt"),
    ("fgvc_aircraft", "fgvc-aircraft-2013b/data/images_family_test.txt", ["level=family", "names=folder"],
     "missing: images_family_test.txt"),
    ("cifar10", "cifar-10-batches-bin/data_batch_3.bin", [], "missing: data_batch_3.bin"),
    ("imagenette", "imagenette2/val/n03888257", [], "missing: val/n03888257"),
    ("imagenette", "imagenette2", ["size=320px"], "missing: val/n01440764"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "deleted", "overrides", "message"), LOSSES, ids=[f"{n} {g}" for n, g, _, _ in LOSSES])
def test_partial_tree_names_missing_files(
    name: str, deleted: str, overrides: list[str], message: str, copied_tree: CopiedTree
) -> None:
    root = copied_tree(name)
    shutil.rmtree(root / deleted) if (root / deleted).is_dir() else (root / deleted).unlink()
    with pytest.raises(Exception, match=f"dataset={name}: {root}.* is not complete, .*{re.escape(message)}"):
        load_dataset(name, root, *overrides)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cub", "flowers102", "food101", "pets", "dtd", "fgvc_aircraft"])
def test_listed_images_must_exist(name: str, copied_tree: CopiedTree) -> None:
    root = copied_tree(name)
    data: Any = load_dataset(name, root)
    for file in data.files[3:5]:
        (data.root / file).unlink()
    with pytest.raises(Exception, match=rf"2 of {len(data)} images of .* test are not in .*{re.escape(data.files[3])}"):
        load_dataset(name, root)


DAMAGES = [
    ("cub", "CUB_200_2011/images.txt", "1\n", r"images\.txt is damaged: '1' \(line 1\) has not 2 columns"),
    ("cub", "CUB_200_2011/train_test_split.txt", "1 0\n", "do not name the same images: 10, 100, 101"),
    ("cub", "CUB_200_2011/image_class_labels.txt", None, "found where a number from 1 to 200 should"),
    ("cub", "CUB_200_2011/classes.txt", b"\xff\xfe1", "it is not text in UTF-8"),
    ("eurosat", "split_zhou_EuroSAT.json", "{", "it is not JSON"),
    ("eurosat", "split_zhou_EuroSAT.json", '{"train": []}', "it is not a CoOp split with a part 'test'"),
    ("eurosat", "split_zhou_EuroSAT.json", '{"test": [["River/River_1.jpg", 3, "River"]]}', "has the label 3"),
    ("eurosat", "split_zhou_EuroSAT.json", '{"test": [["Lake/Lake_1.jpg", 3, "x"]]}', "'Lake' is none of the 10"),
    ("flowers102", "setid.mat", b"MATLAB 5.0 MAT-file", "no 'tstid' can be read from it"),
    ("flowers102", "split_zhou_OxfordFlowers.json", '{"test": [["image_00001.jpg", 5, "x"]]}', "has the label 5"),
    ("flowers102", "split_zhou_OxfordFlowers.json", '{"test": [["image_09999.jpg", 5, "x"]]}', "does not fit"),
    ("food101", "food-101/meta/test.json", "[]", "not a list of images per class"),
    ("pets", "annotations/test.txt", "Abyssinian_1 38 1 1\n", "'38' found where a number from 1 to 37 should"),
    ("pets", "annotations/test.txt", "Bengal_1 1 1 1\n", "class 1 is Bengal and Abyssinian"),
    ("dtd", "dtd/labels/test1.txt", "wooden/wooden_0002.jpg\n", "'wooden' is none of the 47 classes"),
    ("fgvc_aircraft", "fgvc-aircraft-2013b/data/images_variant_test.txt", "0000000 Jet 9\n", "'Jet 9' is none"),
    ("cifar10", "cifar-10-batches-bin/test_batch.bin", b"\0" * 3000, "3000 bytes are no whole number of images"),
    ("cifar10", "cifar-10-batches-bin/test_batch.bin", b"\x0b" * 3073, "it holds the label 11"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "file", "content", "message"), DAMAGES, ids=[f"{d[1]} {d[3]}" for d in DAMAGES])
def test_damaged_file_is_named(
    name: str, file: str, content: str | bytes | None, message: str, copied_tree: CopiedTree
) -> None:
    root = copied_tree(name)
    path = root / file
    if content is None:
        content = re.sub(r" 7$", " 777", path.read_text(), flags=re.MULTILINE)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(Exception, match=message):
        load_dataset(name, root, *(["split=coop"] if "split_zhou" in file else []))


def test_flowers_labels_are_range_checked(copied_tree: CopiedTree) -> None:
    from scipy.io import savemat

    root = copied_tree("flowers102")
    for labels, message in (
        (np.arange(104), "runs from 0 to 103, not within 1 to 102"), (np.array([1.5]), "not a row of integers")
    ):  # fmt: skip
        savemat(root / "imagelabels.mat", {"labels": labels[None]})
        with pytest.raises(Exception, match=message):
            load_dataset("flowers102", root)


def test_unknown_levels_and_sizes_are_rejected(dataset_root: Path) -> None:
    with pytest.raises(Exception, match=r"dataset\.level=type: choose variant, family, manufacturer"):
        load_dataset("fgvc_aircraft", dataset_root / "fgvc_aircraft", "level=type")
    with pytest.raises(Exception, match=r"dataset\.size=80px: choose full, 320px, 160px"):
        load_dataset("imagenette", dataset_root / "imagenette", "size=80px")
