"""Tests labels, order and names of the public data sets against their format and torchvision's classes."""

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torchvision.datasets as tv
from dataset_trees import CIFAR, FAMILIES, MAKERS, PETS_CATS, TREES, build_all_trees, class_names_of, load_dataset

from lgclip.datasets import eurosat, imagenette


@pytest.fixture(scope="module")
def dataset_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_all_trees(tmp_path_factory.mktemp("data"))


def files_of(data: Any) -> list[str]:
    return list(data.files)


def test_cub_is_ordered_by_number(dataset_root: Path) -> None:
    data: Any = load_dataset("cub", dataset_root / "cub")
    for file, label in zip(data.files, data.labels, strict=True):
        assert int(file.removeprefix("images/")[:3]) == label + 1
    assert data.class_names[:2] == ("Black footed Albatross", "Laysan Albatross")
    assert data.templates == ("a photo of a {}, a type of bird.",)
    train: Any = load_dataset("cub", dataset_root / "cub", "split=official-train")
    assert {file.rpartition("_")[0][-4:] for file in train.files} == {"0001"}


@pytest.mark.slow
def test_eurosat_is_ordered_by_folder(dataset_root: Path) -> None:
    for split in ("all", "coop", "torchgeo", "coop-train"):
        data: Any = load_dataset("eurosat", dataset_root / "eurosat", f"split={split}")
        assert [eurosat.CLASSES[label] for label in data.labels] == [file.split("/")[1] for file in data.files]
    lists = {"coop": {"1", "2"}, "torchgeo": {"5"}, "torchgeo-val": {"4"}, "coop-val": {"3"}}
    for split, numbers in lists.items():
        data = load_dataset("eurosat", dataset_root / "eurosat", f"split={split}")
        assert {Path(file).stem.rpartition("_")[2] for file in data.files} == numbers
    assert data.templates == ("a centered satellite photo of {}.",)


def test_eurosat_matches_torchvision(dataset_root: Path, tmp_path: Path) -> None:
    (tmp_path / "eurosat").symlink_to(dataset_root / "eurosat")
    expected = tv.EuroSAT(tmp_path)
    actual = load_dataset("eurosat", tmp_path)
    assert [str(Path(path).relative_to(tmp_path / "eurosat")) for path, _ in expected.samples] == files_of(actual)
    assert tuple(expected.targets) == actual.labels
    assert tuple(expected.classes) == load_dataset("eurosat", dataset_root / "eurosat", "names=folder").class_names


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_flowers102_matches_torchvision(split: str, dataset_root: Path, tmp_path: Path) -> None:
    (tmp_path / "flowers-102").symlink_to(dataset_root / "flowers102")
    actual = load_dataset("flowers102", tmp_path, f"split=official-{split}")
    with pytest.MonkeyPatch.context() as patch:  # its checksums are those of the real files
        patch.setattr(tv.Flowers102, "_check_integrity", lambda _: True)
        expected: Any = tv.Flowers102(tmp_path, split)
    assert [f"jpg/{path.name}" for path in expected._image_files] == files_of(actual)
    assert tuple(expected._labels) == actual.labels
    assert min(actual.labels) == 0, "the file's labels begin with 1"


@pytest.mark.parametrize("split", ["train", "test"])
def test_food101_matches_torchvision(split: str, dataset_root: Path) -> None:
    expected: Any = tv.Food101(dataset_root / "food101", split)
    actual = load_dataset("food101", dataset_root / "food101", f"split=official-{split}", "names=folder")
    assert [str(path.relative_to(dataset_root / "food101" / "food-101")) for path in expected._image_files] == files_of(
        actual
    )
    assert tuple(expected._labels) == actual.labels
    assert tuple(name.replace("_", " ") for name in expected.classes) == actual.class_names
    assert actual.templates == ("a photo of {}, a type of food.",), "no article before a dish"


