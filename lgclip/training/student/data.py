"""Streams real and synthetic training images together; a batch is a function of (seed, step).

Each kind of image is a separate stream, iterated in passes, each a new permutation. A step takes the next images of
both, in such numbers that after any number of steps the fraction of real ones is the requested one, up to less than
one image. An image's augmentation depends only on the seed, its id and the pass.
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

from lgclip.batches import TrainingBatch
from lgclip.diffuser.base import seed_of
from lgclip.runtime.loader_workers import worker_settings
from lgclip.stages.streams import DECODERS
from lgclip.training.augmentation import PixelTransform, seeded
from lgclip.training.loop import StepsFrom

CACHE_BYTES = 2**30
"""Maximum number of decoded images of a stream in memory; later ones are decoded each time."""


@dataclass(frozen=True)
class Source:
    """Holds labelled images of one kind.

    Attributes:
        ids: Content key of each image.
        labels: Class index of each image.
        load: Returns the image at an index, decoded to RGB. It is sent to worker processes, so it keeps no file open.
    """

    ids: Sequence[str] = field(repr=False)
    labels: Sequence[int] = field(repr=False)
    load: Callable[[int], Image.Image] = field(repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, places: Sequence[int]) -> "Source":
        """Returns some of the images, by index."""
        ids = [self.ids[place] for place in places]
        labels = [self.labels[place] for place in places]
        return Source(ids, labels, _Placed(self.load, list(places)))


class _Placed:
    """Loads by an index among some of the images; not a closure, which could not be sent to another process."""

    def __init__(self, load: Callable[[int], Image.Image], places: Sequence[int]) -> None:
        self._load = load
        self._places = places

    def __call__(self, index: int) -> Image.Image:
        return self._load(self._places[index])


def held_out(source: Source, share: float, seed: int) -> tuple[Source, Source]:
    """Splits images into training and held-out ones, class by class, by a hash of their ids.

    The split does not depend on any order. A class keeps at least one training image.

    Args:
        source: The images.
        share: Fraction of each class that is held out.
        seed: Seed of the split.

    Returns:
        The training images and the held-out ones, both in their order.
    """
    of_class: dict[int, list[int]] = {}
    for place, label in enumerate(source.labels):
        of_class.setdefault(label, []).append(place)
    out: set[int] = set()
    for places in of_class.values():
        # Rounded half up, not by `round`, which goes to the even number: classes of 5 and 15 images would differ.
        count = min(len(places) - 1, int(share * len(places) + 0.5))
        # A hash of the id, not a random sample: when images are added, most of those held out stay so.
        out |= set(sorted(places, key=lambda place: seed_of("held out", seed, source.ids[place]))[:count])
    learned_from = [place for place in range(len(source)) if place not in out]
    return source.subset(learned_from), source.subset(sorted(out))


def real_before(step: int, batch_size: int, real_fraction: float) -> int:
    """Returns the number of real images in the batches before a step, computed exactly from the decimal fraction."""
    # As a fraction of the decimal that the config has. In floating point 0.29 * 100 is just below 29, and the count
    # would be wrong by one image.
    return int(step * batch_size * Fraction(str(real_fraction)))


# All steps of a pass ask for the same permutation; two streams at the border of two passes need four.
@lru_cache(maxsize=8)
def _order(n: int, *seed: object) -> Int[Tensor, " n"]:
    """Returns a pass's permutation of n images."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed_of(*seed)))


