"""Tests NWPU-RESISC45 in the layout of torchgeo's copy, and its download from a local server."""

import hashlib
import shutil
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from threading import Thread
from typing import Any

import imagenet_trees as trees
import pytest

from lgclip.datasets import resisc45
from lgclip.datasets.image_files import CLASSNAMES
from lgclip.datasets.resisc45 import Resisc45

NAMES = (CLASSNAMES / "resisc45.clip.txt").read_text().splitlines()
FOLDERS = [name.replace(" ", "_") for name in NAMES]
PARTS = {"train": (1, 2, 3), "val": (4,), "test": (5, 700)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return trees.resisc45(tmp_path / "root", FOLDERS, PARTS)


@pytest.mark.parametrize(
    ("split", "numbers", "title"),
    [
        ("torchgeo", (5, 700), "torchgeo test"),
        ("torchgeo-val", (4,), "torchgeo val"),
        ("torchgeo-train", (1, 2, 3), "torchgeo train"),
        ("torchgeo-trainval", (1, 2, 3, 4), "torchgeo trainval"),
        ("all", (1, 2, 3, 4, 5, 700), "all"),
    ],
)
def test_split_follows_its_list(split: str, numbers: tuple[int, ...], title: str, root: Path) -> None:
    data = Resisc45(str(root), split=split, counts=False)
    expected = {(folder, f"{folder}_{n:03}.jpg") for folder, n in product(FOLDERS, numbers)}
    assert {tuple(Path(file).parts[1:]) for file in data.files} == expected
    assert [FOLDERS[label] for label in data.labels] == [Path(file).parent.name for file in data.files]
    assert data.split.startswith(f"{title} ({len(expected)} of ") or data.split == title
    assert data.image(0).mode == "RGB"


def test_names_and_templates_match_openai(root: Path) -> None:
    data = Resisc45(str(root), counts=False)
    assert data.class_names == tuple(NAMES) == Resisc45(str(root), names="folder", counts=False).class_names
    assert len(NAMES) == 45
    assert sorted(NAMES) == NAMES
    assert data.class_names[30] == "railway station"
    assert data.templates == ("satellite imagery of {}.",)


def test_split_ids_are_those_of_all(root: Path) -> None:
    every, test = (Resisc45(str(root), split=split, counts=False) for split in ("all", "torchgeo"))
    assert set(test.ids) <= set(every.ids)
    assert set(test.files) < set(every.files)
    assert len(set(every.files)) == len(every)


def remove(root: Path, place: str) -> None:
    shutil.rmtree(root / place) if (root / place).is_dir() else (root / place).unlink()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("NWPU-RESISC45/sea_ice", "missing: NWPU-RESISC45/sea_ice"),
        ("resisc45-test.txt", "missing: resisc45-test.txt"),
        ("NWPU-RESISC45/ship/ship_700.jpg", "1 of 90 images .*the first is NWPU-RESISC45/ship/ship_700.jpg"),
    ],
)
def test_missing_files_are_named(place: str, message: str, root: Path) -> None:
    remove(root, place)
    with pytest.raises(ValueError, match=f"dataset=resisc45.*{message}.*download=true"):
        Resisc45(str(root), counts=False)


def test_lists_are_not_needed_for_all(root: Path) -> None:
    for part in PARTS:
        remove(root, f"resisc45-{part}.txt")
    assert len(Resisc45(str(root), split="all", counts=False)) == 45 * 6


def test_damaged_list_is_named(root: Path) -> None:
    (root / "resisc45-test.txt").write_text("airplane_001.jpg\naeroplane_002.jpg\n")
    with pytest.raises(ValueError, match=r"resisc45-test\.txt.*'aeroplane' is none of the 45 classes"):
        Resisc45(str(root), counts=False)


@pytest.mark.slow
def test_counts_are_official(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"90 images found, the split has 6300"):
        Resisc45(str(root))
    full_dataset = trees.resisc45(tmp_path / "whole", FOLDERS, {"test": range(1, 141)})
    data = Resisc45(str(full_dataset))
    assert (len(data), data.split) == (6300, "torchgeo test")
    with pytest.raises(ValueError, match=r"dataset.split=test"):
        Resisc45(str(root), split="test")


@pytest.fixture
def served(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Serves the files of the copy with their true checksums."""
    files = tmp_path / "served"
    files.mkdir()
    shutil.make_archive(str(files / "NWPU-RESISC45"), "zip", root, "NWPU-RESISC45")
    for part in PARTS:
        shutil.copy(root / f"resisc45-{part}.txt", files)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(files))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        sums = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in files.iterdir()}
        monkeypatch.setattr(resisc45, "_COPY", url)
        monkeypatch.setattr(resisc45, "_MD5", {part: sums[f"resisc45-{part}.txt"] for part in PARTS})
        archive = resisc45.Archive(f"{url}/NWPU-RESISC45.zip", "NWPU-RESISC45", f"md5:{sums['NWPU-RESISC45.zip']}")
        monkeypatch.setattr(resisc45, "_IMAGES", archive)
        yield files
        server.shutdown()


def test_missing_files_are_downloaded(served: Path, tmp_path: Path) -> None:
    data = Resisc45(str(tmp_path / "new"), download=True, counts=False)
    assert len(data) == 90
    assert not (tmp_path / "new" / "resisc45-train.txt").exists(), "only what the split needs"
    (served / "resisc45-train.txt").write_text("airplane_001.jpg\n")
    with pytest.raises(ValueError, match=r"resisc45-train\.txt: its md5 is \w+, not"):
        Resisc45(str(tmp_path / "new"), split="torchgeo-train", download=True, counts=False)


def test_checksums_are_md5() -> None:
    sums = [*resisc45._MD5.values(), str(resisc45._IMAGES.checksum).removeprefix("md5:")]
    assert all(len(bytes.fromhex(value)) == 16 for value in sums)
