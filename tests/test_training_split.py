"""Where each data set's training images are: other values of the same config, and none of them judged."""

import re
from pathlib import Path

import imagenet_trees
import pytest
from fixture_trees import TREES, forest, opened
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from parquet_trees import shards
from worlds import picture_folder

from lgclip.allowed import build
from lgclip.damage import Readable
from lgclip.datasets.base import Dataset, check_same_classes
from lgclip.datasets.files import CLASSNAMES
from lgclip.datasets.folder import Folder
from lgclip.datasets.hub import HubImages
from lgclip.datasets.imagenet import ImageNet
from lgclip.datasets.imagenet_classes import wordnet_ids
from lgclip.datasets.imagenet_variants import ImageNetShift, ImageNetV2
from lgclip.datasets.resisc45 import Resisc45
from lgclip.datasets.small import Digits, Shapes

CONF = Path(__file__).parents[1] / "conf"
SPLITS = dict.fromkeys(TREES, "official-train") | {"pets": "official-trainval", "dtd": "partition1-train"}


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return forest(tmp_path_factory.mktemp("data"))


def refused(data: Dataset) -> str:
    with pytest.raises(ValueError, match=r"^dataset") as caught:
        data.training_values()
    return str(caught.value)


def check_apart(data: Dataset, training: Dataset) -> None:
    check_same_classes(data, training)
    assert not set(data.ids) & set(training.ids)
    assert training.labels
    assert set(training.labels) <= set(range(len(data.class_names)))


@pytest.mark.parametrize("name", [name for name in TREES if name != "eurosat"])
def test_a_public_data_set_is_trained_on_its_own_partition(name: str, grown: Path) -> None:
    data = opened(name, grown / name)
    assert data.training_values() == {"split": SPLITS[name]}
    training = opened(name, grown / name, f"split={SPLITS[name]}")
    check_apart(data, training)
    own = "partition1" if name == "dtd" else "official"
    for split in (SPLITS[name], "all"):
        said = refused(opened(name, grown / name, f"split={split}"))
        assert f"dataset={name} has no training split beside dataset.split={split}: choose dataset.split={own}" in said


@pytest.mark.parametrize(
    ("name", "split", "wanted"),
    [
        ("eurosat", "coop", "coop-train"),
        ("eurosat", "torchgeo", "torchgeo-train"),
        ("eurosat", "torchgeo-val", "torchgeo-train"),
        ("flowers102", "coop", "coop-train"),
        ("food101", "coop", "coop-train"),
        ("dtd", "partition7", "partition7-train"),
        ("dtd", "partition7-val", "partition7-train"),
    ],
)
def test_every_partition_has_its_own_training_images(name: str, split: str, wanted: str, grown: Path) -> None:
    data = opened(name, grown / name, f"split={split}")
    assert data.training_values() == {"split": wanted}
    check_apart(data, opened(name, grown / name, f"split={wanted}"))


@pytest.mark.parametrize(("name", "split", "ways"), [
    ("eurosat", "all", "dataset.split=coop or dataset.split=torchgeo"),
    ("flowers102", "official-trainval", "dataset.split=official"),
])  # fmt: skip
def test_a_split_that_leaves_nothing_to_train_on_says_which_does(name: str, split: str, ways: str, grown: Path) -> None:
    assert f"has no training split beside dataset.split={split}: choose {ways}, which" in refused(
        opened(name, grown / name, f"split={split}")
    )


def test_resisc45_is_trained_on_torchgeo_s_list(tmp_path: Path) -> None:
    classes = [name.replace(" ", "_") for name in (CLASSNAMES / "resisc45.clip.txt").read_text().splitlines()]
    root = imagenet_trees.resisc45(tmp_path, classes, {"train": [1, 2], "val": [3], "test": [4]})
    data = Resisc45(str(root), counts=False)
    check_apart(data, Resisc45(str(root), counts=False, **data.training_values()))  # pyright: ignore[reportArgumentType]
    assert "choose dataset.split=torchgeo" in refused(Resisc45(str(root), split="all", counts=False))


