"""Tests a store on Google's storage, by an emulator: objects, complete runs, shards of images, push and pull."""

from dataclasses import replace
from pathlib import Path

import pytest
from factories import FirstRun, computed_counts, evaluate_run, make_image_folder, read_store
from google_storage import BUCKET, GoogleServer, Refusal
from object_stores import CONTENT, on_machine
from run_comparison import results
from store_maintenance import files_of_kind
from web_shards import images_of, write_web_dataset

from lgclip.cli.store.inventory import Kind
from lgclip.cli.store.pack import unpack
from lgclip.cli.store.transfer import pull, push
from lgclip.datasets.web_dataset import WebDataset
from lgclip.store.bucket_store import GoogleStore
from lgclip.store.location import cache_of, parse_location
from lgclip.store.object_store import ObjectError, object_store
from lgclip.store.root import check_writable, open_root

pytest_plugins = ("object_store_fixtures", "run_fixtures")
pytestmark = [
    pytest.mark.usefixtures("own_caches"),
    # gcsfs hands parts of 50 MiB to aiohttp at once.
    pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning"),
]

URL = f"gs://{BUCKET}/team"
NOTHING = {"prompts": 0, "images": 0, "features": 0}


def opened(url: str = URL) -> GoogleStore:
    location = parse_location(url)
    assert location is not None
    store = object_store(location)
    assert isinstance(store, GoogleStore)
    return store


def test_objects_are_written_listed_read_and_deleted(google: GoogleServer, file: Path, tmp_path: Path) -> None:
    store = opened()
    store.check()
    assert store.ls() == {}
    assert store.put({"entry/a": file, "entry/b c+d": file}) == ["entry/a", "entry/b c+d"]
    assert google.objects() == {"team/entry/a": CONTENT, "team/entry/b c+d": CONTENT}
    listed = store.ls("entry")
    assert {name: info.size for name, info in listed.items()} == dict.fromkeys(("entry/a", "entry/b c+d"), len(CONTENT))
    assert all(info.tag and info.changed for info in listed.values())
    store.get("entry/b c+d", tmp_path / "copy", len(CONTENT))
    assert (tmp_path / "copy").read_bytes() == CONTENT
    assert store.read_part("entry/a", 5, 3) == CONTENT[5:8]
    with pytest.raises(FileNotFoundError):
        store.get("entry/absent", tmp_path / "copy", None)
    store.delete(["entry/a", "entry/b c+d"])
    assert store.ls() == {}
    store.delete(["entry/a"])


def test_large_object_is_uploaded_in_parts(google: GoogleServer, tmp_path: Path) -> None:
    path = tmp_path / "shard"
    size = 51 * 2**20  # gcsfs uploads in parts of 50 MiB
    with path.open("wb") as file:
        file.truncate(size)
    opened().put({"shard": path}, frozenset({"shard"}))
    assert sum("uploadType=resumable" in request for request in google.requests) >= 2
    opened().get("shard", tmp_path / "copy", size)
    assert (tmp_path / "copy").stat().st_size == size


def test_existing_object_stays_unless_it_is_replaced(google: GoogleServer, file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"another machine's")
    opened().put({"entry/a": file})
    assert opened().put({"entry/a": other}) == ["entry/a"]
    assert google.objects()["team/entry/a"] == CONTENT
    opened().put({"entry/a": other}, frozenset({"entry/a"}))
    assert google.objects()["team/entry/a"] == b"another machine's"


def test_listing_takes_a_request_a_page(google: GoogleServer, file: Path) -> None:
    opened().put({f"entry/{number}": file for number in range(5)})
    opened(f"gs://{BUCKET}/team/entry-of-another").put({"a": file})
    google.requests.clear()
    google.page = 2
    assert len(opened().ls("entry")) == 5
    assert google.listings() == len(google.requests) == 3
    google.requests.clear()
    assert opened().ls("nothing") == {}
    assert google.listings() == len(google.requests) == 1


