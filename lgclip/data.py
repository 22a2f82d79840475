"""Streams of real images, synthetic images and sentences, first as pixels, then as features."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
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

from lgclip.batch import FeatureBatch, ImageBatch, Unread
from lgclip.damage import Findings
from lgclip.datasets.base import BadImageError
from lgclip.feature_store import FeatureStore
from lgclip.shares import own_share

TEXT_VIEW = ("text",)
"""The only view of a sentence."""

DECODERS = 8
"""Threads that decode images in the main process, at most."""

CPU_ROWS = 32
"""Views, or sentences, of a forward pass on a CPU, where the size makes no difference in speed."""

ROWS_PER_BATCH = 1024
"""Features judged at once: more are no faster, and with a thousand classes take 10 MB a thousand."""


@dataclass(frozen=True)
class Stream:
    """One kind of thing to encode, and where its features lie.

    Attributes:
        name: `text`, `synthetic` or `real`.
        ids: Content key of each thing.
        labels: Class index of each thing.
        views: Which views of each are wanted.
        store: Where their features are kept.
        load: The thing at a place: an RGB image, or a sentence. What loads images goes to worker
            processes, so it can be pickled: it keeps no file open.
        findings: Which of them are known to be unreadable; None where each must be readable.
        where: What to call the thing at a place in an error; None is its id.
    """

    name: str
    ids: Sequence[str]
    labels: Sequence[int]
    views: Sequence[str]
    store: FeatureStore
    load: Callable[[int], Image.Image | str]
    findings: Findings | None = None
    where: Callable[[int], str] | None = None

    def missing(self) -> list[int]:
        """Places of the things whose features are not there and may be had."""
        known = self.findings.reasons() if self.findings else {}
        return [at for at in self.store.missing(self.ids, self.views) if self.ids[at] not in known]

    def unread(self) -> dict[int, str]:
        """Why each thing that has no features cannot be read, by its place; those of which it is known."""
        known = self.findings.reasons() if self.findings else {}
        absent = self.store.missing(self.ids, self.views) if known else []
        return {at: known[self.ids[at]] for at in absent if self.ids[at] in known}

    def features(self) -> Float[Tensor, "n s d"]:
        """The features of all things, in order."""
        return self.store.take(self.ids, self.views)

    def rows(self, places: Int[Tensor, " b"]) -> FeatureBatch:
        """The features of some things, read when they are asked for."""
        at: list[int] = places.tolist()
        if not at:  # the share of a device that has none
            width = self.store.width(self.ids[0], self.views[0])
            features = torch.empty(0, len(self.views), width)
        else:
            features = self.store.take([self.ids[i] for i in at], self.views)
        return FeatureBatch(features, torch.tensor([self.labels[i] for i in at], dtype=torch.long), places)

    def batches(self) -> Iterator[FeatureBatch]:
        """All things' features in order, some at a time."""
        parts = _Features(self, range(len(self.ids)))
        yield from map(parts.__getitem__, range(len(parts)))


class Views(Protocol):
    """An image and its id to the views that stand for it, ready for the encoder."""

    def __call__(self, image: Image.Image, image_id: str) -> Float[Tensor, "s 3 h w"]: ...


class _Pictures(Dataset[Any]):
    """What a worker process needs of a stream, and no more: it is sent to each."""

    def __init__(self, stream: Stream, places: Sequence[int], views: Views) -> None:
        self._load, self._views = stream.load, views
        self._places = [(place, stream.ids[place]) for place in places]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, at: int) -> "_Seen | Unread":
        place, name = self._places[at]
        try:
            image = self._load(place)
        except BadImageError as error:
            return Unread(name, error.where, error.reason)
        assert not isinstance(image, str)
        return _Seen(name, self._views(image, name))

    def __getitems__(self, batch: Sequence[int]) -> "list[_Seen | Unread]":
        """A batch, as torch's loaders ask for one; decoding and resizing leave Python's lock to others."""
        threads = 1 if get_worker_info() else min(DECODERS, torch.get_num_threads(), len(batch))
        if threads == 1:
            return [self[at] for at in batch]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(self.__getitem__, batch))


