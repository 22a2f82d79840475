"""Tests `train.py` on a few steps: a resumed training ends as an uninterrupted one."""

import json
from pathlib import Path

import pytest
import torch
from factories import read_csv, read_tree, run_command
from safetensors.torch import load_file

from lgclip.prompts.base import PromptError, Task
from lgclip.prompts.local_llm import LocalLLM
from lgclip.tiny.language import TinyLanguageModel
from lgclip.types import TargetClass


def train(folder: Path, *overrides: str) -> None:
    run_command(
        "train", "method=tiny_language", f"paths.build={folder}", f"hydra.run.dir={folder / 'run'}",
        "method.steps=5", "method.batch_size=3", "method.warmup=2", "corpus.shapes=210", "checkpoint_every=2",
        "trainer.accelerator=cpu", "+trainer.log_every_n_steps=1", *overrides,
    )  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    train(folder)
    return folder / "tiny_language"


def test_trained_model_generates(unbroken: Path) -> None:
    files = read_tree(unbroken)
    assert {"model/config.json", "model/model.safetensors", "model/tokenizer.json"} <= files.keys()
    assert not [name for name in files if name.endswith((".ckpt", ".bin", ".pt", ".pkl"))]
    writer = LocalLLM(str(unbroken / "model"), max_rounds=1, max_new_tokens=8, replies_per_round=2).load(
        torch.device("cpu")
    )
    ((_, failed),) = writer([Task(TargetClass(0, "striped red star"), 50)], 0)
    assert isinstance(failed, PromptError), "five steps teach nobody to write"
    assert "usable prompts of 50" in str(failed)


def test_training_logs_its_loss(unbroken: Path) -> None:
    logged = read_csv(next(unbroken.rglob("metrics.csv")))
    assert logged
    assert all(0 < float(row["loss"]) < 20 for row in logged if row["loss"])


@pytest.mark.slow
def test_interrupted_training_resumes(unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = TinyLanguageModel.training_step
    steps = []

    def cut(model: TinyLanguageModel, batch: int, batch_idx: int) -> torch.Tensor:
        steps.append(model.global_step)
        if model.global_step == 3 and steps.count(3) == 1:
            raise RuntimeError("power cut")
        return step(model, batch, batch_idx)

    monkeypatch.setattr(TinyLanguageModel, "training_step", cut)
    torch.manual_seed(7)  # what the process did before must not matter
    with pytest.raises(RuntimeError, match="power cut"):
        train(tmp_path)
    assert not (tmp_path / "tiny_language" / "model").exists()
    train(tmp_path)
    assert steps == [0, 1, 2, 3, 2, 3, 4], "it goes on from the last checkpoint, which was of two steps"
    weights, expected = (load_file(f / "model" / "model.safetensors") for f in (tmp_path / "tiny_language", unbroken))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights.items())
    assert json.loads((unbroken / "model" / "config.json").read_text())["model_type"] == "llama"
