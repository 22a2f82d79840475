"""Runs a stage if something is missing, shows its progress, and records its cost."""

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar

from lgclip.runtime.devices import Peak, device_name
from lgclip.runtime.progress import Progress
from lgclip.runtime.signals import restore_handlers
from lgclip.stages.executor import Executor, LocalExecutor, StageRun, Work
from lgclip.store import remote
from lgclip.store.cost_log import Accounted, Line, StageStats, StoreUsage, append, append_start

_NOISE = (
    ".*LeafSpec.*is deprecated",  # Lightning's own call of a deprecated name
    ".*does not have many workers",  # workers are a config value, and small sets are faster without
    ".*predict returned None",  # a stage writes to a store
    ".*`DataLoader` across ranks is zero",  # a stream whose features are all there
    ".*dataloader is not resumable",  # a recipe's batch depends on its step alone
    ".*resuming from a checkpoint that ended before",  # for the same reason
    ".*Checkpoint directory .* exists and is not empty",  # that is what resuming is
    ".*Experiment logs directory .* exists and is not empty",  # and running a job again
    ".*The dirpath has changed from",  # the store was moved, or another machine has trained so far
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
        restore_handlers()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        restore_handlers()
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
        # A batch without a list of ids is one item.
        items = 1
        if isinstance(ids, list):
            items = len(ids)
        assert self._progress is not None
        self._progress.update(items)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._progress is not None
        self._progress.close()


class CostStart(Callback):
    """Marks the start of a stage in its cost logs, so that the cost of a killed process is known to be unknown.

    Attributes:
        cost_logs: The cost logs of the stage.
        starts: Id of the start in each; empty before the stage has started.
    """

    def __init__(self) -> None:
        self.cost_logs: Sequence[Path] = ()
        self.starts: dict[Path, str] = {}

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # After the model is loaded: one that cannot be loaded leaves nothing in the store.
        if trainer.is_global_zero:
            self.mark()

    def mark(self) -> None:
        """Writes the start to the cost logs."""
        self.starts = {path: append_start(path) for path in self.cost_logs}


class Stages:
    """Runs the stages of a run.

    Args:
        trainer: Runs them; its progress bar must be a `StageBar`.
        checks: Called once before the first stage that computes something; each raises a `ValueError` for what would
            stop a later stage, such as a read-only store. A run that lacks nothing calls none.
        executor: Computes what is missing; None does so in this process. It is closed at the end of a `with` block.
        store: The store's folder, which is uploaded at the end of each stage if it has a URL.

    Attributes:
        trainer: The trainer.
        stage_stats: Statistics of each stage, in order.
        parts: Each stage's use of each store, by stage name; only of stages that are `Accounted`.
    """

    def __init__(
        self,
        trainer: Trainer,
        checks: Sequence[Callable[[], object]] = (),
        executor: Executor | None = None,
        store: Path | None = None,
    ) -> None:
        self.trainer = trainer
        self._store = store
        self._executor: Executor = executor or LocalExecutor()
        self._checks = list(checks)
        self._cost_start = CostStart()
        cast(list[Callback], trainer.callbacks).append(self._cost_start)  # pyright: ignore[reportAttributeAccessIssue]
        self.stage_stats: list[StageStats] = []
        self.parts: dict[str, list[StoreUsage]] = {}

    def __enter__(self) -> "Stages":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.close()

    def check_before(self, *checks: Callable[[], object]) -> None:
        """Adds checks to those that are called before the first stage that computes something."""
        self._checks += checks

    def prepare(self) -> None:
        """Calls the checks, unless they were called before.

        Raises:
            ValueError: If one of them fails.
        """
        while self._checks:
            self._checks[0]()
            del self._checks[0]

    def complete(self, title: str, stage: Any, total: int, datamodule: LightningDataModule | None = None) -> None:
        """Computes what `stage` lacks; a stage that lacks nothing loads no model.

        Its cost is added to `stage_stats`, and if it is `Accounted`, to the cost logs of its stores. For a stage that
        fails or is interrupted, they get the cost of what it has computed by then; of a killed one its start alone.

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
        work = Work(device_name(self._device), self.trainer.world_size)
        if missing:
            self.prepare()
            self._cost_start.starts = {}
            self._cost_start.cost_logs = _cost_logs(accounted, lacked)
            try:
                run = StageRun(title, stage, datamodule, self.trainer, self._cost_start.mark, self._store)
                self._executor.compute(run, work)
                if missing_count := len(stage.missing()):
                    # Not a mistake of the user's, but a stage that does not keep its promise; what follows would fail
                    # in a way that is hard to understand.
                    raise RuntimeError(f"{title}: {missing_count} of {total} are still missing after the stage")
            # Also for a signal, which is no `Exception`.
            except BaseException:
                if accounted and self._cost_start.starts:
                    self._enter_interrupted(accounted, lacked, start, work)
                # A machine that is taken away gives a minute's notice: what is done goes to a store with a URL.
                with suppress(Exception):
                    remote.push_pending(self._store)
                raise
        seconds = round(time.perf_counter() - start, 3)
        parts = accounted.parts() if accounted else []
        # A single device that has not started found nothing to do: another run was faster, and enters the cost.
        if lacked and accounted and (self._cost_start.starts or self.trainer.world_size > 1):
            parts = _parts_of(accounted, lacked, seconds, work)
        # A prompt that a server writes costs time on that server, whatever this machine has.
        device = next((part.server for part in parts if part.server), work.device)
        unit = getattr(stage, "unit", "thing")
        self._keep(StageStats(title, missing, total - missing, seconds, unit, device), work)
        self.parts[title] = parts
        if self.trainer.is_global_zero:
            # One line for all devices: the cost log has the costs of a run, not of a process.
            _enter(parts, self.stage_stats[-1], self._cost_start.starts if missing else {})
        remote.push_pending(self._store)

    def _enter_interrupted(self, accounted: Accounted, lacked: Sequence[int], start: float, work: Work) -> None:
        """Writes the cost of what a failed or interrupted stage has computed."""
        # The error of the stage is the one to report. Without this line its cost counts as unknown.
        with suppress(Exception):
            seconds = round(time.perf_counter() - start, 3)
            parts = _parts_of(accounted, lacked, seconds, work)
            device = next((part.server for part in parts if part.server), work.device)
            # The tokens of the other devices are unknown.
            stats = StageStats("", 0, 0, seconds, device=device, devices=work.devices)
            _enter(parts, stats, self._cost_start.starts)

    def _keep(self, stats: StageStats, work: Work) -> None:
        self.stage_stats.append(
            replace(
                stats,
                devices=work.devices,
                peak_memory=work.peak_memory,
                peak_from=work.peak_from,
                tokens=work.tokens,
                workers=work.workers,
            )
        )

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
        work = Work(device_name(self._device), self.trainer.world_size, None, peak.bytes, peak.source)
        self._keep(StageStats(title, total, 0, seconds, unit, work.device), work)

    @property
    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device


def _cost_logs(accounted: Accounted | None, lacked: Sequence[int]) -> list[Path]:
    """Returns the cost logs of the stores that lack something."""
    if accounted is None:
        return []
    return [part.cost_log for part, count in zip(accounted.parts(), lacked, strict=True) if count]


def _parts_of(accounted: Accounted, lacked: Sequence[int], seconds: float, work: Work) -> list[StoreUsage]:
    """Returns a stage's use of each store, with what it has computed and the seconds of that."""
    computed = [before - after for before, after in zip(lacked, accounted.lacking(), strict=True)]
    return _split_seconds(accounted.parts(), computed, seconds, work.spent)


def _enter(parts: Sequence[StoreUsage], stats: StageStats, starts: Mapping[Path, str]) -> None:
    """Writes the costs of what was computed to the cost logs, and ends what has started in them."""
    for part in parts:
        start = starts.get(part.cost_log, "")
        if part.computed or start:
            line = Line(
                max(0, part.computed), part.unit, part.seconds, stats.device, stats.devices, stats.tokens, start
            )
            append(part.cost_log, line)


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
