"""Runs a stage if something is missing, shows its progress, and keeps account of it."""

import logging
import sys
import time
import warnings
from dataclasses import dataclass
from typing import Any

from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

_NOISE = (
    ".*LeafSpec.*is deprecated",  # Lightning's own call of a deprecated name
    ".*does not have many workers",  # workers are a config value, and small sets are faster without
    ".*predict returned None",  # a stage writes to a store
    ".*`DataLoader` across ranks is zero",  # a stream whose features are all there
    ".*dataloader is not resumable",  # a recipe's batch depends on its step alone
    ".*resuming from a checkpoint that ended before",  # for the same reason
    ".*Checkpoint directory .* exists and is not empty",  # that is what resuming is
    ".*Found .* in eval mode",  # loaded models are
)


def quiet() -> None:
    """Silences what Lightning says of itself; what a stage does is shown by its bar."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)


@dataclass(frozen=True)
class Account:
    """What one stage did.

    Attributes:
        stage: Its name.
        made: How many things it made.
        reused: How many were there before.
        seconds: How long it took, loading its model included.
    """

    stage: str
    made: int
    reused: int
    seconds: float


class StageBar(ProgressBar):
    """One line a stage: what, how many, rate, time left."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: Any = None
        self._enabled = True
        self.title = ""

    def disable(self) -> None:
        """Lightning calls this on every device but the first."""
        self._enabled = False

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loaders: Any = trainer.predict_dataloaders
        loaders = loaders if isinstance(loaders, list) else [loaders]
        total = sum(len(loader.dataset) for loader in loaders)
        self._bar = tqdm(
            total=total,
            desc=self.title,
            unit=f" {getattr(pl_module, 'unit', 'thing')}",
            disable=not self._enabled,
            file=sys.stderr,
            dynamic_ncols=True,
            mininterval=0.5,
        )

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        ids = getattr(batch, "ids", batch)
        self._bar.update(len(ids) if isinstance(ids, list) else 1)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._bar.close()


class Stages:
    """The stages of one run.

    Args:
        trainer: Runs them; its progress bar must be a `StageBar`.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.accounts: list[Account] = []

    def complete(self, title: str, stage: Any, total: int, datamodule: LightningDataModule | None = None) -> None:
        """Makes what `stage` lacks; a stage that lacks nothing loads no model.

        Args:
            title: Name of the stage.
            stage: A LightningModule with `missing()`, whose predict makes what is missing.
            total: How many things there are when it is done.
            datamodule: What streams to it, if it does not do so itself.

        Raises:
            RuntimeError: If things are still missing afterwards.
        """
        start = time.perf_counter()
        missing = len(stage.missing())
        if missing:
            bar = self._trainer.progress_bar_callback
            assert isinstance(bar, StageBar)
            bar.title = title
            self._trainer.predict(stage, datamodule=datamodule, return_predictions=False)
            self._trainer.strategy.barrier()
            if left := len(stage.missing()):
                raise RuntimeError(f"{title}: {left} of {total} are still missing after the stage")
        self.accounts.append(Account(title, missing, total - missing, round(time.perf_counter() - start, 3)))
