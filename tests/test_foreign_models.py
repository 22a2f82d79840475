"""A language model's own code is never run, and its weights are never a pickle."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lgclip.prompts.local import LocalLLM

WEIGHTS = Path(__file__).parents[1] / "lgclip" / "tiny" / "weights" / "language"
CPU = torch.device("cpu")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The small language model, in a folder of its own."""
    return Path(shutil.copytree(WEIGHTS, tmp_path / "model"))


def test_the_folder_as_it_is_loads(model: Path) -> None:
    LocalLLM(str(model)).load(CPU)


@pytest.mark.parametrize("kind", ["evil", "llama"])
def test_a_model_with_code_of_its_own_runs_none_of_it(model: Path, tmp_path: Path, kind: str) -> None:
    marker = tmp_path / "marker"
    (model / "own.py").write_text(f"open({str(marker)!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    path = model / "config.json"
    config = json.loads(path.read_text("utf-8"))
    own = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    path.write_text(json.dumps({**config, "model_type": kind, "auto_map": own}), encoding="utf-8")
    if kind == "llama":  # transformers has code of its own for it
        LocalLLM(str(model)).load(CPU)
    else:
        with pytest.raises(ValueError, match=r"llm\.model=.* cannot be loaded: .* own code is not run"):
            LocalLLM(str(model)).load(CPU)
    assert not marker.exists()


def test_pickled_weights_are_refused(model: Path) -> None:
    weights = model / "model.safetensors"
    torch.save(load_file(weights), model / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ValueError, match=r"llm\.model=.* cannot be loaded: .* safetensors alone"):
        LocalLLM(str(model)).load(CPU)
