"""Tests where each data set's training images come from: other values of the same config, never evaluated."""

import re
from itertools import product
from pathlib import Path

import imagenet_trees
import pytest
from dataset_trees import TREES, build_all_trees, load_dataset
from factories import make_image_folder
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from parquet_trees import shards

from lgclip.datasets.base import Dataset, check_same_classes
from lgclip.datasets.embedded import Digits, Shapes
from lgclip.datasets.folder import Folder
from lgclip.datasets.hugging_face import HubImages
from lgclip.datasets.image_files import CLASSNAMES
from lgclip.datasets.imagenet import ImageNet
from lgclip.datasets.imagenet_classes import wordnet_ids
from lgclip.datasets.imagenet_variants import ImageNetShift, ImageNetV2
from lgclip.datasets.resisc45 import Resisc45
from lgclip.datasets.unreadable import ReadableSubset
from lgclip.runtime.instantiate import build

CONF = Path(__file__).parents[2] / "conf"
SPLITS = dict.fromkeys(TREES, "official-train") | {"pets": "official-trainval", "dtd": "partition1-train"}


@pytest.fixture(scope="module")
def dataset_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_all_trees(tmp_path_factory.mktemp("data"))


def rejection_message(data: Dataset) -> str:
    with pytest.raises(ValueError, match=r"^dataset") as caught:
        data.training_values()
    return str(caught.value)


def _places(data: Dataset) -> set[str]:
    return {data.where(index) for index in range(len(data))}


def check_apart(data: Dataset, training: Dataset) -> None:
    check_same_classes(data, training)
    # By place and not by id: images of equal content have one id, and the small trees repeat theirs.
    assert not _places(data) & _places(training)
    assert training.labels
    assert set(training.labels) <= set(range(len(data.class_names)))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TREES if name != "eurosat"])
def test_public_dataset_trains_on_its_partition(name: str, dataset_root: Path) -> None:
    data = load_dataset(name, dataset_root / name)
    assert data.training_values() == {"split": SPLITS[name]}
    training = load_dataset(name, dataset_root / name, f"split={SPLITS[name]}")
    check_apart(data, training)
    partition = "partition1" if name == "dtd" else "official"
    for split in (SPLITS[name], "all"):
        message = rejection_message(load_dataset(name, dataset_root / name, f"split={split}"))
        assert (
            f"dataset={name} has no training split with dataset.split={split}: choose dataset.split={partition}"
            in message
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "split", "training_split"),
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
def test_every_partition_has_training_images(name: str, split: str, training_split: str, dataset_root: Path) -> None:
    data = load_dataset(name, dataset_root / name, f"split={split}")
    assert data.training_values() == {"split": training_split}
    check_apart(data, load_dataset(name, dataset_root / name, f"split={training_split}"))


@pytest.mark.parametrize(("name", "split", "ways"), [
    ("eurosat", "all", "dataset.split=coop or dataset.split=torchgeo"),
    ("flowers102", "official-trainval", "dataset.split=official"),
])  # fmt: skip
def test_split_without_training_images_is_rejected(name: str, split: str, ways: str, dataset_root: Path) -> None:
    assert f"has no training split with dataset.split={split}: choose {ways}, which" in rejection_message(
        load_dataset(name, dataset_root / name, f"split={split}")
    )


def test_resisc45_trains_on_torchgeos_list(tmp_path: Path) -> None:
    classes = [name.replace(" ", "_") for name in (CLASSNAMES / "resisc45.clip.txt").read_text().splitlines()]
    root = imagenet_trees.resisc45(tmp_path, classes, {"train": [1, 2], "val": [3], "test": [4]})
    data = Resisc45(str(root), counts=False)
    check_apart(data, Resisc45(str(root), counts=False, **data.training_values()))  # pyright: ignore[reportArgumentType]
    assert "choose dataset.split=torchgeo" in rejection_message(Resisc45(str(root), split="all", counts=False))


def test_imagenet_trains_on_train_only(tmp_path: Path) -> None:
    subset = [0, 217, 482]
    wnids = [wordnet_ids()[index] for index in subset]
    imagenet_trees.class_folders(
        tmp_path / "imagenet", [f"{part}/{wnid}" for part, wnid in product(("val", "train"), wnids)]
    )
    data = ImageNet(str(tmp_path / "imagenet"), classes=subset, counts=False)
    assert data.training_values() == {"split": "train"}
    training = ImageNet(str(tmp_path / "imagenet"), "train", classes=subset, counts=False)
    check_apart(data, training)
    assert data.class_indices == training.class_indices == tuple(subset)
    assert "choose dataset.split=val" in rejection_message(training)
    imagenet_trees.class_folders(tmp_path / "sketch", wnids)
    imagenet_trees.class_folders(tmp_path / "v2", [f"imagenetv2-matched-frequency-format-val/{i}" for i in subset])
    shifted = [
        ImageNetShift("imagenet_sketch", str(tmp_path / "sketch"), classes=subset, counts=False),
        ImageNetV2(str(tmp_path / "v2"), classes=subset, counts=False),
    ]
    for dataset in shifted:
        assert dataset.class_indices == tuple(subset)
        assert f"dataset={dataset.name} has no training split: " in rejection_message(dataset)
        assert "train on dataset=imagenet" in rejection_message(dataset)


