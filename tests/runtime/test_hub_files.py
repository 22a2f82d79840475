"""Tests which files of a repository form a split, locally and on the hub."""

import hashlib
import json
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from factories import HUB_COMMIT, put_in_hub_cache
from hub_server import use_hub_address
from huggingface_hub import constants
from imagenet_trees import content
from parquet_trees import CARD, NAMES, generated, pixels, shards, table, write

from lgclip.datasets.hugging_face import HubImages
from lgclip.datasets.parquet import Rows
from lgclip.datasets.parquet_shards import Card, shards_of
from lgclip.datasets.shard_files import local_shard
from lgclip.runtime.hub import HubError, commit_of


def test_truncated_file_is_named(tmp_path: Path) -> None:
    file = shards(tmp_path) / "data/test-00001-of-00002.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"test-00001-of-00002\.parquet cannot be read as a parquet file"):
        HubImages(root=str(tmp_path))


def test_missing_shard_is_named(tmp_path: Path) -> None:
    (shards(tmp_path) / "data/test-00001-of-00002.parquet").unlink()
    with pytest.raises(ValueError, match=r"not complete, missing: data/test-00001-of-00002\.parquet"):
        HubImages(root=str(tmp_path))


def test_mixed_shards_are_rejected(tmp_path: Path) -> None:
    shards(tmp_path)
    changed = {"names": [*NAMES, "one more"], "_type": "ClassLabel"}
    write(tmp_path, "data/test-00001-of-00002.parquet", table([content(9)], {"label": [0]}, changed))
    with pytest.raises(ValueError, match=r"test-00001-of-00002\.parquet has other columns or classes than"):
        HubImages(root=str(tmp_path))


def test_image_count_follows_the_card(tmp_path: Path) -> None:
    shards(tmp_path)
    (tmp_path / "README.md").write_text(CARD)
    assert len(HubImages(root=str(tmp_path))) == 7
    (tmp_path / "README.md").write_text(CARD.replace("num_examples: 7", "num_examples: 8"))
    with pytest.raises(ValueError, match="7 rows in split test, its card states 8"):
        HubImages(root=str(tmp_path))
    assert len(HubImages(root=str(tmp_path), counts=False)) == 7


def test_missing_pyarrow_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"python -m pip install 'lgclip\[hub\]'"):
        Rows([local_shard(tmp_path / "data/test-00000-of-00002.parquet")])


@pytest.mark.parametrize(
    ("config", "split", "expected"),
    [
        (None, "test", ["data/test-00000-of-00002.parquet", "data/test-00001-of-00002.parquet"]),
        (None, "validation", ["data/validation.parquet"]),
        (None, "tes", None),
        ("fine", "test", ["fine/test/0000.parquet", "fine/test/0001.parquet"]),  # the hub's own conversion
        ("fine", "train", None),  # `partial-train` is not all of it
        ("coarse", "test", ["coarse/test-00000-of-00001.parquet"]),
    ],
)
def test_split_is_found_by_file_names(config: str | None, split: str, expected: list[str] | None) -> None:
    files = [
        "data/test-00001-of-00002.parquet", "data/test-00000-of-00002.parquet", "data/validation.parquet",
        "data/testing-00000-of-00001.parquet", "fine/test/0001.parquet", "fine/test/0000.parquet",
        "fine/partial-train/0000.parquet", "coarse/test-00000-of-00001.parquet", "README.md", "data/test.csv",
    ]  # fmt: skip
    if expected:
        assert shards_of(files, Card(config), split, "here")[1] == expected
    else:
        with pytest.raises(ValueError, match=rf"dataset.split={split}: no file of here fits .* it holds coarse/test-"):
            shards_of(files, Card(config), split, "here")


def test_card_patterns_take_precedence(tmp_path: Path) -> None:
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
    with pytest.raises(ValueError, match=r"README\.md: its header is damaged"):
        Card.read(tmp_path / "README.md", None)


def test_repository_without_parquet_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"here holds no parquet file; dataset.revision=refs/convert/parquet"):
        shards_of(["data.zip", "README.md"], Card(), "test", "here")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Creates an empty cache of the hub's client."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    commit_of.cache_clear()
    return tmp_path / "cache"


def test_hub_dataset_is_keyed_by_commit(cache: Path, tmp_path: Path) -> None:
    snapshot = shards(put_in_hub_cache(cache, "owner/birds", kind="dataset"))
    (snapshot / "README.md").write_text(CARD)
    data = HubImages("owner/birds")
    assert data.split == f"test; configuration default; revision main = {HUB_COMMIT}"
    assert data.source()["commit"] == HUB_COMMIT
    assert data.name == data.source()["repo"] == "owner/birds"
    assert data.class_names == ("blue moon", "green ring", "red star"), "what the files state goes before the card"
    np.testing.assert_array_equal(pixels(data.image(6)), generated(6, tmp_path))
    pinned = HubImages("owner/birds", revision=HUB_COMMIT)
    assert pinned.split == f"test; configuration default; revision {HUB_COMMIT}"
    assert (pinned.ids, pinned.source()) == (data.ids, data.source())


def test_uncached_dataset_needs_network(cache: Path) -> None:
    with pytest.raises(HubError, match=r"owner/birds.*cannot be reached"):
        HubImages("owner/birds")
    put_in_hub_cache(cache, "owner/birds", kind="dataset")
    with pytest.raises(ValueError, match=r"owner/birds \(what the hub's cache has of it\) holds no parquet file"):
        HubImages("owner/birds")


@pytest.fixture
def served(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, list[str]]]:
    """Serves a hub with one data set; yields its folder and the names of the files sent."""
    folder = tmp_path / "served"
    sent = list[str]()

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            headers = {}
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
            values = {"type": "file", "oid": "0" * 40}
            return [{key: p.relative_to(folder).as_posix(), "size": p.stat().st_size, **values} for p in paths]

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        use_hub_address(f"http://127.0.0.1:{server.server_address[1]}", monkeypatch)
        yield folder, sent
        server.shutdown()


def test_split_files_are_downloaded_once(
    served: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, sent = served
    shards(shards(folder), split="train")
    (folder / "README.md").write_text(CARD)
    data = HubImages("owner/birds", revision="v1")
    expected = ["README.md", "data/test-00000-of-00002.parquet", "data/test-00001-of-00002.parquet"]
    assert sorted(sent) == expected
    assert data.split == f"test; configuration default; revision v1 = {HUB_COMMIT}"
    np.testing.assert_array_equal(pixels(data.image(6)), generated(6, tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert HubImages("owner/birds", revision=HUB_COMMIT).ids == data.ids
    assert sorted(sent) == expected, "what is in the cache is not got again, and needs no network"
    with pytest.raises(
        ValueError, match=r"no file of owner/birds \(what the hub's cache has of it\) fits data/train-\*"
    ):
        HubImages("owner/birds", revision=HUB_COMMIT, split="train")


@pytest.mark.parametrize("values", [{}, {"repo": "a/b", "root": "c"}])
def test_exactly_one_source_is_required(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"either dataset.repo=OWNER/NAME or dataset.root=DIR"):
        HubImages(**values)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent: no such folder; it should hold data/test-00000-of-00001\.parquet"):
        HubImages(root=str(tmp_path / "absent"))
