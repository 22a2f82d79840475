"""Some classes of a data set, and the classes that two data sets share."""

from pathlib import Path

import pytest
from worlds import NAMES, picture_folder

from lgclip.datasets.base import Dataset
from lgclip.datasets.folder import Folder
from lgclip.datasets.selected import First, Selected, classes_in


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(str(picture_folder(tmp_path_factory.mktemp("pictures"))))


def of_imagenet(root: Path, indices: tuple[int, ...] | None) -> Dataset:
    """A data set whose classes have places among ImageNet's 1000."""
    found = Folder(str(root))
    found.class_indices = indices
    return found


def test_the_images_of_some_classes_keep_their_ids_and_get_new_labels(pictures: Folder) -> None:
    some = Selected(pictures, (2, 0))
    assert some.class_names == (NAMES[2], NAMES[0])
    assert [pictures.class_names[pictures.labels[at]] for at in some.places] == [
        some.class_names[label] for label in some.labels
    ]
    assert list(some.ids) == [pictures.ids[at] for at in some.places]
    assert len(some) == 8
    assert some.split.endswith("2 of 3 classes")
    assert some.source() == pictures.source()
    assert some.class_indices is None
    pictures.class_indices = (4, 5, 9)
    try:
        assert Selected(pictures, (2, 0)).class_indices == (9, 4)
    finally:
        pictures.class_indices = None
    assert some.image(0).tobytes() == pictures.image(some.places[0]).tobytes()
    assert some.where(1) == pictures.where(some.places[1])
    assert some.original(1) == pictures.original(some.places[1])


@pytest.mark.parametrize(("each", "n"), [(1, 3), (3, 9), (4, 12), (100, 12)])
def test_the_first_images_of_each_class_are_as_many_as_there_are(pictures: Folder, each: int, n: int) -> None:
    first = First(pictures, each)
    assert len(first) == len(first.labels) == len(first.ids) == n
    assert first.class_names == pictures.class_names
    assert [pictures.labels[at] for at in first.places] == list(first.labels)
    assert first.places == tuple(at for at in range(len(pictures)) if at % 4 < each)


def test_classes_are_told_by_their_names(pictures: Folder, tmp_path: Path) -> None:
    other = Folder(str(picture_folder(tmp_path, (NAMES[2], NAMES[1]))))
    assert classes_in(pictures, other, "other") == (1, 2)
    assert classes_in(pictures, pictures, "same") == (0, 1, 2)


def test_classes_of_imagenet_are_told_by_their_indices_whatever_their_names(pictures: Folder, tmp_path: Path) -> None:
    known = of_imagenet(picture_folder(tmp_path / "known"), (7, 3, 999))
    other = of_imagenet(picture_folder(tmp_path / "other", ("missile", "crane")), (999, 7))
    assert classes_in(known, other, "r") == (2, 0)


def test_a_set_with_other_classes_is_refused_with_the_way_out(pictures: Folder, tmp_path: Path) -> None:
    other = Folder(str(picture_folder(tmp_path / "names", (NAMES[0], "purple cow"))))
    with pytest.raises(ValueError, match=r"ood\.mine: 1 of its 2 classes .*'purple cow'.*ood\.mine\.names=FILE"):
        classes_in(pictures, other, "mine")
    known, strange = (of_imagenet(picture_folder(tmp_path / str(i)), (1, 2, 3 + i)) for i in range(2))
    with pytest.raises(ValueError, match=r"ood\.r: 1 of its 3 classes .*ood\.r\.classes=\[INDICES\]"):
        classes_in(known, strange, "r")


def test_two_classes_of_one_name_cannot_be_told_by_it(pictures: Folder) -> None:
    twice = Selected(pictures, (0, 1))
    twice.class_names = ("missile", "missile")
    with pytest.raises(ValueError, match="two classes of the same name"):
        classes_in(twice, pictures, "other")