def test_imagenet_is_trained_on_train_and_its_relatives_on_nothing(tmp_path: Path) -> None:
    some = [0, 217, 482]
    wnids = [wordnet_ids()[index] for index in some]
    imagenet_trees.class_folders(
        tmp_path / "imagenet", [f"{part}/{wnid}" for part in ("val", "train") for wnid in wnids]
    )
    data = ImageNet(str(tmp_path / "imagenet"), classes=some, counts=False)
    assert data.training_values() == {"split": "train"}
    training = ImageNet(str(tmp_path / "imagenet"), "train", classes=some, counts=False)
    check_apart(data, training)
    assert data.class_indices == training.class_indices == tuple(some)
    assert "choose dataset.split=val" in refused(training)
    imagenet_trees.class_folders(tmp_path / "sketch", wnids)
    imagenet_trees.class_folders(tmp_path / "v2", [f"imagenetv2-matched-frequency-format-val/{i}" for i in some])
    shifted = [
        ImageNetShift("imagenet_sketch", str(tmp_path / "sketch"), classes=some, counts=False),
        ImageNetV2(str(tmp_path / "v2"), classes=some, counts=False),
    ]
    for one in shifted:
        assert one.class_indices == tuple(some)
        assert f"dataset={one.name} has no training split: " in refused(one)
        assert "train on dataset=imagenet" in refused(one)


def test_imagenette_tells_which_of_imagenet_s_classes_it_has(grown: Path) -> None:
    from lgclip.datasets.imagenette import WORDNET_IDS

    found = opened("imagenette", grown / "imagenette").class_indices
    assert found is not None
    assert tuple(wordnet_ids()[index] for index in found) == WORDNET_IDS


def test_a_hub_data_set_is_trained_on_its_split_train(tmp_path: Path) -> None:
    shards(shards(tmp_path), split="train")
    data = HubImages(root=str(tmp_path))
    check_apart(data, HubImages(root=str(tmp_path), **data.training_values()))  # pyright: ignore[reportArgumentType]
    assert "beside dataset.split=train: choose the split to be judged" in refused(
        HubImages(root=str(tmp_path), split="train")
    )


@pytest.mark.parametrize("choice", ["shapes", "shapes_sketch", "shapes_inverted", "shapes_noisy", "digits"])
def test_an_embedded_set_is_rebuilt_from_its_config(choice: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        node = compose("evaluate", [f"dataset={choice}"]).dataset
    data = build(node)
    assert data.name == choice
    training = build(OmegaConf.create({**node, **data.training_values()}))
    check_apart(data, training)
    assert (training.name, len(training)) == (choice, 898 if choice == "digits" else 3000)
    assert f"dataset={choice} has no training split beside dataset.split=train: choose dataset.split=test" in refused(
        training
    )


def test_shapes_are_judged_on_test_by_default() -> None:
    assert (Shapes().split, Digits().split) == ("test (held-out kinds)", "second half")
    assert (Shapes().where(3), Shapes("train", "noisy").where(3)) == (
        "image 3 of shapes",
        "image 3 of shapes_noisy, train",
    )


def test_a_folder_of_one_s_own_has_another_root(tmp_path: Path) -> None:
    judged, training = (picture_folder(tmp_path / part) for part in ("judged", "training"))
    data = Folder(str(judged), train_root=str(training))
    check_apart(data, Folder(**{"root": str(judged), **data.training_values()}))  # pyright: ignore[reportArgumentType]
    said = refused(Folder(str(judged)))
    assert f"dataset=folder has no training split beside dataset.root={judged}" in said
    assert "dataset.train_root=DIR" in said


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("absent", "train_root=.*absent: no such folder"),
        ("judged", "share images; keep them apart"),
        ("judged/../judged", "share images"),
        ("judged/red_star", "share images"),
        (".", "share images"),
        ("others", r"without \['red_star'\], with \['red_stars'\] besides"),
    ],
)
def test_training_images_that_do_not_fit_are_an_error(place: str, message: str, tmp_path: Path) -> None:
    judged = picture_folder(tmp_path / "judged")
    picture_folder(tmp_path / "others", ("blue moon", "green ring", "red stars"))
    said = refused(Folder(str(judged), train_root=str(tmp_path / place)))
    assert re.search(message, said)


def test_a_data_set_without_its_bad_images_is_trained_on_the_same(tmp_path: Path) -> None:
    judged, training = (picture_folder(tmp_path / part) for part in ("judged", "training"))
    whole = Folder(str(judged), train_root=str(training))
    assert Readable(whole, {0: "it is empty"}).training_values() == whole.training_values()
    assert refused(Readable(Shapes("train"), {0: "it is empty"})) == refused(Shapes("train"))


def test_other_classes_are_told_by_the_first_that_differs(tmp_path: Path) -> None:
    three = Folder(str(picture_folder(tmp_path / "three")))
    four = Folder(str(picture_folder(tmp_path / "four", ("blue moon", "green ring", "red star", "sun"))))
    with pytest.raises(ValueError, match=r"its 3 classes are not the 4 of .*class 3 is missing and 'sun'"):
        check_same_classes(three, four)
    with pytest.raises(ValueError, match="class 0 is 'blue moon' and 'plain red circle'"):
        check_same_classes(three, Shapes())
