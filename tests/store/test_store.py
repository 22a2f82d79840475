import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import normalize

from lgclip.runtime.versions import STORE_SCHEMA
from lgclip.store.atomic import atomic_write
from lgclip.store.features import FeatureStore
from lgclip.store.images import ImageStore
from lgclip.store.prompts import PromptStore
from lgclip.store.root import StoreError, open_root

VIEWS = ("whole", "half")
WRITABLE = st.text(st.characters(exclude_categories=["Cs"]))  # half a surrogate pair is no text


def features(n: int, s: int = 2, d: int = 5) -> torch.Tensor:
    return normalize(torch.randn(n, s, d), dim=-1)


def open_store(root: Path) -> FeatureStore:
    return FeatureStore(root, {"encoder": "e"}, {"source": "s"})


def chunks(root: Path) -> list[Path]:
    return sorted(root.rglob("*.safetensors"))


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "entry"
    path.write_text("old")

    def interrupted() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("ne")
            assert path.read_text() == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"entry": "old"}


def test_written_file_is_readable_by_others(tmp_path: Path) -> None:
    with atomic_write(tmp_path / ("n" * 240)) as temporary:  # so long a name leaves no room for a suffix
        temporary.write_text("new")
    assert [(p.name, p.stat().st_mode & 0o777) for p in tmp_path.iterdir()] == [("n" * 240, 0o644)]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"LGCLIP_HOME": "{}/own", "XDG_CACHE_HOME": "{}/xdg"}, "own"),
        ({"XDG_CACHE_HOME": "{}/xdg", "HOME": "{}/home"}, "xdg/lgclip"),
        ({"HOME": "{}/home"}, "home/.cache/lgclip"),
    ],
)
def test_store_location_follows_the_environment(
    variables: dict[str, str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LGCLIP_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    assert open_root(None) == tmp_path / expected
    assert (tmp_path / expected).is_dir()


def test_unwritable_root_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"paths\.store=DIR or LGCLIP_HOME=DIR"):
        open_root(tmp_path / "file" / "below")
    if os.geteuid():  # root may write anywhere
        (tmp_path / "closed").mkdir(mode=0o555)
        with pytest.raises(StoreError, match="closed"):
            open_root(tmp_path / "closed")


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompts=st.lists(WRITABLE), name=WRITABLE)
def test_prompts_round_trip(prompts: list[str], name: str, tmp_path: Path) -> None:
    inputs = {"class": name}
    PromptStore(tmp_path).put(inputs, prompts)
    assert PromptStore(tmp_path).get(inputs) == prompts
    assert PromptStore(tmp_path).get({**inputs, "seed": 1}) == []


@pytest.mark.parametrize("content", ["", '{"prompts": ["a', "[]", '{"inputs": {}}'])
def test_damaged_prompts_are_missing(content: str, tmp_path: Path) -> None:
    PromptStore(tmp_path).put({}, ["a"])
    next((tmp_path / "prompts").iterdir()).write_text(content)
    assert PromptStore(tmp_path).get({}) == []


def test_image_has_pixels_and_metadata(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    store = ImageStore(tmp_path, {"steps": 2})
    store.put("abcd", pixels, {"text": "a café", "seed": 3})
    with Image.open(store.path("abcd")) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)
        assert json.loads(image.info["lgclip"]) == {"text": "a café", "seed": 3}
    assert json.loads((tmp_path / "images" / store.key / "inputs.json").read_text()) == {"steps": 2}


