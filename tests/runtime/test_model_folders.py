"""Tests that a local model folder with a missing, cut or damaged file is refused before anything is generated."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from factories import Sandbox
from safetensors.torch import load_file, save_file

from lgclip.diffuser.pipeline import Diffuser
from lgclip.prompts.local_llm import LocalLLM
from lgclip.store.keys import local_folder

pytest_plugins = ("run_fixtures",)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def damage_json(path: Path) -> None:
    path.write_text(path.read_text()[:-9])


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        ("unet/diffusion_pytorch_model.safetensors", cut, "diffusion_pytorch_model.safetensors is damaged"),
        ("unet/diffusion_pytorch_model.safetensors", Path.unlink, "its component unet has no .safetensors file"),
        ("text_encoder", shutil.rmtree, "its component text_encoder is missing; copy the complete folder"),
        ("scheduler", shutil.rmtree, "its component scheduler is missing"),
        ("vae/config.json", damage_json, "config.json is damaged"),
        ("model_index.json", Path.unlink, "no pipeline, it has no model_index.json"),
    ],
)
def test_incomplete_pipeline_is_refused(
    empty_sandbox: Sandbox, tmp_path: Path, place: str, change: Callable[[Path], object], message: str
) -> None:
    Diffuser(str(empty_sandbox.diffuser)).check_weights()
    folder = Path(shutil.copytree(empty_sandbox.diffuser, tmp_path / "diffuser"))
    change(folder / place)
    with pytest.raises(ValueError, match=rf"diffuser.model={folder}: .*{message}"):
        Diffuser(str(folder)).check_weights()


@pytest.fixture
def language_model(tmp_path: Path) -> Path:
    """Copies the small language model, with its weights in two files."""
    source = local_folder("tiny:language")
    assert source is not None
    folder = Path(shutil.copytree(source, tmp_path / "language"))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = list(weights)
    places = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: weights[name] for name in names if places[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def test_missing_shard_of_a_language_model_is_named(language_model: Path) -> None:
    LocalLLM(str(language_model)).check_weights()
    second = language_model / "model-00002-of-00002.safetensors"
    content = load_file(second)
    first, *others = content
    save_file({name: content[name] for name in others}, second)
    with pytest.raises(ValueError, match=rf"{second} lacks 1 of its weights, first {first}; copy it again"):
        LocalLLM(str(language_model)).check_weights()
    second.unlink()
    with pytest.raises(ValueError, match=rf"llm.model=.*: {second} is missing, model.safetensors.index.json lists it"):
        LocalLLM(str(language_model)).check_weights()
    (language_model / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ValueError, match="lists no weights; copy it again"):
        LocalLLM(str(language_model)).check_weights()


def test_models_of_the_hub_are_not_asked_for() -> None:
    LocalLLM("owner/name").check_weights()
    Diffuser("owner/name").check_weights()
