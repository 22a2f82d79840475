"""Tests that a language model's own code is never run and its weights are never a pickle."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lgclip.prompts.local_llm import LocalLLM

WEIGHTS = Path(__file__).parents[2] / "lgclip" / "tiny" / "weights" / "language"
CPU = torch.device("cpu")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Creates the small language model in a folder."""
    return Path(shutil.copytree(WEIGHTS, tmp_path / "model"))


def test_plain_folder_is_loaded(model: Path) -> None:
    LocalLLM(str(model)).load(CPU)


@pytest.mark.parametrize("kind", ["evil", "llama"])
def test_model_code_is_not_run(model: Path, tmp_path: Path, kind: str) -> None:
    marker = tmp_path / "marker"
    (model / "own.py").write_text(f"open({str(marker)!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    path = model / "config.json"
    config = json.loads(path.read_text("utf-8"))
    auto_map = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    path.write_text(json.dumps({**config, "model_type": kind, "auto_map": auto_map}), encoding="utf-8")
    if kind == "llama":  # transformers has code of its own for it
        LocalLLM(str(model)).load(CPU)
    else:
        with pytest.raises(ValueError, match=r"llm\.model=.* cannot be loaded: .* own code is not run"):
            LocalLLM(str(model)).load(CPU)
    assert not marker.exists()


def test_pickled_weights_are_rejected(model: Path) -> None:
    weights = model / "model.safetensors"
    torch.save(load_file(weights), model / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ValueError, match=r"llm\.model=.* cannot be loaded: .* safetensors only"):
        LocalLLM(str(model)).load(CPU)
