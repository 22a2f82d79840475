"""Tests the declaration of each public data set and the arguments that their constructors share."""

from pathlib import Path
from typing import Any

import pytest
from dataset_trees import TREES, build_all_trees, load_dataset

from lgclip.datasets.public import PublicDataset
from lgclip.datasets.resisc45 import Resisc45


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_all_trees(tmp_path_factory.mktemp("data"))


@pytest.mark.slow
@pytest.mark.parametrize("name", TREES)
def test_description_has_license_and_classes(name: str, data_root: Path) -> None:
    data = load_dataset(name, data_root / name)
    assert isinstance(data, PublicDataset)
    description = data.describe()
    assert description.dataset == name
    assert description.license
    assert description.page.startswith("https://")
    assert description.classes == len(data.class_names)
    assert set(description.split_files) <= set(description.images), "each is for a partition that there is"


@pytest.mark.parametrize("name", TREES)
def test_unknown_argument_is_rejected(name: str, data_root: Path) -> None:
    reader: Any = type(load_dataset(name, data_root / name))
    with pytest.raises(TypeError, match="unexpected keyword argument 'clases'"):
        reader(str(data_root / name), clases=3)


def test_only_needed_split_files_are_required() -> None:
    selection, tree = Resisc45.describe(Resisc45.__new__(Resisc45)).select("torchgeo-trainval")
    assert selection.files == ("resisc45-train.txt", "resisc45-val.txt")
    assert [archive.name for archive in tree.archives] == ["NWPU-RESISC45.zip", *selection.files]
    assert tree.inside[-2:] == selection.files
