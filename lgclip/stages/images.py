"""Implements the image generation stage: every device generates its shard of the missing images."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from lightning import Trainer
from torch.utils.data import DataLoader

from lgclip.diffuser.base import (
    GeneratedBatch,
    ImageGenerator,
    LoadedPipeline,
    Missing,
    SyntheticImages,
    image_id,
)
from lgclip.diffuser.batch_probe import AUTO, LARGEST_BATCH, memory_meter, no_room, probe_batch_size
from lgclip.runtime.devices import shard_indices
from lgclip.stages.sharding import ShardedStage
from lgclip.store.cost_log import StoreUsage
from lgclip.store.image_codec import codec_of
from lgclip.store.images import ImageStore
from lgclip.store.keys import content_key
from lgclip.store.shard_index import Member
from lgclip.types import Fault, Prompt, TargetClass

log = logging.getLogger(__name__)

CPU_IMAGES = 10
CPU_PIXELS = 512 * 512
"""Maximum number of images per pass on a CPU, and of their pixels: more at once are at best a tenth faster
(30 with the small pipeline), take memory, and are as slow where few are requested."""

WRITERS = 4
"""Threads that encode and write a batch's images."""


class ImageGenerationStage(ShardedStage):
    """Generates images from prompts.

    A faulty image is generated up to `retries` times more, each time with the next derived seed. Every attempt has its
    own key and stores either its image or a marker of its fault, so that no attempt is repeated; a higher `retries`, or
    removing a marker, continues with further attempts.

    Args:
        diffuser: The image generator.
        root: The store's folder.
        target_classes: The classes.
        prompts: The requested images.
        seed: The run's seed.
    """

    unit = "image"
    tokens = None

    def __init__(
        self,
        diffuser: ImageGenerator,
        root: Path,
        target_classes: Sequence[TargetClass],
        prompts: Sequence[Prompt],
        seed: int,
    ) -> None:
        super().__init__()
        self.diffuser = diffuser
        self.target_classes = target_classes
        self.prompts = list(prompts)
        self.run_seed = seed
        self.codec = codec_of(diffuser.image_format)
        self.store = ImageStore(root, diffuser.inputs(), codec=self.codec)
        self._first = [image_id(self.store.key, prompt, seed) for prompt in self.prompts]
        self.pipeline: LoadedPipeline | None = None
        self._probed: int | None = None
        self._lists = False
        self.allow_zero_length_dataloader_with_multiple_devices = True  # another device may have all missing items

    def _id(self, index: int, attempt: int) -> str:
        # First attempts are most of what is asked for, over and over, and hashing each takes time.
        if not attempt:
            return self._first[index]
        return image_id(self.store.key, self.prompts[index], self.run_seed, attempt)

    def _failed(self, index: int) -> list[Fault]:
        """Returns the faults of the attempts so far, up to the first without a fault."""
        faults: list[Fault] = []
        while len(faults) <= self.diffuser.retries:
            name = self._id(index, len(faults))
            fault = None if self._is_done([name])[0] else self.store.fault(name)
            # Generated well, not generated yet, or an unreadable marker. The last counts as none: the attempt is made
            # again.
            if fault not in tuple(Fault):
                break
            faults.append(Fault(fault))
        return faults

    def missing(self) -> list[int]:
        """Returns the indices of images that are still to be generated, without those that failed permanently."""
        self.store.refresh()
        # One question for all first attempts. Only the few without an image are checked one by one.
        is_done = self._is_done(self._first)
        return [index for index, done in enumerate(is_done) if not done and self._todo(index) is not None]

    def _is_done(self, names: Sequence[str]) -> list[bool]:
        """Checks which attempts gave an image."""
        return [place is not None for place in self.store.places(names)]

    def parts(self) -> list[StoreUsage]:
        """Returns the stage's costs: images, each including its failed attempts."""
        return [StoreUsage("images", self.unit, f"images/{self.store.key}", self.store.cost_log, len(self.prompts))]

    def lacking(self) -> list[int]:
        """Returns the number of missing images."""
        return [len(self.missing())]

    def _todo(self, index: int) -> int | None:
        """Returns the next attempt; None if there is none."""
        attempt = len(self._failed(index))
        is_settled = attempt > self.diffuser.retries or self._is_done([self._id(index, attempt)])[0]
        if is_settled:
            return None
        return attempt

    def synthetic_images(self) -> SyntheticImages:
        is_done = self._is_done(self._first)
        prompts: list[Prompt] = []
        ids: list[str] = []
        attempts: list[tuple[int, int]] = []
        missing: list[Missing] = []
        for index, (prompt, done) in enumerate(zip(self.prompts, is_done, strict=True)):
            faults = [] if done else self._failed(index)
            # Every attempt failed. It is reported with its faults, so that the image does not go missing in silence.
            if len(faults) > self.diffuser.retries:
                missing.append(Missing(prompt, tuple(faults)))
                continue
            # The number of faults is the attempt that came out well.
            prompts.append(prompt)
            ids.append(self._id(index, len(faults)))
            attempts.append((index, len(faults)))
        paths = self._locations(ids, attempts)
        return SyntheticImages(self.store.key, self.target_classes, prompts, ids, paths, missing, is_generated=True)

    def _locations(self, ids: Sequence[str], attempts: Sequence[tuple[int, int]]) -> Sequence[Path | Member | None]:
        """Returns the location of each image, by its id, or by its index and attempt; None if it is not stored."""
        places = self.store.places(ids)
        return [place or self.store.path(name) for place, name in zip(places, ids, strict=True)]

    def on_predict_start(self) -> None:
        self.pipeline = self.diffuser.load(self.device)

    def on_predict_end(self) -> None:
        self.pipeline = None
        self.store.close()

    def list_shards(self) -> None:
        """Writes the manifest of the shards, on the first device only, if it may have changed.

        To be called when every device is done. It is not part of predict, in which a device does nothing if all
        missing images are in another's shard.
        """
        if self._lists:
            self.store.list_shards()

    def predict_dataloader(self) -> DataLoader[Any]:
        self._lists = self.trainer.is_global_zero
        todo = set(self.missing())
        return self.shard_loader(
            0, [place for place in shard_indices(self.trainer, len(self.prompts), self._group) if place in todo]
        )

    def shard_loader(self, loader: int, places: Sequence[int]) -> DataLoader[Any]:
        """Returns batches of indices in `wanted`."""
        items: Any = list(places)
        return DataLoader(items, batch_size=self._batch_size(self.device.type), collate_fn=list)

    def missing_by_loader(self) -> list[list[int]]:
        return [self.missing()]

    def group_size(self, loader: int, device: str) -> int:
        return self._batch_size(device)

    def _batch_size(self, device: str) -> int:
        # Whole passes: a pass is what it costs, however few of its images are wanted.
        size = self._pass_size(device)
        if isinstance(self.diffuser.batch_size, str):
            return size
        return -(-self.diffuser.batch_size // size) * size

    def item_name(self, loader: int, place: int) -> str:
        prompt = self.prompts[place]
        repeat = f", repeat {prompt.repeat}" if prompt.repeat else ""
        return f"class {prompt.class_index} ({prompt.target_class.name!r}), the prompt {prompt.text!r}{repeat}"

    def content_keys(self) -> list[str]:
        return [content_key(self.diffuser.inputs())]

    def reread_store(self) -> None:
        self.store.refresh()

    def finish_shards(self, trainer: Trainer) -> None:
        self._lists = True

    def predict_step(self, batch: list[int], batch_idx: int) -> None:
        size = len(batch)
        if self.diffuser.batch_size == AUTO:
            self._probe(batch[0])
            # Stored after each pass: a group of the largest size may take long.
            size = self._pass
        for start in range(0, len(batch), size):
            self._complete(batch[start : start + size])

    def _probe(self, index: int) -> None:
        """Measures how many images a pass of this device may have; once, and only on a GPU.

        Args:
            index: An image to measure with; the images generated from it are discarded.
        """
        meter = memory_meter(self.device)
        if self._probed is not None or meter is None:
            return
        pipeline = self.pipeline
        assert pipeline is not None
        prompt = self.prompts[index]
        self._probed = probe_batch_size(lambda n: pipeline.generate([prompt] * n, self.run_seed, [0] * n), meter)
        log.info("diffuser.batch_size=auto: %d images at once", self._probed)

    def _complete(self, batch: list[int]) -> None:
        """Generates and stores images, with further attempts at faulty ones."""
        # Asked again, since another run may have generated some of them in the meantime.
        todo = {place: attempt for place in batch if (attempt := self._todo(place)) is not None}
        while todo:
            places = list(todo)
            attempts = list(todo.values())
            is_generated = self._generate(places, attempts)
            with ThreadPoolExecutor(WRITERS) as writers:  # leaving it waits for all; an error comes out of `list`
                list(writers.map(self._keep, places, attempts, is_generated.pixels, is_generated.faults))
            self.store.flush()
            # The failed ones of a batch go into passes together, instead of one pass for each.
            todo = {
                place: attempt + 1
                for place, attempt, fault in zip(places, attempts, is_generated.faults, strict=True)
                if fault is not None and attempt < self.diffuser.retries
            }

    def _generate(self, places: list[int], attempts: list[int]) -> GeneratedBatch:
        """Generates in passes of one size; copies of the last image pad a short pass.

        The pass size may change the rounding of the last bit, which a trained model can amplify to a gray level: with
        varying sizes an image would depend on the number of devices and images.
        """
        parts = []
        start = 0
        while start < len(places):
            size = self._pass
            if self._probed is not None:
                # A measured size is not the same everywhere anyway: the next power of two is filled up, and no more.
                size = min(size, 1 << (len(places) - start - 1).bit_length())
            part = self._generate_pass(places[start : start + size], attempts[start : start + size], size)
            if part is None:
                self._halve(size)
                continue
            parts.append(part)
            start += size
        pixels = np.concatenate([part.pixels for part in parts])
        return GeneratedBatch(pixels, list(chain.from_iterable(part.faults for part in parts)))

    def _generate_pass(self, places: list[int], attempts: list[int], size: int) -> GeneratedBatch | None:
        """Generates at most `size` images in one pass of that size; None if they do not fit into memory."""
        assert self.pipeline is not None
        n = len(places)
        fill = size - n
        prompts = [self.prompts[place] for place in [*places, *[places[-1]] * fill]]
        try:
            is_generated = self.pipeline.generate(prompts, self.run_seed, [*attempts, *[attempts[-1]] * fill])
        except torch.OutOfMemoryError:
            return None
        # The copies are dropped before anything is stored.
        return GeneratedBatch(is_generated.pixels[:n], is_generated.faults[:n])

    def _halve(self, size: int) -> None:
        """Halves the measured size of passes, to below one that did not fit.

        Args:
            size: Number of images of that pass.

        Raises:
            ValueError: If the size was not measured, or is 1.
        """
        if self._probed is None or size == 1:
            raise ValueError(no_room(self.diffuser.batch_size, size))
        self._probed = size // 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        log.warning("diffuser.batch_size=auto: %d images did not fit, %d from now on", size, self._probed)

    @property
    def _group(self) -> int:
        """Returns the number of neighboring images that one device generates."""
        return self._pass_size(self.device.type)

    @property
    def _pass(self) -> int:
        """Returns the number of images of a pass on this device."""
        return self._probed or self._pass_size(self.device.type)

    def _pass_size(self, device: str) -> int:
        """Returns the number of images of a pass by the config alone; a measured size divides it."""
        if device != "cpu":
            return LARGEST_BATCH if isinstance(self.diffuser.batch_size, str) else self.diffuser.batch_size
        # From the config alone and not from the memory that is free: the size of a pass may change an image's last
        # bits.
        return max(1, min(CPU_IMAGES, CPU_PIXELS // (self.diffuser.size or 512) ** 2))

    def _keep(self, index: int, attempt: int, pixels: UInt8[np.ndarray, "h w 3"], fault: Fault | None) -> None:
        about = {**self.prompts[index].identity(), "seed": self.run_seed, "attempt": attempt}
        if fault is None:
            self.store.put(self._id(index, attempt), pixels, about)
        else:
            self.store.put_fault(self._id(index, attempt), fault, about)
