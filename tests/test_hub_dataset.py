"""Parquet data sets of the hub: real files in the hub's layout, found in its cache by its own client."""

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from huggingface_hub import constants
from imagenet_trees import content
from PIL import Image
from pyarrow import parquet
from torch.utils.data import DataLoader, Dataset
from worlds import HUB_COMMIT, put_in_hub_cache

from lgclip.datasets.files import read_image
from lgclip.datasets.hub import HubImages
from lgclip.datasets.parquet import Rows, _row_group
from lgclip.datasets.shards import Card, shards_of
from lgclip.hub import HubError, commit_of

NAMES = ["blue_moon", "green ring", "red star"]
LABELS = [0, 2, 1, 1, 0, 2, 2]
CLASS_LABEL = {"names": NAMES, "_type": "ClassLabel"}
CARD = """---
license: mit
dataset_info:
  features:
  - name: image
    dtype: image
  - name: label
    dtype:
      class_label:
        names:
          '0': zero
          '2': two
          '1': one
  splits:
  - name: train
    num_examples: 2
  - name: test
    num_examples: 7
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: test
    path: data/test-*
---
# A data set
"""


def table(images: Sequence[bytes], columns: dict[str, list[Any]], label: dict[str, Any] | None = None) -> pa.Table:
    """Images as structs, other columns, and the features as `datasets` writes them into the schema."""
    structs = pa.array(
        [{"bytes": image, "path": f"{i}.jpg"} for i, image in enumerate(images)],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    made = pa.table({"image": structs, **columns})
    if label is None:
        return made
    features = {"image": {"_type": "Image"}, "label": label}
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write(root: Path, file: str, rows: pa.Table, row_group: int = 2) -> Path:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(rows, root / file, row_group_size=row_group)
    return root


def shards(root: Path, label: dict[str, Any] | None = CLASS_LABEL, split: str = "test") -> Path:
    """Seven images in two files of two and one row groups and more."""
    images = [content(i) for i in range(len(LABELS))]
    for number, (start, end) in enumerate(((0, 5), (5, 7))):
        rows = table(images[start:end], {"label": LABELS[start:end]}, label)
        write(root, f"data/{split}-{number:05}-of-00002.parquet", rows)
    return root


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def drawn(number: int, folder: Path) -> np.ndarray:
    """The picture with this number, read from a file of its own."""
    (folder / "one.jpg").write_bytes(content(number))
    return pixels(read_image(folder / "one.jpg"))


def test_a_local_copy_is_read_shard_by_shard(tmp_path: Path) -> None:
    data = HubImages(root=str(shards(tmp_path / "birds")))
    assert data.class_names == ("blue moon", "green ring", "red star")
    assert data.labels == tuple(LABELS)
    assert (data.name, data.split) == ("birds", "test; configuration default")
    assert len(set(data.ids)) == len(data) == 7
    for index in (6, 0, 4, 5, 1, 3, 2):
        np.testing.assert_array_equal(pixels(data.image(index)), drawn(index, tmp_path))


def test_ids_are_rows_of_files(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_worker_processes_read_what_this_one_does(start: str, tmp_path: Path) -> None:
    data = HubImages(root=str(shards(tmp_path)))
    here = [pixels(data.image(index)) for index in range(len(data))]  # the files have been read before the fork
    loader = DataLoader(Loaded(data), batch_size=None, num_workers=2, multiprocessing_context=start)
    for found, wanted in zip(loader, here, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_two_row_groups_are_kept_and_no_more(tmp_path: Path) -> None:
    data = HubImages(root=str(shards(tmp_path)))
    _row_group.cache_clear()
    for index in range(len(data)):
        data.image(index)
    told = _row_group.cache_info()
    assert (told.misses, told.maxsize, told.currsize) == (4, 2, 2), "groups of 2, 2, 1 and 2 rows, each read once"


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    shards(tmp_path)
    HubImages(root=str(tmp_path)).image(0)
    write(tmp_path, "data/test-00000-of-00002.parquet", table([content(9)], {"label": [0]}, CLASS_LABEL))
    np.testing.assert_array_equal(pixels(HubImages(root=str(tmp_path)).image(0)), drawn(9, tmp_path))


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "CMYK"), ("PNG", "P"), ("PNG", "LA"), ("PNG", "1"), ("PNG", "I;16"), ("JPEG", "turned")]
)
def test_bytes_are_decoded_as_files_are(kind: str, mode: str, tmp_path: Path) -> None:
    picture, path = Image.open(write_picture(tmp_path)), tmp_path / "one"
    exif = picture.getexif()
    if mode == "I;16":
        picture = Image.fromarray(pixels(picture.convert("L")).astype(np.uint16) * 257)
    elif mode == "turned":
        exif[0x0112] = 6
    else:
        picture = picture.convert(mode)
    picture.save(path, kind, exif=exif)
    for image in ([path.read_bytes()], [{"bytes": path.read_bytes(), "path": None}]):
        write(tmp_path, "data/test-00000-of-00001.parquet", pa.table({"image": image, "label": ["moon"]}))
        np.testing.assert_array_equal(pixels(HubImages(root=str(tmp_path)).image(0)), pixels(read_image(path)))


