"""Holds the settings that all stages and trainings of one run share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from omegaconf import DictConfig

from lgclip.datasets.unreadable import OnBadImage
from lgclip.runtime.instantiate import build
from lgclip.runtime.sweep_job import uses_ray
from lgclip.stages.counts import AUTO
from lgclip.stages.parts import GenerationParts
from lgclip.stages.runner import StageBar, Stages, quiet
from lgclip.store.remote import is_remote
from lgclip.store.root import check_writable, open_root


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

    @classmethod
    def from_config(cls, cfg: DictConfig, *callbacks: Callback) -> "RunContext":
        """Builds the context with a trainer on the run's devices; opens the store.

        Args:
            cfg: The composed config.
            callbacks: Further callbacks of the trainer.

        Raises:
            ValueError: If the store cannot be opened, or cannot hold images in the requested format.
        """
        quiet()
        store = open_root(cfg.paths.store)
        # With Ray the run has one process, whatever GPUs this machine has: its workers have the others.
        devices = {"devices": 1} if uses_ray(cfg) else {}
        make_trainer = partial(build, cfg.trainer, **devices)
        trainer = make_trainer(logger=False, enable_checkpointing=False, callbacks=[StageBar(), *callbacks])
        executor = build(cfg.get("executor"))
        checks = [partial(check_writable, store)]
        if executor is not None:
            checks.append(partial(executor.prepare, store))
        return cls(
            store=store,
            stages=Stages(trainer, checks, executor, store),
            make_trainer=make_trainer,
            on_bad_image=OnBadImage.of(cfg.on_bad_image),
            workers=None if cfg.workers == AUTO else cfg.workers,
            image_format=image_format(cfg.paths.images, store),
        )

    def check_models_of(self, parts: GenerationParts) -> None:
        """Has the models of a generation checked before its first stage, where there is something to compute."""
        if parts.diffuser.needs_prompts:
            self.stages.check_before(parts.llm.check_weights)
        self.stages.check_before(parts.diffuser.check_weights)

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
