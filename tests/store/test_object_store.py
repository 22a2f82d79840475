"""Tests the objects of a store on S3: faults of the network and the server, rights, and what may not be in a URL."""

import os
import sys
from pathlib import Path

import fsspec  # noqa: F401  (its registry)
import pytest
from object_stores import BUCKET, CONTENT, Fault, S3Server, cut_download, cut_upload, slow, unavailable

from lgclip.store import bucket_store
from lgclip.store.bucket_store import BucketStore, S3Store
from lgclip.store.location import Location, cache_of, parse_location
from lgclip.store.object_store import ObjectError, object_store
from lgclip.store.root import StoreError, check_writable, location_of, open_root, root_of

pytest_plugins = ("object_store_fixtures",)
pytestmark = pytest.mark.usefixtures("own_caches")


def opened(prefix: str = "team") -> S3Store:
    location = parse_location(f"s3://{BUCKET}/{prefix}")
    assert location is not None
    store = object_store(location)
    assert isinstance(store, S3Store)
    return store


@pytest.mark.parametrize(
    "fault",
    [
        unavailable("PUT"),
        unavailable("PUT", code="ServiceUnavailable", status="503 Service Unavailable"),
        unavailable("PUT", code="InternalError", status="500 Internal Server Error"),
        slow("PUT", seconds=0.2),
        cut_upload("entry"),
    ],
    ids=["slow down", "unavailable", "internal error", "slow and lost", "cut"],
)
def test_failed_upload_is_repeated(s3: S3Server, file: Path, fault: Fault) -> None:
    s3.faults = [fault]
    assert opened().put({"entry/a": file}) == ["entry/a"]
    assert not s3.faults
    assert s3.objects() == {"team/entry/a": CONTENT}
    assert s3.counts()["PUT"] >= 2


@pytest.mark.parametrize(
    "fault",
    [unavailable("GET"), slow("GET", seconds=0.2), cut_download("entry", CONTENT)],
    ids=["slow down", "slow and lost", "cut"],
)
def test_failed_download_is_repeated(s3: S3Server, file: Path, tmp_path: Path, fault: Fault) -> None:
    store = opened()
    store.put({"entry/a": file})
    s3.faults = [fault]
    store.get("entry/a", tmp_path / "copy", len(CONTENT))
    assert not s3.faults
    assert (tmp_path / "copy").read_bytes() == CONTENT


def test_upload_that_fails_for_good_leaves_no_object(s3: S3Server, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_store, "_ATTEMPTS", 2)
    store = opened()
    store._fs.retries = 1
    s3.is_down = True
    with pytest.raises(ObjectError, match=r"s3://prototypes/team: it cannot be reached .*the same command goes on"):
        store.put({"entry/a": file})
    s3.is_down = False
    assert s3.objects() == {}


def test_other_objects_are_complete_when_one_fails(s3: S3Server, file: Path) -> None:
    # Refused and not only for the moment, so it is not tried again.
    s3.faults = [unavailable("PUT", "/b", code="AccessDenied", status="403 Forbidden")]
    with pytest.raises(ObjectError, match="no rights to write to it"):
        opened().put({"entry/a": file, "entry/b": file})
    assert set(s3.objects().values()) <= {CONTENT}
    assert "team/entry/b" not in s3.objects()


def test_existing_object_stays_unless_it_is_replaced(s3: S3Server, file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"another machine's")
    opened().put({"entry/a": file})
    assert opened().put({"entry/a": other}) == ["entry/a"]
    assert s3.objects()["team/entry/a"] == CONTENT
    opened().put({"entry/a": other}, frozenset({"entry/a"}))
    assert s3.objects()["team/entry/a"] == b"another machine's"


@pytest.mark.slow
def test_large_object_appears_with_its_last_part_alone(s3: S3Server, tmp_path: Path) -> None:
    path = tmp_path / "shard"
    size = 101 * 2**20  # s3fs uploads in parts of 50 MiB from two of them on
    with path.open("wb") as file:
        file.truncate(size)
    s3.faults = [unavailable("PUT")]  # the first part
    opened().put({"shard": path}, frozenset({"shard"}))
    assert any("uploads" in request for request in s3.requests)
    assert {name: info.size for name, info in opened().ls().items()} == {"shard": size}
    opened().get("shard", tmp_path / "copy", size)
    assert (tmp_path / "copy").stat().st_size == size


def test_listing_takes_a_request_for_a_thousand_objects(s3: S3Server) -> None:
    s3.fill([*(f"team/entry/{number:04d}" for number in range(1001)), "team/entry-of-another/a"])
    assert len(opened().ls("entry")) == 1001
    assert s3.counts() == {"LIST": 2}
    s3.requests.clear()
    assert opened().ls("nothing") == {}
    assert s3.counts() == {"LIST": 1}


