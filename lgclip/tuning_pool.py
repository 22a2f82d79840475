"""The unlabelled images that LoRA weights are tuned on, and the prior's; a batch is a function of (seed, step).

No label is known here: an image is its id and its pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int
from lightning import LightningDataModule
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torchvision.transforms.v2.functional import pil_to_tensor

from lgclip.augmentation import centred
from lgclip.data import start_method
from lgclip.diffuser.base import seed_of
from lgclip.lora_spec import LoraTuning, TuningBatch
from lgclip.steps import StepsFrom

KEPT_BYTES = 2**30
"""Decoded images of a kind that are kept in memory, at most; those that come later are decoded each time."""


@dataclass(frozen=True)
class Unlabelled:
    """Images of one kind, `pool` or `prior`.

    Attributes:
        name: The kind.
        ids: Content key of each image.
        load: The image at a place, decoded to RGB. It goes to worker processes, so it keeps no file open.
        captions: What may be said of each, by places in the list of all sentences: one of these, by chance.
        weight: How much each counts.
        flip: Whether half of them are mirrored.
    """

    name: str
    ids: Sequence[str] = field(repr=False)
    load: Callable[[int], Image.Image] = field(repr=False)
    captions: Sequence[Sequence[int]] = field(repr=False)
    weight: float = 1.0
    flip: bool = False


@lru_cache(maxsize=8)
def _order(n: int, *seed: object) -> Int[Tensor, " n"]:
    """A pass's order of n images."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed_of(*seed)))


class _Shown:
    """A kind's images as the autoencoder reads them, kept as bytes while they are few."""

    def __init__(self, images: Unlabelled, size: int) -> None:
        self.images, self._size, self._look = images, size, centred(size, how="bicubic")
        self._kept: dict[int, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_kept": {}}  # what is kept is no worker's business

    def __call__(self, at: int, *, mirrored: bool) -> Float[Tensor, "3 h w"]:
        pixels = self._kept.get(at)
        if pixels is None:
            pixels = self._look(pil_to_tensor(self.images.load(at)))
            if get_worker_info() is None and len(self._kept) < KEPT_BYTES // pixels.numel():
                self._kept[at] = pixels
        pixels = pixels.float() / 127.5 - 1
        return pixels.flip(-1) if mirrored else pixels


class Steps(Dataset[TuningBatch]):
    """The share of one device in each step's images, a part of it at each place.

    Args:
        pool: All the images.
        rank: Which device it is.
        world: How many there are.
    """

    def __init__(self, pool: "TuningPool", rank: int, world: int) -> None:
        self._tuning, self._rank, self._world = pool.tuning, rank, world
        self._shown = [_Shown(images, pool.size) for images in pool.images]

    def _whole(self, step: int) -> list[tuple[_Shown, int, int]]:
        """Kind, place in it and pass of each image of a step: as many of each kind."""
        found = []
        for shown in self._shown:
            n, own = len(shown.images.ids), self._tuning.batch_size
            for position in range(step * own, (step + 1) * own):
                turn, at = divmod(position, n)
                found.append((shown, int(_order(n, self._tuning.seed, shown.images.name, turn)[at]), turn))
        return found

    def __getitem__(self, at: int) -> TuningBatch:
        step, part = divmod(at, self._tuning.accumulate)
        pixels, captions, seeds, weights = [], [], [], []
        for shown, place, turn in self._whole(step)[self._rank :: self._world][part :: self._tuning.accumulate]:
            images = shown.images
            chance = (self._tuning.seed, images.name, turn, images.ids[place])
            pixels.append(shown(place, mirrored=images.flip and seed_of("mirror", *chance) % 2 == 1))
            said = images.captions[place]
            captions.append(said[seed_of("caption", *chance) % len(said)])
            seeds.append(seed_of("noise", *chance))
            weights.append(images.weight)
        return TuningBatch(
            step, torch.stack(pixels), captions, seeds, torch.tensor(weights), total=self._tuning.batch_size
        )


class TuningPool(LightningDataModule):
    """Streams the images of a tuning, each device its share.

    Each kind is gone through pass after pass, each in another order. An image is brought to size by its shorter side
    and its middle taken. What is said of it, its mirroring and its noise depend on (seed, kind, pass, id) alone.

    Args:
        tuning: The recipe.
        images: The kinds: `batch_size` images of each make a step.
        size: Height and width in pixels.
        workers: Processes that decode images.
    """

    def __init__(self, tuning: LoraTuning, images: Sequence[Unlabelled], size: int, workers: int = 0) -> None:
        super().__init__()
        self.tuning, self.images, self.size, self._workers = tuning, list(images), size, workers

    def setup(self, stage: str) -> None:
        """Runs before a training.

        Raises:
            ValueError: If a device would have no image in a part of a step.
        """
        assert self.trainer is not None
        world, own = self.trainer.world_size, self.tuning
        if own.batch_size < world * own.accumulate:
            raise ValueError(
                f"method.batch_size={own.batch_size}: {world} devices share a step and each goes through its share in "
                f"{own.accumulate} parts (method.accumulate), so it must be at least {world * own.accumulate}"
            )

    def train_dataloader(self) -> DataLoader[Any]:
        """One `TuningBatch` a part of a step, from the step on that the trainer has come to."""
        assert self.trainer is not None
        parts = self.tuning.accumulate
        return DataLoader(
            Steps(self, self.trainer.global_rank, self.trainer.world_size),
            batch_size=None,
            sampler=StepsFrom(self.trainer.global_step * parts, self.tuning.steps * parts),
            num_workers=self._workers,
            multiprocessing_context=start_method() if self._workers else None,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
        )
