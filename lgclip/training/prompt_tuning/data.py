"""Streams batches for prompt tuning, of real and synthetic images; a batch is a function of (seed, step).

Both kinds are separate streams, iterated in passes, each a new permutation.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from lgclip.batches import PromptBatch
from lgclip.diffuser.base import seed_of
from lgclip.encoder.base import Transform
from lgclip.runtime.loader_workers import worker_settings
from lgclip.stages.streams import DECODERS
from lgclip.training.loop import StepsFrom
from lgclip.training.prompt_tuning.pool import Images
from lgclip.training.student.data import CACHE_BYTES


class Rows(NamedTuple):
    """Holds the training images of a round with their possible classes.

    Attributes:
        places: Indices of the images that are used; may contain duplicates.
        sets: Candidate classes of each.
        kinds: As in a `PromptBatch`.
    """

    places: Int[Tensor, " r"]
    sets: Bool[Tensor, "r c"]
    kinds: Int[Tensor, " r"]


class CachedImages:
    """Provides preprocessed images, cached in the main process while there is room; or their features.

    Args:
        images: The images.
        transform: The encoder's; None returns their features.
    """

    def __init__(self, images: Images, transform: Transform | None) -> None:
        self._images = images
        self._transform = transform
        self._cached: dict[int, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        # A worker process gets this object pickled. Sending the decoded images along would copy up to a gigabyte to
        # each.
        return {"_images": self._images, "_transform": self._transform, "_cached": {}}

    def __call__(self, index: int) -> Tensor:
        assert self._transform is not None
        if index in self._cached:
            return self._cached[index]
        pixels = self._transform(self._images.load(index))
        # Only the main process keeps images: every worker would fill its own cache, and lose it at the end of a
        # round.
        if get_worker_info() is None and (len(self._cached) + 1) * pixels.nbytes <= CACHE_BYTES:
            self._cached[index] = pixels
        return pixels

    def stacked(self, places: Sequence[int]) -> Tensor:
        """Returns a batch of them; decoding releases the GIL, so that the main process uses threads."""
        if self._transform is None:
            return self._images.features[list(places)]
        # A worker process is already one of several, so threads in it would only compete for the same cores.
        threads = 1 if get_worker_info() else min(DECODERS, torch.get_num_threads(), len(places))
        if threads < 2:
            return torch.stack([self(place) for place in places])
        with ThreadPoolExecutor(threads) as pool:
            return torch.stack(list(pool.map(self, places)))


class _Steps(Dataset[PromptBatch]):
    """Provides one device's shard of each step's batch."""

    def __init__(self, batches: "Batches", rank: int, world: int) -> None:
        self._streams = batches.streams
        self._seed = batches.seed
        self._rank = rank
        self._world = world

    def __getitem__(self, step: int) -> PromptBatch:
        kinds = []
        inputs = []
        sets = []
        local_kinds = []
        for name, (rows, _, images) in self._streams.items():
            batch_rows = self._rows(name, step)
            kinds.append(rows.kinds[batch_rows])
            # Every device computes the rows of the entire batch and takes every world-th of them. So the batch does
            # not depend on the number of devices, and no device needs to hear from another.
            local_rows = batch_rows[self._rank :: self._world]
            if len(local_rows):
                inputs.append(images.stacked(rows.places[local_rows].tolist()))
                sets.append(rows.sets[local_rows])
                local_kinds.append(rows.kinds[local_rows])
        # The totals count the entire batch: the loss divides by them, whatever part of it a device has.
        totals = torch.bincount(torch.cat(kinds), minlength=3)
        return PromptBatch(step, torch.cat(inputs), torch.cat(sets), torch.cat(local_kinds), totals)

    def _rows(self, name: str, step: int) -> Int[Tensor, " b"]:
        """Returns the rows of a stream in a global batch."""
        rows, size, _ = self._streams[name]
        n = len(rows.places)
        batch_rows = []
        # A stream is one endless row of passes. A batch may end one pass and begin the next, so no batch is short,
        # and a resume at any step needs no state: the step alone says which rows it has.
        for position in range(step * size, (step + 1) * size):
            turn, place = divmod(position, n)
            batch_rows.append(int(_order(n, self._seed, name, turn)[place]))
        return torch.tensor(batch_rows)


# All steps of a pass ask for the same permutation. Two streams, each at the border of two passes, need four.
@lru_cache(maxsize=8)
def _order(n: int, seed: int, name: str, turn: int) -> Int[Tensor, " n"]:
    """Returns a pass's permutation of n rows."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed_of("prompts", seed, name, turn)))


class Batches(LightningDataModule):
    """Streams the batches of a round, one shard per device.

    An epoch has as many steps as one pass over the real images needs, or over the synthetic ones if there are no
    others.

    Args:
        rows: The training images by name, `real` or `synthetic`; a stream without rows is left out.
        looks: Preprocessed images of each stream.
        sizes: Images of each stream per step, over all devices.
        epochs: Number of epochs.
        seed: Seed of the order.
        workers: Number of processes that decode images; with 0, threads of the main process do.

    Attributes:
        steps_per_epoch: Steps of an epoch.
        steps: Steps of all epochs.

    Raises:
        ValueError: If there are no training images.
    """

    def __init__(
        self,
        rows: Mapping[str, Rows],
        looks: Mapping[str, CachedImages],
        sizes: Mapping[str, int],
        *,
        epochs: int,
        seed: int,
        workers: int = 0,
    ) -> None:
        super().__init__()
        used = [name for name in rows if len(rows[name].places) and sizes[name]]
        if not used:
            raise ValueError("this round has no image to train on: none is labelled, and none could be")
        self.streams = {name: (rows[name], sizes[name], looks[name]) for name in used}
        self.seed = seed
        self._workers = workers
        # `real` comes first in `rows`, so the synthetic images set the length of an epoch only where they are alone.
        first, size, _ = self.streams[used[0]]
        self.steps_per_epoch = -(-len(first.places) // size)
        self.steps = epochs * self.steps_per_epoch

    def setup(self, stage: str) -> None:
        """Validates the batch split before a round.

        Raises:
            ValueError: If a device would have no image.
        """
        assert self.trainer is not None
        # The larger stream decides: its rows reach every device, also where the smaller one's do not.
        size = max(size for _, size, _ in self.streams.values())
        if size < self.trainer.world_size:
            raise ValueError(
                f"prompt_tuning.batch_size={size}: {self.trainer.world_size} devices share a batch, so it must have an "
                "image for each; raise it, or set trainer.devices lower"
            )

    def steps_of(self, rank: int, world: int) -> Dataset[PromptBatch]:
        """Returns one device's shard of each step's batch, by step."""
        return _Steps(self, rank, world)

    def train_dataloader(self) -> DataLoader[Any]:
        """Returns a loader of one `PromptBatch` per step, from the trainer's current step on."""
        assert self.trainer is not None
        return DataLoader(
            self.steps_of(self.trainer.global_rank, self.trainer.world_size),
            # The data set returns whole batches, so the loader must not stack them again.
            batch_size=None,
            # A resume begins at its step at once. To skip batches by loading them would decode all of their images.
            sampler=StepsFrom(self.trainer.global_step, self.steps),
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
            **worker_settings(self._workers),
        )