@pytest.mark.parametrize("split", ["trainval", "test"])
def test_pets_matches_torchvision(split: str, dataset_root: Path, tmp_path: Path) -> None:
    (tmp_path / "oxford-iiit-pet").symlink_to(dataset_root / "pets")
    expected: Any = tv.OxfordIIITPet(tmp_path, split)
    actual = load_dataset("pets", tmp_path, f"split=official-{split}")
    assert [f"images/{path.name}" for path in expected._images] == files_of(actual)
    assert tuple(expected._labels) == actual.labels
    assert [name.lower() for name in expected.classes] == [name.lower() for name in actual.class_names]


def test_pets_are_not_ordered_by_name(dataset_root: Path) -> None:
    data: Any = load_dataset("pets", dataset_root / "pets", "names=folder")
    for file, label in zip(data.files, data.labels, strict=True):
        breed = file.removeprefix("images/").rpartition("_")[0]
        assert data.class_names[label] == breed.replace("_", " ")
    assert data.class_names != tuple(sorted(data.class_names))
    assert data.class_names[1] == "american bulldog"
    assert sum(name.replace(" ", "_") in PETS_CATS for name in data.class_names) == 12


@pytest.mark.parametrize("partition", [1, 10])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_dtd_matches_torchvision(split: str, partition: int, dataset_root: Path, tmp_path: Path) -> None:
    (tmp_path / "dtd").symlink_to(dataset_root / "dtd")
    expected: Any = tv.DTD(tmp_path, split, partition)
    actual = load_dataset("dtd", tmp_path, f"split=partition{partition}-{split}", "names=folder")
    folder = tmp_path / "dtd" / "dtd"
    assert [str(path.relative_to(folder)) for path in expected._image_files] == files_of(actual)
    assert tuple(expected._labels) == actual.labels
    assert tuple(expected.classes) == actual.class_names
    assert actual.templates == ("{} texture.",)


@pytest.mark.parametrize(("level", "names"), [("variant", None), ("family", FAMILIES), ("manufacturer", MAKERS)])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_aircraft_matches_torchvision(
    split: str, level: str, names: tuple[str, ...] | None, dataset_root: Path
) -> None:
    root = dataset_root / "fgvc_aircraft"
    expected: Any = tv.FGVCAircraft(root, split, level)
    actual = load_dataset("fgvc_aircraft", root, f"split=official-{split}", f"level={level}", "names=folder")
    base = root / "fgvc-aircraft-2013b" / "data"
    assert [str(Path(path).relative_to(base)) for path in expected._image_files] == files_of(actual)
    assert tuple(expected._labels) == actual.labels
    assert tuple(expected.classes) == actual.class_names == (names or tuple(class_names_of("fgvc_aircraft")))


def test_cifar10_planes_are_decoded(dataset_root: Path) -> None:
    base = dataset_root / "cifar10" / "cifar-10-batches-bin"
    raw = [np.frombuffer((base / f"data_batch_{n}.bin").read_bytes(), np.uint8).reshape(-1, 3073) for n in range(1, 6)]
    records = np.concatenate(raw)
    data = load_dataset("cifar10", dataset_root / "cifar10", "split=official-train", "names=folder")
    assert data.class_names == CIFAR
    assert data.labels == tuple(records[:, 0].tolist())
    for index in (0, 39, 40, 199):
        image = np.asarray(data.image(index))
        assert image.shape == (32, 32, 3)
        for row, column, color in ((0, 0, 0), (3, 31, 1), (31, 2, 2)):
            assert image[row, column, color] == records[index, 1 + 1024 * color + 32 * row + column]


@pytest.mark.parametrize("split", ["train", "val"])
def test_imagenette_matches_torchvision(split: str, dataset_root: Path) -> None:
    expected: Any = tv.Imagenette(dataset_root / "imagenette", split, "160px")
    actual = load_dataset(
        "imagenette", dataset_root / "imagenette", f"split=official-{split}", "size=160px", "names=torchvision"
    )
    base = dataset_root / "imagenette" / "imagenette2-160"
    assert [str(Path(path).relative_to(base)) for path, _ in expected._samples] == files_of(actual)
    assert tuple(label for _, label in expected._samples) == actual.labels
    assert tuple(names[0] for names in expected.classes) == actual.class_names


