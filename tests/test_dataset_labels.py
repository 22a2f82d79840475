"""Labels, order and names of the public data sets: against their format and torchvision's own classes."""

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torchvision.datasets as tv
from fixture_trees import CIFAR, FAMILIES, MAKERS, PETS_CATS, TREES, forest, names_of, opened

from lgclip.datasets import eurosat, imagenette


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return forest(tmp_path_factory.mktemp("data"))


def files_of(data: Any) -> list[str]:
    return list(data.files)


def test_cub_goes_by_its_numbers(grown: Path) -> None:
    data: Any = opened("cub", grown / "cub")
    for file, label in zip(data.files, data.labels, strict=True):
        assert int(file.removeprefix("images/")[:3]) == label + 1
    assert data.class_names[:2] == ("Black footed Albatross", "Laysan Albatross")
    assert data.templates == ("a photo of a {}, a type of bird.",)
    train: Any = opened("cub", grown / "cub", "split=official-train")
    assert {file.rpartition("_")[0][-4:] for file in train.files} == {"0001"}


def test_eurosat_goes_by_its_folders_whatever_the_split(grown: Path) -> None:
    for split in ("all", "coop", "torchgeo", "coop-train"):
        data: Any = opened("eurosat", grown / "eurosat", f"split={split}")
        assert [eurosat.CLASSES[label] for label in data.labels] == [file.split("/")[1] for file in data.files]
    lists = {"coop": {"1", "2"}, "torchgeo": {"5"}, "torchgeo-val": {"4"}, "coop-val": {"3"}}
    for split, numbers in lists.items():
        data = opened("eurosat", grown / "eurosat", f"split={split}")
        assert {Path(file).stem.rpartition("_")[2] for file in data.files} == numbers
    assert data.templates == ("a centered satellite photo of {}.",)


def test_eurosat_is_as_torchvision_has_it(grown: Path, tmp_path: Path) -> None:
    (tmp_path / "eurosat").symlink_to(grown / "eurosat")
    theirs, ours = tv.EuroSAT(tmp_path), opened("eurosat", tmp_path)
    assert [str(Path(path).relative_to(tmp_path / "eurosat")) for path, _ in theirs.samples] == files_of(ours)
    assert tuple(theirs.targets) == ours.labels
    assert tuple(theirs.classes) == opened("eurosat", grown / "eurosat", "names=folder").class_names


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_flowers_are_as_torchvision_has_them(split: str, grown: Path, tmp_path: Path) -> None:
    (tmp_path / "flowers-102").symlink_to(grown / "flowers102")
    ours = opened("flowers102", tmp_path, f"split=official-{split}")
    with pytest.MonkeyPatch.context() as patch:  # its checksums are those of the real files
        patch.setattr(tv.Flowers102, "_check_integrity", lambda _: True)
        theirs: Any = tv.Flowers102(tmp_path, split)
    assert [f"jpg/{path.name}" for path in theirs._image_files] == files_of(ours)
    assert tuple(theirs._labels) == ours.labels
    assert min(ours.labels) == 0, "the file's labels begin with 1"


@pytest.mark.parametrize("split", ["train", "test"])
def test_food_is_as_torchvision_has_it(split: str, grown: Path) -> None:
    theirs: Any = tv.Food101(grown / "food101", split)
    ours = opened("food101", grown / "food101", f"split=official-{split}", "names=folder")
    assert [str(path.relative_to(grown / "food101" / "food-101")) for path in theirs._image_files] == files_of(ours)
    assert tuple(theirs._labels) == ours.labels
    assert tuple(name.replace("_", " ") for name in theirs.classes) == ours.class_names
    assert ours.templates == ("a photo of {}, a type of food.",), "no article before a dish"


