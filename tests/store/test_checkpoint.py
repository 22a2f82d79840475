import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lgclip.stages.runner import quiet
from lgclip.store.checkpoints import SafetensorsIO

IO = SafetensorsIO()

CHECKPOINT: dict[str, Any] = {
    "epoch": 3,
    "lr": 1e-3,
    "done": False,
    "none": None,
    "name": "tiny/é",
    "optimizer_states": [{"state": {0: {"step": torch.tensor(2.0)}, 1: {}}, "betas": (0.9, (0.98,)), "params": [0, 1]}],
    "empty": {"list": [], "tuple": (), "dict": {}},
    "state_dict": {
        "a.b": torch.arange(6.0).reshape(2, 3).T,
        "half": torch.ones(2).half(),
        "ids": torch.tensor([2**40]),
    },
    "a/b": {"c": torch.zeros(1)},
    "a": {"b/c": torch.ones(1)},
}


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return [*a] == [*b] and [*map(type, a)] == [*map(type, b)] and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def test_checkpoint_round_trips(tmp_path: Path) -> None:
    path = tmp_path / "below" / "last.safetensors"
    IO.save_checkpoint(CHECKPOINT, path)
    assert equal(IO.load_checkpoint(path), CHECKPOINT)
    IO.remove_checkpoint(path)
    assert not path.exists()


def test_tied_weights_have_both_names(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.randn(2, 2))
    IO.save_checkpoint({"in": weight, "out": weight}, tmp_path / "tied")
    loaded = IO.load_checkpoint(tmp_path / "tied")
    assert torch.equal(loaded["in"], weight)
    assert torch.equal(loaded["out"], weight)


def test_checkpoint_has_no_pickle(tmp_path: Path) -> None:
    IO.save_checkpoint(CHECKPOINT, tmp_path / "it")
    with safe_open(tmp_path / "it", framework="pt") as file:
        json.loads(file.metadata()["plain"])
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads((tmp_path / "it").read_bytes())


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", Path("p"), 1j], ids=lambda v: type(v).__name__)
def test_unsupported_values_are_rejected(value: object, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=f"/callbacks/0 is a {type(value).__name__}"):
        IO.save_checkpoint({"callbacks": [value]}, tmp_path / "it")
    assert list(tmp_path.iterdir()) == []


class Walk(LightningModule):
    """Trains a small network on noise that depends on the step alone."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
        self.stop_after = stop_after

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        if self.global_step == self.stop_after:
            raise KeyboardInterrupt
        torch.manual_seed(self.global_step)
        return self.net(torch.randn(16, 4)).square().mean()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def train_dataloader(self) -> Any:
        return DataLoader(range(20), batch_size=None)  # pyright: ignore[reportArgumentType]


def fit(module: Walk, folder: Path) -> dict[str, Tensor]:
    """Trains as `train.py` does: a checkpoint every 4 steps, averaged weights, resumed from the last one."""
    quiet()
    checkpoint = ModelCheckpoint(folder, "last", every_n_train_steps=4, save_top_k=1)
    checkpoint.FILE_EXTENSION = ".safetensors"  # pyright: ignore[reportAttributeAccessIssue]
    trainer = Trainer(
        accelerator="cpu",
        max_steps=11,
        max_epochs=-1,
        plugins=[SafetensorsIO()],
        callbacks=[checkpoint, EMAWeightAveraging(decay=0.5)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    last = folder / "last.safetensors"
    trainer.fit(module, ckpt_path=last if last.exists() else None)
    return module.state_dict()


# Which is the very thing: the folder holds the checkpoint to go on from,
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
# and the loader, which only counts, need not be.
@pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable")
def test_resumed_fit_gives_the_same_weights(tmp_path: Path) -> None:
    expected = fit(Walk(), tmp_path / "whole")
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(Walk(stop_after=6), tmp_path / "cut")
    assert [p.name for p in (tmp_path / "cut").iterdir()] == ["last.safetensors"]
    resumed = fit(Walk(), tmp_path / "cut")
    assert equal(dict(resumed), dict(expected))
    assert not equal(dict(expected), dict(Walk().state_dict()))
