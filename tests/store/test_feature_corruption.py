"""Tests features that were truncated, overwritten or copied: they are computed again with a message."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import FirstRun, Sandbox, computed_counts, evaluate_run
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from lgclip.runtime.versions import STORE_SCHEMA
from lgclip.store.checksums import checksum_of
from lgclip.store.features import FeatureStore
from lgclip.store.keys import content_key
from lgclip.store.root import StoreError

pytest_plugins = ("run_fixtures",)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def write(path: Path, features: torch.Tensor, ids: list[str], schema: int = STORE_SCHEMA) -> None:
    """Writes a chunk as the store does, with arbitrary content."""
    header = {"schema": schema, "ids": ids, "views": ["whole"]}
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {**header, "checksum": checksum_of({"features": features})}
    save_file({"features": features}, path, {"lgclip": json.dumps(about)})


def ids_in(chunk: Path) -> list[str]:
    with safe_open(chunk, framework="np") as file:
        return json.loads(file.metadata()["lgclip"])["ids"]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "empty", "older schema", "other width", "no rows"])
def test_damaged_chunk_is_reencoded(
    damage: str, first_run: FirstRun, sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chunk = max(sandbox.store.glob("features/*/*/*.safetensors"), key=lambda path: path.stat().st_size)
    content = chunk.read_bytes()
    features = load_file(chunk)["features"]
    ids = ids_in(chunk)
    chunk.unlink()
    match damage:
        case "cut" | "empty":
            chunk.write_bytes(content[: len(content) - 9 if damage == "cut" else 0])
        case "older schema":
            write(chunk, features, ids, schema=STORE_SCHEMA - 1)
        case "other width":
            write(chunk, unit(len(ids), features.shape[1], features.shape[2] + 8), ids)
        case "no rows":
            write(chunk, features[:0], [])
    result = evaluate_run(sandbox, tmp_path / "again")
    assert computed_counts(result)["features"] == len(ids)
    stdout = capsys.readouterr().out
    assert f"{chunk}" in stdout
    assert "computed again" in stdout
    assert result["metrics"] == first_run.result["metrics"]
    torch.testing.assert_close(load_file(chunk)["features"], features, rtol=0, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_damaged_features_are_never_used(value: float, tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, {}, {})
    x = unit(3, 1, 8)
    store.add(["a", "b", "c"], ["whole"], x)
    (chunk,) = tmp_path.glob("features/*/*/*.safetensors")
    raw = bytearray(chunk.read_bytes())
    raw[-32:] = np.full(8, value, np.float32).tobytes()
    chunk.unlink()
    chunk.write_bytes(raw)
    with pytest.raises(StoreError, match=r"1 of 1 features are not in the store"):
        FeatureStore(tmp_path, {}, {}).take(["a"], ["whole"])


def test_encoder_width_selects_the_chunk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = FeatureStore(tmp_path, {}, {})
    folder = store.towers.parent / store.key.rpartition("/")[2]
    write(folder / "foreign.safetensors", unit(2, 1, 16), ["a", "b"])
    header = {"schema": STORE_SCHEMA, "ids": ["a", "b"], "views": ["whole"]}
    (folder / "foreign.safetensors").rename(folder / f"{content_key(header)}.safetensors")
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
def test_index_behaves_like_a_dictionary(
    parts: list[list[int]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("index")
    store = FeatureStore(root, {}, {})
    expected: dict[tuple[str, str], list[torch.Tensor]] = {}
    for number, part in enumerate(parts):
        views = data.draw(st.sampled_from([("u",), ("v",), ("u", "v"), ("v", "u")]))
        ids = [f"thing {i}" for i in part]
        x = unit(len(part), len(views), 4, seed=number)
        store.add(ids, views, x)
        for i, name in enumerate(ids):
            for column, view in enumerate(views):
                expected.setdefault((name, view), []).append(x[i, column])
    for view in "uv":
        everything = [f"thing {i}" for i in range(13)]
        present = [name for name in everything if (name, view) in expected]
        assert store.missing(everything, [view]) == [i for i, name in enumerate(everything) if name not in present]
        if present:
            for name, row in zip(present, store.take(present, [view])[:, 0], strict=True):
                assert any(torch.equal(row, stored) for stored in expected[name, view])  # what is stored twice is equal


@pytest.mark.slow
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
@pytest.mark.parametrize("group", ["visual", "text"])
def test_zero_feature_is_rejected(
    group: str, value: float, first_run: FirstRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(first_run.sandbox.encoder, folder)
    weights = load_file(folder / "open_clip_model.safetensors")
    name = "visual.proj" if group == "visual" else "text_projection"
    save_file({**weights, name: torch.full_like(weights[name], value)}, folder / "open_clip_model.safetensors")
    with pytest.raises(SystemExit):
        evaluate_run(
            first_run.sandbox, tmp_path / "run", f"encoder.model={folder}", f"paths.store={tmp_path / 'store'}"
        )
    stderr = capsys.readouterr().err
    assert "gives no direction" in stderr
    assert ("generated from 'a photo of a blue moon.'" if group == "visual" else "the sentence 'a photo of a") in stderr
    assert not list((tmp_path / "store").glob("features/*/*/*.safetensors")) or group == "visual"