def test_imagenette_has_imagenet_indices(dataset_root: Path) -> None:
    from lgclip.datasets.imagenette import WORDNET_IDS

    indices = load_dataset("imagenette", dataset_root / "imagenette").class_indices
    assert indices is not None
    assert tuple(wordnet_ids()[index] for index in indices) == WORDNET_IDS


def test_hub_dataset_trains_on_split_train(tmp_path: Path) -> None:
    shards(shards(tmp_path), split="train")
    data = HubImages(root=str(tmp_path))
    check_apart(data, HubImages(root=str(tmp_path), **data.training_values()))  # pyright: ignore[reportArgumentType]
    assert "with dataset.split=train: choose the split to evaluate on" in rejection_message(
        HubImages(root=str(tmp_path), split="train")
    )


@pytest.mark.parametrize("choice", [
    "shapes", "shapes_sketch", "shapes_inverted", "shapes_noisy", "shapes_dusk", "shapes_fine", "digits"
])  # fmt: skip
def test_embedded_dataset_is_rebuilt_from_config(choice: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        node = compose("evaluate", [f"dataset={choice}"]).dataset
    data = build(node)
    assert data.name == choice
    training = build(OmegaConf.create({**node, **data.training_values()}))
    check_apart(data, training)
    assert (training.name, len(training)) == (choice, 898 if choice == "digits" else 3000)
    assert (
        f"dataset={choice} has no training split with dataset.split=train: choose dataset.split=test"
        in rejection_message(training)
    )


def test_shapes_default_to_the_test_split() -> None:
    assert (Shapes().split, Digits().split) == ("test (held-out kinds)", "second half")
    assert (Shapes().where(3), Shapes("train", "noisy").where(3)) == (
        "image 3 of shapes",
        "image 3 of shapes_noisy, train",
    )


def test_folder_needs_a_training_root(tmp_path: Path) -> None:
    predictions, training = (make_image_folder(tmp_path / part) for part in ("evaluated", "training"))
    data = Folder(str(predictions), train_root=str(training))
    check_apart(data, Folder(**{"root": str(predictions), **data.training_values()}))  # pyright: ignore[reportArgumentType]
    message = rejection_message(Folder(str(predictions)))
    assert f"dataset=folder has no training split with dataset.root={predictions}" in message
    assert "dataset.train_root=DIR" in message


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("absent", "train_root=.*absent: no such folder"),
        ("evaluated", "share images; keep them apart"),
        ("evaluated/../evaluated", "share images"),
        ("evaluated/red_star", "share images"),
        (".", "share images"),
        ("others", r"without \['red_star'\], with \['red_stars'\] besides"),
    ],
)
def test_mismatched_training_images_are_rejected(place: str, message: str, tmp_path: Path) -> None:
    predictions = make_image_folder(tmp_path / "evaluated")
    make_image_folder(tmp_path / "others", ("blue moon", "green ring", "red stars"))
    error = rejection_message(Folder(str(predictions), train_root=str(tmp_path / place)))
    assert re.search(message, error)


def test_readable_subset_trains_on_the_same_images(tmp_path: Path) -> None:
    predictions, training = (make_image_folder(tmp_path / part) for part in ("evaluated", "training"))
    full_dataset = Folder(str(predictions), train_root=str(training))
    assert ReadableSubset(full_dataset, {0: "it is empty"}).training_values() == full_dataset.training_values()
    assert rejection_message(ReadableSubset(Shapes("train"), {0: "it is empty"})) == rejection_message(Shapes("train"))


def test_first_different_class_is_named(tmp_path: Path) -> None:
    three = Folder(str(make_image_folder(tmp_path / "three")))
    four = Folder(str(make_image_folder(tmp_path / "four", ("blue moon", "green ring", "red star", "sun"))))
    with pytest.raises(ValueError, match=r"its 3 classes are not the 4 of .*class 3 is missing and 'sun'"):
        check_same_classes(three, four)
    with pytest.raises(ValueError, match="class 0 is 'blue moon' and 'plain red circle'"):
        check_same_classes(three, Shapes())