def test_failed_image_write_leaves_nothing(tmp_path: Path) -> None:
    store = ImageStore(tmp_path, {})
    with pytest.raises(TypeError):
        store.put("abcd", np.zeros((8, 8, 3), np.uint8), {"text": object()})
    assert not store.path("abcd").exists()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_take_is_indexing(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("store")
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    everything = features(sum(sizes))
    names = [f"id{i}" for i in range(sum(sizes))]
    start = 0
    prompt_generator = open_store(root)
    for size in sizes:
        prompt_generator.add(names[start : start + size], VIEWS, everything[start : start + size])
        start += size
    expected = data.draw(st.lists(st.integers(0, len(names) - 1), min_size=1))
    columns = data.draw(st.permutations([0, 1]).flatmap(lambda p: st.sampled_from([p, p[:1]])))
    for reader in (prompt_generator, open_store(root)):
        stored = reader.take([names[i] for i in expected], [VIEWS[c] for c in columns])
        np.testing.assert_array_equal(stored, everything.numpy()[np.ix_(expected, columns)])


def test_views_stored_separately_are_combined(tmp_path: Path) -> None:
    x = features(2)
    store = open_store(tmp_path)
    store.add(["a", "b"], VIEWS[:1], x[:, :1])
    assert store.missing(["a", "b"], VIEWS) == [0, 1]
    store.add(["b"], VIEWS[1:], x[1:, 1:])
    assert store.missing(["a", "b"], VIEWS) == [0]
    store.add(["a"], VIEWS[1:], x[:1, 1:])
    torch.testing.assert_close(store.take(["a", "b"], VIEWS), x, rtol=0, atol=0)


def test_store_sees_entries_of_other_processes(tmp_path: Path) -> None:
    first = open_store(tmp_path)
    second = open_store(tmp_path)
    assert first.missing(["a"], VIEWS) == [0]
    second.add(["a"], VIEWS, features(1))
    assert first.missing(["a"], VIEWS) == []


def test_other_source_or_encoder_is_separate(tmp_path: Path) -> None:
    open_store(tmp_path).add(["a"], VIEWS, features(1))
    for encoder, source in (({"encoder": "e"}, {"source": "t"}), ({"encoder": "f"}, {"source": "s"})):
        assert FeatureStore(tmp_path, encoder, source).missing(["a"], VIEWS) == [0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, 0.9])
def test_non_unit_feature_is_rejected(value: float, tmp_path: Path) -> None:
    x = features(3)
    x[1, 1] *= value
    with pytest.raises(StoreError, match=r"unit length for \['b'\]"):
        open_store(tmp_path).add(["a", "b", "c"], VIEWS, x)
    assert not chunks(tmp_path)


def test_missing_feature_is_named(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.add(["a"], VIEWS, features(1))
    with pytest.raises(StoreError, match="1 of 2 features are not in the store, first 'z'"):
        store.take(["a", "z"], VIEWS)
    with pytest.raises(StoreError, match="no features"):
        store.take([], VIEWS)


@pytest.mark.parametrize("damage", ["cut header", "cut data", "empty", "not ours", "other schema", "other shape"])
@pytest.mark.parametrize("known_before", [False, True], ids=["fresh process", "same process"])
def test_damaged_chunk_is_missing(damage: str, known_before: bool, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    x = features(2)
    store = open_store(tmp_path)
    store.add(["a", "b"], VIEWS, x)
    if known_before:
        store.take(["a", "b"], VIEWS)
    (chunk,) = chunks(tmp_path)
    content = chunk.read_bytes()
    chunk.unlink()  # another file of the same name: a mapped one must not shrink
    header = {"schema": STORE_SCHEMA, "ids": ["a", "b"], "views": VIEWS}
    match damage:
        case "cut header" | "cut data" | "empty":
            chunk.write_bytes(content[: {"cut header": 20, "cut data": len(content) - 4, "empty": 0}[damage]])
        case "not ours":
            save_file({"features": x}, chunk)
        case "other schema":
            save_file({"features": x}, chunk, {"lgclip": json.dumps({**header, "schema": -1})})
        case "other shape":
            save_file({"features": x[:1]}, chunk, {"lgclip": json.dumps(header)})
    os.utime(chunk, ns=(0, 1 + known_before))  # whatever the file system's clock can tell apart
    store = open_store(tmp_path)
    assert store.missing(["a", "b"], VIEWS) == [0, 1]
    again = features(2)
    store.add(["a", "b"], VIEWS, again)
    torch.testing.assert_close(store.take(["a", "b"], VIEWS), again, rtol=0, atol=0)
    torch.testing.assert_close(open_store(tmp_path).take(["a", "b"], VIEWS), again, rtol=0, atol=0)


def test_incomplete_chunk_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    store = open_store(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full_disk)
        with pytest.raises(OSError, match="No space"):
            store.add(["a"], VIEWS, features(1))
    assert store.missing(["a"], VIEWS) == [0]
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
