"""Streams Parquet data sets: files of an object store or of the hub are downloaded when their images are needed."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from factories import Sandbox, evaluate_run
from hub_server import HubServer, Repository, serve_hub, use_hub
from object_stores import S3Server, unavailable
from parquet_trees import LABELS, pixels, shards

from lgclip.datasets.hugging_face import HubImages
from lgclip.datasets.parquet import _row_group
from lgclip.datasets.shard_files import CACHE

pytest_plugins = ("object_store_fixtures", "run_fixtures")
pytestmark = pytest.mark.usefixtures("own_caches")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _row_group.cache_clear()
    return shards(tmp_path / "birds")


@pytest.fixture
def url(folder: Path, s3: S3Server) -> str:
    for path in folder.rglob("*"):
        if path.is_file():
            key = f"sets/birds/{path.relative_to(folder).as_posix()}"
            s3.client.put_object(Bucket="prototypes", Key=key, Body=path.read_bytes())
    s3.requests.clear()
    return "s3://prototypes/sets/birds"


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with serve_hub() as server:
        use_hub(server, monkeypatch)
        repository = Repository(private=False)
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        repository.commit(files)
        server.repositories["me/birds"] = repository
        yield server


def copies() -> list[str]:
    folder = Path(os.environ["XDG_CACHE_HOME"]) / CACHE
    if not folder.is_dir():
        return []
    return sorted(path.name[33:] for path in folder.glob("*.parquet"))


def test_images_of_a_bucket_are_those_of_a_folder(folder: Path, url: str, s3: S3Server) -> None:
    local = HubImages(root=str(folder))
    data = HubImages(root=url)
    assert (data.name, data.class_names, data.labels) == ("birds", local.class_names, tuple(LABELS))
    # The footers and the labels are parts of the files.
    assert copies() == []
    assert len(set(data.ids)) == 7
    assert HubImages(root=url).ids == data.ids
    for index in range(len(data)):
        np.testing.assert_array_equal(pixels(data.image(index)), pixels(local.image(index)))
    assert copies() == ["test-00000-of-00002.parquet", "test-00001-of-00002.parquet"]
    assert data.where(0) == f"{url}/data/test-00000-of-00002.parquet, row 0"


def test_copies_make_room(folder: Path, url: str) -> None:
    size = max(path.stat().st_size for path in folder.rglob("*.parquet"))
    data = HubImages(root=url, cache_gb=1.2 * size / 10**9)
    local = HubImages(root=str(folder))
    for index in (0, 6, 1, 5):
        _row_group.cache_clear()
        np.testing.assert_array_equal(pixels(data.image(index)), pixels(local.image(index)))
        assert len(copies()) == 1


def test_replaced_file_has_other_ids(url: str, s3: S3Server, folder: Path) -> None:
    before = HubImages(root=url)
    content = (folder / "data/test-00001-of-00002.parquet").read_bytes()
    s3.client.put_object(Bucket="prototypes", Key="sets/birds/data/test-00000-of-00002.parquet", Body=content)
    after = HubImages(root=url, counts=False)
    assert not set(before.ids[:5]) & set(after.ids)
    assert after.ids[-2:] == before.ids[-2:]


@pytest.mark.slow
def test_run_over_a_bucket(url: str, s3: S3Server, sandbox: Sandbox, tmp_path: Path) -> None:
    s3.faults += [unavailable("GET", "test-00001")]
    overrides = [part for part in sandbox.evaluate_overrides() if not part.startswith("dataset")]
    result = evaluate_run([*overrides, "dataset=hub", f"dataset.root={url}"], tmp_path / "run")
    assert result["n"] == 7
    # With its features stored, a run downloads no file: it reads footers and labels alone.
    for path in (Path(os.environ["XDG_CACHE_HOME"]) / CACHE).iterdir():
        path.unlink()
    evaluate_run([*overrides, "dataset=hub", f"dataset.root={url}", "prototype=knn"], tmp_path / "again")
    assert copies() == []


def test_streamed_repository_is_the_downloaded_one(hub: HubServer) -> None:
    downloaded = HubImages(repo="me/birds")
    hub.requests.clear()
    data = HubImages(repo="me/birds", stream=True)
    assert (data.split, data.source(), data.ids) == (downloaded.split, downloaded.source(), downloaded.ids)
    assert data.labels == downloaded.labels
    assert copies() == []
    for index in range(7):
        np.testing.assert_array_equal(pixels(data.image(index)), pixels(downloaded.image(index)))
    # A later commit changes nothing of the one that is read.
    hub.repositories["me/birds"].commit({"data/test-00000-of-00002.parquet": b"other"})
    for name in ("test-00000-of-00002.parquet", "test-00001-of-00002.parquet"):
        for path in (Path(os.environ["XDG_CACHE_HOME"]) / CACHE).glob(f"*{name}"):
            path.unlink()
    _row_group.cache_clear()
    np.testing.assert_array_equal(pixels(data.image(0)), pixels(downloaded.image(0)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"root": "s3://absent/x"}, "there is no bucket 'absent'"),
        ({"root": "s3://prototypes/absent"}, "holds no parquet file"),
        ({"root": "ftp://prototypes/absent"}, r"dataset.root=ftp://...: choose s3://"),
        ({"root": "s3://prototypes/sets/birds", "split": "val"}, "dataset.split=val"),
        ({"root": "s3://prototypes/sets/birds", "cache_gb": -1}, "cache_gb=-1"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, str], message: str, url: str) -> None:
    with pytest.raises(ValueError, match=message):
        HubImages(**settings)  # pyright: ignore[reportArgumentType]
