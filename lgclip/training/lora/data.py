"""Streams the unlabelled images and prior images of a LoRA tuning; a batch is a function of (seed, step).

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

from lgclip.diffuser.base import seed_of
from lgclip.runtime.loader_workers import worker_settings
from lgclip.training.augmentation import center_cropped
from lgclip.training.loop import StepsFrom
from lgclip.training.lora.config import LoraTuning, TuningBatch

CACHE_BYTES = 2**30
"""Maximum number of decoded images of a kind in memory; later ones are decoded each time."""


@dataclass(frozen=True)
class Unlabelled:
    """Holds images of one kind, `pool` or `prior`.

    Attributes:
        name: The kind.
        ids: Content key of each image.
        load: Returns the image at an index, decoded to RGB. It is sent to worker processes, so it keeps no file open.
        captions: Possible captions of each, as indices in the list of all sentences; one of them is sampled.
        weight: Loss weight of each image.
        flip: Whether to flip half of them horizontally.
    """

    name: str
    ids: Sequence[str] = field(repr=False)
    load: Callable[[int], Image.Image] = field(repr=False)
    captions: Sequence[Sequence[int]] = field(repr=False)
    weight: float = 1.0
    flip: bool = False


# All steps of a pass ask for the same permutation; two kinds at the border of two passes need four.
@lru_cache(maxsize=8)
def _order(n: int, *seed: object) -> Int[Tensor, " n"]:
    """Returns a pass's permutation of n images."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed_of(*seed)))


class _TrainingImages:
    """Provides the images of one kind as autoencoder input, cached as bytes while there are few."""

    def __init__(self, images: Unlabelled, size: int) -> None:
        self.images = images
        self._size = size
        self._transform = center_cropped(size, interpolation="bicubic")
        self._cached: dict[int, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_cached": {}}  # a worker gets no cached images

    def __call__(self, index: int, *, mirrored: bool) -> Float[Tensor, "3 h w"]:
        pixels = self._cached.get(index)
        if pixels is None:
            pixels = self._transform(pil_to_tensor(self.images.load(index)))
            # Only in the main process: each worker would fill its own cache, and rarely sees an image twice.
            if get_worker_info() is None and len(self._cached) < CACHE_BYTES // pixels.numel():
                self._cached[index] = pixels
        # Kept as bytes, a quarter of the memory. The autoencoder reads -1 to 1.
        pixels = pixels.float() / 127.5 - 1
        # Mirrored after the cache: it changes from pass to pass.
        if mirrored:
            pixels = pixels.flip(-1)
        return pixels


class Steps(Dataset[TuningBatch]):
    """Provides one device's shard of each step's images, one accumulation part per index.

    Args:
        pool: All the images.
        rank: Rank of the device.
        world: Number of devices.
    """

    def __init__(self, pool: "TuningPool", rank: int, world: int) -> None:
        self._tuning = pool.tuning
        self._rank = rank
        self._world = world
        self._shown = [_TrainingImages(images, pool.size) for images in pool.images]

    def _global_batch(self, step: int) -> list[tuple[_TrainingImages, int, int]]:
        """Returns kind, index in it and pass of each image of a step: equal numbers of each kind."""
        images = []
        for sanitized in self._shown:
            n = len(sanitized.images.ids)
            size = self._tuning.batch_size
            # Each kind is one endless row of passes. A step may end one and begin the next, so none is short, and the
            # step alone says which images it has.
            for position in range(step * size, (step + 1) * size):
                turn, place = divmod(position, n)
                images.append((sanitized, int(_order(n, self._tuning.seed, sanitized.images.name, turn)[place]), turn))
        return images

    def __getitem__(self, index: int) -> TuningBatch:
        step, part = divmod(index, self._tuning.accumulate)
        pixels = []
        captions = []
        seeds = []
        weights = []
        # First the device's shard, then the part of it. Both take every n-th, so that each has images of every kind.
        local_images = self._global_batch(step)[self._rank :: self._world]
        for sanitized, place, turn in local_images[part :: self._tuning.accumulate]:
            images = sanitized.images
            # Everything random about an image comes from this and not from a generator: it must not depend on the
            # device, the part or the worker that happens to handle it.
            chance = (self._tuning.seed, images.name, turn, images.ids[place])
            pixels.append(sanitized(place, mirrored=images.flip and seed_of("mirror", *chance) % 2 == 1))
            choices = images.captions[place]
            captions.append(choices[seed_of("caption", *chance) % len(choices)])
            # The noise itself is sampled where the latents' size is known; only its seed goes through the loader.
            seeds.append(seed_of("noise", *chance))
            weights.append(images.weight)
        return TuningBatch(
            step, torch.stack(pixels), captions, seeds, torch.tensor(weights), total=self._tuning.batch_size
        )


class TuningPool(LightningDataModule):
    """Streams the images of a tuning, one shard per device.

    Each kind is iterated in passes, each a new permutation. An image is resized by its shorter side and center-cropped.
    Its caption, flip and noise depend only on (seed, kind, pass, id).

    Args:
        tuning: The recipe.
        images: The kinds: `batch_size` images of each form a step.
        size: Height and width in pixels.
        workers: Number of processes that decode images.
    """

    def __init__(self, tuning: LoraTuning, images: Sequence[Unlabelled], size: int, workers: int = 0) -> None:
        super().__init__()
        self.tuning = tuning
        self.images = list(images)
        self.size = size
        self._workers = workers

    def setup(self, stage: str) -> None:
        """Validates the batch split before a training.

        Raises:
            ValueError: If a device would have no image in a part of a step.
        """
        assert self.trainer is not None
        # Every part on every device needs at least one image.
        world = self.trainer.world_size
        tuning = self.tuning
        if tuning.batch_size < world * tuning.accumulate:
            raise ValueError(
                f"method.batch_size={tuning.batch_size}: {world} devices share a step and each goes through its share "
                f"in {tuning.accumulate} parts (method.accumulate), so it must be at least {world * tuning.accumulate}"
            )

    def train_dataloader(self) -> DataLoader[Any]:
        """Returns a loader of one `TuningBatch` per part of a step, from the trainer's current step on."""
        assert self.trainer is not None
        parts = self.tuning.accumulate
        return DataLoader(
            Steps(self, self.trainer.global_rank, self.trainer.world_size),
            # The data set returns whole batches, so the loader must not stack them again.
            batch_size=None,
            # Lightning counts optimizer steps, the loader counts their parts.
            sampler=StepsFrom(self.trainer.global_step * parts, self.tuning.steps * parts),
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
            **worker_settings(self._workers),
        )
