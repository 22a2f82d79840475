"""Implements what the recipes of the small models share: batches by step number, AdamW, warm-up and cosine.

The devices of a training share each step's batch. All draw the same random numbers for all of it, and each uses those
of its own images, so that the batch and its noise are the same on any number of devices; only the order of summation
differs.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

from lgclip.store.checkpoints import SafetensorsIO, last_checkpoint, resumable
from lgclip.tiny.corpus import NUM_KINDS, Corpus


class Recipe(LightningModule, ABC):
    """Defines how one small model is trained; a step's batch and noise depend only on (seed, step).

    On several devices a loss covers this device's shard, and is weighted so that the mean over devices, to which
    gradients are averaged, is the loss of the whole batch.

    Args:
        corpus: Captioned images.
        steps: Number of optimizer steps.
        batch_size: Images per step, over all devices.
        lr: Peak learning rate of AdamW.
        weight_decay: AdamW's weight decay.
        warmup: Steps of linear warm-up before the cosine.
        seed: Seed of the batches and all noise.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        steps: int,
        batch_size: int,
        lr: float,
        weight_decay: float = 0.0,
        warmup: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.corpus = corpus
        self.steps = steps
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.seed = seed

    @abstractmethod
    def loss(self, indices: Int[Tensor, " b"]) -> Tensor:
        """Computes the loss on the images at `indices` of the corpus, and values to log.

        Args:
            indices: The global batch, on every device; the loss is of this device's `share`, weighted by `weigh`.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the trained model, in half precision, in the format of the library that will load it."""

    def choose(self, generator: torch.Generator) -> Int[Tensor, " b"]:
        """Returns the step's images, sampled with replacement."""
        return torch.randint(len(self.corpus), (self.batch_size,), generator=generator)

    @property
    def share(self) -> slice:
        """Returns the rows of the batch that are this device's: a strided slice, starting at its rank."""
        return slice(self.trainer.global_rank, None, self.trainer.world_size)

    def weigh(self, mean: Tensor, local: int, total: int) -> Tensor:
        """Weights a mean over this device's items so that the mean over devices is the mean over all `total` items."""
        return mean * (self.trainer.world_size * local / total)

    def note(self, name: str, value: Tensor) -> None:
        """Logs the devices' mean of a value."""
        self.log(name, value.detach(), prog_bar=name == "loss", sync_dist=True)

    def setup(self, stage: str) -> None:
        """Validates the batch split before a training.

        Raises:
            ValueError: If a device would have no image.
        """
        if self.batch_size < self.trainer.world_size:
            raise ValueError(
                f"method.batch_size={self.batch_size}: {self.trainer.world_size} devices share a batch, so it must "
                "have an image for each; raise it, or set trainer.devices lower"
            )

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        # Seeded again at each step: a resumed training continues with the same random numbers. The
        # factor is a prime above the number of steps, so that two seeds share no step.
        torch.manual_seed(self.seed * 1_000_003 + self.global_step)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.global_step)
        # The fused attention kernel is slow backwards on a CPU: plain products are 1.5x faster.
        with sdpa_kernel(SDPBackend.MATH):
            loss = self.loss(self.choose(generator))
        self.note("loss", loss)
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.AdamW(
            [p for p in self.parameters() if p.requires_grad],
            lr=self.lr,
            weight_decay=self.weight_decay,
            betas=(0.9, 0.98),
        )

        # Written out, because torch's cosine schedule has no warm-up.
        def factor(step: int) -> float:
            if step < self.warmup:
                return (step + 1) / self.warmup
            progress = (step - self.warmup) / max(1, self.steps - self.warmup)
            return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def train_dataloader(self) -> DataLoader[int]:
        return DataLoader(range(self.steps), batch_size=None)  # pyright: ignore[reportArgumentType]


def distinct_kinds(corpus: Corpus, batch_size: int, generator: torch.Generator) -> Int[Tensor, " b"]:
    """Samples images of distinct classes: no caption in the batch is true for another image's class."""
    if batch_size > NUM_KINDS:
        raise ValueError(f"batch_size={batch_size}: at most {NUM_KINDS} images have distinct classes")
    # Forty times as many as are needed hold enough distinct kinds with near certainty, and sorting all images at
    # each step would take longer than the step.
    order = torch.randperm(len(corpus), generator=generator)[: batch_size * 40]
    kinds = corpus.kinds[order]
    # Sorted by kind; the first image of each kind is the one that comes first in the random order.
    _, first = kinds.sort(stable=True)
    sorted_kinds = kinds[first]
    new = torch.ones_like(sorted_kinds, dtype=torch.bool)
    new[1:] = sorted_kinds[1:] != sorted_kinds[:-1]
    chosen = order[first[new]]
    return chosen[torch.randperm(len(chosen), generator=generator)[:batch_size]]


def fit(
    recipe: Recipe, trainer_of: Callable[..., Trainer], logger: Any, folder: Path, *, every: int, ema: float
) -> None:
    """Trains a small model, from the last checkpoint if there is one, and saves it.

    Args:
        recipe: The model.
        trainer_of: Builds a trainer of the run's devices with further arguments.
        logger: Lightning logger; False for none.
        folder: Parent of `checkpoints/` and `model/`.
        every: Steps between two checkpoints.
        ema: Decay of the moving average of the weights, which is saved.
    """
    trainer = trainer_of(
        max_steps=recipe.steps,
        max_epochs=-1,
        plugins=[SafetensorsIO()],
        callbacks=[last_checkpoint(folder / "checkpoints", every), EMAWeightAveraging(decay=ema)],
        logger=logger,
        gradient_clip_val=1.0,
    )
    trainer.fit(recipe, ckpt_path=resumable(folder / "checkpoints" / "last.safetensors"))
    # The average of the weights is in place by now: the callback swaps it in when the training ends.
    if trainer.is_global_zero:
        recipe.save(folder / "model")
