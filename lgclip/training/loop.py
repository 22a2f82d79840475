"""Runs a training into a folder of the store unless it is complete; provides the progress bar and step sampler."""

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from torch.utils.data import Sampler

from lgclip.runtime.devices import device_name
from lgclip.runtime.progress import Progress
from lgclip.runtime.signals import restore_handlers
from lgclip.stages.context import RunContext
from lgclip.store import remote
from lgclip.store.cost_log import StageStats
from lgclip.store.root import check_writable
from lgclip.training.task import TrainingTask

log = logging.getLogger(__name__)

PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
"""Lightning's names of the precisions; mixed: the weights stay in fp32."""


def run_training(task: TrainingTask, context: RunContext) -> Path:
    """Trains into the task's folder of the store, unless that is complete; resumes an interrupted training.

    Args:
        task: The training task. Its `checkpoints/` are kept until the result is written.
        context: Records the cost.

    Returns:
        The folder.

    Raises:
        ValueError: If an image cannot be read, a model cannot be built, or the store is not writable.
    """
    folder = remote.fetch(task.folder(context.store))
    if task.is_complete(folder):
        # Nothing was made, all of it reused: the run's costs name the training all the same.
        context.stages.stage_stats.append(StageStats(task.stage, 0, task.amount, 0.0, task.unit))
        return folder
    if folder.is_dir() and any(path.suffix == ".json" for path in folder.iterdir()):
        log.warning("%s is damaged or incomplete; the training is done again", folder)
    check_writable(context.store)
    with _uploaded(context.store), context.stages.timed(task.stage, unit=task.unit, total=task.amount):
        start = time.perf_counter()
        trainer, outcome = task.fit(context, folder)
        if trainer.is_global_zero:
            # Only the first device writes; all have the same weights.
            seconds = round(time.perf_counter() - start, 3)
            device = device_name(trainer.strategy.root_device)
            folder.mkdir(parents=True, exist_ok=True)
            task.save(folder, outcome, {"seconds": seconds, "device": device, "devices": trainer.world_size})
            # After the result is written. An interruption in between leaves them, and the folder is complete all the
            # same.
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            remote.push_pending(context.store)
            remote.discard_checkpoints(folder)
        # The other devices must not read the folder before it is written.
        trainer.strategy.barrier()
    return folder


@contextmanager
def _uploaded(store: Path) -> Iterator[None]:
    """Uploads the checkpoints of a training that fails or is interrupted to a store with a URL."""
    try:
        yield
    except BaseException:
        # The error of the training is the one to report.
        with suppress(Exception):
            remote.push_pending(store)
        raise


class StepBar(ProgressBar):
    """Shows completed steps and the latest metrics of the module.

    Args:
        title: Name of the training.
        metrics_of: Returns metrics to show, by name; none before the first.
    """

    def __init__(self, title: str, metrics_of: Callable[[Any], Mapping[str, float]]) -> None:
        super().__init__()
        self._title = title
        self._metrics_of = metrics_of
        self._progress: Progress | None = None
        self._enabled = True

    def disable(self) -> None:
        """Disables the bar; Lightning calls this on every device but the first."""
        self._enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning installs signal handlers of its own when a fit begins; this puts back the run's.
        restore_handlers()
        self._progress = Progress(
            self._title, trainer.max_steps, "step", initial=trainer.global_step, enabled=self._enabled
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # By the trainer's count: with accumulated gradients several batches make one step.
        assert self._progress is not None
        self._progress.update(trainer.global_step - self._progress.count)
        if values := self._metrics_of(pl_module):
            self._progress.show_metrics(values)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._progress is not None
        self._progress.close()


class StepsFrom(Sampler[int]):
    """Samples steps from a first one. Its length is the total, since Lightning also counts the steps before a resume.

    Args:
        first: First remaining step.
        steps: Total number of steps.
    """

    def __init__(self, first: int, steps: int) -> None:
        self._first = first
        self._steps = steps

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._first, self._steps))

    def __len__(self) -> int:
        return self._steps
