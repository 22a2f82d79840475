"""Whatever bytes lie in a store: a reader finds what was put there, finds nothing, or says so in a StoreError."""

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

from lgclip.datasets.files import read_image
from lgclip.feature_store import FeatureStore
from lgclip.identity import key_of
from lgclip.image_store import ImageStore
from lgclip.inspection import read_inputs
from lgclip.ledger import LEDGER, Line, Tokens, append, lines_of
from lgclip.store import PromptEntry, PromptStore, StoreError

Damage = Callable[[bytes], bytes]
INPUTS: dict[str, object] = {"writer": {"model": "m"}, "class": "red fox", "class_index": 0, "schema": 1}
PROMPTS = ["a red fox on a log", "a red fox in the snow, é"]
IDS, VIEWS = ["a" * 32, "b" * 32, "c" * 32], ["whole", "centre"]


def flipped(at: int, bit: int) -> Damage:
    return lambda data: bytes(b ^ (1 << bit) if i == at % len(data) else b for i, b in enumerate(data))


def cut(share: float) -> Damage:
    return lambda data: data[: int(share * len(data))]


def overwritten(at: int, other: bytes) -> Damage:
    return lambda data: data[: at % len(data)] + other + data[at % len(data) + len(other) :]


def replaced(other: bytes) -> Damage:
    return lambda data: other


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
    """A folder for each example."""
    return lambda: tmp_path_factory.mktemp("store")


def damaged(path: Path, damage: Damage) -> bool:
    """Damages a file; whether it is another one now."""
    before = path.read_bytes()
    path.write_bytes(damage(before))
    return path.read_bytes() != before


@settings(max_examples=120)
@given(damage=damages)
@example(damage=DEEP)
def test_prompts_are_what_was_written_or_none(damage: Damage, fresh: Callable[[], Path]) -> None:
    root = fresh()
    store = PromptStore(root)
    store.put(INPUTS, PROMPTS, turn=2, fallback=["a photo"], failure="too few")
    whole = store.read(INPUTS)
    (path,) = root.rglob("*.json")
    changed = damaged(path, damage)
    found = store.read(INPUTS)
    if not changed:
        assert found == whole == PromptEntry(PROMPTS, 2, ["a photo"], "too few")
    assert isinstance(found.prompts, list)
    assert all(isinstance(prompt, str) for prompt in (*found.prompts, *found.fallback, found.failure))
    assert type(found.turn) is int
    assert found.turn >= 0
    "".join(found.prompts).encode()


WRONG: list[dict[str, Any]] = [
    {"prompts": "abc"}, {"prompts": [1]}, {"prompts": None}, {"prompts": {"a": 1}}, {"turn": "2"}, {"turn": -1},
    {"turn": True}, {"fallback": "abc"}, {"fallback": [None]}, {"failure": 3}, {"prompts": ["\ud800"]}, {"inputs": {}},
    {"inputs": None}, {"inputs": {**INPUTS, "class": "grey fox"}},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=json.dumps)
def test_prompts_of_another_kind_or_of_another_class_are_none(
    wrong: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry = {"inputs": INPUTS, "prompts": PROMPTS, "turn": 1, **wrong}
    path = tmp_path / "prompts" / f"{key_of(INPUTS)}.json"
    path.parent.mkdir()
    path.write_text(json.dumps(entry), encoding="utf-8")
    assert PromptStore(tmp_path).read(INPUTS) == PromptEntry([])
    assert "is damaged and is written again" in caplog.text


@settings(max_examples=100)
@given(damage=damages)
@example(damage=DEEP)
def test_a_ledger_gives_lines_that_a_stage_can_write(damage: Damage, fresh: Callable[[], Path]) -> None:
    path = fresh() / LEDGER
    lines = [Line(3, "image", 1.5, "cpu", 1), Line(2, "sentence", 0.25, "cpu", 2, Tokens(10, 20))]
    for line in lines:
        append(path, line)
    changed = damaged(path, damage)
    found = lines_of(path)
    assert changed or found == lines
    for line in found:
        assert type(line.count) is int
        assert line.count > 0
        assert math.isfinite(line.seconds)
        assert line.seconds >= 0


@settings(max_examples=100)
@given(damage=damages)
@example(damage=DEEP)
def test_features_are_of_unit_length_or_missing(damage: Damage, fresh: Callable[[], Path]) -> None:
    root = fresh()
    features = normalize(torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    FeatureStore(root, {"e": 1}, {"s": 1}).add(IDS, VIEWS, features)
    (path,) = root.rglob("*.safetensors")
    changed = damaged(path, damage)
    store = FeatureStore(root, {"e": 1}, {"s": 1})
    try:
        gone = store.missing(IDS, VIEWS)
        there = [name for at, name in enumerate(IDS) if at not in gone]
        found = store.take(there, VIEWS) if there else None
    except StoreError:
        assert changed
        return
    if not changed:
        assert found is not None
        assert torch.equal(found, features)
    elif found is not None:
        assert found.shape == (len(there), 2, 5)
        assert ((found.norm(dim=-1) - 1).abs() < 1e-3).all()


@settings(max_examples=100)
@given(damage=damages)
@example(damage=DEEP)
def test_an_image_is_there_whole_or_told_to_be_damaged(damage: Damage, fresh: Callable[[], Path]) -> None:
    root, name = fresh(), "ab" + "0" * 30
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
        said = str(error)
        assert changed
        assert re.search(r"cannot be read as an image", said)
        return
    assert image.mode == "RGB"
    assert changed or np.array_equal(np.asarray(image), pixels)


@settings(max_examples=100)
@given(damage=damages)
@example(damage=DEEP)
def test_a_marker_and_a_description_are_read_or_passed_over(damage: Damage, fresh: Callable[[], Path]) -> None:
    root, name = fresh(), "ab" + "0" * 30
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
