"""Tests data sets in tar shards: read as a folder of the same images, from this machine and from object stores."""

import errno
import os
import shutil
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from factories import NAMES, Sandbox, evaluate_run, make_image_folder
from object_stores import S3Server, cut_download, unavailable
from torch.utils.data import DataLoader, Dataset
from web_shards import images_of, sample, write_tar, write_web_dataset

from lgclip.datasets import sample_index
from lgclip.datasets.folder import Folder
from lgclip.datasets.shard_files import CACHE
from lgclip.datasets.shard_listing import expand_braces, find_shards
from lgclip.datasets.web_dataset import WebDataset
from lgclip.store.bucket_store import BucketStore

pytest_plugins = ("object_store_fixtures", "run_fixtures")
pytestmark = pytest.mark.usefixtures("own_caches")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_image_folder(tmp_path / "folder")


@pytest.fixture
def root(folder: Path, tmp_path: Path) -> Path:
    return write_web_dataset(tmp_path / "wds_things", images_of(folder))


def pixels(data: WebDataset | Folder, index: int) -> np.ndarray:
    return np.asarray(data.image(index))


def test_images_are_those_of_files(root: Path, folder: Path) -> None:
    files = Folder(str(folder))
    data = WebDataset(str(root))
    assert data.class_names == NAMES
    assert data.templates == ("a photo of a {}.", "a drawing of a {}.")
    assert (data.name, data.split, len(data)) == ("wds_things", "test", len(files))
    # Dealt to the shards in turns.
    order = [index for number in range(3) for index in range(number, len(files), 3)]
    assert list(data.ids) == [files.ids[index] for index in order]
    assert list(data.labels) == [files.labels[index] for index in order]
    for place, index in reversed(list(enumerate(order))):
        np.testing.assert_array_equal(pixels(data, place), pixels(files, index))
    assert data.where(0) == f"{root}/test/0.tar!0000.png"
    assert data.training_values() == {"split": "train"}


def test_run_has_the_result_of_a_folder(root: Path, sandbox: Sandbox, tmp_path: Path) -> None:
    shutil.rmtree(sandbox.synthetic_images)
    shutil.copytree(root.parent / "folder", sandbox.synthetic_images)
    names = tmp_path / "names.txt"
    names.write_text("\n".join(NAMES))
    expected = evaluate_run(sandbox, tmp_path / "files")
    overrides = [part for part in sandbox.evaluate_overrides() if not part.startswith("dataset")]
    shards = ["dataset=webdataset", f"dataset.root={root}", "dataset.templates=['a photo of a {}.']"]
    actual = evaluate_run([*overrides, *shards], tmp_path / "shards")
    assert actual["metrics"] == expected["metrics"]
    assert actual["n"] == expected["n"] == len(images_of(root.parent / "folder"))
    assert actual["dataset"]["name"] == "wds_things"


@pytest.mark.parametrize(
    ("label", "members"),
    [
        ("cls", [("a.jpg", 1), ("a.cls", b"green ring"), ("b.jpg", 2), ("b.cls", b"2")]),
        ("txt", [("a.jpg", 1), ("a.txt", b"green ring\n"), ("b.jpg", 2), ("b.txt", b"red star")]),
        ("json.kind", [("a.json", b'{"kind": 1}'), ("a.jpg", 1), ("b.json", b'{"kind": 2, "x": []}'), ("b.jpg", 2)]),
        ("folder", [("./green ring/x.jpg", 1), ("red star/x.jpg", 2)]),
    ],
)
def test_label_is_read_from_its_place(
    label: str, members: list[tuple[str, bytes | int]], folder: Path, tmp_path: Path
) -> None:
    images = [images_of(folder)[4 * number][1] for number in range(3)]
    content = [(name, images[part] if isinstance(part, int) else part) for name, part in members]
    write_tar(tmp_path / "d/test/0.tar", content)
    if label == "cls":
        # Indices and names cannot be mixed: a name that is a number would be open.
        with pytest.raises(ValueError, match=r"'2' is none of the 3 names"):
            _with_names(tmp_path / "d", label)
        return
    data = _with_names(tmp_path / "d", label)
    names = [data.class_names[number] for number in data.labels]
    assert names == ["green ring", "red star"]


