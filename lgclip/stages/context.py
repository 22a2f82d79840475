"""Holds the settings that all stages and trainings of one run share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer

from lgclip.datasets.unreadable import OnBadImage
from lgclip.stages.runner import Stages
from lgclip.store.remote import is_remote


def image_format(requested: str | None, store: Path) -> str:
    """Returns how new synthetic images are stored.

    Args:
        requested: `files`, `tar`, or None for what suits the store.
        store: The store's folder.

    Raises:
        ValueError: If they are to be files of an object store.
    """
    if not is_remote(store):
        return requested or "files"
    if requested == "files":
        # A request for each of a million images would take hours, and cost more than the images.
        raise ValueError(
            "paths.images=files: an object store holds images in shards of 1,000; leave it out, or set paths.images=tar"
        )
    return requested or "tar"


@dataclass(frozen=True)
class RunContext:
    """Groups the settings of a run that are passed on together.

    Attributes:
        store: The store's folder.
        stages: Runs the stages and records their costs.
        make_trainer: Builds a Lightning trainer on the run's devices; its arguments override those of the config.
        on_bad_image: Policy for unreadable images.
        workers: Number of processes that decode images; with 0, threads of the main process do. None lets each stage
            choose it by a measurement.
        image_format: Storage of new synthetic images: `files`, `tar` for shards, `sheet` for a few thumbnails, `none`.
        logger: Lightning logger for trainings; False for none.
    """

    store: Path
    stages: Stages
    make_trainer: Callable[..., Trainer] = field(default=Trainer, repr=False)
    on_bad_image: OnBadImage = OnBadImage.RAISE
    workers: int | None = 0
    image_format: str = "files"
    logger: Any = False

    @property
    def trainer(self) -> Trainer:
        """Returns the trainer that runs the stages."""
        return self.stages.trainer

    @property
    def training_workers(self) -> int:
        """Returns the number of processes that make the batches of a training."""
        # Threads of the main process keep decoded images in memory from epoch to epoch, which no first batch shows.
        return self.workers or 0

    @property
    def device(self) -> torch.device:
        """Returns the device of this process."""
        return self.stages.trainer.strategy.root_device