@pytest.mark.slow  # gcsfs waits for a second before it tries again
@pytest.mark.parametrize("refusal", [Refusal("POST"), Refusal("POST", status=429), Refusal("POST", status=401)])
def test_failed_upload_is_repeated(google: GoogleServer, file: Path, refusal: Refusal) -> None:
    google.refusals = [replace(refusal, message="Invalid Credentials")]  # that of an expired token
    assert opened().put({"entry/a": file}) == ["entry/a"]
    assert not google.refusals
    assert google.objects() == {"team/entry/a": CONTENT}


def test_missing_bucket_is_named(google: GoogleServer, file: Path) -> None:
    message = r"there is no bucket 'absent'; make it, or name another by paths.store"
    with pytest.raises(ObjectError, match=message):
        open_root("gs://absent/team")
    # A bucket that is deleted while a run is at work.
    for replaced in (frozenset(), frozenset({"a"})):
        with pytest.raises(ObjectError, match=message):
            opened("gs://absent/team").put({"a": file}, replaced)
    with pytest.raises(ObjectError, match=message):
        opened("gs://absent/team").ls()


def test_missing_rights_are_found_before_work(google: GoogleServer) -> None:
    google.refusals = [Refusal("GET", status=403)]
    with pytest.raises(ObjectError, match=r"no rights to read it: .*grant them to read, write and list"):
        open_root(URL)
    root = open_root(URL)
    google.refusals = [Refusal("POST", status=403)]
    with pytest.raises(ObjectError, match="no rights to write to it"):
        check_writable(root)
    check_writable(root)
    google.refusals = [Refusal("GET", status=401, message="Anonymous caller does not have storage.objects.list access")]
    with pytest.raises(ObjectError, match="there are no credentials; set GOOGLE_APPLICATION_CREDENTIALS"):
        opened().check()


def test_cache_is_of_one_server(google: GoogleServer, monkeypatch: pytest.MonkeyPatch) -> None:
    location = parse_location(URL)
    # Without http://, as other clients take it.
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", google.url.removeprefix("http://"))
    short = parse_location(URL)
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    other = parse_location(URL)
    assert location is not None
    assert short is not None
    assert other is not None
    assert cache_of(location) != cache_of(other)
    object_store(short).check()


@pytest.mark.slow
def test_second_machine_computes_nothing(
    google: GoogleServer, first_run: FirstRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    local = [part for part in first_run.sandbox.evaluate_overrides() if not part.startswith("paths.store")]
    overrides = [*local, f"paths.store={URL}"]
    google.refusals = [Refusal("POST", "/shards/"), Refusal("GET", "/prompts/")]
    result = evaluate_run(overrides, tmp_path / "run 1")
    assert computed_counts(result) == computed_counts(first_run.result)
    before = google.objects()
    on_machine("second", monkeypatch, tmp_path)
    google.requests.clear()
    google.refusals = [Refusal("GET", "/features/")]
    again = evaluate_run(overrides, tmp_path / "run 2")
    assert not google.refusals
    assert computed_counts(again) == NOTHING
    assert results(tmp_path / "run 2") == results(tmp_path / "run 1")
    assert not [request for request in google.requests if request.startswith("POST")]
    assert google.objects() == before


@pytest.mark.slow
def test_pushed_store_is_pulled_elsewhere(
    google: GoogleServer, first_run: FirstRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = first_run.sandbox.store
    (line,) = push(source, URL)
    assert line.startswith(f"{URL}: ")
    (line,) = push(source, URL)
    assert " 0 files, 0 bytes moved, " in line
    on_machine("second", monkeypatch, tmp_path)
    target = tmp_path / "target"
    list(pull(target, URL))
    assert files_of_kind(target, Kind.SHARD)
    list(unpack(target))
    assert read_store(target) == read_store(source)


def test_shards_of_a_bucket_are_those_of_a_folder(google: GoogleServer, tmp_path: Path) -> None:
    root = write_web_dataset(tmp_path / "wds_things", images_of(make_image_folder(tmp_path / "folder")))
    store = opened(f"gs://{BUCKET}/{root.name}")
    store.put({path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()})
    local, data = WebDataset(str(root)), WebDataset(f"gs://{BUCKET}/{root.name}")
    assert list(data.ids) == list(local.ids)
    assert data.labels == local.labels
    assert data.image(5).tobytes() == local.image(5).tobytes()