class _Pixels:
    """Caches a source's decoded images while they are small."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._cached: dict[int, Tensor] = {}
        self._bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source, "_cached": {}, "_bytes": 0}  # a worker gets no cached images

    def __call__(self, index: int) -> Tensor:
        if index in self._cached:
            return self._cached[index]
        pixels = pil_to_tensor(self.source.load(index))
        # Only in the main process: each worker sees other images in each pass, and all would hold a gigabyte.
        if get_worker_info() is None and self._bytes + pixels.numel() <= CACHE_BYTES:
            self._bytes += pixels.numel()
            self._cached[index] = pixels
        return pixels


class _Steps(Dataset[TrainingBatch]):
    """Provides one device's shard of each step's batch."""

    def __init__(self, mixed_data: "MixedData", rank: int, world: int) -> None:
        self._batch_size = mixed_data.batch_size
        self._mix = mixed_data.real_fraction
        self._seed = mixed_data.seed
        self._augmentation = mixed_data.augmentation
        self._rank = rank
        self._world = world
        self._pixels = {name: _Pixels(source) for name, source in mixed_data.sources.items()}

    def images(self, step: int) -> list[tuple[str, int, int]]:
        """Returns stream, index in it, and pass, of each image of a global batch."""
        # Both ends of a step come from the same closed formula, so no step needs to know what those before it took:
        # workers and a resume may begin anywhere.
        first_real = real_before(step, self._batch_size, self._mix)
        last_real = real_before(step + 1, self._batch_size, self._mix)
        spans = {"real": range(first_real, last_real)}
        # What is not real is synthetic, so a batch is always full.
        spans["synthetic"] = range(step * self._batch_size - first_real, (step + 1) * self._batch_size - last_real)
        images = []
        for name, span in spans.items():
            for position in span:
                n = len(self._pixels[name].source)
                turn, place = divmod(position, n)
                images.append((name, int(_order(n, self._seed, name, turn)[place]), turn))
        return images

    def __getitem__(self, step: int) -> TrainingBatch:
        # Every world-th image, not a block: real images come first, and a block of them would leave a device without
        # synthetic ones.
        local_images = self.images(step)[self._rank :: self._world]
        decoded = _decoded([(self._pixels[name], place) for name, place, _ in local_images])
        changed = []
        labels = []
        # Not in the threads that decode: the augmentation uses torch's global generator, which is seeded here.
        for (name, place, turn), pixels in zip(local_images, decoded, strict=True):
            source = self._pixels[name].source
            with seeded(seed_of("change", self._seed, turn, source.ids[place])):
                changed.append(self._augmentation(pixels))
            labels.append(source.labels[place])
        return TrainingBatch(step, torch.stack(changed), torch.tensor(labels), self._batch_size)


class _EvaluationImages(Dataset[tuple[Tensor, int]]):
    """Provides images for evaluation, without augmentation."""

    def __init__(self, source: Source, places: Sequence[int], eval_transform: PixelTransform) -> None:
        self._pixels = _Pixels(source)
        self._places = places
        self._transform = eval_transform

    def __len__(self) -> int:
        return len(self._places)

    def __getitems__(self, batch: Sequence[int]) -> list[tuple[Tensor, int]]:
        places = [self._places[index] for index in batch]
        decoded = _decoded([(self._pixels, place) for place in places])
        labels = self._pixels.source.labels
        return [(self._transform(pixels), labels[place]) for pixels, place in zip(decoded, places, strict=True)]


def _decoded(images: Sequence[tuple[_Pixels, int]]) -> list[Tensor]:
    """Decodes images in threads of the main process: decoding releases the GIL."""
    # A worker process is already one of several, so threads in it would compete for the same cores.
    threads = 1 if get_worker_info() else min(DECODERS, torch.get_num_threads(), len(images))
    if threads == 1:
        return [pixels(place) for pixels, place in images]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda image: image[0](image[1]), images))


class MixedData(LightningDataModule):
    """Streams the batches of a training, one shard per device, and the images for model selection.

    A step takes `batch_size` images over all devices. An epoch is one pass over the larger of the used sets, so that a
    student of half real and half synthetic images takes as many steps as one of either.

    Args:
        sources: The images by kind, `real` and `synthetic`; one that `real_fraction` excludes may be missing.
        real_fraction: Fraction of real images.
        batch_size: Images per step.
        epochs: Number of epochs.
        seed: Seed of the order and of the augmentation.
        augmentation: Augmentation of a training image, by torch's random number generator.
        eval_transform: Preprocessing of the evaluated images.
        evaluated: The images to select on; None for no selection.
        workers: Number of processes that build batches; with 0 the main one does, and decodes in threads.

    Attributes:
        steps_per_epoch: Steps of an epoch.
        steps: Steps of all epochs.

    Raises:
        ValueError: If there is no image of a required kind.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        real_fraction: float,
        *,
        batch_size: int,
        epochs: int,
        seed: int,
        augmentation: PixelTransform,
        eval_transform: PixelTransform,
        evaluated: Source | None = None,
        workers: int = 0,
    ) -> None:
        super().__init__()
        used_kinds = [name for name, used in (("real", real_fraction > 0), ("synthetic", real_fraction < 1)) if used]
        for name in used_kinds:
            if not len(sources.get(name, ())):
                raise ValueError(
                    f"student.real_fraction={real_fraction} takes {name} images to learn from, and there is none"
                )
        # A stream that the mix never takes from must not set the length of an epoch.
        self.sources = {name: sources[name] for name in used_kinds}
        self.real_fraction = real_fraction
        self.batch_size = batch_size
        self.seed = seed
        self.augmentation = augmentation
        self.eval_transform = eval_transform
        self.evaluated = evaluated
        self._workers = workers
        # Rounded up: the last step of an epoch is filled with the next pass, so every image comes at least once.
        self.steps_per_epoch = -(-max(map(len, self.sources.values())) // batch_size)
        self.steps = epochs * self.steps_per_epoch
        self._validation_loader: DataLoader[Any] | None = None

    def setup(self, stage: str) -> None:
        """Validates the batch split before a training.

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
        """Returns a loader of one `TrainingBatch` per step, from the trainer's current step on."""
        assert self.trainer is not None
        return DataLoader(
            _Steps(self, self.trainer.global_rank, self.trainer.world_size),
            # The data set returns whole batches, so the loader must not stack them again.
            batch_size=None,
            sampler=StepsFrom(self.trainer.global_step, self.steps),
            **self._processes(),
        )

    def validation_batches(self) -> DataLoader[Any]:
        """Yields this device's shard of the images to select on: bytes and labels."""
        assert self.trainer is not None
        assert self.evaluated is not None
        if self._validation_loader is None:  # kept, and what it has decoded with it
            # Not Lightning's distributed sampler, which repeats images until all devices have as many: the accuracy
            # would count some twice.
            share = range(self.trainer.global_rank, len(self.evaluated), self.trainer.world_size)
            images = _EvaluationImages(self.evaluated, share, self.eval_transform)
            self._validation_loader = DataLoader(images, batch_size=self.batch_size, **self._processes())
        return self._validation_loader

    def _processes(self) -> dict[str, Any]:
        assert self.trainer is not None
        on_gpu = self.trainer.strategy.root_device.type == "cuda"
        return {
            **worker_settings(self._workers),
            "persistent_workers": self._workers > 0,  # the images to select on are gone through after each epoch
            "pin_memory": on_gpu,
        }
