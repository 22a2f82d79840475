"""Streams real images, synthetic images and sentences, first as pixels, then as features."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import lcm
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from lightning import LightningDataModule
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from lgclip.batches import CPU_ROWS, FeatureBatch, ImageBatch
from lgclip.datasets.base import BadImageError
from lgclip.datasets.image_decoding import image_note
from lgclip.datasets.unreadable import UnreadableImages
from lgclip.runtime.devices import shard_indices
from lgclip.runtime.loader_workers import worker_settings
from lgclip.stages.measured_loader import MeasuredLoader, this_machine
from lgclip.stages.sharding import ReusableLoader
from lgclip.store.features import FeatureStore
from lgclip.types import Role, Unread

TEXT_VIEW = ("text",)
"""The only view of a sentence."""

DECODERS = 8
"""Maximum number of threads that decode images in the main process."""

ROWS_PER_BATCH = 1024
"""Features evaluated at once: more are no faster, and take 10 MB per thousand with a thousand classes."""


@dataclass(frozen=True)
class Stream:
    """Describes one kind of items to encode, and where their features are stored.

    Attributes:
        name: `text`, that of a further text baseline such as `text_llm`, `synthetic`, `real`, or that of a trained
            predictor.
        ids: Content key of each item.
        labels: Class index of each item.
        views: Names of the views of each item.
        store: Store of their features.
        load: Returns the item at an index: an RGB image, or a sentence. A loader of images is sent to worker
            processes, so it is picklable: it keeps no file open.
        unreadable: Records the unreadable items; None where each must be readable.
        where: Returns the name of the item at an index for errors; None uses its id.
        role: Use of the features.
        averages_scores: Of sentences: whether the score of a class is the mean score of its sentences, so that their
            mean is not scaled to unit length.
        encoded_before: Ids that an earlier stream of the same store encodes.
    """

    name: str
    ids: Sequence[str]
    labels: Sequence[int]
    views: Sequence[str]
    store: FeatureStore
    load: Callable[[int], Image.Image | str]
    unreadable: UnreadableImages | None = None
    where: Callable[[int], str] | None = None
    role: Role = Role.EVALUATED
    averages_scores: bool = False
    encoded_before: frozenset[str] = frozenset()

    @property
    def is_text(self) -> bool:
        """Returns whether its items are sentences."""
        return self.role in (Role.TEXT, Role.OTHER_TEXT)

    def name_of(self, item: str) -> str:
        """Returns the name of an item for errors, by its id."""
        if self.where is None:
            return item
        return self.where(list(self.ids).index(item))

    def missing(self) -> list[int]:
        """Returns the indices of readable items without features; of items of equal content only the first."""
        unreadable = self.unreadable.reasons() if self.unreadable else {}
        places: dict[str, int] = {}
        for place in self.store.missing(self.ids, self.views):
            # An image that is known to be unreadable would fail again in every run, and the stage would never be
            # complete.
            if self.ids[place] not in unreadable and self.ids[place] not in self.encoded_before:
                places.setdefault(self.ids[place], place)
        return list(places.values())

    def notes(self) -> dict[int, str]:
        """Returns the notes on readable items with an unusual format, by index."""
        notes_by_id = self.unreadable.notes() if self.unreadable else {}
        if not notes_by_id:
            return {}
        return {place: notes_by_id[item] for place, item in enumerate(self.ids) if item in notes_by_id}

    def unread(self) -> dict[int, str]:
        """Returns the known reasons why items without features cannot be read, by index."""
        unreadable = self.unreadable.reasons() if self.unreadable else {}
        # The usual case, in which the store need not be searched.
        if not unreadable:
            return {}
        # Only those without features: an image that was repaired and encoded since is read again.
        absent = self.store.missing(self.ids, self.views)
        return {place: unreadable[self.ids[place]] for place in absent if self.ids[place] in unreadable}

    def features(self) -> Float[Tensor, "n s d"]:
        """Returns the features of all items, in order."""
        return self.store.take(self.ids, self.views)

    def rows(self, places: Int[Tensor, " b"]) -> FeatureBatch:
        """Returns the features of some items, read on access."""
        indices: list[int] = places.tolist()
        if indices:
            features = self.store.take([self.ids[index] for index in indices], self.views)
        else:
            # An empty shard. The feature dimension must still be right, since devices gather their rows.
            width = self.store.width(self.ids[0], self.views[0])
            features = torch.empty(0, len(self.views), width)
        return FeatureBatch(features, torch.tensor([self.labels[index] for index in indices], dtype=torch.long), places)

    def batches(self) -> Iterator[FeatureBatch]:
        """Yields the features of all items in order, in batches."""
        parts = _Features(self, range(len(self.ids)))
        yield from map(parts.__getitem__, range(len(parts)))


class Views(Protocol):
    """Turns an image and its id into its views, ready for the encoder."""

    def __call__(self, image: Image.Image, image_id: str) -> Float[Tensor, "s 3 h w"]: ...


class _StreamImages(Dataset[Any]):
    """Holds only what a worker process needs of a stream, since it is sent to each."""

    def __init__(self, stream: Stream, places: Sequence[int], views: Views) -> None:
        self._load = stream.load
        self._views = views
        self._has_notes = stream.unreadable is not None
        self._places = [(place, stream.ids[place]) for place in places]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> "_ImageViews | Unread":
        place, name = self._places[index]
        try:
            image = self._load(place)
        except BadImageError as error:
            # Returned, not raised: an error in a worker ends the whole stage, and all other images would wait for
            # this one.
            return Unread(name, error.where, error.reason)
        assert not isinstance(image, str)
        note = image_note(image) if self._has_notes else ""
        return _ImageViews(name, self._views(image, name), note)

    def __getitems__(self, batch: Sequence[int]) -> "list[_ImageViews | Unread]":
        """Returns a batch in the form that torch's loaders expect; decoding and resizing release the GIL."""
        # A worker process is already one of several, so threads in it would compete for the same cores.
        threads = 1 if get_worker_info() else min(DECODERS, torch.get_num_threads(), len(batch))
        if threads == 1:
            return [self[index] for index in batch]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(self.__getitem__, batch))


