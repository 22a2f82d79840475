"""Stored features that were cut, overwritten or brought from elsewhere: made again with a word, never believed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize
from worlds import FirstRun, World, judge, made

from lgclip.feature_store import FeatureStore
from lgclip.identity import SCHEMA
from lgclip.store import StoreError

pytest_plugins = ("run_fixtures",)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def write(path: Path, features: torch.Tensor, ids: list[str], schema: int = SCHEMA) -> None:
    """A chunk as the store writes it, whatever is in it."""
    header = {"schema": schema, "ids": ids, "views": ["whole"]}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"features": features}, path, {"lgclip": json.dumps(header)})


def ids_in(chunk: Path) -> list[str]:
    with safe_open(chunk, framework="np") as file:
        return json.loads(file.metadata()["lgclip"])["ids"]


@pytest.mark.parametrize("damage", ["cut", "empty", "older schema", "other width", "no rows"])
def test_a_run_encodes_again_what_a_damaged_chunk_held(
    damage: str, first_run: FirstRun, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chunk = max(world.store.glob("features/*/*/*.safetensors"), key=lambda path: path.stat().st_size)
    whole = chunk.read_bytes()
    features, ids = load_file(chunk)["features"], ids_in(chunk)
    chunk.unlink()
    match damage:
        case "cut" | "empty":
            chunk.write_bytes(whole[: len(whole) - 9 if damage == "cut" else 0])
        case "older schema":
            write(chunk, features, ids, schema=SCHEMA - 1)
        case "other width":
            write(chunk, unit(len(ids), features.shape[1], features.shape[2] + 8), ids)
        case "no rows":
            write(chunk, features[:0], [])
    result = judge(world, tmp_path / "again")
    assert made(result)["features"] == len(ids)
    said = capsys.readouterr().out
    assert f"{chunk}" in said
    assert "encoded again" in said
    assert result["metrics"] == first_run.result["metrics"]
    torch.testing.assert_close(load_file(chunk)["features"], features, rtol=0, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_features_that_went_bad_in_the_store_are_never_used(value: float, tmp_path: Path) -> None:
    store, x = FeatureStore(tmp_path, {}, {}), unit(3, 1, 8)
    store.add(["a", "b", "c"], ["whole"], x)
    (chunk,) = tmp_path.glob("features/*/*/*.safetensors")
    raw = bytearray(chunk.read_bytes())
    raw[-32:] = np.full(8, value, np.float32).tobytes()
    chunk.unlink()
    chunk.write_bytes(raw)
    with pytest.raises(StoreError, match=r"not of unit length; `lgclip store verify --repair`"):
        FeatureStore(tmp_path, {}, {}).take(["a"], ["whole"])


def test_the_encoders_own_width_decides_between_chunks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = FeatureStore(tmp_path, {}, {})
    folder = store.towers.parent / store.key.rpartition("/")[2]
    write(folder / "foreign.safetensors", unit(2, 1, 16), ["a", "b"])
    assert store.missing(["a", "b"], ["whole"]) == []  # nothing is known yet
    store.towers.write_text(json.dumps({"width": 8}))
    again = FeatureStore(tmp_path, {}, {})
    assert again.missing(["a", "b"], ["whole"]) == [0, 1]
    assert "width 16, not 8" in caplog.text
    again.add(["a", "b"], ["whole"], unit(2, 1, 8))
    assert again.take(["b", "a"], ["whole"]).shape == (2, 1, 8)
    assert again.width("a", "whole") == 8


PARTS = st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=6, unique=True), min_size=1, max_size=6)


@settings(max_examples=30, deadline=None)
@given(parts=PARTS, data=st.data())
def test_the_index_is_a_dictionary(
    parts: list[list[int]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("index")
    store = FeatureStore(root, {}, {})
    expected: dict[tuple[str, str], list[torch.Tensor]] = {}
    for number, part in enumerate(parts):
        views = data.draw(st.sampled_from([("u",), ("v",), ("u", "v"), ("v", "u")]))
        ids, x = [f"thing {i}" for i in part], unit(len(part), len(views), 4, seed=number)
        store.add(ids, views, x)
        for i, name in enumerate(ids):
            for column, view in enumerate(views):
                expected.setdefault((name, view), []).append(x[i, column])
    for view in "uv":
        everything = [f"thing {i}" for i in range(13)]
        there = [name for name in everything if (name, view) in expected]
        assert store.missing(everything, [view]) == [i for i, name in enumerate(everything) if name not in there]
        if there:
            for name, row in zip(there, store.take(there, [view])[:, 0], strict=True):
                assert any(torch.equal(row, stored) for stored in expected[name, view])  # what is stored twice is equal


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
@pytest.mark.parametrize("group", ["visual", "text"])
def test_an_encoder_that_gives_no_direction_is_refused_with_the_things_name(
    group: str, value: float, first_run: FirstRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(first_run.world.encoder, folder)
    weights = load_file(folder / "open_clip_model.safetensors")
    name = "visual.proj" if group == "visual" else "text_projection"
    save_file({**weights, name: torch.full_like(weights[name], value)}, folder / "open_clip_model.safetensors")
    with pytest.raises(SystemExit):
        judge(first_run.world, tmp_path / "run", f"encoder.model={folder}", f"paths.store={tmp_path / 'store'}")
    said = capsys.readouterr().err
    assert "gives no direction" in said
    assert ("drawn from 'a photo of a blue moon.'" if group == "visual" else "the sentence 'a photo of a") in said
    assert not list((tmp_path / "store").glob("features/*/*/*.safetensors")) or group == "visual"
