"""A training as a stage: it fills a folder of the store, unless that is filled, and says what it took."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from lightning import Trainer

from lgclip.ledger import Account
from lgclip.memory import device_name
from lgclip.stages import Stages

PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
"""What Lightning calls them; mixed: the weights stay in fp32."""

Fitted = tuple[Trainer, Callable[[dict[str, object]], None]]
"""The trainer of a training that has ended, and what writes its outcome, given the seconds and the devices."""


def train_once(folder: Path, stages: Stages, spared: Account, train: Callable[[], Fitted], *, there: bool) -> Path:
    """Trains into a folder, unless it is filled.

    Args:
        folder: Of the store; its `checkpoints/` last until the outcome is written.
        stages: Keeps account of it.
        spared: The account where nothing is left to do.
        train: Trains.
        there: Whether an outcome is in the folder.

    Returns:
        The folder.
    """
    if there:
        stages.accounts.append(spared)
        return folder
    with stages.timed(spared.stage, unit=spared.unit, total=spared.reused):
        start = time.perf_counter()
        trainer, write = train()
        if trainer.is_global_zero:
            seconds, device = round(time.perf_counter() - start, 3), device_name(trainer.strategy.root_device)
            folder.mkdir(parents=True, exist_ok=True)
            write({"seconds": seconds, "device": device, "devices": trainer.world_size})
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        trainer.strategy.barrier()
    return folder
