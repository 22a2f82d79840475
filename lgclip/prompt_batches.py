"""Batches that soft prompts are learnt from: real and synthetic images streamed together, by (seed, step) alone.

Both are streams of their own: one pass after another over all of them, each pass in another order.
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

from lgclip.batch import PromptBatch
from lgclip.data import DECODERS, start_method
from lgclip.diffuser.base import seed_of
from lgclip.encoder.base import Transform
from lgclip.mixture import KEPT_BYTES
from lgclip.pool import Images
from lgclip.steps import StepsFrom


class Rows(NamedTuple):
    """What a round learns from: some images, and what they may show.

    Attributes:
        places: Those of the images that are used; one may stand there twice.
        sets: Candidate classes of each.
        kinds: As in a `PromptBatch`.
    """

    places: Int[Tensor, " r"]
    sets: Bool[Tensor, "r c"]
    kinds: Int[Tensor, " r"]


class Look:
    """Images as an encoder sees them, kept in the main process while there is room; or their features.

    Args:
        images: The images.
        transform: The encoder's; None gives their features.
    """

    def __init__(self, images: Images, transform: Transform | None) -> None:
        self._images, self._transform = images, transform
        self._kept: dict[int, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_images": self._images, "_transform": self._transform, "_kept": {}}

    def __call__(self, at: int) -> Tensor:
        assert self._transform is not None
        if at in self._kept:
            return self._kept[at]
        pixels = self._transform(self._images.load(at))
        if get_worker_info() is None and (len(self._kept) + 1) * pixels.nbytes <= KEPT_BYTES:
            self._kept[at] = pixels
        return pixels

    def stacked(self, places: Sequence[int]) -> Tensor:
        """Several of them; decoding leaves Python's lock to others, so in the main process threads do it."""
        if self._transform is None:
            return self._images.features[list(places)]
        threads = 1 if get_worker_info() else min(DECODERS, torch.get_num_threads(), len(places))
        if threads < 2:
            return torch.stack([self(at) for at in places])
        with ThreadPoolExecutor(threads) as pool:
            return torch.stack(list(pool.map(self, places)))


class _Steps(Dataset[PromptBatch]):
    """The share of one device in each step's batch."""

    def __init__(self, batches: "Batches", rank: int, world: int) -> None:
        self._streams, self._seed, self._rank, self._world = batches.streams, batches.seed, rank, world

    def __getitem__(self, step: int) -> PromptBatch:
        chosen = [self._rows(name, step) for name in self._streams]
        kinds = torch.cat([rows.kinds[at] for (rows, _, _), at in zip(self._streams.values(), chosen, strict=True)])
        parts = [
            (look.stacked(rows.places[mine].tolist()), rows.sets[mine], rows.kinds[mine])
            for (rows, _, look), at in zip(self._streams.values(), chosen, strict=True)
            if len(mine := at[self._rank :: self._world])
        ]
        inputs, sets, own = (torch.cat(part) for part in zip(*parts, strict=True))
        return PromptBatch(step, inputs, sets, own, torch.bincount(kinds, minlength=3))

    def _rows(self, name: str, step: int) -> Int[Tensor, " b"]:
        """Which rows of a stream a whole batch has."""
        rows, size, _ = self._streams[name]
        places = (divmod(at, len(rows.places)) for at in range(step * size, (step + 1) * size))
        return torch.tensor([int(_order(len(rows.places), self._seed, name, turn)[at]) for turn, at in places])


@lru_cache(maxsize=8)
def _order(n: int, seed: int, name: str, turn: int) -> Int[Tensor, " n"]:
    """A pass's order of n rows."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed_of("prompts", seed, name, turn)))


class Batches(LightningDataModule):
    """Streams the batches of a round, each device its share.

    An epoch is as many steps as it takes to go once through the real images, or the synthetic ones if there are no
    others.

    Args:
        rows: What is learned from, by its name, `real` or `synthetic`; a stream without rows is left out.
        looks: Of each stream how its images are seen.
        sizes: How many of each a step has, of all devices together.
        epochs: How many.
        seed: Of the order.
        workers: Processes that decode images; with 0 the main one does, in threads.

    Attributes:
        steps_per_epoch: Steps of an epoch.
        steps: Steps of all epochs.

    Raises:
        ValueError: If there is nothing to learn from.
    """

    def __init__(
        self,
        rows: Mapping[str, Rows],
        looks: Mapping[str, Look],
        sizes: Mapping[str, int],
        *,
        epochs: int,
        seed: int,
        workers: int = 0,
    ) -> None:
        super().__init__()
        used = [name for name in rows if len(rows[name].places) and sizes[name]]
        if not used:
            raise ValueError("this round has no image to learn from: none is labelled, and none could be")
        self.streams = {name: (rows[name], sizes[name], looks[name]) for name in used}
        self.seed, self._workers = seed, workers
        first, size, _ = self.streams[used[0]]
        self.steps_per_epoch = -(-len(first.places) // size)
        self.steps = epochs * self.steps_per_epoch

    def setup(self, stage: str) -> None:
        """Runs before a round.

        Raises:
            ValueError: If a device would have no image.
        """
        assert self.trainer is not None
        size = max(size for _, size, _ in self.streams.values())
        if size < self.trainer.world_size:
            raise ValueError(
                f"learner.batch_size={size}: {self.trainer.world_size} devices share a batch, so it must have an "
                "image for each; raise it, or set trainer.devices lower"
            )

    def steps_of(self, rank: int, world: int) -> Dataset[PromptBatch]:
        """One device's share of each step's batch, by the step."""
        return _Steps(self, rank, world)

    def train_dataloader(self) -> DataLoader[Any]:
        """One `PromptBatch` a step, from the step on that the trainer has come to."""
        assert self.trainer is not None
        return DataLoader(
            self.steps_of(self.trainer.global_rank, self.trainer.world_size),
            batch_size=None,
            sampler=StepsFrom(self.trainer.global_step, self.steps),
            num_workers=self._workers,
            multiprocessing_context=start_method() if self._workers else None,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
        )