def test_class_names_match_installed_packages() -> None:
    assert class_names_of("flowers102", "torchvision") == tv.Flowers102.classes
    assert class_names_of("imagenette", "torchvision") == [names[0] for names in tv.Imagenette._WNID_TO_CLASS.values()]
    assert tuple(tv.Imagenette._WNID_TO_CLASS) == imagenette.WORDNET_IDS
    indices = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)
    assert class_names_of("imagenette") == [open_clip.IMAGENET_CLASSNAMES[index] for index in indices]
    differ = {
        (actual, expected)
        for actual, expected in zip(class_names_of("flowers102"), tv.Flowers102.classes, strict=True)
        if actual != expected
    }
    assert differ == {
        ("globe flower", "globe-flower"), ("pink and yellow dahlia", "pink-yellow dahlia?"), ("air plant", "ball moss"),
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TREES if name != "cub"])
def test_clip_names_are_the_default(name: str, dataset_root: Path) -> None:
    data = load_dataset(name, dataset_root / name)
    assert data.class_names == tuple(class_names_of(name))
    assert len(set(data.class_names)) == max(data.labels) + 1


def test_names_match_their_folders() -> None:
    """Checks CLIP's list, which has another order than the folders."""
    pairs = dict(zip(eurosat.CLASSES, class_names_of("eurosat"), strict=True))
    assert pairs["HerbaceousVegetation"] == "brushland or shrubland"
    assert pairs["SeaLake"] == "lake or sea"
    assert all(folder[:4].lower() in pairs[folder] for folder in eurosat.CLASSES if folder[0] not in "HS")
    coop = dict(zip(eurosat.CLASSES, class_names_of("eurosat", "coop"), strict=True))
    assert coop["HerbaceousVegetation"] == "Herbaceous Vegetation Land"
    for name in ("food101", "dtd", "fgvc_aircraft"):
        folders = [
            class_name.replace(" ", "_") if name == "food101" else class_name for class_name in class_names_of(name)
        ]
        assert folders == sorted(folders)
    small = [name.replace(" ", "_").lower() for name in class_names_of("pets")]
    assert small == sorted(small)


def test_names_can_be_set_by_the_user(dataset_root: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("\n".join(f"land {n}" for n in range(10)) + "\n", encoding="utf-8")
    assert load_dataset("eurosat", dataset_root / "eurosat", f"names={mine}").class_names[9] == "land 9"
    mine.write_text("land\n", encoding="utf-8")
    with pytest.raises(Exception, match="holds 1 names for 10 classes"):
        load_dataset("eurosat", dataset_root / "eurosat", f"names={mine}")


@pytest.mark.parametrize(
    ("name", "names", "message"),
    [
        ("eurosat", "klip", r"dataset\.names=klip: choose folder or clip or coop, or a text file"),
        ("flowers102", "folder", r"the files of flowers102 do not name every class; choose clip or torchvision"),
        ("cub", "clip", r"dataset\.names=clip: choose folder, or a text file"),
    ],
)
def test_unknown_name_list_is_rejected(name: str, names: str, message: str, dataset_root: Path) -> None:
    with pytest.raises(Exception, match=message):
        load_dataset(name, dataset_root / name, f"names={names}")


def test_clip_names_exist_for_variants_only(dataset_root: Path) -> None:
    with pytest.raises(Exception, match=r"dataset\.names=clip: choose folder, or a text file"):
        load_dataset("fgvc_aircraft", dataset_root / "fgvc_aircraft", "level=family")


def test_templates_require_a_placeholder(dataset_root: Path) -> None:
    assert load_dataset("dtd", dataset_root / "dtd", "templates=null").templates == ("a photo of a {}, a texture.",)
    for templates, message in {"[a texture]": "has no {}", "[]": "one sentence at least"}.items():
        with pytest.raises(Exception, match=message):
            load_dataset("dtd", dataset_root / "dtd", f"templates={templates}")
