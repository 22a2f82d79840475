"""Implements the captioning stage: every device captions its shard of the training images without a caption."""

import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import lcm
from typing import Any, NamedTuple

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data import Dataset as TorchDataset

from lgclip.datasets.base import BadImageError, Dataset
from lgclip.prompts.caption_file import single_line
from lgclip.prompts.captioning_models import CPU_IMAGES, CaptioningModel, ImagePreprocessor
from lgclip.runtime.loader_workers import worker_settings
from lgclip.stages.caption_set import Captions
from lgclip.stages.context import RunContext
from lgclip.stages.measured_loader import MeasuredLoader, this_machine
from lgclip.stages.sharding import ReusableLoader, ShardedStage
from lgclip.stages.streams import DECODERS
from lgclip.store.cost_log import StoreUsage
from lgclip.store.keys import content_key
from lgclip.types import Unread

log = logging.getLogger(__name__)


class _Preprocessed(NamedTuple):
    """Holds an image preprocessed for a captioner."""

    id: str
    pixels: Tensor


class PreprocessedImages(NamedTuple):
    """Holds a batch of images, ready for captioning.

    Attributes:
        ids: Content keys of the images.
        pixels: Preprocessed content of each.
        unread: Images that belong to the batch but cannot be read.
    """

    ids: list[str]
    pixels: list[Tensor]
    unread: Sequence[Unread] = ()


class _CaptionImages(TorchDataset[Any]):
    """Holds only what a worker process needs of the images, since it is sent to each."""

    def __init__(self, images: Dataset, places: Sequence[int], preprocessor: ImagePreprocessor) -> None:
        self._load = images.image
        self._preprocessor = preprocessor
        self._places = [(place, images.ids[place]) for place in places]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> _Preprocessed | Unread:
        place, name = self._places[index]
        try:
            image = self._load(place)
        except BadImageError as error:
            # Returned, not raised: an error in a worker would end the stage, and lose the captions of all others.
            return Unread(name, error.where, error.reason)
        return _Preprocessed(name, self._preprocessor(image))

    def __getitems__(self, batch: Sequence[int]) -> list[_Preprocessed | Unread]:
        """Returns a batch in the form that torch's loaders expect; decoding and resizing release the GIL."""
        # A worker process is already one of several, so threads in it would compete for the same cores.
        threads = 1 if get_worker_info() else min(DECODERS, torch.get_num_threads(), len(batch))
        if threads == 1:
            return [self[index] for index in batch]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(self.__getitem__, batch))


def _collate(items: Sequence[_Preprocessed | Unread]) -> PreprocessedImages:
    preprocessed = [item for item in items if isinstance(item, _Preprocessed)]
    unread = [item for item in items if isinstance(item, Unread)]
    return PreprocessedImages([item.id for item in preprocessed], [item.pixels for item in preprocessed], unread)