def write_picture(folder: Path) -> Path:
    (folder / "picture.png").write_bytes(content(3, "PNG"))
    return folder / "picture.png"


# Labels and names.


def test_names_are_those_of_the_card_if_the_files_have_none(tmp_path: Path) -> None:
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


def test_labels_may_be_the_names_themselves(tmp_path: Path) -> None:
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
def test_labels_that_cannot_be_are_an_error(labels: list[Any], message: str, tmp_path: Path) -> None:
    rows = table([content(i) for i in range(len(labels))], {"label": labels}, CLASS_LABEL)
    write(tmp_path, "data/test-00000-of-00001.parquet", rows)
    with pytest.raises(ValueError, match=f"dataset.label_column=label.*{message}"):
        HubImages(root=str(tmp_path))


def test_a_column_that_is_missing_is_named_beside_those_there_are(tmp_path: Path) -> None:
    shards(tmp_path)
    with pytest.raises(ValueError, match=r"dataset.image_column=img: the columns are image, label"):
        HubImages(root=str(tmp_path), image_column="img")
    with pytest.raises(ValueError, match=r"dataset.label_column=fine_label: the columns are image, label"):
        HubImages(root=str(tmp_path), label_column="fine_label")
    with pytest.raises(ValueError, match=r"dataset.image_column=label holds int64, no images; columns that may: image"):
        HubImages(root=str(tmp_path), image_column="label")


def test_an_image_that_is_not_in_the_file_is_named(tmp_path: Path) -> None:
    rows = pa.table({"image": [{"bytes": b"no image", "path": "a"}, {"bytes": None, "path": "b"}], "label": ["a", "b"]})
    data = HubImages(root=str(write(tmp_path, "data/test-00000-of-00001.parquet", rows)))
    with pytest.raises(ValueError, match=r"test-00000-of-00001\.parquet, row 0 cannot be read as an image"):
        data.image(0)
    with pytest.raises(ValueError, match=r"row 1: column 'image' holds no bytes, only .*'path': 'b'"):
        data.image(1)


# Files.


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    file = shards(tmp_path) / "data/test-00001-of-00002.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"test-00001-of-00002\.parquet cannot be read as a parquet file"):
        HubImages(root=str(tmp_path))


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    (shards(tmp_path) / "data/test-00001-of-00002.parquet").unlink()
    with pytest.raises(ValueError, match=r"not complete, missing: data/test-00001-of-00002\.parquet"):
        HubImages(root=str(tmp_path))


