"""Tests that a training is the same on any number of devices and after any kill."""

import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from factories import SUPPORT, run_command
from multiprocess_runs import ROOT, ProcessOrder, run_orders, start_process, wait_for_processes
from safetensors.torch import load_file

from lgclip.tiny.encoder import augment

pytestmark = pytest.mark.multiprocess

RECIPES = ("tiny_autoencoder", "tiny_denoiser", "tiny_encoder", "tiny_language", "tiny_captioner")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trains every recipe with 1, 2 and 3 processes: eight images per step, which three cannot split evenly."""
    out = tmp_path_factory.mktemp("trained")
    wait_for_processes([start_process([sys.executable, str(SUPPORT / "fit_recipes.py"), str(out)])])
    return out


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("recipe", RECIPES)
def test_processes_match_one_up_to_rounding(recipe: str, processes: int, trained: Path) -> None:
    alone, shared = (load_file(trained / str(n) / f"{recipe}.safetensors") for n in (1, processes))
    assert alone.keys() == shared.keys() >= {"logged loss"}
    for name, value in alone.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-5, atol=5e-6, msg=lambda m, key=name: f"{key}: {m}")


def test_only_rank_zero_writes_checkpoints(trained: Path) -> None:
    written = {path.relative_to(trained).as_posix() for path in trained.rglob("wrote-*")}
    assert written == {f"{processes}/wrote-0" for processes in (1, 2, 3)}


@pytest.mark.parametrize("devices", [1, 2, 3, 5])
def test_sharded_augmentation_matches_the_full_batch(devices: int) -> None:
    images = torch.randint(256, (5, 3, 64, 64), dtype=torch.uint8)
    torch.manual_seed(1)
    full_batch = augment(images)
    for rank in range(devices):
        torch.manual_seed(1)
        share = slice(rank, None, devices)
        torch.testing.assert_close(augment(images, share), full_batch[share], rtol=0, atol=1e-6)


SMALL = (
    "method=tiny_language", "method.steps=5", "method.batch_size=3", "method.warmup=2", "corpus.shapes=210",
    "checkpoint_every=2", "trainer.accelerator=cpu", "logger=none",
)  # fmt: skip


def training(folder: Path) -> list[str]:
    return [*SMALL, f"paths.build={folder}", f"hydra.run.dir={folder / 'run'}"]


KILLED_AT = f"""
import os, runpy, signal, sys
from lgclip.tiny.language import TinyLanguageModel
step = TinyLanguageModel.training_step
def kill(model, batch, batch_idx):
    if model.global_step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(model, batch, batch_idx)
TinyLanguageModel.training_step = kill
sys.argv[0] = {str(ROOT / "train.py")!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("unbroken")
    run_command("train", *training(folder))
    return weights(folder)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Returns what `train.py` saved, in half precision."""
    return load_file(folder / "tiny_language" / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kills a training of five steps at its fourth, after the checkpoint of two."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-c", KILLED_AT, *training(folder)]
    wait_for_processes([start_process(command)], status=-signal.SIGKILL)
    assert [path.name for path in (folder / "tiny_language" / "checkpoints").iterdir()] == ["last.safetensors"]
    assert not (folder / "tiny_language" / "model").exists()
    return folder


def test_killed_training_resumes_exactly(killed: Path, unbroken: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """Checks one process exactly, and two processes, which round sums differently, approximately."""
    shutil.copytree(killed, tmp_path / "aside")
    run_command("train", *training(killed))
    ends = weights(killed)
    assert ends.keys() == unbroken.keys()
    assert [name for name, value in unbroken.items() if not torch.equal(ends[name], value)] == []

    shutil.rmtree(killed)
    shutil.copytree(tmp_path / "aside", killed)
    wait_for_processes(
        [start_process([sys.executable, str(ROOT / "train.py"), *training(killed), "trainer=ddp", "trainer.devices=2"])]
    )
    assert [path.name for path in (killed / "tiny_language" / "checkpoints").iterdir()] == ["last.safetensors"]
    ends = weights(killed)
    for name, value in unbroken.items():
        # Half precision, and AdamW, which makes a step of its own length of a gradient that is 0 but for rounding.
        close = torch.isclose(ends[name].float(), value.float(), rtol=2e-3, atol=1e-4)
        assert close.float().mean() > 0.98, name


def test_more_processes_than_images_is_rejected(tmp_path: Path) -> None:
    refused = [*training(tmp_path), "method.batch_size=2", "trainer=ddp", "trainer.devices=3"]
    order = ProcessOrder("train.py", refused, 3, str(tmp_path))
    with pytest.raises(AssertionError, match=r"method\.batch_size=2: 3 devices share a batch"):
        run_orders([order], tmp_path / "orders.json")
    assert not list(tmp_path.rglob("*.safetensors"))