class TrainingImages(LightningDataModule):
    """Streams the images without a caption, one shard per device.

    Args:
        captions: Captions whose images are streamed.
        workers: Number of processes that decode images; with 0, threads of this process do. None chooses it by a
            measurement of the first batches.

    Attributes:
        used_workers: Number of processes that decoded images.
    """

    def __init__(self, captions: Captions, workers: int | None = 0) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # another device may have all missing items
        self._captions = captions
        self._workers = workers
        self.used_workers = 0
        self._reusable: ReusableLoader | None = None

    def predict_dataloader(self) -> DataLoader[Any] | MeasuredLoader:
        """Returns batches of `PreprocessedImages`; a killed process loses at most one batch."""
        assert self.trainer is not None
        images = self._captions.images
        todo = set(self._captions.missing())
        # Shares of all images and not of what is missing: each device sees the store at another moment, and two lists
        # of what is missing could overlap.
        shard = range(self.trainer.global_rank, len(images), self.trainer.world_size)
        places = [place for place in shard if place in todo]
        size = self._captions.prompt_generator.items_per_call
        items = _CaptionImages(images, places, self._captions.prompt_generator.preprocessor())
        if self._workers is None and places:
            machine = this_machine(self.trainer.strategy.root_device, self.trainer.num_devices)
            return MeasuredLoader(items, size, machine, self._note_workers, collate_fn=_collate)
        self._note_workers(min(self._workers or 0, -(-len(places) // size)))  # none without work
        return DataLoader(items, batch_size=size, collate_fn=_collate, **worker_settings(self.used_workers))

    def _note_workers(self, workers: int) -> None:
        self.used_workers = workers

    def shard_loader(self, loader: int, places: Sequence[int]) -> Iterable[Any]:
        """Returns batches of `PreprocessedImages` of some images."""
        images = self._captions.images
        generator = self._captions.prompt_generator
        if not self._workers:
            items = _CaptionImages(images, places, generator.preprocessor())
            return DataLoader(items, batch_size=generator.items_per_call, collate_fn=_collate)
        if self._reusable is None:
            everything = _CaptionImages(images, range(len(images)), generator.preprocessor())
            self._reusable = ReusableLoader(everything, generator.items_per_call, self._workers, collate_fn=_collate)
        return self._reusable.load(places)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leaves the pixels in place: a captioner moves a complete pass at once."""
        return batch


class CaptioningStage(ShardedStage):
    """Captions real training images and stores the captions.

    Args:
        captions: Images to caption, and the store of their captions.
    """

    unit = "image"
    tokens = None

    def __init__(self, captions: Captions) -> None:
        super().__init__()
        self.captions = captions
        self.captioning_model: CaptioningModel | None = None
        self._waiting: list[tuple[str, Tensor]] = []

    def missing(self) -> list[int]:
        """Returns the indices of the images without a caption."""
        return self.captions.missing()

    def missing_by_loader(self) -> list[list[int]]:
        return [self.missing()]

    def group_size(self, loader: int, device: str) -> int:
        size = self.captions.prompt_generator.items_per_call
        if device == "cpu":
            return lcm(size, CPU_IMAGES)
        return size

    def item_name(self, loader: int, place: int) -> str:
        return self.captions.images.where(place)

    def content_keys(self) -> list[str]:
        return [content_key(self.captions.prompt_generator.captioned_by())]

    def drop_queue(self) -> None:
        self._waiting = []

    def parts(self) -> list[StoreUsage]:
        """Returns the stage's costs: captions, under the name that all kinds of prompt generation share."""
        store = self.captions.store
        captions = self.captions
        # A prompt form without captions uses no stored caption.
        used = 0
        if captions.prompt_generator.reads_captions:
            used = len(captions.images) - len(captions.unread())
        return [StoreUsage("prompts", "caption", f"captions/{store.key}", store.cost_log, used)]

    def lacking(self) -> list[int]:
        """Returns the number of missing captions."""
        return [len(self.missing())]

    def on_predict_start(self) -> None:
        # Loaded here and not in the constructor: a device without work, or a stage that lacks nothing, loads no
        # model.
        self.captioning_model = self.captions.prompt_generator.load_model(self.device)

    def on_predict_epoch_end(self) -> None:
        self._caption_batch(last=True)

    def on_predict_end(self) -> None:
        self.captioning_model = None

    def predict_step(self, batch: PreprocessedImages, batch_idx: int) -> None:
        if batch.unread:
            for image in batch.unread:
                log.warning("%s cannot be read as an image (%s)", image.where, image.reason)
            # Kept in the store, so that the next run neither tries them again nor counts them as missing.
            self.captions.unreadable.add({image.id: image.reason for image in batch.unread})
        self._waiting += zip(batch.ids, batch.pixels, strict=True)
        self._caption_batch(last=False)

    def _caption_batch(self, *, last: bool) -> None:
        """Captions the queue in passes of one size and stores the result; a remainder waits for more images.

        The pass size affects rounding, which can flip a near tie between two words. With a fixed size a caption does
        not depend on the number of devices, workers or images. The last pass is padded with copies of its last image.
        """
        if self.captioning_model is None or not self._waiting:
            return
        size = self.captioning_model.batch_size
        # The last pass may be short; until then only full ones are made.
        n = len(self._waiting)
        if not last:
            n = n // size * size
        captions: dict[str, str] = {}
        for start in range(0, n, size):
            images = self._waiting[start : min(start + size, n)]
            pixels = [image_pixels for _, image_pixels in images]
            texts = self._generate_captions([*pixels, *pixels[-1:] * (size - len(images))])
            # Not strict: captions of the copies that pad the pass are dropped.
            captions |= {image: single_line(text) for (image, _), text in zip(images, texts, strict=False)}
        self.captions.store.add(captions)
        self._waiting = self._waiting[n:]

    def _generate_captions(self, pixels: Sequence[Tensor]) -> list[str]:
        assert self.captioning_model is not None
        try:
            return self.captioning_model(pixels)
        except torch.OutOfMemoryError:
            raise ValueError(
                f"llm.batch_size: there is no room for {len(pixels)} images at once; ask for fewer (what is captioned "
                "is kept), or take a smaller model"
            ) from None


def caption(context: RunContext, captions: Captions) -> None:
    """Captions the training images without a caption; loads no model where none is needed.

    Args:
        context: Runs the stage, and holds the policy for unreadable images: all others are captioned first.
        captions: Images to caption, and the captioner.

    Raises:
        ValueError: If a class has no image, images are unreadable and the policy does not allow it, or a caption is
            empty and that is not allowed.
    """
    captions.add_available()
    before = len(captions.unread())
    total = 0
    if captions.prompt_generator.reads_captions:
        total = len(captions.images)
    stages = context.stages
    stages.complete("prompts", CaptioningStage(captions), total, TrainingImages(captions, context.workers))
    stats = stages.stage_stats[-1]  # it counted what was tried
    unread = len(captions.unread())
    stages.stage_stats[-1] = replace(stats, computed=stats.computed - (unread - before), reused=stats.reused - before)
    captions.check(context.on_bad_image)
