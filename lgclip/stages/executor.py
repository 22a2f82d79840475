"""Defines what computes a stage's missing items: the run's own process, or the actors of a Ray cluster."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lightning import LightningDataModule, Trainer

from lgclip.runtime.devices import Peak
from lgclip.store import remote
from lgclip.store.cost_log import Tokens


@dataclass(frozen=True)
class StageRun:
    """Describes a stage that lacks something.

    Attributes:
        title: Name of the stage.
        stage: A LightningModule with `missing()`, whose predict computes what is missing.
        datamodule: Provides its data, if it does not do so itself.
        trainer: Trainer of the run's own process.
        mark_start: Marks the start in the cost logs; to be called once a model is loaded.
        store: The store's folder; None if it is not known.
    """

    title: str
    stage: Any
    datamodule: LightningDataModule | None
    trainer: Trainer
    mark_start: Callable[[], None]
    store: Path | None = None


@dataclass
class Work:
    """Records how a stage was computed; updated while it runs, so that an interrupted stage is recorded too.

    Attributes:
        device: Name of the devices.
        devices: Number of devices.
        tokens: Tokens of the language model on all devices; None without one, or if they are unknown.
        peak_memory: Peak memory of a device in bytes; None if unknown.
        peak_from: Source of that value, see `StageStats`.
        spent: Seconds spent on each loader of the stage, by its index.
        workers: Number of processes that decoded images; None if that is not known, or there were none to decode.
    """

    device: str
    devices: int
    tokens: Tokens | None = None
    peak_memory: int | None = None
    peak_from: str | None = None
    spent: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    workers: int | None = None


class Executor(ABC):
    """Computes the missing items of stages."""

    @abstractmethod
    def prepare(self, store: Path) -> None:
        """Starts what it needs, before the first stage that computes something.

        Args:
            store: The store's folder.

        Raises:
            ValueError: If that is not possible.
        """

    @abstractmethod
    def compute(self, run: StageRun, work: Work) -> None:
        """Computes the missing items of a stage.

        Args:
            run: The stage.
            work: Is updated.
        """

    @abstractmethod
    def close(self) -> None:
        """Ends what `prepare` has started."""


class LocalExecutor(Executor):
    """Computes in the run's own process, or in the processes of its trainer: `executor=local`."""

    def prepare(self, store: Path) -> None:
        """Starts nothing."""

    def close(self) -> None:
        """Ends nothing."""

    def compute(self, run: StageRun, work: Work) -> None:
        """Computes the missing items by the trainer's predict loop."""
        trainer = run.trainer
        bar: Any = trainer.progress_bar_callback
        bar.title = run.title
        peak = Peak(trainer.strategy.root_device)
        try:
            with peak:
                trainer.predict(run.stage, datamodule=run.datamodule, return_predictions=False)
        finally:
            work.peak_memory = peak.bytes
            work.peak_from = peak.source
            # A stage that computes several things in one loop measures them itself.
            work.workers = getattr(run.datamodule, "used_workers", None)
            work.spent = getattr(run.stage, "part_seconds", None) or bar.spent
        # What other machines need of a store with a URL is there before they ask for it.
        remote.push_pending(run.store)
        # What is missing is asked for next, and the other devices may still be writing.
        trainer.strategy.barrier()
        remote.expire(run.store)
        work.tokens = summed_tokens(trainer, getattr(run.stage, "tokens", None))


def summed_tokens(trainer: Trainer, tokens: Tokens | None) -> Tokens | None:
    """Returns the tokens of all devices; None if one does not know its own.

    Args:
        trainer: Trainer of this device.
        tokens: Tokens of this device.
    """
    import torch

    # A reduction takes numbers alone, so `not known` travels as a third one.
    counts = tokens or Tokens()
    mine = torch.tensor([counts.prompt, counts.completion, int(tokens is None)], device=trainer.strategy.root_device)
    prompt, completion, unknown = trainer.strategy.reduce(mine, reduce_op="sum").tolist()
    if unknown:
        return None
    return Tokens(prompt, completion)


def sum_of(parts: Sequence[Tokens | None]) -> Tokens | None:
    """Returns the sum of some tokens; None if one of them is unknown, or there are none."""
    total: Tokens | None = None
    for part in parts:
        if part is None:
            return None
        total = part if total is None else Tokens(total.prompt + part.prompt, total.completion + part.completion)
    return total
