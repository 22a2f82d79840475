"""Runs a stage if something is missing, shows its progress, and keeps account of it."""

import logging
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from lgclip.ledger import Account, Accounted, Line, Part, Tokens, append
from lgclip.memory import Peak, device_name
from lgclip.stopping import heed

_NOISE = (
    ".*LeafSpec.*is deprecated",  # Lightning's own call of a deprecated name
    ".*does not have many workers",  # workers are a config value, and small sets are faster without
    ".*predict returned None",  # a stage writes to a store
    ".*`DataLoader` across ranks is zero",  # a stream whose features are all there
    ".*dataloader is not resumable",  # a recipe's batch depends on its step alone
    ".*resuming from a checkpoint that ended before",  # for the same reason
    ".*Checkpoint directory .* exists and is not empty",  # that is what resuming is
    ".*Experiment logs directory .* exists and is not empty",  # and running a job again
    ".*Found .* in eval mode",  # loaded models are
)


def quiet() -> None:
    """Silences what Lightning says of itself; what a stage does is shown by its bar."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)


class StageBar(ProgressBar):
    """One line a stage: what, how many, rate, time left; and how long each of its loaders took.

    Attributes:
        title: Name of the stage.
        spent: Seconds that this process spent on each of the stage's loaders, in their order.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bar: Any = None
        self._enabled = True
        self.title = ""
        self.spent: dict[int, float] = {}
        self._last = 0.0

    def disable(self) -> None:
        """Lightning calls this on every device but the first."""
        self._enabled = False

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        heed()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        heed()
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

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.spent, self._last = {}, time.perf_counter()  # the model is loaded

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        now = time.perf_counter()
        self.spent[dataloader_idx] = self.spent.get(dataloader_idx, 0.0) + now - self._last
        self._last = now
        ids = getattr(batch, "ids", batch)
        self._bar.update(len(ids) if isinstance(ids, list) else 1)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._bar.close()


class Stages:
    """The stages of one run.

    Args:
        trainer: Runs them; its progress bar must be a `StageBar`.

    Attributes:
        accounts: What each stage did, in order.
        parts: What each stage did in each store, by its name; only of stages that are `Accounted`.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.accounts: list[Account] = []
        self.parts: dict[str, list[Part]] = {}

    def complete(self, title: str, stage: Any, total: int, datamodule: LightningDataModule | None = None) -> None:
        """Makes what `stage` lacks; a stage that lacks nothing loads no model.

        What it cost goes to `accounts`, and if it is `Accounted`, to the ledgers of its stores. A stage that fails
        or is interrupted leaves no line there.

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
        account: Accounted | None = stage if isinstance(stage, Accounted) else None
        lacked = account.lacking() if missing and account else []
        peak = Peak(self._device)
        if missing:
            self._make(title, stage, datamodule, peak)
            if left := len(stage.missing()):
                raise RuntimeError(f"{title}: {left} of {total} are still missing after the stage")
        seconds = round(time.perf_counter() - start, 3)
        parts = account.parts() if account else []
        if lacked and account:
            made = [before - after for before, after in zip(lacked, account.lacking(), strict=True)]
            parts = _shared_out(parts, made, seconds, self._bar.spent)
        device = next((part.elsewhere for part in parts if part.elsewhere), device_name(self._device))
        tokens = self._summed(account.tokens) if missing and account else None
        unit = getattr(stage, "unit", "thing")
        self._keep(Account(title, missing, total - missing, seconds, unit, device, tokens=tokens), peak)
        self.parts[title] = parts
        if self._trainer.is_global_zero:
            _enter(parts, self.accounts[-1])

    def _make(self, title: str, stage: Any, datamodule: LightningDataModule | None, peak: Peak) -> None:
        self._bar.title = title
        with peak:
            self._trainer.predict(stage, datamodule=datamodule, return_predictions=False)
        self._trainer.strategy.barrier()

    def _keep(self, account: Account, peak: Peak) -> None:
        devices = self._trainer.world_size
        self.accounts.append(replace(account, devices=devices, peak_memory=peak.bytes, peak_from=peak.source))

    @contextmanager
    def timed(self, title: str, *, unit: str, total: int) -> Iterator[None]:
        """Keeps account of a block that is no stage, such as the judging.

        Args:
            title: What to call it.
            unit: What it makes.
            total: How many of them.
        """
        start = time.perf_counter()
        with Peak(self._device) as peak:
            yield
        seconds = round(time.perf_counter() - start, 3)
        self._keep(Account(title, total, 0, seconds, unit, device_name(self._device)), peak)

    @property
    def _bar(self) -> StageBar:
        bar = self._trainer.progress_bar_callback
        assert isinstance(bar, StageBar)
        return bar

    @property
    def _device(self) -> torch.device:
        return self._trainer.strategy.root_device

    def _summed(self, tokens: Tokens | None) -> Tokens | None:
        """The tokens of all devices; not known if one does not know its own."""
        known = tokens or Tokens()
        mine = torch.tensor([known.prompt, known.completion, int(tokens is None)], device=self._device)
        prompt, completion, unknown = self._trainer.strategy.reduce(mine, reduce_op="sum").tolist()
        return None if unknown else Tokens(prompt, completion)


def _enter(parts: Sequence[Part], account: Account) -> None:
    """Writes what was made into the ledgers."""
    by, tokens = (account.device, account.devices), account.tokens
    for part in parts:
        if part.made:
            append(part.ledger, Line(part.made, part.unit, part.seconds, *by, tokens))


def _shared_out(parts: Sequence[Part], made: Sequence[int], seconds: float, spent: Mapping[int, float]) -> list[Part]:
    """A stage's seconds over its parts, as long as each of them took on the first device.

    Args:
        parts: In the order of the stage's loaders.
        made: How many things of each were made.
        seconds: What the stage took.
        spent: What each loader took.
    """
    own = [spent.get(at, 0.0) if count else 0.0 for at, count in enumerate(made)]
    if any(count and not each for count, each in zip(made, own, strict=True)):  # one was all another device's
        own = [float(count) for count in made]
    if not sum(own):  # another process has made all of it in between
        return list(parts)
    shares = [each / sum(own) for each in own]
    return [
        replace(part, made=count, seconds=round(seconds * share, 6))
        for part, count, share in zip(parts, made, shares, strict=True)
    ]
