"""Tests Parquet data sets of the hub: real files in the hub's layout, found in its cache by its own client."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from imagenet_trees import content
from parquet_trees import CARD, CLASS_LABEL, LABELS, generated, pixels, shards, table, write
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from lgclip.datasets.hugging_face import HubImages
from lgclip.datasets.image_decoding import read_image
from lgclip.datasets.parquet import _row_group


def test_local_copy_is_read_by_shard(tmp_path: Path) -> None:
    data = HubImages(root=str(shards(tmp_path / "birds")))
    assert data.class_names == ("blue moon", "green ring", "red star")
    assert data.labels == tuple(LABELS)
    assert (data.name, data.split) == ("birds", "test; configuration default")
    assert len(set(data.ids)) == len(data) == 7
    for index in (6, 0, 4, 5, 1, 3, 2):
        np.testing.assert_array_equal(pixels(data.image(index)), generated(index, tmp_path))


def test_ids_are_file_and_row(tmp_path: Path) -> None:
    first = HubImages(root=str(shards(tmp_path / "birds")))
    assert HubImages(root=str(tmp_path / "birds")).ids == first.ids
    (tmp_path / "birds").rename(tmp_path / "moved")
    assert HubImages(root=str(tmp_path / "moved")).ids == first.ids
    write(tmp_path / "moved", "data/test-00001-of-00002.parquet", table([content(9)], {"label": [0]}, CLASS_LABEL))
    changed = HubImages(root=str(tmp_path / "moved"))
    assert changed.ids[:5] == first.ids[:5]
    assert not set(changed.ids[5:]) & set(first.ids)


class Loaded(Dataset[np.ndarray]):
    def __init__(self, data: HubImages) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> np.ndarray:
        return pixels(self.data.image(index)).copy()


@pytest.mark.multiprocess
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_read_the_same_images(start: str, tmp_path: Path) -> None:
    data = HubImages(root=str(shards(tmp_path)))
    local_pixels = [pixels(data.image(index)) for index in range(len(data))]  # the files have been read before the fork
    loader = DataLoader(Loaded(data), batch_size=None, num_workers=2, multiprocessing_context=start)
    for actual, expected in zip(loader, local_pixels, strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_two_row_groups_are_cached(tmp_path: Path) -> None:
    data = HubImages(root=str(shards(tmp_path)))
    _row_group.cache_clear()
    for index in range(len(data)):
        data.image(index)
    cache_info = _row_group.cache_info()
    assert (cache_info.misses, cache_info.maxsize, cache_info.currsize) == (4, 2, 2), (
        "groups of 2, 2, 1 and 2 rows, each read once"
    )


def test_changed_file_is_read_again(tmp_path: Path) -> None:
    shards(tmp_path)
    HubImages(root=str(tmp_path)).image(0)
    write(tmp_path, "data/test-00000-of-00002.parquet", table([content(9)], {"label": [0]}, CLASS_LABEL))
    np.testing.assert_array_equal(pixels(HubImages(root=str(tmp_path)).image(0)), generated(9, tmp_path))


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "CMYK"), ("PNG", "P"), ("PNG", "LA"), ("PNG", "1"), ("PNG", "I;16"), ("JPEG", "turned")]
)
def test_bytes_are_decoded_like_files(kind: str, mode: str, tmp_path: Path) -> None:
    photo = Image.open(write_picture(tmp_path))
    path = tmp_path / "one"
    exif = photo.getexif()
    if mode == "I;16":
        photo = Image.fromarray(pixels(photo.convert("L")).astype(np.uint16) * 257)
    elif mode == "turned":
        exif[0x0112] = 6
    else:
        photo = photo.convert(mode)
    photo.save(path, kind, exif=exif)
    for image in ([path.read_bytes()], [{"bytes": path.read_bytes(), "path": None}]):
        write(tmp_path, "data/test-00000-of-00001.parquet", pa.table({"image": image, "label": ["moon"]}))
        np.testing.assert_array_equal(pixels(HubImages(root=str(tmp_path)).image(0)), pixels(read_image(path)))


def write_picture(folder: Path) -> Path:
    (folder / "picture.png").write_bytes(content(3, "PNG"))
    return folder / "picture.png"


def test_names_fall_back_to_the_dataset_card(tmp_path: Path) -> None:
    shards(tmp_path, label=None)
    with pytest.raises(ValueError, match=r"neither the files nor the card name its 3 classes; give dataset.names=FILE"):
        HubImages(root=str(tmp_path))
    (tmp_path / "README.md").write_text(CARD)
    assert HubImages(root=str(tmp_path)).class_names == ("zero", "one", "two")
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    assert HubImages(root=str(tmp_path), names=str(tmp_path / "names.txt")).class_names == ("a", "b", "c")
    (tmp_path / "README.md").unlink()
    assert HubImages(root=str(tmp_path), names=str(tmp_path / "names.txt")).class_names == ("a", "b", "c")
    (tmp_path / "names.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match="2 names for 3 classes"):
        HubImages(root=str(tmp_path), names=str(tmp_path / "names.txt"))


def test_labels_can_be_names(tmp_path: Path) -> None:
    rows = table([content(i) for i in range(3)], {"label": ["red_star", "blue moon", "red_star"]})
    data = HubImages(root=str(write(tmp_path, "data/test-00000-of-00001.parquet", rows)))
    assert (data.class_names, data.labels) == (("blue moon", "red star"), (1, 0, 1))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, None, 1], "1 rows have no label, such as row 1"),
        ([0, 1, -1], "1 rows have no label, such as row 2"),
        ([0, 3, 1], "class 3 is none of the 3 that are named"),
        ([0.5, 1.0, 2.0], "holds double, neither numbers nor names"),
        ([], "has no rows"),
    ],
)
def test_invalid_labels_are_rejected(labels: list[Any], message: str, tmp_path: Path) -> None:
    rows = table([content(i) for i in range(len(labels))], {"label": labels}, CLASS_LABEL)
    write(tmp_path, "data/test-00000-of-00001.parquet", rows)
    with pytest.raises(ValueError, match=f"dataset.label_column=label.*{message}"):
        HubImages(root=str(tmp_path))


def test_missing_column_is_named(tmp_path: Path) -> None:
    shards(tmp_path)
    with pytest.raises(ValueError, match=r"dataset.image_column=img: the columns are image, label"):
        HubImages(root=str(tmp_path), image_column="img")
    with pytest.raises(ValueError, match=r"dataset.label_column=fine_label: the columns are image, label"):
        HubImages(root=str(tmp_path), label_column="fine_label")
    with pytest.raises(ValueError, match=r"dataset.image_column=label holds int64, no images; columns that may: image"):
        HubImages(root=str(tmp_path), image_column="label")


def test_missing_image_is_named(tmp_path: Path) -> None:
    rows = pa.table({"image": [{"bytes": b"no image", "path": "a"}, {"bytes": None, "path": "b"}], "label": ["a", "b"]})
    data = HubImages(root=str(write(tmp_path, "data/test-00000-of-00001.parquet", rows)))
    with pytest.raises(ValueError, match=r"test-00000-of-00001\.parquet, row 0 cannot be read as an image"):
        data.image(0)
    with pytest.raises(ValueError, match=r"row 1 cannot be .*column 'image' holds no bytes, only .*'path': 'b'"):
        data.image(1)
