"""Runs a stage if something is missing, shows its progress, and records its cost."""

import logging
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from lgclip.runtime.devices import Peak, device_name
from lgclip.runtime.progress import Progress
from lgclip.runtime.signals import heed
from lgclip.store.cost_log import Accounted, Line, StageStats, StoreUsage, Tokens, append

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
    """Silences Lightning's own messages; a stage's progress is shown by its bar."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)


class StageBar(ProgressBar):
    """Shows the progress of each stage, and measures the time of each of its loaders.

    Attributes:
        title: Name of the stage.
        spent: Seconds that this process spent on each of the stage's loaders, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self._progress: Progress | None = None
        self._enabled = True
        self.title = ""
        self.spent: dict[int, float] = {}
        self._last = 0.0

    def disable(self) -> None:
        """Disables the bar; Lightning calls this on every device but the first."""
        self._enabled = False

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        heed()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        heed()
        # Lightning hands on what the stage gave it: one loader or a list.
        loaders: Any = trainer.predict_dataloaders
        if not isinstance(loaders, list):
            loaders = [loaders]
        total = sum(len(loader.dataset) for loader in loaders)
        unit = getattr(pl_module, "unit", "thing")
        self._progress = Progress(self.title, total, unit, enabled=self._enabled)

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The model is loaded by now. Its loading belongs to no loader, and would count as the first one's.
        self.spent = {}
        self._last = time.perf_counter()

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
        # A batch without a list of ids is one thing.
        done = 1
        if isinstance(ids, list):
            done = len(ids)
        assert self._progress is not None
        self._progress.update(done)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._progress is not None
        self._progress.close()


class Stages:
    """Runs the stages of a run.

    Args:
        trainer: Runs them; its progress bar must be a `StageBar`.

    Attributes:
        trainer: The trainer.
        stage_stats: Statistics of each stage, in order.
        parts: Each stage's use of each store, by stage name; only of stages that are `Accounted`.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.stage_stats: list[StageStats] = []
        self.parts: dict[str, list[StoreUsage]] = {}

    def complete(self, title: str, stage: Any, total: int, datamodule: LightningDataModule | None = None) -> None:
        """Computes what `stage` lacks; a stage that lacks nothing loads no model.

        Its cost is added to `stage_stats`, and if it is `Accounted`, to the cost logs of its stores. A stage that fails
        or is interrupted adds no line there.

        Args:
            title: Name of the stage.
            stage: A LightningModule with `missing()`, whose predict computes what is missing.
            total: Total number of items.
            datamodule: Provides its data, if it does not do so itself.

        Raises:
            RuntimeError: If items are still missing afterwards.
        """
        start = time.perf_counter()
        # Before any model is loaded: this is what makes a repeated run cheap.
        missing = len(stage.missing())
        accounted: Accounted | None = stage if isinstance(stage, Accounted) else None
        # Counted before and after, because another run may fill the same store in between: the difference is what there
        # is more, whoever made it.
        lacked = accounted.lacking() if missing and accounted else []
        peak = Peak(self._device)
        if missing:
            self._make(title, stage, datamodule, peak)
            if left := len(stage.missing()):
                # Not a mistake of the user's, but a stage that does not keep its promise; what follows would fail in
                # a way that is hard to understand.
                raise RuntimeError(f"{title}: {left} of {total} are still missing after the stage")
        seconds = round(time.perf_counter() - start, 3)
        parts = accounted.parts() if accounted else []
        if lacked and accounted:
            computed = [before - after for before, after in zip(lacked, accounted.lacking(), strict=True)]
            parts = _split_seconds(parts, computed, seconds, self._bar.spent)
        # A prompt that a server writes costs time on that server, whatever this machine has.
        device = next((part.elsewhere for part in parts if part.elsewhere), device_name(self._device))
        tokens = self._summed(accounted.tokens) if missing and accounted else None
        unit = getattr(stage, "unit", "thing")
        self._keep(StageStats(title, missing, total - missing, seconds, unit, device, tokens=tokens), peak)
        self.parts[title] = parts
        if self.trainer.is_global_zero:
            # One line for all devices: the cost log has the costs of a run, not of a process.
            _enter(parts, self.stage_stats[-1])

    def _make(self, title: str, stage: Any, datamodule: LightningDataModule | None, peak: Peak) -> None:
        self._bar.title = title
        with peak:
            self.trainer.predict(stage, datamodule=datamodule, return_predictions=False)
        # What is missing is asked for next, and the other devices may still be writing.
        self.trainer.strategy.barrier()

    def _keep(self, stats: StageStats, peak: Peak) -> None:
        devices = self.trainer.world_size
        self.stage_stats.append(replace(stats, devices=devices, peak_memory=peak.bytes, peak_from=peak.source))

    @contextmanager
    def timed(self, title: str, *, unit: str, total: int) -> Iterator[None]:
        """Records the cost of a block that is not a stage, such as the evaluation.

        Args:
            title: Its name.
            unit: Unit of the count.
            total: Number of items.
        """
        start = time.perf_counter()
        with Peak(self._device) as peak:
            yield
        seconds = round(time.perf_counter() - start, 3)
        self._keep(StageStats(title, total, 0, seconds, unit, device_name(self._device)), peak)

    @property
    def _bar(self) -> StageBar:
        bar = self.trainer.progress_bar_callback
        assert isinstance(bar, StageBar)
        return bar

    @property
    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device

    def _summed(self, tokens: Tokens | None) -> Tokens | None:
        """Returns the tokens of all devices; None if one does not know its own."""
        # A reduction takes numbers alone, so `not known` travels as a third one.
        known = tokens or Tokens()
        mine = torch.tensor([known.prompt, known.completion, int(tokens is None)], device=self._device)
        prompt, completion, unknown = self.trainer.strategy.reduce(mine, reduce_op="sum").tolist()
        if unknown:
            return None
        return Tokens(prompt, completion)


def _enter(parts: Sequence[StoreUsage], stats: StageStats) -> None:
    """Writes the costs of what was computed to the cost logs."""
    by = (stats.device, stats.devices)
    tokens = stats.tokens
    for part in parts:
        if part.computed:
            append(part.cost_log, Line(part.computed, part.unit, part.seconds, *by, tokens))


def _split_seconds(
    parts: Sequence[StoreUsage], computed: Sequence[int], seconds: float, spent: Mapping[int, float]
) -> list[StoreUsage]:
    """Splits a stage's seconds over its parts, in proportion to the time of each on the first device.

    Args:
        parts: In the order of the stage's loaders.
        computed: Number of items computed in each.
        seconds: Duration of the stage.
        spent: Duration of each loader.
    """
    weights = [spent.get(loader, 0.0) if count else 0.0 for loader, count in enumerate(computed)]
    # One part was all another device's, so this one has no time for it. Then the counts are the best estimate.
    if any(count and not weight for count, weight in zip(computed, weights, strict=True)):
        weights = [float(count) for count in computed]
    # Another process has made all of it in between.
    if not sum(weights):
        return list(parts)
    fractions = [weight / sum(weights) for weight in weights]
    return [
        replace(part, computed=count, seconds=round(seconds * fraction, 6))
        for part, count, fraction in zip(parts, computed, fractions, strict=True)
    ]