@pytest.mark.parametrize("split", ["trainval", "test"])
def test_pets_are_as_torchvision_has_them(split: str, grown: Path, tmp_path: Path) -> None:
    (tmp_path / "oxford-iiit-pet").symlink_to(grown / "pets")
    theirs: Any = tv.OxfordIIITPet(tmp_path, split)
    ours = opened("pets", tmp_path, f"split=official-{split}")
    assert [f"images/{path.name}" for path in theirs._images] == files_of(ours)
    assert tuple(theirs._labels) == ours.labels
    assert [name.lower() for name in theirs.classes] == [name.lower() for name in ours.class_names]


def test_pets_are_not_in_the_order_of_their_names(grown: Path) -> None:
    data: Any = opened("pets", grown / "pets", "names=folder")
    for file, label in zip(data.files, data.labels, strict=True):
        breed = file.removeprefix("images/").rpartition("_")[0]
        assert data.class_names[label] == breed.replace("_", " ")
    assert data.class_names != tuple(sorted(data.class_names))
    assert data.class_names[1] == "american bulldog"
    assert sum(name.replace(" ", "_") in PETS_CATS for name in data.class_names) == 12


@pytest.mark.parametrize("partition", [1, 10])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_textures_are_as_torchvision_has_them(split: str, partition: int, grown: Path, tmp_path: Path) -> None:
    (tmp_path / "dtd").symlink_to(grown / "dtd")
    theirs: Any = tv.DTD(tmp_path, split, partition)
    ours = opened("dtd", tmp_path, f"split=partition{partition}-{split}", "names=folder")
    folder = tmp_path / "dtd" / "dtd"
    assert [str(path.relative_to(folder)) for path in theirs._image_files] == files_of(ours)
    assert tuple(theirs._labels) == ours.labels
    assert tuple(theirs.classes) == ours.class_names
    assert ours.templates == ("{} texture.",)


@pytest.mark.parametrize(("level", "names"), [("variant", None), ("family", FAMILIES), ("manufacturer", MAKERS)])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_aircraft_are_as_torchvision_has_them(
    split: str, level: str, names: tuple[str, ...] | None, grown: Path
) -> None:
    root = grown / "fgvc_aircraft"
    theirs: Any = tv.FGVCAircraft(root, split, level)
    ours = opened("fgvc_aircraft", root, f"split=official-{split}", f"level={level}", "names=folder")
    base = root / "fgvc-aircraft-2013b" / "data"
    assert [str(Path(path).relative_to(base)) for path in theirs._image_files] == files_of(ours)
    assert tuple(theirs._labels) == ours.labels
    assert tuple(theirs.classes) == ours.class_names == (names or tuple(names_of("fgvc_aircraft")))


def test_cifar_is_read_plane_by_plane(grown: Path) -> None:
    base = grown / "cifar10" / "cifar-10-batches-bin"
    raw = [np.frombuffer((base / f"data_batch_{n}.bin").read_bytes(), np.uint8).reshape(-1, 3073) for n in range(1, 6)]
    records = np.concatenate(raw)
    data = opened("cifar10", grown / "cifar10", "split=official-train", "names=folder")
    assert data.class_names == CIFAR
    assert data.labels == tuple(records[:, 0].tolist())
    for index in (0, 39, 40, 199):
        image = np.asarray(data.image(index))
        assert image.shape == (32, 32, 3)
        for row, column, colour in ((0, 0, 0), (3, 31, 1), (31, 2, 2)):
            assert image[row, column, colour] == records[index, 1 + 1024 * colour + 32 * row + column]


@pytest.mark.parametrize("split", ["train", "val"])
def test_imagenette_is_as_torchvision_has_it(split: str, grown: Path) -> None:
    theirs: Any = tv.Imagenette(grown / "imagenette", split, "160px")
    ours = opened("imagenette", grown / "imagenette", f"split=official-{split}", "size=160px", "names=torchvision")
    base = grown / "imagenette" / "imagenette2-160"
    assert [str(Path(path).relative_to(base)) for path, _ in theirs._samples] == files_of(ours)
    assert tuple(label for _, label in theirs._samples) == ours.labels
    assert tuple(names[0] for names in theirs.classes) == ours.class_names


