"""Tests that a data set with one class, no class or no image is an error when it is opened."""

from pathlib import Path
from typing import Any

import pytest
from factories import make_image_folder

from lgclip.datasets.base import Dataset
from lgclip.datasets.folder import Folder
from lgclip.datasets.splits import DatasetSplits
from lgclip.datasets.subsets import First, Selected
from lgclip.evaluation.evaluator import shifts_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(str(make_image_folder(tmp_path_factory.mktemp("images"))))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ((1,), "dataset: .* has only one class, 'green ring'; a classifier needs two at least"),
        ((), "dataset: .* has no class; a classifier needs two at least"),
    ],
)
def test_selection_of_fewer_than_two_classes_is_rejected(
    folder: Folder, classes: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        DatasetSplits(lambda **_: Selected(folder, classes))


def test_dataset_without_images_is_rejected(folder: Folder) -> None:
    with pytest.raises(ValueError, match=r"dataset: .* has no image of its 3 classes"):
        DatasetSplits(lambda **_: First(folder, 0))


@pytest.mark.parametrize("split", ["training", "unlabeled_pool"])
def test_training_split_without_images_is_rejected(folder: Folder, split: str, tmp_path: Path) -> None:
    evaluated = Folder(str(folder.root), train_root=str(make_image_folder(tmp_path)))

    def open_split(**values: Any) -> Dataset:
        return First(folder, 0) if values else evaluated

    with pytest.raises(ValueError, match=r"the training split of dataset: .* has no image"):
        getattr(DatasetSplits(open_split), split)


@pytest.mark.parametrize(
    ("classes", "per_class", "message"),
    [((2,), 4, "ood.sketches: .* has only one class, 'red star'"), ((0, 1), 0, "ood.sketches: .* has no image")],
)
def test_shifted_set_of_one_class_or_no_image_is_rejected(
    folder: Folder, classes: tuple[int, ...], per_class: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        shifts_of(folder, {"sketches": First(Selected(folder, classes), per_class)})