class _Features(Dataset[FeatureBatch]):
    """Yields the features at some indices in batches; at least one batch, which may be empty."""

    def __init__(self, stream: Stream, places: Sequence[int]) -> None:
        self._stream = stream
        self._places = places

    def __len__(self) -> int:
        # At least one: a device without a batch would not take part in the collective operations of the test, and the
        # others would wait for it for ever.
        return max(1, -(-len(self._places) // ROWS_PER_BATCH))

    def __getitem__(self, index: int) -> FeatureBatch:
        part = self._places[index * ROWS_PER_BATCH : (index + 1) * ROWS_PER_BATCH]
        return self._stream.rows(torch.tensor(part, dtype=torch.long))


class _ImageViews(NamedTuple):
    """Holds all views of an image, and the note on its unusual format."""

    id: str
    views: Float[Tensor, "s 3 h w"]
    note: str = ""


def _stack(items: "list[_ImageViews | Unread]") -> ImageBatch:
    readable = [item for item in items if isinstance(item, _ImageViews)]
    # `stack` takes no empty list, and a batch may hold unreadable images alone.
    views = torch.stack([item.views for item in readable]) if readable else torch.empty(0, 0, 3, 0, 0)
    unread = [item for item in items if isinstance(item, Unread)]
    return ImageBatch(
        [item.id for item in readable], views, unread, {item.id: item.note for item in readable if item.note}
    )


class Streams(LightningDataModule):
    """Streams the items without features in `predict`, and the features in `test`, both sharded by rank.

    Args:
        streams: In the order of encoding and evaluation.
        num_classes: Number of classes.
        views: Computes the views of an image.
        batch_size: Number of views, or sentences, per batch.
        workers: Number of processes that decode images; with 0, threads of this process do. None chooses it by a
            measurement of the first batches.

    Attributes:
        used_workers: Largest number of processes that decoded images.
    """

    def __init__(
        self, streams: Sequence[Stream], num_classes: int, views: Views, batch_size: int, workers: int | None = 0
    ) -> None:
        super().__init__()
        self.streams = list(streams)
        self.num_classes = num_classes
        self.allow_zero_length_dataloader_with_multiple_devices = True  # another device may have all missing items
        self._views = views
        self._batch_size = batch_size
        self._workers = workers
        self.used_workers = 0
        self._reusable: dict[int, ReusableLoader] = {}

    @property
    def width(self) -> int:
        """Returns the feature dimension."""
        stream = self.streams[-1]
        return stream.store.width(stream.ids[0], stream.views[0])

    @property
    def rows_per_pass(self) -> int:
        """Returns the number of views, or sentences, per forward pass."""
        assert self.trainer is not None
        return self._rows_per_pass(self.trainer.strategy.root_device.type)

    def _rows_per_pass(self, device: str) -> int:
        if device == "cpu":
            return CPU_ROWS
        return self._batch_size

    def items_per_pass(self, views: int, device: str) -> int:
        """Returns the number of items after which a pass ends: items of one pass, or of several.

        Args:
            views: Number of views of an item.
            device: Type of the device.
        """
        return lcm(self._rows_per_pass(device), views) // views

    def _shard(self, stream: Stream, size: int) -> list[int]:
        assert self.trainer is not None
        return shard_indices(self.trainer, len(stream.ids), size)

    def predict_dataloader(self) -> list[DataLoader[Any] | MeasuredLoader]:
        """Returns one loader per stream: of `ImageBatch`es, or lists of (id, sentence)."""
        loaders: list[DataLoader[Any] | MeasuredLoader] = []
        for stream in self.streams:
            todo = set(stream.missing())
            assert self.trainer is not None
            # Shards are cut where a pass ends, so that the passes, and with them the last bits of a feature, are the
            # same on any number of devices.
            size = self.items_per_pass(len(stream.views), self.trainer.strategy.root_device.type)
            places = [place for place in self._shard(stream, size) if place in todo]
            if stream.is_text:
                loaders.append(self._text_loader(stream, places))
            elif self._workers is None and places:
                loaders.append(self._measured_loader(stream, places))
            else:
                loaders.append(self._image_loader(stream, places, self._workers or 0))
        return loaders

    def shard_loader(self, loader: int, places: Sequence[int]) -> Iterable[Any]:
        """Returns the batches of some items of one stream; worker processes are kept for its next shard."""
        stream = self.streams[loader]
        if stream.is_text:
            return self._text_loader(stream, places)
        # Also where their number is to be measured: a worker of a cluster has the cores that it was given, often one.
        if not self._workers:
            return self._image_loader(stream, places, 0)
        if loader not in self._reusable:
            # Streams come one after another: the processes of the one before are not needed any more.
            self._reusable.clear()
            self._reusable[loader] = ReusableLoader(
                _StreamImages(stream, range(len(stream.ids)), self._views),
                self._images_per_batch(stream),
                self._workers,
                **self._loader_settings(),
            )
        return self._reusable[loader].load(places)

    def _text_loader(self, stream: Stream, places: Sequence[int]) -> DataLoader[Any]:
        sentences: Any = [(stream.ids[place], stream.load(place)) for place in places]
        return DataLoader(sentences, batch_size=self._batch_size, collate_fn=list)

    def _images_per_batch(self, stream: Stream) -> int:
        return max(1, self._batch_size // len(stream.views))

    def _loader_settings(self) -> dict[str, Any]:
        assert self.trainer is not None
        return {"collate_fn": _stack, "pin_memory": self.trainer.strategy.root_device.type == "cuda"}

    def _image_loader(self, stream: Stream, places: Sequence[int], most_workers: int) -> DataLoader[Any]:
        """Returns a loader of images with all their views, about `batch_size` views a batch.

        A batch is passed through shared memory, and every worker prefetches two, so its size must
        not grow with the number of views. A loader is iterated once: its workers end with it
        (none are persistent), so that workers of two streams never exist at the same time.
        """
        images = self._images_per_batch(stream)
        workers = min(most_workers, -(-len(places) // images))  # none without work
        self._note_workers(workers)
        return DataLoader(
            _StreamImages(stream, places, self._views),
            batch_size=images,
            **self._loader_settings(),
            **worker_settings(workers),
        )

    def _measured_loader(self, stream: Stream, places: Sequence[int]) -> MeasuredLoader:
        assert self.trainer is not None
        return MeasuredLoader(
            _StreamImages(stream, places, self._views),
            self._images_per_batch(stream),
            this_machine(self.trainer.strategy.root_device, self.trainer.num_devices),
            self._note_workers,
            **self._loader_settings(),
        )

    def _note_workers(self, workers: int) -> None:
        self.used_workers = max(self.used_workers, workers)

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """Returns one loader of `FeatureBatch`es per stream; at least one batch per rank, which may be empty."""
        loaders: list[DataLoader[Any]] = []
        for stream in self.streams:
            loaders.append(DataLoader(_Features(stream, self._shard(stream, ROWS_PER_BATCH)), batch_size=None))
        return loaders