def test_object_of_another_size_is_an_error(s3: S3Server, file: Path, tmp_path: Path) -> None:
    store = opened()
    store.put({"entry/a": file})
    with pytest.raises(ObjectError, match=r"team/entry/a: 10,240 of 99 bytes arrive"):
        store.get("entry/a", tmp_path / "copy", 99)
    with pytest.raises(FileNotFoundError):
        store.get("entry/absent", tmp_path / "copy", None)


def test_missing_bucket_is_named(s3: S3Server) -> None:
    with pytest.raises(ObjectError, match=r"there is no bucket 'absent'; make it, or name another by paths.store"):
        open_root("s3://absent/team")


def test_missing_rights_are_found_before_work(s3: S3Server) -> None:
    s3.faults = [unavailable("LIST", code="AccessDenied", status="403 Forbidden")]
    with pytest.raises(ObjectError, match=r"no rights to read it: .*grant them to read, write and list"):
        open_root("s3://prototypes/team")
    root = open_root("s3://prototypes/team")
    s3.faults = [unavailable("PUT", code="AccessDenied", status="403 Forbidden")]
    with pytest.raises(ObjectError, match="no rights to write to it"):
        check_writable(root)
    check_writable(root)


def test_missing_credentials_name_the_variables(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(ObjectError, match="there are no credentials; set AWS_PROFILE, or AWS_ACCESS_KEY_ID"):
        open_root("s3://prototypes/team")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://AKIA0123:verysecret@prototypes/team", "credentials come from the environment"),
        ("s3://AKIA0123@prototypes/team", "credentials come from the environment"),
        ("s3://prototypes/team?X-Amz-Signature=verysecret", "without @, . and #"),
        ("ftp://server/folder", "choose s3://, gs://, hf://, file:// or the path of a folder"),
        ("s3://", "name a bucket or repository"),
        ("s3://prototypes/../other", "name a bucket or repository"),
        ("file://relative/folder", "an absolute path"),
        ("hf://name", "hf://datasets/USER/NAME/PREFIX"),
        ("hf://spaces/me/name", "hf://datasets/USER/NAME/PREFIX"),
    ],
)
def test_unusable_url_is_one_line_without_its_keys(url: str, message: str) -> None:
    with pytest.raises(StoreError, match=message) as raised:
        root_of(url)
    assert "\n" not in str(raised.value)
    assert "verysecret" not in str(raised.value)
    assert "AKIA" not in str(raised.value)


def test_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ObjectError, match=r"pip install 'lgclip\[s3\]'"):
        open_root("s3://prototypes/team")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ObjectError, match=r"pip install 'lgclip\[gcs\]'"):
        open_root("gs://prototypes/team")


def test_location_is_recorded_as_it_was_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert location_of("s3://prototypes/team/") == "s3://prototypes/team"
    assert location_of(tmp_path) == str(tmp_path)
    monkeypatch.setenv("LGCLIP_HOME", "s3://prototypes/home")
    assert location_of(None) == "s3://prototypes/home"


def test_cache_is_of_one_url_and_endpoint() -> None:
    first = cache_of(Location("s3", "prototypes/team"))
    assert cache_of(Location("s3", "prototypes/team")) == first
    others = [Location("s3", "prototypes/other"), Location("s3", "prototypes/team", "http://127.0.0.1:1")]
    assert len({first, *map(cache_of, others)}) == 3
    assert first.is_relative_to(os.environ["XDG_CACHE_HOME"])


def test_any_file_system_of_fsspec_keeps_objects(file: Path, tmp_path: Path) -> None:
    # What the stores of S3 and of Google are derived from.
    store = object_store(Location("memory", "prototypes/team"))
    assert type(store) is BucketStore
    store.check()
    assert store.ls() == {}
    assert store.put({"entry/a": file, "entry/b": file}) == ["entry/a", "entry/b"]
    assert {name: info.size for name, info in store.ls("entry").items()} == dict.fromkeys(
        ("entry/a", "entry/b"), len(CONTENT)
    )
    store.get("entry/a", tmp_path / "copy", len(CONTENT))
    assert (tmp_path / "copy").read_bytes() == CONTENT
    assert store.read_part("entry/a", 5, 3) == CONTENT[5:8]
    with pytest.raises(FileNotFoundError):
        store.get("entry/absent", tmp_path / "copy", None)
    store.delete(["entry/a", "entry/b"])
    assert store.ls() == {}