def test_the_lists_of_names_are_those_of_the_installed_packages() -> None:
    assert names_of("flowers102", "torchvision") == tv.Flowers102.classes
    assert names_of("imagenette", "torchvision") == [names[0] for names in tv.Imagenette._WNID_TO_CLASS.values()]
    assert tuple(tv.Imagenette._WNID_TO_CLASS) == imagenette.WORDNET_IDS
    indices = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)
    assert names_of("imagenette") == [open_clip.IMAGENET_CLASSNAMES[index] for index in indices]
    differ = {
        (ours, theirs)
        for ours, theirs in zip(names_of("flowers102"), tv.Flowers102.classes, strict=True)
        if ours != theirs
    }
    assert differ == {
        ("globe flower", "globe-flower"), ("pink and yellow dahlia", "pink-yellow dahlia?"), ("air plant", "ball moss"),
    }  # fmt: skip


@pytest.mark.parametrize("name", [name for name in TREES if name != "cub"])
def test_clip_s_names_are_the_default_and_one_a_class(name: str, grown: Path) -> None:
    data = opened(name, grown / name)
    assert data.class_names == tuple(names_of(name))
    assert len(set(data.class_names)) == max(data.labels) + 1


def test_names_stand_beside_the_folder_that_they_mean() -> None:
    """CLIP's own list is in another order than the folders."""
    pairs = dict(zip(eurosat.CLASSES, names_of("eurosat"), strict=True))
    assert pairs["HerbaceousVegetation"] == "brushland or shrubland"
    assert pairs["SeaLake"] == "lake or sea"
    assert all(folder[:4].lower() in pairs[folder] for folder in eurosat.CLASSES if folder[0] not in "HS")
    coop = dict(zip(eurosat.CLASSES, names_of("eurosat", "coop"), strict=True))
    assert coop["HerbaceousVegetation"] == "Herbaceous Vegetation Land"
    for name in ("food101", "dtd", "fgvc_aircraft"):
        folders = [shown.replace(" ", "_") if name == "food101" else shown for shown in names_of(name)]
        assert folders == sorted(folders)
    small = [name.replace(" ", "_").lower() for name in names_of("pets")]
    assert small == sorted(small)


def test_names_may_be_the_user_s_own(grown: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("\n".join(f"land {n}" for n in range(10)) + "\n", encoding="utf-8")
    assert opened("eurosat", grown / "eurosat", f"names={mine}").class_names[9] == "land 9"
    mine.write_text("land\n", encoding="utf-8")
    with pytest.raises(Exception, match="holds 1 names for 10 classes"):
        opened("eurosat", grown / "eurosat", f"names={mine}")


@pytest.mark.parametrize(
    ("name", "names", "message"),
    [
        ("eurosat", "klip", r"dataset\.names=klip: choose folder or clip or coop, or a text file"),
        ("flowers102", "folder", r"the files of flowers102 name not every class; choose clip or torchvision"),
        ("cub", "clip", r"dataset\.names=clip: choose folder, or a text file"),
    ],
)
def test_a_list_that_is_not_there_is_an_error(name: str, names: str, message: str, grown: Path) -> None:
    with pytest.raises(Exception, match=message):
        opened(name, grown / name, f"names={names}")


def test_clip_has_names_for_variants_alone(grown: Path) -> None:
    with pytest.raises(Exception, match=r"dataset\.names=clip: choose folder, or a text file"):
        opened("fgvc_aircraft", grown / "fgvc_aircraft", "level=family")


def test_sentences_need_a_place_for_the_name(grown: Path) -> None:
    assert opened("dtd", grown / "dtd", "templates=null").templates == ("a photo of a {}, a texture.",)
    for templates, message in {"[a texture]": "has no {}", "[]": "one sentence at least"}.items():
        with pytest.raises(Exception, match=message):
            opened("dtd", grown / "dtd", f"templates={templates}")
