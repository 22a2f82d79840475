"""Real and synthetic images, streamed together to whoever learns from them; a batch is a function of (seed, step).

Each kind of image is a stream of its own: one pass after another over all of them, each pass in another order. A
step takes the next images of both, so many of each that after any number of steps the share of the real ones is what
was asked for, but for less than one image. How an image is changed depends on the seed, its id and the pass alone.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Int
from lightning import LightningDataModule
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torchvision.transforms.v2.functional import pil_to_tensor

from lgclip.augmentation import Change, seeded
from lgclip.batch import TrainingBatch
from lgclip.data import DECODERS, start_method
from lgclip.diffuser.base import seed_of
from lgclip.steps import StepsFrom

KEPT_BYTES = 2**30
"""Decoded images of a stream that are kept in memory, at most; those that come later are decoded each time."""


@dataclass(frozen=True)
class Source:
    """Labelled images of one kind.

    Attributes:
        ids: Content key of each image.
        labels: Class index of each image.
        load: The image at a place, decoded to RGB. It goes to worker processes, so it keeps no file open.
    """

    ids: Sequence[str] = field(repr=False)
    labels: Sequence[int] = field(repr=False)
    load: Callable[[int], Image.Image] = field(repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, places: Sequence[int]) -> "Source":
        """Some of the images, by their places."""
        ids, labels = [self.ids[place] for place in places], [self.labels[place] for place in places]
        return Source(ids, labels, _Placed(self.load, list(places)))


class _Placed:
    """Loads by a place among some of the images; no closure, which could not be sent to another process."""

    def __init__(self, load: Callable[[int], Image.Image], places: Sequence[int]) -> None:
        self._load, self._places = load, places

    def __call__(self, at: int) -> Image.Image:
        return self._load(self._places[at])


def held_out(source: Source, share: float, seed: int) -> tuple[Source, Source]:
    """Divides images into those to learn from and those held out, class by class, by a hash of their ids.

    Which are held out depends on no order. A class keeps at least one image to learn from.

    Args:
        source: The images.
        share: Share of each class that is held out.
        seed: Another seed holds out others.

    Returns:
        What is learned from, and what is held out, both in their order.
    """
    of_class: dict[int, list[int]] = {}
    for at, label in enumerate(source.labels):
        of_class.setdefault(label, []).append(at)
    out: set[int] = set()
    for places in of_class.values():
        wanted = min(len(places) - 1, int(share * len(places) + 0.5))
        out |= set(sorted(places, key=lambda at: seed_of("held out", seed, source.ids[at]))[:wanted])
    every = range(len(source))
    return source.at([at for at in every if at not in out]), source.at([at for at in every if at in out])


def real_before(step: int, batch_size: int, mix: float) -> int:
    """How many real images are in the batches before a step; as exact as the number is written."""
    return int(step * batch_size * Fraction(str(mix)))


@lru_cache(maxsize=8)
def _order(n: int, *seed: object) -> Int[Tensor, " n"]:
    """A pass's order of n images."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed_of(*seed)))


class _Pixels:
    """A source's decoded images, kept while they are small."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._kept: dict[int, Tensor] = {}
        self._bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source, "_kept": {}, "_bytes": 0}  # what is kept is no worker's business

    def __call__(self, at: int) -> Tensor:
        if at in self._kept:
            return self._kept[at]
        pixels = pil_to_tensor(self.source.load(at))
        if get_worker_info() is None and self._bytes + pixels.numel() <= KEPT_BYTES:
            self._bytes += pixels.numel()
            self._kept[at] = pixels
        return pixels


class _Steps(Dataset[TrainingBatch]):
    """The share of one device in each step's batch."""

    def __init__(self, mixture: "Mixture", rank: int, world: int) -> None:
        self._batch_size, self._mix, self._seed = mixture.batch_size, mixture.mix, mixture.seed
        self._change, self._rank, self._world = mixture.change, rank, world
        self._pixels = {name: _Pixels(source) for name, source in mixture.sources.items()}

    def images(self, step: int) -> list[tuple[str, int, int]]:
        """Stream, place in it, and pass, of each image of a whole batch."""
        real = [real_before(at, self._batch_size, self._mix) for at in (step, step + 1)]
        spans = {"real": range(*real)}
        spans["synthetic"] = range(step * self._batch_size - real[0], (step + 1) * self._batch_size - real[1])
        found = []
        for name, span in spans.items():
            for position in span:
                turn, at = divmod(position, len(self._pixels[name].source))
                found.append((name, int(_order(len(self._pixels[name].source), self._seed, name, turn)[at]), turn))
        return found

    def __getitem__(self, step: int) -> TrainingBatch:
        mine = self.images(step)[self._rank :: self._world]
        decoded = _decoded([(self._pixels[name], at) for name, at, _ in mine])
        changed, labels = [], []
        for (name, at, turn), pixels in zip(mine, decoded, strict=True):
            source = self._pixels[name].source
            with seeded(seed_of("change", self._seed, turn, source.ids[at])):
                changed.append(self._change(pixels))
            labels.append(source.labels[at])
        return TrainingBatch(step, torch.stack(changed), torch.tensor(labels), self._batch_size)


