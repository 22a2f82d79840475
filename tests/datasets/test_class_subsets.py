"""Tests subsets of classes and the classes that two data sets share."""

from pathlib import Path

import pytest
from factories import NAMES, make_image_folder

from lgclip.datasets.base import Dataset
from lgclip.datasets.folder import Folder
from lgclip.datasets.subsets import First, Selected, classes_in


@pytest.fixture(scope="module")
def synthetic_images(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(str(make_image_folder(tmp_path_factory.mktemp("pictures"))))


def of_imagenet(root: Path, indices: tuple[int, ...] | None) -> Dataset:
    """Creates a data set whose classes have indices among ImageNet's 1000."""
    dataset = Folder(str(root))
    dataset.class_indices = indices
    return dataset


def test_subset_keeps_ids_and_relabels(synthetic_images: Folder) -> None:
    subset = Selected(synthetic_images, (2, 0))
    assert subset.class_names == (NAMES[2], NAMES[0])
    assert [synthetic_images.class_names[synthetic_images.labels[index]] for index in subset.places] == [
        subset.class_names[label] for label in subset.labels
    ]
    assert list(subset.ids) == [synthetic_images.ids[index] for index in subset.places]
    assert len(subset) == 8
    assert subset.split.endswith("2 of 3 classes")
    assert subset.source() == synthetic_images.source()
    assert subset.class_indices is None
    synthetic_images.class_indices = (4, 5, 9)
    try:
        assert Selected(synthetic_images, (2, 0)).class_indices == (9, 4)
    finally:
        synthetic_images.class_indices = None
    assert subset.image(0).tobytes() == synthetic_images.image(subset.places[0]).tobytes()
    assert subset.where(1) == synthetic_images.where(subset.places[1])
    assert subset.original(1) == synthetic_images.original(subset.places[1])


def test_subset_keeps_the_occurrences_of_the_complete_list(synthetic_images: Folder) -> None:
    complete = First(synthetic_images, 1)
    complete.class_names = ("missile", "crane", "missile")
    assert [target_class.occurrence for target_class in complete.target_classes] == [0, 0, 1]
    for classes in ((2,), (2, 0), (0, 2), (1, 2)):
        subset = First(Selected(complete, classes), 1)
        expected = [complete.target_classes[label]._replace(class_index=c) for c, label in enumerate(classes)]
        assert list(subset.target_classes) == expected


@pytest.mark.parametrize(("per_class", "n"), [(1, 3), (3, 9), (4, 12), (100, 12)])
def test_first_images_per_class_are_limited(synthetic_images: Folder, per_class: int, n: int) -> None:
    first = First(synthetic_images, per_class)
    assert len(first) == len(first.labels) == len(first.ids) == n
    assert first.class_names == synthetic_images.class_names
    assert [synthetic_images.labels[index] for index in first.places] == list(first.labels)
    assert first.places == tuple(index for index in range(len(synthetic_images)) if index % 4 < per_class)


def test_classes_are_matched_by_name(synthetic_images: Folder, tmp_path: Path) -> None:
    other_dataset = Folder(str(make_image_folder(tmp_path, (NAMES[2], NAMES[1]))))
    assert classes_in(synthetic_images, other_dataset, "other") == (1, 2)
    assert classes_in(synthetic_images, synthetic_images, "same") == (0, 1, 2)


def test_imagenet_classes_are_matched_by_index(synthetic_images: Folder, tmp_path: Path) -> None:
    known = of_imagenet(make_image_folder(tmp_path / "known"), (7, 3, 999))
    other_dataset = of_imagenet(make_image_folder(tmp_path / "other", ("missile", "crane")), (999, 7))
    assert classes_in(known, other_dataset, "r") == (2, 0)


def test_disjoint_classes_are_rejected(synthetic_images: Folder, tmp_path: Path) -> None:
    other_dataset = Folder(str(make_image_folder(tmp_path / "names", (NAMES[0], "purple cow"))))
    with pytest.raises(ValueError, match=r"ood\.mine: 1 of its 2 classes .*'purple cow'.*ood\.mine\.names=FILE"):
        classes_in(synthetic_images, other_dataset, "mine")
    known, foreign = (of_imagenet(make_image_folder(tmp_path / str(i)), (1, 2, 3 + i)) for i in range(2))
    with pytest.raises(ValueError, match=r"ood\.r: 1 of its 3 classes .*ood\.r\.classes=\[INDICES\]"):
        classes_in(known, foreign, "r")


def test_duplicate_names_cannot_be_matched(synthetic_images: Folder) -> None:
    twice = Selected(synthetic_images, (0, 1))
    twice.class_names = ("missile", "missile")
    with pytest.raises(ValueError, match="two classes of the same name"):
        classes_in(twice, synthetic_images, "other")
