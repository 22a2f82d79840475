"""Tests the cache of an object store: what is read, what is put, and two machines that fill one store."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import read_store
from object_stores import S3Server, unavailable

from lgclip.store import remote, tar_shards
from lgclip.store.atomic import atomic_write, write_json
from lgclip.store.captions import CaptionStore
from lgclip.store.cost_log import Line, append, append_start, read_cost_log
from lgclip.store.features import FeatureStore
from lgclip.store.images import ImageStore
from lgclip.store.keys import content_key
from lgclip.store.location import CACHES
from lgclip.store.object_store import ObjectError
from lgclip.store.prompts import PromptStore
from lgclip.store.root import check_writable, open_root

pytest_plugins = ("object_store_fixtures",)
pytestmark = pytest.mark.usefixtures("own_caches")

URL = "s3://prototypes/team"
GENERATOR = {"part": "Template"}
VIEWS = ("full",)


@contextmanager
def machine(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str = URL) -> Iterator[Path]:
    """Provides the store of a URL as a machine of its own sees it, from its first connection on."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
    remote._mirror.cache_clear()
    remote._used.clear()
    tar_shards.shards_in.cache_clear()
    yield open_root(url)


def inputs(name: str) -> dict[str, object]:
    return {"prompt_generator": GENERATOR, "name": name}