class _Features(Dataset[FeatureBatch]):
    """The features of some places, a part at a time; one part at least, if need be of no places."""

    def __init__(self, stream: Stream, places: Sequence[int]) -> None:
        self._stream, self._places = stream, places

    def __len__(self) -> int:
        return max(1, -(-len(self._places) // ROWS_PER_BATCH))

    def __getitem__(self, at: int) -> FeatureBatch:
        part = self._places[at * ROWS_PER_BATCH : (at + 1) * ROWS_PER_BATCH]
        return self._stream.rows(torch.tensor(part, dtype=torch.long))


class _Seen(NamedTuple):
    """An image with all its views."""

    id: str
    views: Float[Tensor, "s 3 h w"]


def _stack(items: "list[_Seen | Unread]") -> ImageBatch:
    seen = [item for item in items if isinstance(item, _Seen)]
    views = torch.stack([item.views for item in seen]) if seen else torch.empty(0, 0, 3, 0, 0)
    return ImageBatch([item.id for item in seen], views, [item for item in items if isinstance(item, Unread)])


def start_method() -> str:
    """How worker processes start: never by forking this one.

    It has threads of its own by then (tokenizers, writers, CUDA), and a fork of a process with
    threads can wait for ever for a lock that one of them held. A fork server has none.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return "spawn"
    # Imported once for all workers: torch, and what every preprocessing is made of.
    multiprocessing.get_context("forkserver").set_forkserver_preload(["lgclip.data", "torchvision.transforms"])
    return "forkserver"


class Streams(LightningDataModule):
    """`predict` streams what has no features yet, `test` streams the features, both by rank.

    Args:
        streams: In the order in which they are encoded and judged.
        num_classes: Number of classes.
        views: Makes the views of an image.
        batch_size: Views, or sentences, encoded at once.
        workers: Processes that decode images; with 0 threads of this one do.

    Attributes:
        columns: Which of a student's classes are judged, in the order of the labels; None for all of them.
    """

    def __init__(
        self, streams: Sequence[Stream], num_classes: int, views: Views, batch_size: int, workers: int = 0
    ) -> None:
        super().__init__()
        self.streams = list(streams)
        self.num_classes = num_classes
        self.columns: Sequence[int] | None = None
        self.allow_zero_length_dataloader_with_multiple_devices = True  # what is missing may all be another's share
        self._views, self._batch_size, self._workers = views, batch_size, workers

    @property
    def width(self) -> int:
        """Width of a feature."""
        stream = self.streams[-1]
        return stream.store.width(stream.ids[0], stream.views[0])

    @property
    def rows_per_pass(self) -> int:
        """Views, or sentences, of a forward pass."""
        assert self.trainer is not None
        return CPU_ROWS if self.trainer.strategy.root_device.type == "cpu" else self._batch_size

    def _share(self, stream: Stream, size: int) -> list[int]:
        assert self.trainer is not None
        return own_share(self.trainer, len(stream.ids), size)

    def predict_dataloader(self) -> list[DataLoader[Any]]:
        """One loader a stream: `ImageBatch`es, or lists of (id, sentence)."""
        loaders: list[DataLoader[Any]] = []
        for stream in self.streams:
            todo = set(stream.missing())
            views = len(stream.views)
            whole = lcm(self.rows_per_pass, views) // views  # so many things end where a pass does
            places = [at for at in self._share(stream, whole) if at in todo]
            if stream.name == "text":
                sentences: Any = [(stream.ids[at], stream.load(at)) for at in places]
                loaders.append(DataLoader(sentences, batch_size=self._batch_size, collate_fn=list))
            else:
                loaders.append(self._image_loader(stream, places))
        return loaders

    def _image_loader(self, stream: Stream, places: Sequence[int]) -> DataLoader[Any]:
        """Images with all their views, about `batch_size` views a batch.

        A batch is passed on through shared memory, and every worker has two ready, so its size must
        not grow with the number of views. A loader is gone through once: its workers end with it
        (none are persistent), so that two streams' workers are never there at the same time.
        """
        assert self.trainer is not None
        images = max(1, self._batch_size // len(stream.views))
        workers = min(self._workers, -(-len(places) // images))  # none without work
        return DataLoader(
            _Pictures(stream, places, self._views),
            batch_size=images,
            collate_fn=_stack,
            num_workers=workers,
            multiprocessing_context=start_method() if workers else None,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
        )

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """One loader a stream of `FeatureBatch`es; at least one batch a rank, if need be of no rows."""
        loaders: list[DataLoader[Any]] = []
        for stream in self.streams:
            loaders.append(DataLoader(_Features(stream, self._share(stream, ROWS_PER_BATCH)), batch_size=None))
        return loaders
