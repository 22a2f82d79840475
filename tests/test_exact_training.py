"""A training is the same on any number of devices, and whatever kills it."""

import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from crowd import ROOT, Order, crowd, finished, started
from safetensors.torch import load_file
from worlds import call

from lgclip.tiny.encoder import augment

RECIPES = ("tiny_autoencoder", "tiny_denoiser", "tiny_encoder", "tiny_language", "tiny_captioner")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every recipe by 1, 2, 3 and 4 processes: eight pictures a step, which three cannot share evenly."""
    out = tmp_path_factory.mktemp("trained")
    finished([started([sys.executable, str(Path(__file__).with_name("fit_recipes.py")), str(out)])])
    return out


@pytest.mark.parametrize("processes", [2, 3, 4])
@pytest.mark.parametrize("recipe", RECIPES)
def test_processes_train_what_one_trains_but_for_the_rounding_of_sums(
    recipe: str, processes: int, trained: Path
) -> None:
    alone, shared = (load_file(trained / str(n) / f"{recipe}.safetensors") for n in (1, processes))
    assert alone.keys() == shared.keys() >= {"logged loss"}
    for name, value in alone.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-5, atol=5e-6, msg=lambda m, at=name: f"{at}: {m}")


def test_only_the_first_process_writes_checkpoints(trained: Path) -> None:
    written = {path.relative_to(trained).as_posix() for path in trained.rglob("wrote-*")}
    assert written == {f"{processes}/wrote-0" for processes in (1, 2, 3, 4)}


@pytest.mark.parametrize("devices", [1, 2, 3, 5])
def test_the_shares_of_a_batch_are_changed_as_the_whole_batch_is(devices: int) -> None:
    images = torch.randint(256, (5, 3, 64, 64), dtype=torch.uint8)
    torch.manual_seed(1)
    whole = augment(images)
    for rank in range(devices):
        torch.manual_seed(1)
        share = slice(rank, None, devices)
        torch.testing.assert_close(augment(images, share), whole[share], rtol=0, atol=1e-6)


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
    call("train", *training(folder))
    return weights(folder)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """What `train.py` saved, in half precision."""
    return load_file(folder / "tiny_language" / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of five steps that is killed at its fourth, after the checkpoint of two."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-c", KILLED_AT, *training(folder)]
    finished([started(command)], status=-signal.SIGKILL)
    assert [path.name for path in (folder / "tiny_language" / "checkpoints").iterdir()] == ["last.safetensors"]
    assert not (folder / "tiny_language" / "model").exists()
    return folder


def test_a_killed_training_that_is_started_again_ends_with_the_very_weights_of_an_unbroken_one(
    killed: Path, unbroken: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """And with two processes, which round sums otherwise, with nearly the same."""
    shutil.copytree(killed, tmp_path / "aside")
    call("train", *training(killed))
    ends = weights(killed)
    assert ends.keys() == unbroken.keys()
    assert [name for name, value in unbroken.items() if not torch.equal(ends[name], value)] == []

    shutil.rmtree(killed)
    shutil.copytree(tmp_path / "aside", killed)
    finished([started([sys.executable, str(ROOT / "train.py"), *training(killed), "trainer=ddp", "trainer.devices=2"])])
    assert [path.name for path in (killed / "tiny_language" / "checkpoints").iterdir()] == ["last.safetensors"]
    ends = weights(killed)
    for name, value in unbroken.items():
        # Half precision, and AdamW, which makes a step of its own length of a gradient that is 0 but for rounding.
        close = torch.isclose(ends[name].float(), value.float(), rtol=2e-3, atol=1e-4)
        assert close.float().mean() > 0.98, name


def test_more_processes_than_pictures_are_refused(tmp_path: Path) -> None:
    refused = [*training(tmp_path), "method.batch_size=2", "trainer=ddp", "trainer.devices=3"]
    order = Order("train.py", refused, 3, str(tmp_path))
    with pytest.raises(AssertionError, match=r"method\.batch_size=2: 3 devices share a batch"):
        crowd([order], tmp_path / "orders.json")
    assert not list(tmp_path.rglob("*.safetensors"))
