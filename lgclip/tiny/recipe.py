"""What the recipes of the small models share: batches by step number, AdamW, a warm-up and a cosine."""

import math
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from jaxtyping import Int
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

from lgclip.tiny.corpus import NUM_KINDS, Corpus


class Recipe(LightningModule, ABC):
    """How one small model is trained; a step's batch and noise depend on (seed, step) alone.

    Args:
        corpus: Captioned pictures.
        steps: Number of optimiser steps.
        batch_size: Pictures per step.
        lr: Peak learning rate of AdamW.
        weight_decay: AdamW's weight decay.
        warmup: Steps of linear warm-up before the cosine.
        seed: Chooses the batches and all noise.
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
        """Loss on the pictures at `indices` of the corpus, and what is worth logging."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the trained model, in half precision, in the format of the library that will load it."""

    def choose(self, generator: torch.Generator) -> Int[Tensor, " b"]:
        """The step's pictures, drawn at random with replacement."""
        return torch.randint(len(self.corpus), (self.batch_size,), generator=generator)

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        torch.manual_seed(self.seed * 1_000_003 + self.global_step)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.global_step)
        # The fused attention kernel is slow backwards on a CPU: plain products are 1.5x faster.
        with sdpa_kernel(SDPBackend.MATH):
            loss = self.loss(self.choose(generator))
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.AdamW(
            [p for p in self.parameters() if p.requires_grad],
            lr=self.lr,
            weight_decay=self.weight_decay,
            betas=(0.9, 0.98),
        )

        def factor(step: int) -> float:
            if step < self.warmup:
                return (step + 1) / self.warmup
            done = (step - self.warmup) / max(1, self.steps - self.warmup)
            return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def train_dataloader(self) -> DataLoader[int]:
        return DataLoader(range(self.steps), batch_size=None)  # pyright: ignore[reportArgumentType]


def distinct_kinds(corpus: Corpus, batch_size: int, generator: torch.Generator) -> Int[Tensor, " b"]:
    """Pictures of distinct kinds: no caption in the batch is true of another picture's kind."""
    if batch_size > NUM_KINDS:
        raise ValueError(f"batch_size={batch_size}: at most {NUM_KINDS} pictures have distinct kinds")
    order = torch.randperm(len(corpus), generator=generator)[: batch_size * 40]
    kinds = corpus.kinds[order]
    _, first = kinds.sort(stable=True)
    sorted_kinds = kinds[first]
    new = torch.ones_like(sorted_kinds, dtype=torch.bool)
    new[1:] = sorted_kinds[1:] != sorted_kinds[:-1]
    chosen = order[first[new]]
    return chosen[torch.randperm(len(chosen), generator=generator)[:batch_size]]