def test_shards_of_two_data_sets_are_not_mixed(tmp_path: Path) -> None:
    shards(tmp_path)
    other = {"names": [*NAMES, "one more"], "_type": "ClassLabel"}
    write(tmp_path, "data/test-00001-of-00002.parquet", table([content(9)], {"label": [0]}, other))
    with pytest.raises(ValueError, match=r"test-00001-of-00002\.parquet has other columns or classes than"):
        HubImages(root=str(tmp_path))


def test_the_number_of_images_is_the_card_s(tmp_path: Path) -> None:
    shards(tmp_path)
    (tmp_path / "README.md").write_text(CARD)
    assert len(HubImages(root=str(tmp_path))) == 7
    (tmp_path / "README.md").write_text(CARD.replace("num_examples: 7", "num_examples: 8"))
    with pytest.raises(ValueError, match="7 rows in split test, its card states 8"):
        HubImages(root=str(tmp_path))
    assert len(HubImages(root=str(tmp_path), counts=False)) == 7


def test_without_pyarrow_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"python -m pip install 'lgclip\[hub\]'"):
        Rows([tmp_path / "data/test-00000-of-00002.parquet"])


@pytest.mark.parametrize(
    ("config", "split", "wanted"),
    [
        (None, "test", ["data/test-00000-of-00002.parquet", "data/test-00001-of-00002.parquet"]),
        (None, "validation", ["data/validation.parquet"]),
        (None, "tes", None),
        ("fine", "test", ["fine/test/0000.parquet", "fine/test/0001.parquet"]),  # the hub's own conversion
        ("fine", "train", None),  # `partial-train` is not all of it
        ("coarse", "test", ["coarse/test-00000-of-00001.parquet"]),
    ],
)
def test_a_split_is_found_by_the_names_of_its_files(config: str | None, split: str, wanted: list[str] | None) -> None:
    files = [
        "data/test-00001-of-00002.parquet", "data/test-00000-of-00002.parquet", "data/validation.parquet",
        "data/testing-00000-of-00001.parquet", "fine/test/0001.parquet", "fine/test/0000.parquet",
        "fine/partial-train/0000.parquet", "coarse/test-00000-of-00001.parquet", "README.md", "data/test.csv",
    ]  # fmt: skip
    if wanted:
        assert shards_of(files, Card(config), split, "here")[1] == wanted
    else:
        with pytest.raises(ValueError, match=rf"dataset.split={split}: no file of here fits .* it holds coarse/test-"):
            shards_of(files, Card(config), split, "here")