class _Seen(Dataset[tuple[Tensor, int]]):
    """Some images as they are judged: not changed by chance."""

    def __init__(self, source: Source, places: Sequence[int], look: Change) -> None:
        self._pixels, self._places, self._look = _Pixels(source), places, look

    def __len__(self) -> int:
        return len(self._places)

    def __getitems__(self, batch: Sequence[int]) -> list[tuple[Tensor, int]]:
        places = [self._places[at] for at in batch]
        decoded = _decoded([(self._pixels, at) for at in places])
        labels = self._pixels.source.labels
        return [(self._look(pixels), labels[at]) for pixels, at in zip(decoded, places, strict=True)]


def _decoded(images: Sequence[tuple[_Pixels, int]]) -> list[Tensor]:
    """Images from their files, in threads of the main process: decoding leaves Python's lock to others."""
    threads = 1 if get_worker_info() else min(DECODERS, torch.get_num_threads(), len(images))
    if threads == 1:
        return [pixels(at) for pixels, at in images]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda one: one[0](one[1]), images))


class Mixture(LightningDataModule):
    """Streams the batches of a training, each device its share, and the images to select on.

    A step takes `batch_size` images of all devices together. An epoch is as many steps as it takes to go once
    through the larger of the sets that are used, so that a student of half real and half synthetic images makes as
    many steps as one of either.

    Args:
        sources: The images by their kind, `real` and `synthetic`; one that `mix` has no use for may lack.
        mix: Share of real images.
        batch_size: Images of a step.
        epochs: How many.
        seed: Of the order and of the changes.
        change: What is done to a training image, by torch's random numbers.
        look: What is done to the others.
        judged: The images to select on; None for no such thing.
        workers: Processes that make batches; with 0 the main one does, and decodes in threads.

    Attributes:
        steps_per_epoch: Steps of an epoch.
        steps: Steps of all epochs.

    Raises:
        ValueError: If there is no image of a kind that is wanted.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        mix: float,
        *,
        batch_size: int,
        epochs: int,
        seed: int,
        change: Change,
        look: Change,
        judged: Source | None = None,
        workers: int = 0,
    ) -> None:
        super().__init__()
        wanted = [name for name, used in (("real", mix > 0), ("synthetic", mix < 1)) if used]
        for name in wanted:
            if not len(sources.get(name, ())):
                raise ValueError(f"student.mix={mix} takes {name} images to learn from, and there is none")
        self.sources = {name: sources[name] for name in wanted}
        self.mix, self.batch_size, self.seed, self.change, self.look = mix, batch_size, seed, change, look
        self.judged, self._workers = judged, workers
        self.steps_per_epoch = -(-max(map(len, self.sources.values())) // batch_size)
        self.steps = epochs * self.steps_per_epoch
        self._judging: DataLoader[Any] | None = None

    def setup(self, stage: str) -> None:
        """Runs before a training.

        Raises:
            ValueError: If a device would have no image.
        """
        assert self.trainer is not None
        if self.batch_size < self.trainer.world_size:
            raise ValueError(
                f"student.batch_size={self.batch_size}: {self.trainer.world_size} devices share a batch, so it must "
                "have an image for each; raise it, or set trainer.devices lower"
            )

    def train_dataloader(self) -> DataLoader[Any]:
        """One `TrainingBatch` a step, from the step on that the trainer has come to."""
        assert self.trainer is not None
        return DataLoader(
            _Steps(self, self.trainer.global_rank, self.trainer.world_size),
            batch_size=None,
            sampler=StepsFrom(self.trainer.global_step, self.steps),
            **self._processes(),
        )

    def judged_batches(self) -> DataLoader[Any]:
        """This device's share of the images to select on: bytes and labels."""
        assert self.trainer is not None
        assert self.judged is not None
        if self._judging is None:  # kept, and what it has decoded with it
            share = range(self.trainer.global_rank, len(self.judged), self.trainer.world_size)
            images = _Seen(self.judged, share, self.look)
            self._judging = DataLoader(images, batch_size=self.batch_size, **self._processes())
        return self._judging

    def _processes(self) -> dict[str, Any]:
        assert self.trainer is not None
        on_gpu = self.trainer.strategy.root_device.type == "cuda"
        started = start_method() if self._workers else None
        return {
            "num_workers": self._workers,
            "multiprocessing_context": started,
            "persistent_workers": self._workers > 0,  # the images to select on are gone through after each epoch
            "pin_memory": on_gpu,
        }
