"""A flipped bit in anything that is stored is noticed, reported and repaired by computing the entry again."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from lgclip.datasets.unreadable import UnreadableImages
from lgclip.store.captions import CaptionStore
from lgclip.store.checkpoints import SafetensorsIO, resumable
from lgclip.store.checksums import checksum_of
from lgclip.store.cost_log import Line, append, lines_of
from lgclip.store.features import FeatureStore
from lgclip.store.prompts import PromptStore
from lgclip.store.root import StoreError


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def every_bit(content: bytes, most: int = 4000) -> list[int]:
    """Returns all bits of a file, or so many at random where there are more."""
    bits = 8 * len(content)
    return sorted(np.random.default_rng(0).choice(bits, min(most, bits), replace=False).tolist())


@pytest.mark.slow
def test_flipped_bits_of_features_are_noticed(tmp_path: Path) -> None:
    """78% of the flips passed before."""
    features = normalize(torch.randn(6, 2, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    ids = [f"{index:032x}" for index in range(6)]
    FeatureStore(tmp_path, {}, {}).add(ids, ["a", "b"], features)
    [chunk] = tmp_path.glob("features/*/*/*.safetensors")
    content = chunk.read_bytes()
    unnoticed = []
    for bit in every_bit(content, 1500):
        chunk.unlink()
        chunk.write_bytes(flipped(content, bit))
        store = FeatureStore(tmp_path, {}, {})
        if not store.missing(ids, ["a", "b"]) and not torch.equal(store.take(ids, ["a", "b"]), features):
            unnoticed.append(bit)

    assert unnoticed == []


def test_features_that_change_during_a_run_are_an_error(tmp_path: Path) -> None:
    features = normalize(torch.randn(2, 1, 16), dim=-1)
    store = FeatureStore(tmp_path, {}, {})
    store.add(["a", "b"], ["full"], features)
    assert not store.missing(["a", "b"], ["full"])
    [chunk] = tmp_path.glob("features/*/*/*.safetensors")
    chunk.write_bytes(flipped(chunk.read_bytes(), 8 * chunk.stat().st_size - 9))

    with pytest.raises(StoreError, match="was damaged while the run used it"):
        store.take(["a", "b"], ["full"])


def test_flipped_bits_of_prompts_are_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    inputs: dict[str, object] = {"name": "robin", "schema": 1}
    PromptStore(tmp_path).put(inputs, ["a robin on a branch", "two robins"], turn=2)
    [path] = tmp_path.glob("prompts/*.json")
    content = path.read_bytes()
    caplog.set_level(logging.CRITICAL)
    read = set()
    for bit in every_bit(content):
        path.write_bytes(flipped(content, bit))
        read.add(tuple(PromptStore(tmp_path).get(inputs)))

    # White space between the fields may change, and nothing else.
    assert read <= {(), ("a robin on a branch", "two robins")}


def test_flipped_bits_of_captions_are_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    CaptionStore(tmp_path, {}, {}).add({"0" * 32: "a robin", "1" * 32: "a wren"})
    [path] = (path for path in tmp_path.glob("captions/*/*.json") if path.name != "inputs.json")
    content = path.read_bytes()
    caplog.set_level(logging.CRITICAL)
    read = set()
    for bit in every_bit(content, 1500):
        path.write_bytes(flipped(content, bit))
        store = CaptionStore(tmp_path, {}, {})
        store.refresh()
        read.add((store.get("0" * 32), store.get("1" * 32)))

    assert read <= {(None, None), ("a robin", "a wren")}


def test_flipped_bits_of_costs_are_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "costs.jsonl"
    line = Line(120, "image", 17.25, "cpu", 1)
    append(path, line)
    content = path.read_bytes()
    caplog.set_level(logging.CRITICAL)
    read = []
    for bit in every_bit(content):
        path.write_bytes(flipped(content, bit))
        read += lines_of(path)

    assert all(known == line for known in read)


def test_flipped_bits_of_unreadable_images_are_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    UnreadableImages(tmp_path, {}).add({"0" * 32: "it is empty"})
    [path] = tmp_path.glob("images/*/*.json")
    content = path.read_bytes()
    caplog.set_level(logging.CRITICAL)
    for bit in every_bit(content, 1500):
        path.write_bytes(flipped(content, bit))

        assert UnreadableImages(tmp_path, {}).reasons() in ({}, {"0" * 32: "it is empty"})


@pytest.mark.slow
def test_damaged_checkpoint_is_reported_and_not_resumed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "last.safetensors"
    state = {"epoch": 3, "weights": torch.randn(4, 5), "half": torch.randn(3).bfloat16(), "empty": torch.zeros(0)}
    SafetensorsIO().save_checkpoint(state, path)
    assert resumable(path) == path
    content = path.read_bytes()
    for bit in every_bit(content, 600):
        path.write_bytes(flipped(content, bit))
        if resumable(path):
            loaded = SafetensorsIO().load_checkpoint(path)
            assert loaded["epoch"] == 3
            assert all(torch.equal(loaded[name], state[name]) for name in ("weights", "half", "empty"))

    assert "is damaged" in caplog.text
    assert "the training starts from its beginning" in caplog.text


@settings(max_examples=50)
@given(st.sampled_from(["float32", "float16", "bfloat16", "int64", "uint8"]), st.lists(st.integers(0, 4), max_size=3))
def test_checksums_of_tensors_and_arrays_agree(kind: str, shape: list[int]) -> None:
    tensor = (torch.arange(int(np.prod(shape, dtype=int))) % 100).reshape(shape).to(getattr(torch, kind))
    checksum = checksum_of({"x": tensor})

    assert checksum.startswith("crc32:")
    assert checksum_of({"x": tensor.clone()}) == checksum
    if kind != "bfloat16":
        assert checksum_of({"x": tensor.numpy()}) == checksum
    assert checksum_of({"y": tensor}) != checksum
    assert checksum_of({"x": tensor}, json.dumps({})) != checksum
