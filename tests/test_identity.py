import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from worlds import HUB_COMMIT, put_in_hub_cache

from lgclip.batch import Subject
from lgclip.diffuser.pipeline import Diffuser
from lgclip.encoder.open_clip import OpenClip
from lgclip.hub import commit_of
from lgclip.identity import NOT_AN_INPUT, inputs_of, key_of, local_folder, weights_of
from lgclip.prompts.base import PromptWriter
from lgclip.prompts.local import LocalLLM
from lgclip.prompts.server import ServerLLM
from lgclip.prompts.template import Templates

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inside: st.lists(inside) | st.dictionaries(TEXT, inside),
    max_leaves=8,
)

OTHER: dict[str, Any] = {
    "model": "hub/other",
    "revision": HUB_COMMIT,
    "instruction": "{name}?",
    "system": "be brief",
    "again": "not {have}",
    "must_name": False,
    "exact_name": True,
    "allow_fallback": True,
    "thinking": True,
    "structured": False,
    "base_url": "http://localhost:1/v1",
    "api_key_env": "OTHER_KEY",
    "extra": {"top_k": 5},
    "negative_prompt": "blur",
    "templates": ("a {}", "the {}"),
    "temperature": 0.5,
    "top_p": 0.5,
    "guidance": 1.5,
    "size": 128,
    "variant": "fp16",
    "steps": 7,
    "options": {"eta": 1.0},
    "precision": "fp16",
    "scheduler": "DDIMScheduler",
    "scheduler_options": {"beta_end": 0.01},
    "lora": "hub/other",
    "lora_revision": HUB_COMMIT,
    "noise": "repeat",
    "tiling": True,
    "slicing": True,
    "channels_last": True,
    "compile": True,
    "offload": "model",
}
"""Another value for each field; whole numbers are simply counted up."""


def parts() -> list[Any]:
    diffuser = Diffuser("hub/sd", scheduler="EulerDiscreteScheduler")
    return [Templates(), LocalLLM("hub/llm"), ServerLLM("some-model"), diffuser]


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub's cache that has heard of some models."""
    commit_of.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for repo in ("hub/llm", "hub/sd", "hub/other"):
        put_in_hub_cache(tmp_path / "hub", repo)


def key(part: Any) -> str:
    """The key that results of `part` are kept under."""
    return key_of(part.inputs(Subject(0, "cat"), 0) if isinstance(part, PromptWriter) else part.inputs())


def told_apart(value: Any) -> Any:
    """`value` in a form that == compares as JSON does: the order of keys is nothing, 1 is not true."""
    match value:
        case dict():
            return frozenset((name, told_apart(item)) for name, item in value.items())
        case list():
            return tuple(map(told_apart, value))
    return type(value), value


@pytest.mark.parametrize(
    ("part", "field"),
    [(part, field) for part in parts() for field in dataclasses.fields(part)],
    ids=lambda x: x.name if isinstance(x, dataclasses.Field) else type(x).__name__,
)
def test_every_field_is_in_the_key_unless_it_says_that_it_is_not(part: Any, field: dataclasses.Field[Any]) -> None:
    value = getattr(part, field.name)
    changed = dataclasses.replace(part, **{field.name: OTHER[field.name] if field.name in OTHER else value + 1})
    assert (key(changed) == key(part)) == (not field.metadata.get("input", True))
    assert (field.name in inputs_of(part)) == field.metadata.get("input", True)


def test_only_what_changes_no_result_is_left_out() -> None:
    left_out = {f.name for part in parts() for f in dataclasses.fields(part) if f.metadata == NOT_AN_INPUT}
    # How long a server is waited for, and what stands in for prompts that no model gave: see Writing.
    servers = {"api_key_env", "concurrency", "timeout_s", "deadline_s", "backoff_s", "allow_fallback"}
    # Where and how a pipeline computes, and how often it may try: another attempt has a key of its own.
    drawing = {"lora_revision", "retries", "slicing", "channels_last", "compile", "offload"}
    assert left_out == {"batch_size", "max_rounds", "revision"} | servers | drawing


def test_the_writers_run_inputs_are_in_the_key() -> None:
    writer = Templates()
    runs = ((0, "cat", "", 0), (1, "cat", "", 0), (0, "dog", "", 0), (0, "cat", "", 1), (0, "cat", "a pet", 0))
    keys = {key_of(writer.inputs(Subject(c, name, context), seed)) for c, name, context, seed in runs}
    assert len(keys) == 5


def test_two_kinds_of_part_never_share_a_key() -> None:
    assert len({key(part) for part in parts()}) == len(parts())


@given(st.dictionaries(TEXT, JSON))
def test_a_key_does_not_depend_on_the_order(inputs: dict[str, object]) -> None:
    assert key_of(dict(reversed(inputs.items()))) == key_of(inputs)


@given(st.dictionaries(TEXT, JSON), st.dictionaries(TEXT, JSON))
def test_two_inputs_share_a_key_only_if_they_are_the_same(a: dict[str, object], b: dict[str, object]) -> None:
    assert (key_of(a) == key_of(b)) == (told_apart(a) == told_apart(b))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "unet" / "weights.safetensors").write_bytes(b"12")
    return folder


def test_the_place_of_the_weights_does_not_matter(model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "elsewhere" / "copy")
    assert Diffuser(str(copy)).inputs() == Diffuser(str(model)).inputs()
    assert str(tmp_path) not in str(Diffuser(str(model)).inputs())


@pytest.mark.parametrize("change", ["content", "name", "folder", "new file", "boundary"])
def test_the_content_of_the_weights_matters(change: str, model: Path) -> None:
    before = weights_of(str(model))
    weights = model / "unet" / "weights.safetensors"
    match change:
        case "content":
            weights.write_bytes(b"13")
            os.utime(weights, ns=(0, 1))  # whatever the file system's clock can tell apart
        case "name":
            weights.rename(weights.with_name("other.safetensors"))
        case "folder":
            weights.parent.rename(model / "vae")
        case "new file":
            (model / "empty").touch()
        case "boundary":
            (model / "config.json").write_text("{}1")
            weights.write_bytes(b"2")
    assert weights_of(str(model)) != before


def test_an_id_of_the_hub_stands_for_its_commit() -> None:
    assert weights_of("hub/llm") == f"hub/llm@{HUB_COMMIT}"
    assert weights_of("hub/llm", "f" * 40) == f"hub/llm@{'f' * 40}"
    assert inputs_of(LocalLLM("hub/llm", revision="f" * 40)) != inputs_of(LocalLLM("hub/llm"))


def test_a_home_folder_is_found(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(model.parent))
    assert local_folder("~/model") == model


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/no/such", "no such folder"),
        ("./no", "no such folder"),
        ("~/no", "no such folder"),
        ("tiny:no", "the package holds.*tiny:encoder"),
    ],
)
@pytest.mark.parametrize("part", [LocalLLM, Diffuser, OpenClip])
def test_a_model_that_is_not_there_is_an_error_before_anything_loads(part: Any, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        part(name)