def test_a_card_s_patterns_come_first(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: a\n  data_files:\n  - split: test\n    path: [one/*.parquet, two.parquet]\n"
        "- config_name: b\n  data_files: three/*\n---\n"
    )
    files = ["one/x.parquet", "two.parquet", "three/y.parquet", "data/test-00000-of-00001.parquet"]
    card = Card.read(tmp_path / "README.md", "a")
    assert shards_of(files, card, "test", "here") == ("a", ["one/x.parquet", "two.parquet"])
    assert shards_of(files, Card.read(tmp_path / "README.md", "b"), "train", "here")[1] == ["three/y.parquet"]
    with pytest.raises(ValueError, match=r"dataset.split=val: here has test"):
        shards_of(files, card, "val", "here")
    with pytest.raises(ValueError, match=r"dataset.config: choose one of a, b"):
        Card.read(tmp_path / "README.md", None)
    with pytest.raises(ValueError, match=r"dataset.config=c: choose a or b"):
        Card.read(tmp_path / "README.md", "c")
    (tmp_path / "README.md").write_text("---\nconfigs: [\n---\n")
    with pytest.raises(ValueError, match=r"README\.md: what stands at its top is damaged"):
        Card.read(tmp_path / "README.md", None)


def test_a_repository_without_parquet_is_said_to_be_one() -> None:
    with pytest.raises(ValueError, match=r"here holds no parquet file; dataset.revision=refs/convert/parquet"):
        shards_of(["data.zip", "README.md"], Card(), "test", "here")


# The hub.


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's client."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    commit_of.cache_clear()
    return tmp_path / "cache"


def test_a_data_set_of_the_hub_is_known_by_its_commit(cache: Path, tmp_path: Path) -> None:
    snapshot = shards(put_in_hub_cache(cache, "owner/birds", kind="dataset"))
    (snapshot / "README.md").write_text(CARD)
    data = HubImages("owner/birds")
    assert data.split == f"test; configuration default; revision main = {HUB_COMMIT}"
    assert data.source()["commit"] == HUB_COMMIT
    assert data.name == data.source()["repo"] == "owner/birds"
    assert data.class_names == ("blue moon", "green ring", "red star"), "what the files state goes before the card"
    np.testing.assert_array_equal(pixels(data.image(6)), drawn(6, tmp_path))
    pinned = HubImages("owner/birds", revision=HUB_COMMIT)
    assert pinned.split == f"test; configuration default; revision {HUB_COMMIT}"
    assert (pinned.ids, pinned.source()) == (data.ids, data.source())


def test_a_data_set_that_is_not_in_the_cache_needs_a_network(cache: Path) -> None:
    with pytest.raises(HubError, match=r"owner/birds.*cannot be reached"):
        HubImages("owner/birds")
    put_in_hub_cache(cache, "owner/birds", kind="dataset")
    with pytest.raises(ValueError, match=r"owner/birds \(what the hub's cache has of it\) holds no parquet file"):
        HubImages("owner/birds")


@pytest.fixture
def served(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, list[str]]]:
    """A hub with one data set: its folder, and which files of it were sent."""
    folder, sent = tmp_path / "served", list[str]()

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path, headers = self.path.partition("?")[0], {}
            if path.startswith("/api/datasets/owner/birds/revision/"):
                body = json.dumps(
                    {"id": "owner/birds", "sha": HUB_COMMIT, "siblings": self.files("rfilename")}
                ).encode()
            elif path == f"/api/datasets/owner/birds/tree/{HUB_COMMIT}":
                body = json.dumps(self.files("path")).encode()
            else:
                place = path.removeprefix(f"/datasets/owner/birds/resolve/{HUB_COMMIT}/")
                body = (folder / place).read_bytes()
                headers = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": HUB_COMMIT}
                sent.extend([place] if self.command == "GET" else [])
            self.send_response(200)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body if self.command == "GET" else b"")

        def files(self, key: str) -> list[dict[str, Any]]:
            paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            said = {"type": "file", "oid": "0" * 40}
            return [{key: p.relative_to(folder).as_posix(), "size": p.stat().st_size, **said} for p in paths]

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        yield folder, sent
        server.shutdown()


def test_the_files_of_one_split_are_downloaded_once(
    served: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, sent = served
    shards(shards(folder), split="train")
    (folder / "README.md").write_text(CARD)
    data = HubImages("owner/birds", revision="v1")
    wanted = ["README.md", "data/test-00000-of-00002.parquet", "data/test-00001-of-00002.parquet"]
    assert sorted(sent) == wanted
    assert data.split == f"test; configuration default; revision v1 = {HUB_COMMIT}"
    np.testing.assert_array_equal(pixels(data.image(6)), drawn(6, tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert HubImages("owner/birds", revision=HUB_COMMIT).ids == data.ids
    assert sorted(sent) == wanted, "what is in the cache is not got again, and needs no network"
    with pytest.raises(
        ValueError, match=r"no file of owner/birds \(what the hub's cache has of it\) fits data/train-\*"
    ):
        HubImages("owner/birds", revision=HUB_COMMIT, split="train")


@pytest.mark.parametrize("given", [{}, {"repo": "a/b", "root": "c"}])
def test_one_place_is_to_be_named(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"either dataset.repo=OWNER/NAME or dataset.root=DIR"):
        HubImages(**given)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent: no such folder; it should hold data/test-00000-of-00001\.parquet"):
        HubImages(root=str(tmp_path / "absent"))
