import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from factories import HUB_COMMIT, put_in_hub_cache
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st

from lgclip.diffuser import quantization
from lgclip.diffuser.pipeline import Diffuser
from lgclip.encoder.open_clip import OpenClip
from lgclip.prompts.base import PromptGenerator
from lgclip.prompts.local_llm import LocalLLM
from lgclip.prompts.server_llm import ServerLLM
from lgclip.prompts.template import Templates
from lgclip.runtime.hub import commit_of
from lgclip.store.keys import NOT_AN_INPUT, content_key, key_inputs, local_folder, weights_of
from lgclip.types import TargetClass

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
    "vae": "hub/other",
    "vae_revision": HUB_COMMIT,
    "lora": "hub/other",
    "lora_revision": HUB_COMMIT,
    "noise": "repeat",
    "tiling": True,
    "slicing": True,
    "channels_last": True,
    "compile": True,
    "offload": "model",
    "image_format": "jpeg-95",
    "quantization": "int8",
}
"""Another value for each field; whole numbers are simply counted up."""


def parts() -> list[Any]:
    diffuser = Diffuser("hub/sd", scheduler="EulerDiscreteScheduler")
    return [Templates(), LocalLLM("hub/llm"), ServerLLM("some-model"), diffuser]


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Creates a hub cache with the commits of some models."""
    commit_of.cache_clear()
    monkeypatch.setattr(quantization, "find_spec", lambda name: object())  # a key needs no torchao
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for repo in ("hub/llm", "hub/sd", "hub/other"):
        put_in_hub_cache(tmp_path / "hub", repo)


def key(part: Any) -> str:
    """Returns the key under which results of `part` are stored."""
    return content_key(part.inputs(TargetClass(0, "cat"), 0) if isinstance(part, PromptGenerator) else part.inputs())


def distinguishes(value: Any) -> Any:
    """Returns `value` in a form that compares as JSON does: key order is ignored, 1 differs from true."""
    match value:
        case dict():
            return frozenset((name, distinguishes(item)) for name, item in value.items())
        case list():
            return tuple(map(distinguishes, value))
    return type(value), value


@pytest.mark.parametrize(
    ("part", "field"),
    [
        (part, field)
        for part in parts()
        for field in dataclasses.fields(part)
        # The file of templates is read into another field: see test_templates_file.py.
        if (type(part), field.name) != (Templates, "file")
    ],
    ids=lambda x: x.name if isinstance(x, dataclasses.Field) else type(x).__name__,
)
def test_key_includes_every_declared_field(part: Any, field: dataclasses.Field[Any]) -> None:
    value = getattr(part, field.name)
    changed = dataclasses.replace(part, **{field.name: OTHER[field.name] if field.name in OTHER else value + 1})
    assert (key(changed) == key(part)) == (not field.metadata.get("input", True))
    assert (field.name in key_inputs(part)) == field.metadata.get("input", True)


def test_only_neutral_fields_are_excluded() -> None:
    left_out = set()
    for part in parts():
        for f in dataclasses.fields(part):
            if f.metadata == NOT_AN_INPUT:
                left_out.add(f.name)
    # How long a server is waited for, and what stands in for prompts that no model gave: see Writing.
    servers = {"api_key_env", "concurrency", "timeout_s", "deadline_s", "backoff_s", "allow_fallback"}
    # Where and how a pipeline computes, and how often it may try: another attempt has a key of its own.
    synthetic_images = {"lora_revision", "vae_revision", "retries", "slicing", "channels_last", "compile", "offload"}
    assert left_out == {"batch_size", "file", "max_rounds", "revision"} | servers | synthetic_images


def test_generator_inputs_are_in_the_key() -> None:
    prompt_generator = Templates()
    cat = TargetClass(0, "cat")
    classes = [cat, cat._replace(occurrence=1), cat._replace(name="dog"), cat._replace(context="a pet")]
    keys = {content_key(prompt_generator.inputs(target_class, 0)) for target_class in classes}
    keys.add(content_key(prompt_generator.inputs(cat, 1)))
    assert len(keys) == 5
    keys.add(content_key(prompt_generator.inputs(cat._replace(class_index=3), 0)))
    assert len(keys) == 5, "the place of a class in its list is no input"


def test_classes_of_parts_have_different_keys() -> None:
    assert len({key(part) for part in parts()}) == len(parts())


@pytest.mark.slow
@given(st.dictionaries(TEXT, JSON))
def test_key_does_not_depend_on_order(inputs: dict[str, object]) -> None:
    assert content_key(dict(reversed(inputs.items()))) == content_key(inputs)


@pytest.mark.slow
@given(st.dictionaries(TEXT, JSON), st.dictionaries(TEXT, JSON))
def test_equal_keys_mean_equal_inputs(a: dict[str, object], b: dict[str, object]) -> None:
    assert (content_key(a) == content_key(b)) == (distinguishes(a) == distinguishes(b))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "unet" / "weights.safetensors").write_bytes(b"12")
    return folder


def test_weights_path_does_not_change_the_key(model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "elsewhere" / "copy")
    assert Diffuser(str(copy)).inputs() == Diffuser(str(model)).inputs()
    assert str(tmp_path) not in str(Diffuser(str(model)).inputs())


@pytest.mark.parametrize("change", ["content", "name", "folder", "new file", "boundary"])
def test_weights_content_changes_the_key(change: str, model: Path) -> None:
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


def test_hub_id_stands_for_its_commit() -> None:
    assert weights_of("hub/llm") == f"hub/llm@{HUB_COMMIT}"
    assert weights_of("hub/llm", "f" * 40) == f"hub/llm@{'f' * 40}"
    assert key_inputs(LocalLLM("hub/llm", revision="f" * 40)) != key_inputs(LocalLLM("hub/llm"))


def test_home_folder_is_expanded(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_missing_model_is_an_error_before_loading(part: Any, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        part(name)