def features(first: int, count: int = 3) -> torch.Tensor:
    seeds = range(first, first + count)
    values = torch.stack([torch.randn(1, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    return values / values.norm(dim=-1, keepdim=True)


def image(number: int) -> np.ndarray:
    return np.full((8, 8, 3), number, dtype=np.uint8)


def image_name(number: int) -> str:
    return content_key({"image": number})


def fill(root: Path, first: int = 0, count: int = 3) -> None:
    """Writes entries of every kind that stages write, as a stage does."""
    numbers = range(first, first + count)
    prompts = PromptStore(root)
    for number in numbers:
        prompts.put(inputs(f"class {number}"), [f"a {number}", f"the {number}"])
    CaptionStore(root, {"captioner": 1}, {"source": 1}).add(
        {f"image {number}": f"it is {number}" for number in numbers}
    )
    images = ImageStore(root, {"diffuser": 1}, in_shards=True)
    for number in numbers:
        images.put(image_name(number), image(number), {"number": number})
    images.put_fault(image_name(1000 + first), "blank", {"number": 1000 + first})
    images.close()
    encoded = FeatureStore(root, {"encoder": 1}, {"source": 1})
    encoded.add([f"item {number}" for number in numbers], VIEWS, features(first, count))
    write_json(encoded.towers, {"width": 8})
    start = append_start(encoded.cost_log)
    append(encoded.cost_log, Line(count, "view", 1.5, "cpu", 1, start=start))


def check(root: Path, first: int = 0, count: int = 3) -> None:
    """Checks that a store has what `fill` wrote."""
    numbers = range(first, first + count)
    for number in numbers:
        assert PromptStore(root).get(inputs(f"class {number}")) == [f"a {number}", f"the {number}"]
    captions = CaptionStore(root, {"captioner": 1}, {"source": 1})
    captions.refresh()
    assert [captions.get(f"image {number}") for number in numbers] == [f"it is {number}" for number in numbers]
    images = ImageStore(root, {"diffuser": 1}, in_shards=True)
    assert all(images.has(image_name(number)) for number in numbers)
    assert images.fault(image_name(1000 + first)) == "blank"
    encoded = FeatureStore(root, {"encoder": 1}, {"source": 1})
    assert encoded.missing([f"item {number}" for number in numbers], VIEWS) == []
    assert torch.equal(encoded.take([f"item {number}" for number in numbers], VIEWS), features(first, count))
    assert Line(count, "view", 1.5, "cpu", 1) in read_cost_log(encoded.cost_log).lines


def test_second_machine_has_every_entry(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with machine("first", monkeypatch, tmp_path) as first:
        fill(first)
        remote.push_pending()
    with machine("second", monkeypatch, tmp_path) as second:
        check(second)
        first_store, second_store = read_store(first), read_store(second)
        # All but the shard itself, of which the index is enough, as long as no image is read.
        absent = first_store.keys() - second_store.keys()
        assert [name.rpartition(".")[2] for name in absent] == ["tar"]
        assert {name: data for name, data in first_store.items() if name not in absent} == second_store
        place = ImageStore(second, {"diffuser": 1}).places([image_name(1)])[0]
        assert place is not None
        content = place.read_bytes()
        assert content.startswith(b"\x89PNG")
        assert read_store(second) == first_store


def test_local_store_has_the_same_bytes(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tar_shards.secrets, "token_hex", lambda size: f"{7:0{2 * size}x}")
    fill(open_root(tmp_path / "local"))
    with machine("first", monkeypatch, tmp_path) as root:
        fill(root)
        assert read_store(root) == read_store(tmp_path / "local")


def test_requests_do_not_grow_with_images(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    counts = []
    for number, images in enumerate((10, 200)):
        url = f"{URL}/{number}"
        s3.requests.clear()
        with machine("first", monkeypatch, tmp_path, url) as root:
            fill(root, count=images)
            remote.push_pending()
        with machine("second", monkeypatch, tmp_path, url) as root:
            check(root, count=images)
        counts.append(s3.counts())
    assert counts[0] == counts[1]
    # One to connect and one for each entry: prompts, captions, images, features; on each machine.
    assert counts[0]["LIST"] == 2 * 5
    # Prompts; captions and inputs; shard, index and inputs; features, inputs, costs and widths.
    assert counts[0]["PUT"] == 1 + 2 + 3 + 4
    # The same, of the shard the marker alone.
    assert counts[0]["GET"] == 10


def test_two_machines_fill_one_store(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with machine("first", monkeypatch, tmp_path) as first:
        fill(first, 0)
        mine = remote.mirror_of(first)
        assert mine is not None
    with machine("second", monkeypatch, tmp_path) as second:
        # The first has not uploaded yet, so each computes for itself, and they overlap in one item.
        fill(second, 2)
        remote.push_pending()
    mine.push()
    for name in ("third", "first", "second"):
        with machine(name, monkeypatch, tmp_path) as root:
            check(root, 0)
            check(root, 2)
            log_of = FeatureStore(root, {"encoder": 1}, {"source": 1}).cost_log
            assert read_cost_log(log_of) == ([Line(3, "view", 1.5, "cpu", 1)] * 2, 0)


def test_fewer_prompts_never_replace_more(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with machine("first", monkeypatch, tmp_path) as first:
        PromptStore(first).put(inputs("x"), ["one"])
        late = remote.mirror_of(first)
        assert late is not None
    with machine("second", monkeypatch, tmp_path) as second:
        PromptStore(second).put(inputs("x"), ["one", "two", "three"])
        remote.push_pending()
    late.push()
    for name in ("third", "first", "second"):
        with machine(name, monkeypatch, tmp_path) as root:
            assert PromptStore(root).get(inputs("x")) == ["one", "two", "three"]
    with machine("first", monkeypatch, tmp_path) as first:
        PromptStore(first).get(inputs("x"))
        PromptStore(first).put(inputs("x"), ["one", "two", "three", "four"])
        remote.push_pending()
    with machine("second", monkeypatch, tmp_path) as second:
        assert PromptStore(second).get(inputs("x")) == ["one", "two", "three", "four"]


def test_equal_prompts_of_this_machine_stay(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("first", "second"):
        with machine(name, monkeypatch, tmp_path) as root:
            store = PromptStore(root)
            store.put(inputs("x"), [f"by the {name}"])
            remote.push_pending()
    for name in ("first", "second"):
        with machine(name, monkeypatch, tmp_path) as root:
            assert PromptStore(root).get(inputs("x")) == [f"by the {name}"]
    results = []
    for name in ("third", "fourth"):
        with machine(name, monkeypatch, tmp_path) as root:
            results.append(PromptStore(root).get(inputs("x")))
    assert results[0] == results[1]


def test_killed_process_leaves_its_entries_to_the_next(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with machine("first", monkeypatch, tmp_path) as root:
        fill(root)
    assert s3.objects() == {}
    with machine("first", monkeypatch, tmp_path) as root:
        check(root)
        remote.push_pending()
    with machine("second", monkeypatch, tmp_path) as root:
        check(root)


def test_interrupted_upload_goes_on(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with machine("first", monkeypatch, tmp_path) as root:
        fill(root)
        s3.faults = [unavailable("PUT", "/shards/", code="AccessDenied", status="403 Forbidden")]
        with pytest.raises(ObjectError, match="no rights to write"):
            remote.push_pending()
        # The index of a shard is never there before the shard.
        assert not [name for name in s3.objects() if "/shards/" in name and name.endswith(".safetensors")]
        remote.push_pending()
    with machine("second", monkeypatch, tmp_path) as root:
        check(root)


def test_upload_goes_on_in_the_background(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with machine("first", monkeypatch, tmp_path) as root:
        mirror = remote.mirror_of(root)
        assert mirror is not None
        mirror.objects.push_seconds = 0.0
        CaptionStore(root, {"captioner": 1}, {"source": 1}).add({"image": "text"})
        deadline = time.monotonic() + 20
        while not s3.objects() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert s3.objects()


def test_lost_store_is_a_warning_until_the_stage_ends(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with machine("first", monkeypatch, tmp_path) as root:
        store = PromptStore(root)
        store.put(inputs("x"), ["one"])
        mirror = remote.mirror_of(root)
        assert mirror is not None
        refused = {"code": "AccessDenied", "status": "403 Forbidden"}
        s3.faults = [unavailable("PUT", **refused), unavailable("PUT", **refused)]
        mirror._uploads._push_quietly()
        assert "1 files wait here and are uploaded later" in caplog.text
        with pytest.raises(ObjectError):
            remote.push_pending()
        remote.push_pending()
        assert len(s3.objects()) == 1


def test_damaged_object_is_computed_and_replaced(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with machine("first", monkeypatch, tmp_path) as root:
        fill(root)
        remote.push_pending()
    (name,) = [name for name in s3.objects("team/features") if name.endswith(".safetensors")]
    good = s3.objects()[name]
    s3.client.put_object(Bucket="prototypes", Key=name, Body=good[:-4] + b"\0\0\0\0")
    with machine("second", monkeypatch, tmp_path) as root:
        store = FeatureStore(root, {"encoder": 1}, {"source": 1})
        ids = [f"item {number}" for number in range(3)]
        assert store.missing(ids, VIEWS) == [0, 1, 2]
        store.add(ids, VIEWS, features(0))
        remote.push_pending()
    assert s3.objects()[name] == good


@pytest.mark.slow
def test_shard_with_other_bytes_is_refused(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with machine("first", monkeypatch, tmp_path) as root:
        fill(root)
        remote.push_pending()
    (name,) = [name for name in s3.objects() if name.endswith(".tar")]
    content = bytearray(s3.objects()[name])
    content[700] ^= 1
    s3.client.put_object(Bucket="prototypes", Key=name, Body=bytes(content))
    with machine("second", monkeypatch, tmp_path) as root:
        place = ImageStore(root, {"diffuser": 1}).places([image_name(1)])[0]
        assert place is not None
        with pytest.raises(ObjectError, match="its bytes are not those that its index describes"):
            place.read_bytes()
        assert not list(root.rglob("*.tar"))


def test_shard_is_closed_after_minutes(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lgclip.store.images.OPEN_SECONDS", 0.0)
    with machine("first", monkeypatch, tmp_path) as root:
        images = ImageStore(root, {"diffuser": 1}, in_shards=True)
        for number in range(2):
            images.put(image_name(number), image(number), {})
            images.flush()
        remote.push_pending()
    assert len([name for name in s3.objects() if name.endswith(".tar")]) == 2


def test_checkpoints_are_of_one_writer(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = f"students/{content_key({})}"
    for step, name in enumerate(("first", "second")):
        with machine(name, monkeypatch, tmp_path) as root:
            path = root / folder / "checkpoints" / "last.safetensors"
            path.parent.mkdir(parents=True)
            with atomic_write(path) as temporary:
                temporary.write_text(f"step {step}")
            remote.push_pending()
            time.sleep(1.1)  # moto's times are of whole seconds
    assert sorted(s3.objects().values()) == [b"step 0", b"step 1"]
    with machine("third", monkeypatch, tmp_path) as root:
        remote.fetch(root / folder)
        assert (root / folder / "checkpoints" / "last.safetensors").read_text() == "step 1"
        remote.discard_checkpoints(root / folder)
        assert s3.objects() == {}


def test_read_only_store_serves_a_run_that_lacks_nothing(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with machine("first", monkeypatch, tmp_path) as root:
        fill(root)
        remote.push_pending()
    with machine("second", monkeypatch, tmp_path) as root:
        s3.faults = [unavailable("PUT", code="AccessDenied", status="403 Forbidden")]
        check(root)
        remote.push_pending()
        with pytest.raises(ObjectError, match="no rights to write"):
            check_writable(root)


def test_folder_is_used_as_an_object_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/shared"
    with machine("first", monkeypatch, tmp_path, url) as root:
        check_writable(root)
        fill(root)
        remote.push_pending()
    with machine("second", monkeypatch, tmp_path, url) as root:
        assert CACHES in root.parts
        check(root)
    assert not [path for path in (tmp_path / "shared").rglob(".*") if path.name != ".writable"]


def test_damaged_segment_is_left_out(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with machine("first", monkeypatch, tmp_path) as root:
        PromptStore(root).put(inputs("x"), ["one"])
        remote.push_pending()
    (name,) = s3.objects()
    record = json.dumps({"name": "../../escape.json", "text": "{}"})
    s3.client.put_object(
        Bucket="prototypes", Key=name, Body=b"no JSON\n" + record.encode() + b"\n" + s3.objects()[name]
    )
    with machine("second", monkeypatch, tmp_path) as root:
        assert PromptStore(root).get(inputs("x")) == ["one"]
        assert not list(tmp_path.rglob("escape.json"))


def test_stages_upload_their_own_store_alone(s3: S3Server, tmp_path: Path) -> None:
    """A run with a store in a folder asks nothing of an earlier run's object store, which may be away."""
    store = open_root(URL)
    write_json(store / "captions" / ("0" * 32) / "inputs.json", {"a": 1})
    s3.requests.clear()
    remote.push_pending(tmp_path / "folder")
    assert s3.requests == []
    remote.push_pending(store)
    assert f"team/captions/{'0' * 32}/inputs.json" in s3.objects()
