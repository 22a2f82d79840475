"""The stage that captions: every device captions its share of the real training images that have no caption."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import LightningDataModule, LightningModule
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data import Dataset as TorchDataset

from lgclip.batch import Unread
from lgclip.captions import Captions
from lgclip.damage import OnBadImage
from lgclip.data import DECODERS, start_method
from lgclip.datasets.base import BadImageError, Dataset
from lgclip.ledger import Part
from lgclip.prompts.caption_lines import one_line
from lgclip.prompts.captioner import ImageWriter
from lgclip.prompts.eyes import Eyes, Sight
from lgclip.stages import Stages

log = logging.getLogger(__name__)


class _Seen(NamedTuple):
    """An image as a captioner takes it in."""

    id: str
    pixels: Tensor


class Sights(NamedTuple):
    """Some images, ready to be looked at.

    Attributes:
        ids: Content keys of the images.
        pixels: What a captioner takes in of each.
        unread: Images that should be among them and cannot be read.
    """

    ids: list[str]
    pixels: list[Tensor]
    unread: Sequence[Unread] = ()


class _Pictures(TorchDataset[Any]):
    """What a worker process needs of the images, and no more: it is sent to each."""

    def __init__(self, images: Dataset, places: Sequence[int], sight: Sight) -> None:
        self._load, self._sight = images.image, sight
        self._places = [(place, images.ids[place]) for place in places]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, at: int) -> _Seen | Unread:
        place, name = self._places[at]
        try:
            image = self._load(place)
        except BadImageError as error:
            return Unread(name, error.where, error.reason)
        return _Seen(name, self._sight(image))

    def __getitems__(self, batch: Sequence[int]) -> list[_Seen | Unread]:
        """A batch, as torch's loaders ask for one; decoding and resizing leave Python's lock to others."""
        threads = 1 if get_worker_info() else min(DECODERS, torch.get_num_threads(), len(batch))
        if threads == 1:
            return [self[at] for at in batch]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(self.__getitem__, batch))


def _gathered(items: Sequence[_Seen | Unread]) -> Sights:
    seen = [item for item in items if isinstance(item, _Seen)]
    unread = [item for item in items if isinstance(item, Unread)]
    return Sights([item.id for item in seen], [item.pixels for item in seen], unread)


class TrainingImages(LightningDataModule):
    """Streams the images without a caption, each device its share.

    Args:
        captions: Whose images.
        workers: Processes that decode images; with 0 threads of this one do.
    """

    def __init__(self, captions: Captions, workers: int = 0) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # what is missing may all be another's share
        self._captions, self._workers = captions, workers

    def predict_dataloader(self) -> DataLoader[Any]:
        """Batches of `Sights`; a batch is what a killed process loses."""
        assert self.trainer is not None
        images, todo = self._captions.images, set(self._captions.missing())
        places = [at for at in range(self.trainer.global_rank, len(images), self.trainer.world_size) if at in todo]
        size = self._captions.writer.at_once
        workers = min(self._workers, -(-len(places) // size))  # none without work
        return DataLoader(
            _Pictures(images, places, self._captions.writer.sight()),
            batch_size=size,
            collate_fn=_gathered,
            num_workers=workers,
            multiprocessing_context=start_method() if workers else None,
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leaves the pixels where they are: a captioner moves a whole pass at once."""
        return batch


class Captioning(LightningModule):
    """Real training images to stored captions.

    Args:
        captions: What is to be captioned, and where it goes.
    """

    unit = "image"
    tokens = None

    def __init__(self, captions: Captions) -> None:
        super().__init__()
        self.captions = captions
        self.eyes: Eyes | None = None
        self._waiting: list[tuple[str, Tensor]] = []

    def missing(self) -> list[int]:
        """Places of the images without a caption."""
        return self.captions.missing()

    def parts(self) -> list[Part]:
        """What is kept account of: captions, under the name that every way to come by prompts has."""
        store, captions = self.captions.store, self.captions
        used = len(captions.images) - len(captions.unread()) if captions.writer.reads_captions else 0
        return [Part("prompts", "caption", f"captions/{store.key}", store.ledger, used)]

    def lacking(self) -> list[int]:
        """How many captions are missing."""
        return [len(self.missing())]

    def on_predict_start(self) -> None:
        self.eyes = self.captions.writer.look(self.device)

    def on_predict_epoch_end(self) -> None:
        self._look(last=True)

    def on_predict_end(self) -> None:
        self.eyes = None

    def predict_step(self, batch: Sights, batch_idx: int) -> None:
        if batch.unread:
            for one in batch.unread:
                log.warning("%s cannot be read as an image (%s)", one.where, one.reason)
            self.captions.findings.add({one.id: one.reason for one in batch.unread})
        self._waiting += zip(batch.ids, batch.pixels, strict=True)
        self._look(last=False)

    def _look(self, *, last: bool) -> None:
        """Captions what waits, in passes of one size, and stores it; what is too short for one waits for more.

        A pass of another size rounds otherwise, and a near tie between two words then falls otherwise: this way a
        caption does not depend on how many devices, workers or images there are. The last pass of all is filled up
        with copies of its last image.
        """
        if self.eyes is None or not self._waiting:
            return
        size = self.eyes.at_once
        n = len(self._waiting) if last else len(self._waiting) // size * size
        done: dict[str, str] = {}
        for start in range(0, n, size):
            own = self._waiting[start : min(start + size, n)]
            pixels = [one for _, one in own]
            said = self._said([*pixels, *pixels[-1:] * (size - len(own))])
            done |= {image: one_line(text) for (image, _), text in zip(own, said, strict=False)}
        self.captions.store.add(done)
        self._waiting = self._waiting[n:]

    def _said(self, pixels: Sequence[Tensor]) -> list[str]:
        assert self.eyes is not None
        try:
            return self.eyes(pixels)
        except torch.OutOfMemoryError:
            raise ValueError(
                f"llm.batch_size: there is no room for {len(pixels)} images at once; ask for fewer (what is captioned "
                "is kept), or take a smaller model"
            ) from None


def caption(
    stages: Stages,
    dataset: Dataset,
    captioner: ImageWriter,
    root: Path,
    *,
    per_class: int,
    workers: int = 0,
    on_bad_image: OnBadImage = OnBadImage.RAISE,
) -> Captions:
    """Captions the first training images of each class, those that have no caption yet.

    Args:
        stages: Runs the stage.
        dataset: The real training images.
        captioner: Who captions. Where its prompts hold no caption, nothing is looked at and no model loads.
        root: The store's folder.
        per_class: Images of each class; a class with fewer has fewer prompts.
        workers: Processes that decode images.
        on_bad_image: What to do about images that cannot be read; all others are captioned first.

    Raises:
        ValueError: If a class has no image, images cannot be read and each must be, or nothing is said of an image.
    """
    captions = Captions(dataset, captioner, root, per_class)
    captions.add_known()
    before = len(captions.unread())
    total = len(captions.images) if captioner.reads_captions else 0
    stages.complete("prompts", Captioning(captions), total, TrainingImages(captions, workers))
    account, unread = stages.accounts[-1], len(captions.unread())  # it counted what was tried
    made, reused = account.made - (unread - before), account.reused - before
    stages.accounts[-1] = replace(account, made=made, reused=reused)
    captions.check(on_bad_image)
    return captions
