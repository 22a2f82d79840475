"""Tests stores with random bytes: a reader returns what was stored, nothing, or a StoreError."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from lgclip.cli.store.entry_checks import read_inputs
from lgclip.datasets.image_decoding import read_image
from lgclip.store.cost_log import COST_LOG, Line, Tokens, append, lines_of
from lgclip.store.features import FeatureStore
from lgclip.store.images import ImageStore
from lgclip.store.keys import content_key
from lgclip.store.prompts import PromptEntry, PromptStore
from lgclip.store.root import StoreError

Damage = Callable[[bytes], bytes]
INPUTS: dict[str, object] = {"prompt_generator": {"model": "m"}, "class": "red fox", "occurrence": 0, "schema": 1}
PROMPTS = ["a red fox on a log", "a red fox in the snow, é"]
IDS = ["a" * 32, "b" * 32, "c" * 32]
VIEWS = ["whole", "center"]


def flipped(offset: int, bit: int) -> Damage:
    return lambda data: bytes(b ^ (1 << bit) if i == offset % len(data) else b for i, b in enumerate(data))


def cut(share: float) -> Damage:
    return lambda data: data[: int(share * len(data))]


def overwritten(offset: int, replacement: bytes) -> Damage:
    return lambda data: data[: offset % len(data)] + replacement + data[offset % len(data) + len(replacement) :]


def replaced(replacement: bytes) -> Damage:
    return lambda data: replacement


numbers = st.integers(0, 1 << 20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=8), inside, max_size=3),
    max_leaves=6,
)
damages = (
    st.builds(flipped, numbers, st.integers(0, 7))
    | st.builds(cut, st.floats(0, 1))
    | st.builds(overwritten, numbers, st.binary(min_size=1, max_size=12))
    | st.builds(replaced, st.binary(max_size=80) | json_values.map(lambda value: json.dumps(value).encode()))
)
DEEP = replaced(b"[" * 200_000)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Returns a function that creates a folder per example."""
    return lambda: tmp_path_factory.mktemp("store")


def damaged(path: Path, damage: Damage) -> bool:
    """Damages a file; returns whether it changed."""
    before = path.read_bytes()
    path.write_bytes(damage(before))
    return path.read_bytes() != before


@settings(max_examples=120)
@given(damage=damages)
@example(damage=DEEP)
def test_prompts_are_intact_or_none(damage: Damage, fresh: Callable[[], Path]) -> None:
    root = fresh()
    store = PromptStore(root)
    store.put(INPUTS, PROMPTS, turn=2, fallback=["a photo"], failure="too few")
    expected = store.read(INPUTS)
    (path,) = root.rglob("*.json")
    changed = damaged(path, damage)
    result = store.read(INPUTS)
    if not changed:
        assert result == expected == PromptEntry(PROMPTS, 2, ["a photo"], "too few")
    assert isinstance(result.prompts, list)
    assert all(isinstance(prompt, str) for prompt in (*result.prompts, *result.fallback, result.failure))
    assert type(result.turn) is int
    assert result.turn >= 0
    "".join(result.prompts).encode()


WRONG: list[dict[str, Any]] = [
    {"prompts": "abc"}, {"prompts": [1]}, {"prompts": None}, {"prompts": {"a": 1}}, {"turn": "2"}, {"turn": -1},
    {"turn": True}, {"fallback": "abc"}, {"fallback": [None]}, {"failure": 3}, {"prompts": ["\ud800"]}, {"inputs": {}},
    {"inputs": None}, {"inputs": {**INPUTS, "class": "grey fox"}},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=json.dumps)
def test_foreign_prompts_are_none(wrong: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entry = {"inputs": INPUTS, "prompts": PROMPTS, "turn": 1, **wrong}
    path = tmp_path / "prompts" / f"{content_key(INPUTS)}.json"
    path.parent.mkdir()
    path.write_text(json.dumps(entry), encoding="utf-8")
    assert PromptStore(tmp_path).read(INPUTS) == PromptEntry([])
    assert "is damaged and is written again" in caplog.text


@settings(max_examples=100)
@given(damage=damages)
@example(damage=DEEP)
def test_cost_log_gives_valid_lines(damage: Damage, fresh: Callable[[], Path]) -> None:
    path = fresh() / COST_LOG
    lines = [Line(3, "image", 1.5, "cpu", 1), Line(2, "sentence", 0.25, "cpu", 2, Tokens(10, 20))]
    for line in lines:
        append(path, line)
    changed = damaged(path, damage)
    result = lines_of(path)
    assert changed or result == lines
    for line in result:
        assert type(line.count) is int
        assert line.count > 0
        assert math.isfinite(line.seconds)
        assert line.seconds >= 0


@pytest.mark.slow
@settings(max_examples=100)
@given(damage=damages)
@example(damage=DEEP)
def test_features_are_unit_or_missing(damage: Damage, fresh: Callable[[], Path]) -> None:
    root = fresh()
    features = normalize(torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    FeatureStore(root, {"e": 1}, {"s": 1}).add(IDS, VIEWS, features)
    (path,) = root.rglob("*.safetensors")
    changed = damaged(path, damage)
    store = FeatureStore(root, {"e": 1}, {"s": 1})
    try:
        missing = store.missing(IDS, VIEWS)
        existing = [name for index, name in enumerate(IDS) if index not in missing]
        result = store.take(existing, VIEWS) if existing else None
    except StoreError:
        assert changed
        return
    if not changed:
        assert result is not None
        assert torch.equal(result, features)
    elif result is not None:
        assert result.shape == (len(existing), 2, 5)
        assert ((result.norm(dim=-1) - 1).abs() < 1e-3).all()


@pytest.mark.slow
@settings(max_examples=100)
@given(damage=damages)
@example(damage=DEEP)
def test_image_is_intact_or_reported(damage: Damage, fresh: Callable[[], Path]) -> None:
    root = fresh()
    name = "ab" + "0" * 30
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    ImageStore(root, {"d": 1}).put(name, pixels, {"text": "a red fox"})
    (path,) = root.rglob("*.png")
    changed = damaged(path, damage)
    store = ImageStore(root, {"d": 1})
    if not store.has(name):
        assert changed
        return
    try:
        image = read_image(store.path(name))
    except ValueError as error:
        message = str(error)
        assert changed
        assert re.search(r"cannot be read as an image", message)
        return
    assert image.mode == "RGB"
    assert changed or np.array_equal(np.asarray(image), pixels)


@pytest.mark.slow
@settings(max_examples=100)
@given(damage=damages)
@example(damage=DEEP)
def test_markers_and_metadata_are_read_or_skipped(damage: Damage, fresh: Callable[[], Path]) -> None:
    root = fresh()
    name = "ab" + "0" * 30
    store = ImageStore(root, {"d": 1})
    store.put_fault(name, "black", {"text": "a red fox"})
    (marker,) = root.rglob("*.fault.json")
    (inputs,) = root.rglob("inputs.json")
    changed = damaged(marker, damage)
    fault = ImageStore(root, {"d": 1}).fault(name)
    assert fault is None or isinstance(fault, str)
    assert changed or fault == "black"
    changed = damaged(inputs, damage)
    assert isinstance(read_inputs(inputs), dict)
    assert changed or read_inputs(inputs) == {"d": 1}