def _with_names(root: Path, label: str) -> WebDataset:
    if label != "folder":
        (root / "classnames.txt").write_text("\n".join(NAMES))
    return WebDataset(str(root), label=label)


def test_names_come_from_the_labels(folder: Path, tmp_path: Path) -> None:
    images = images_of(folder)
    members = [member for i in (8, 0, 4) for member in sample(str(i), images[i][1], NAMES[images[i][0]])]
    write_tar(tmp_path / "d/x.tar", members)
    data = WebDataset(str(tmp_path / "d"), shards="x.tar")
    assert data.class_names == NAMES
    with pytest.raises(ValueError, match=r"dataset.shards names no \{split\}"):
        data.training_values()


def test_names_may_outnumber_the_labels(root: Path, tmp_path: Path) -> None:
    """The last classes may have no image in the shards that are there."""
    (root / "classnames.txt").unlink()
    (tmp_path / "names.txt").write_text("\n".join([*NAMES, "grey cube"]))
    assert WebDataset(str(root), names=str(tmp_path / "names.txt")).class_names[3] == "grey cube"


def test_index_is_cached(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = WebDataset(str(root))
    read: list[str] = []
    indexed = sample_index._indexed

    def counted(shard: sample_index.ShardFile, fields: sample_index.SampleFields) -> sample_index.SampleIndex:
        read.append(shard.name)
        return indexed(shard, fields)

    monkeypatch.setattr(sample_index, "_indexed", counted)
    again = WebDataset(str(root))
    assert read == []
    assert list(again.ids) == list(first.ids)
    assert again.where(7) == first.where(7)
    # A replaced shard is read again, as is one whose index is damaged.
    write_tar(root / "test/1.tar", sample("x", images_of(root.parent / "folder")[0][1], 1))
    (damaged,) = [path for path in _indexes() if _names_in(path) == 4][:1]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    assert len(WebDataset(str(root))) == 9
    assert sorted(read) in (["0.tar", "1.tar"], ["1.tar", "2.tar"], ["1.tar"])
    # Another label is another index.
    with pytest.raises(ValueError, match="no label"):
        WebDataset(str(root), label="txt")


def _indexes() -> list[Path]:
    return sorted((Path(os.environ["XDG_CACHE_HOME"]) / "lgclip-shard-indexes").glob("*.npz"))


def _names_in(path: Path) -> int:
    index = sample_index._read(path)
    assert index is not None
    return len(index.names)


@pytest.mark.parametrize("case", ["inside", "between", "gz", "html"])
def test_damaged_shard_is_named(root: Path, case: str) -> None:
    shard = root / "test/1.tar"
    content = shard.read_bytes()
    message = "it is damaged or no tar file after"
    if case == "inside":
        shard.write_bytes(content[:1700])
    elif case == "between":
        with tarfile.open(shard) as archive:
            shard.write_bytes(content[: archive.getmembers()[4].offset])
        message = "its end is missing"
    elif case == "html":
        shard.write_bytes(b"<html>not found</html>" * 100)
    else:
        write_tar(root / "packed/1.tar.gz", sample("x", b"x", 0), "w:gz")
        with pytest.raises(ValueError, match="unpack it, such as by gunzip"):
            WebDataset(str(root), shards="packed/*.gz")
        return
    with pytest.raises(ValueError, match=message) as raised:
        WebDataset(str(root))
    assert str(shard) in str(raised.value)


@pytest.mark.parametrize(
    ("members", "settings", "message"),
    [
        ([("a.jpg", b"x")], {}, r"sample a has no label \(cls\); its files end in jpg"),
        ([("a.jpg", b"x"), ("a.cls", b" \n")], {}, "an empty label"),
        ([("a.jpg", b"x"), ("a.cls", b"0"), ("a.cls", b"1")], {}, "more than one label"),
        ([("a.cls", b"0"), ("a.npy", b"x")], {}, "sample a has no image; its files end in cls, npy"),
        ([("d/a.left.jpg", b"x"), ("d/a.right.jpg", b"y"), ("d/a.cls", b"0")], {}, "sample d/a has 2 images"),
        ([("a.jpg", b"x"), ("a.json", b"[1]")], {"label": "json.k"}, "None is neither the index nor name"),
        ([("a.jpg", b"x"), ("a.json", b"{")], {"label": "json.k"}, "its label cannot be read"),
        ([("a.jpg", b"x"), ("a.json", b'{"k": true}')], {"label": "json.k"}, "True is neither the index nor name"),
        ([("a.jpg", b"x"), ("a.cls", b"\xff")], {}, "its label cannot be read"),
        ([("a.jpg", b"x")], {"label": "folder"}, "a.jpg lies in no folder"),
        ([("a.jpg", b"x"), ("a.cls", b"3")], {}, "class 3 is none of the 3 that are named"),
        ([("a.jpg", b"x"), ("a.cls", b"tiger")], {}, "'tiger' is none of the 3 names"),
        ([("__meta__.txt", b"x"), (".DS_Store", b"")], {}, "the shards hold no image"),
        ([("a.jpg", b"x"), ("a.cls", b"0")], {"label": "json"}, "dataset.label=json: give an extension"),
        ([("a.jpg", b"x"), ("a.cls", b"0")], {"shards": "val/*.tar"}, "no file fits"),
        ([("a.jpg", b"x"), ("a.cls", b"0")], {"shards": "test/{0..2}.tar"}, "no such file"),
        ([("a.jpg", b"x"), ("a.cls", b"0")], {"shards": "test/{2..0}.tar"}, r"\{2\.\.0\} is no range"),
        ([("a.jpg", b"x"), ("a.cls", b"0")], {"cache_gb": 0}, "cache_gb=0"),
    ],
)
def test_wrong_data_is_refused(
    members: list[tuple[str, bytes]], settings: dict[str, str], message: str, tmp_path: Path
) -> None:
    write_tar(tmp_path / "d/test/0.tar", members)
    (tmp_path / "d/classnames.txt").write_text("\n".join(NAMES))
    with pytest.raises(ValueError, match=message):
        WebDataset(str(tmp_path / "d"), **settings)  # pyright: ignore[reportArgumentType]


def test_numbers_need_names(root: Path) -> None:
    (root / "classnames.txt").unlink()
    with pytest.raises(ValueError, match=r"give dataset.names=FILE with one name per line"):
        WebDataset(str(root))


def test_missing_shard_is_noticed(root: Path) -> None:
    (root / "test/2.tar").unlink()
    with pytest.raises(ValueError, match=r"2 shards fit, .*nshards.txt states 3"):
        WebDataset(str(root))
    assert len(WebDataset(str(root), shards="test/{0..1}.tar")) == 8


def test_signs_of_patterns_in_the_folder_are_its_name(root: Path) -> None:
    for name in ("a[1]", "b{0..1}", "c*"):
        folder = root.rename(root.with_name(name))
        assert len(WebDataset(str(folder))) == 12
        root = folder


def test_second_image_is_chosen_by_extension(folder: Path, tmp_path: Path) -> None:
    first, second = images_of(folder)[0][1], images_of(folder)[5][1]
    members = [("a.mask.png", first), ("a.png", second), ("a.cls", b"0"), ("b.png", first), ("b.cls", b"1")]
    write_tar(tmp_path / "d/test/0.tar", members)
    (tmp_path / "d/classnames.txt").write_text("\n".join(NAMES))
    data = WebDataset(str(tmp_path / "d"), image="png")
    assert data.original(0) == second
    assert len(data) == 2


def test_unreadable_image_is_an_image_of_the_data_set(root: Path, sandbox: Sandbox, tmp_path: Path) -> None:
    content = images_of(root.parent / "folder")[0][1]
    write_tar(root / "test/2.tar", [*sample("cut", content[:60], 0), *sample("good", content, 0)])
    overrides = [part for part in sandbox.evaluate_overrides() if not part.startswith("dataset")]
    place = ["dataset=webdataset", f"dataset.root={root}", "on_bad_image=quarantine"]
    result = evaluate_run([*overrides, *place], tmp_path / "run")
    assert [entry["file"] for entry in result["skipped"]] == [f"{root}/test/2.tar!cut.png"]
    assert [path.read_bytes() for path in (tmp_path / "run/quarantine").glob("*.bin")] == [content[:60]]


@pytest.mark.multiprocess
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_read_the_same_images(start: str, root: Path) -> None:
    data = WebDataset(str(root))
    loader = DataLoader(_Loaded(data), batch_size=None, num_workers=2, multiprocessing_context=start)
    for index, actual in enumerate(loader):
        np.testing.assert_array_equal(actual, pixels(data, index))


class _Loaded(Dataset[np.ndarray]):
    def __init__(self, data: WebDataset) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> np.ndarray:
        return pixels(self._data, index).copy()


def upload(root: Path, server: S3Server, prefix: str = "wds_things") -> str:
    for path in root.rglob("*"):
        if path.is_file():
            key = f"{prefix}/{path.relative_to(root).as_posix()}"
            server.client.put_object(Bucket="prototypes", Key=key, Body=path.read_bytes())
    server.requests.clear()
    return f"s3://prototypes/{prefix}"


def cached() -> list[Path]:
    folder = Path(os.environ["XDG_CACHE_HOME"]) / CACHE
    return sorted(path for path in folder.iterdir() if path.suffix != ".lock")


def test_shards_of_a_bucket_are_those_of_a_folder(root: Path, s3: S3Server) -> None:
    local = WebDataset(str(root))
    data = WebDataset(upload(root, s3))
    assert (data.class_names, data.templates, data.labels) == (local.class_names, local.templates, local.labels)
    assert list(data.ids) == list(local.ids)
    for index in range(len(data)):
        np.testing.assert_array_equal(pixels(data, index), pixels(local, index))
    assert data.where(0) == "s3://prototypes/wds_things/test/0.tar!0000.png"
    # Three shards, class names, templates and the number of shards; no request for an image.
    assert s3.counts()["GET"] == 6
    s3.requests.clear()
    WebDataset("s3://prototypes/wds_things").image(5)
    assert s3.counts()["GET"] == 3


def test_copies_make_room(root: Path, s3: S3Server) -> None:
    size = (root / "test/0.tar").stat().st_size
    data = WebDataset(upload(root, s3), cache_gb=1.5 * size / 10**9)
    assert len(cached()) == 1
    local = WebDataset(str(root))
    for index in (0, 11, 4, 0):
        np.testing.assert_array_equal(pixels(data, index), pixels(local, index))
        assert len(cached()) == 1


def test_open_copy_outlives_its_eviction(root: Path, s3: S3Server) -> None:
    url = upload(root, s3)
    size = (root / "test/0.tar").stat().st_size
    first, second, _ = find_shards(f"{url}/test/*.tar", "shards", 1.5 * size / 10**9)
    with first.open() as file:
        second.fetch()
        assert [path.name[-5:] for path in cached()] == ["1.tar"]
        assert file.read() == (root / "test/0.tar").read_bytes()


def test_threads_download_a_shard_once(root: Path, s3: S3Server) -> None:
    shard, *_ = find_shards(f"{upload(root, s3)}/test/0.tar", "shards")
    s3.requests.clear()
    threads = [threading.Thread(target=shard.fetch) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert s3.counts()["GET"] == 1


def test_faults_of_the_store_change_nothing(root: Path, s3: S3Server) -> None:
    url = upload(root, s3)
    content = (root / "test/1.tar").read_bytes()
    s3.faults += [unavailable("LIST"), unavailable("GET", "0.tar"), cut_download("1.tar", content)]
    assert list(WebDataset(url).ids) == list(WebDataset(str(root)).ids)
    assert s3.faults == []
    assert len(cached()) == 3


def test_full_disk_is_named(root: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    shard, *_ = find_shards(f"{upload(root, s3)}/test/0.tar", "shards")

    def full(self: BucketStore, place: str, target: Path) -> None:
        target.write_bytes(b"part")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(BucketStore, "_get", full)
    with pytest.raises(ValueError, match=r"its copy on this machine: No space left on device; make room"):
        shard.open()
    assert cached() == []


def test_cache_that_cannot_be_written_is_named(
    root: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    shard, *_ = find_shards(f"{upload(root, s3)}/test/0.tar", "shards")
    with pytest.raises(ValueError, match=r"it cannot be copied to .*; name another folder by XDG_CACHE_HOME"):
        shard.open()


def test_parts_of_a_killed_download_are_removed(root: Path, s3: S3Server) -> None:
    shard, *_ = find_shards(f"{upload(root, s3)}/test/0.tar", "shards")
    shard.path.parent.mkdir(parents=True)
    part = shard.path.with_name(f".{shard.path.name}.12345")
    part.write_bytes(b"part")
    shard.fetch()
    assert not part.exists()
    assert shard.path.read_bytes() == (root / "test/0.tar").read_bytes()


def test_replaced_shard_is_read_again(root: Path, s3: S3Server) -> None:
    url = upload(root, s3)
    before = WebDataset(url)
    images = images_of(root.parent / "folder")
    # Of equal size: only its content and its time are others.
    members = [member for i in range(0, 12, 3) for member in sample(f"{i:04d}", images[i][1][::-1], images[i][0])]
    write_tar(root / "test/0.tar", members)
    upload(root, s3)
    assert WebDataset(url).ids[0] != before.ids[0]
    assert WebDataset(url).ids[4:] == before.ids[4:]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://absent/x", "there is no bucket 'absent'"),
        ("s3://prototypes/absent", "no file fits"),
        ("s3://key:secret@prototypes/x", "dataset.root: a URL of s3:// names a bucket"),
        ("http://example.org/x", r"dataset.root=http://...: choose s3://"),
        ("/absent", "no file fits"),
    ],
)
def test_wrong_place_is_refused(url: str, message: str, s3: S3Server) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        WebDataset(url)
    assert "secret" not in str(raised.value)


def test_braces_stand_for_names() -> None:
    assert list(expand_braces("a{08..10}.{x,yy}", "o")) == ["a08.x", "a08.yy", "a09.x", "a09.yy", "a10.x", "a10.yy"]
    assert list(expand_braces("{8..10}", "o")) == ["8", "9", "10"]
    assert list(expand_braces("plain", "o")) == ["plain"]
    with pytest.raises(ValueError, match="no range of at most"):
        list(expand_braces("{0..2000000}", "o"))


def test_ranges_of_a_bucket(root: Path, s3: S3Server) -> None:
    url = upload(root, s3)
    assert [shard.name for shard in find_shards(f"{url}/test/{{0..1}}.tar", "o")] == ["0.tar", "1.tar"]
    assert [shard.name for shard in find_shards(f"{url}/t*/[12].tar", "o")] == ["1.tar", "2.tar"]
    with pytest.raises(ValueError, match=r"there is no s3://prototypes/wds_things/test/3.tar"):
        find_shards(f"{url}/test/{{0..3}}.tar", "o")
