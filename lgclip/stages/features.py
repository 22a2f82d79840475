"""Implements the feature extraction stage: every device encodes its shard of what has no features yet."""

import logging
from collections.abc import Sequence
from itertools import chain
from math import lcm

import torch
from torch import Tensor

from lgclip.batches import ImageBatch
from lgclip.encoder.base import Encoder, Towers
from lgclip.encoder.profiling import measure
from lgclip.runtime.devices import device_name
from lgclip.stages.sharding import ShardedStage
from lgclip.stages.streams import Stream, Streams
from lgclip.store.cost_log import StoreUsage
from lgclip.store.features import BadFeatureError
from lgclip.store.keys import content_key
from lgclip.types import Unread

log = logging.getLogger(__name__)


class FeatureExtractionStage(ShardedStage):
    """Encodes images and sentences, and stores their unit features.

    Args:
        encoder: The encoder.
        data: Streams to encode, with their stores.
    """

    unit = "image"
    tokens = None

    def __init__(self, encoder: Encoder, data: Streams) -> None:
        super().__init__()
        self.encoder = encoder
        self._data = data
        self.towers: Towers | None = None
        self._queues: dict[int, _Queue] = {}

    def missing(self) -> list[int]:
        """Returns the indices of everything without features, stream after stream."""
        return list(chain.from_iterable(stream.missing() for stream in self._data.streams))

    def missing_by_loader(self) -> list[list[int]]:
        return [stream.missing() for stream in self._data.streams]

    def group_size(self, loader: int, device: str) -> int:
        # A pass ends there, and with one view a file too.
        views = len(self._data.streams[loader].views)
        return lcm(self._data.items_per_pass(views, device), self.encoder.batch_size)

    def item_name(self, loader: int, place: int) -> str:
        stream = self._data.streams[loader]
        name_of = stream.where or stream.ids.__getitem__
        return name_of(place)

    def content_keys(self) -> list[str]:
        return [content_key(self.encoder.inputs())]

    def drop_queue(self) -> None:
        self._queues.clear()

    def parts(self) -> list[StoreUsage]:
        """Returns the stage's costs: each stream, in views or in sentences."""
        return [
            StoreUsage(
                stream.name,
                "sentence" if stream.is_text else "view",
                f"features/{stream.store.key}",
                stream.store.cost_log,
                (len(stream.ids) - len(stream.unread())) * len(stream.views),
            )
            for stream in self._data.streams
        ]

    def lacking(self) -> list[int]:
        """Returns the number of missing views per stream, including unreadable images.

        An item that lacks one view gets all of them.
        """
        return [(len(s.missing()) + len(s.unread())) * len(s.views) for s in self._data.streams]

    def on_predict_start(self) -> None:
        self.towers = self.encoder.load(self.device)
        if self.trainer.is_global_zero:
            # Written once for each encoder: what a pass costs is a property of these, and is stored next to the
            # features.
            measure(self.encoder, self.towers, self._data.streams[0].store.towers, device_name(self.device))

    def on_predict_epoch_end(self) -> None:
        for place in list(self._queues):
            self._finish(place)

    def on_predict_end(self) -> None:
        self.towers = None

    def predict_step(self, batch: ImageBatch | list[tuple[str, str]], batch_idx: int, dataloader_idx: int = 0) -> None:
        assert self.towers is not None
        # Loaders come one after another, so the others are done. What waits of them is written now: kept until the
        # end, an interruption would lose it.
        for place in set(self._queues) - {dataloader_idx}:
            self._finish(place)
        queue = self._queues.setdefault(dataloader_idx, _Queue())
        if isinstance(batch, ImageBatch):
            if batch.unread:
                self._note(dataloader_idx, batch.unread)
            unreadable = self._data.streams[dataloader_idx].unreadable
            if batch.notes and unreadable:
                unreadable.add_notes(batch.notes)
            if batch.ids:
                queue.put(batch.ids, batch.views.flatten(0, 1))
        else:
            queue.put([name for name, _ in batch], [text for _, text in batch])
        self._encode(dataloader_idx)
        if len(queue.complete(len(self._data.streams[dataloader_idx].views))) >= self.encoder.batch_size:
            self._store(dataloader_idx)

    def _encode(self, place: int, *, last: bool = False) -> None:
        """Encodes the queue of one stream in passes of one size; a remainder waits for more items.

        The pass size may change the rounding of the last bit. With a fixed size a feature does not depend on the number
        of devices, workers or images. The last pass is padded with copies of its last row.
        """
        assert self.towers is not None
        queue = self._queues[place]
        size = self._data.rows_per_pass
        # The last pass may be short; until then only full ones are made.
        n = len(queue.rows)
        if not last:
            n = n // size * size
        for start in range(0, n, size):
            rows = queue.rows[start : start + size]
            fill = size - len(rows)
            if isinstance(rows, Tensor):
                # Without the test, every full pass would be copied.
                full = rows
                if fill:
                    full = torch.cat([rows, rows[-1:].expand(fill, *rows.shape[1:])])
                features = self.towers.images(full)
            else:
                features = self.towers.texts([*rows, *rows[-1:] * fill])
            queue.done.append(features[: len(rows)].cpu())
        queue.rows = queue.rows[n:]

    def _note(self, place: int, unread: Sequence[Unread]) -> None:
        """Records unreadable images; the policy is applied when all are known.

        Raises:
            ValueError: If they belong to a stream in which each image must be readable.
        """
        first = unread[0]
        unreadable = self._data.streams[place].unreadable
        if unreadable is None:
            raise ValueError(
                f"{first.where} cannot be read as an image ({first.reason}); `lgclip store verify --repair` takes it "
                "out of the store, and the same command generates it again"
            )
        suffix = f", and {len(unread) - 1} more of this batch" if len(unread) > 1 else ""
        log.warning("%s cannot be read as an image (%s)%s", first.where, first.reason, suffix)
        unreadable.add({image.id: image.reason for image in unread})

    def _finish(self, place: int) -> None:
        """Encodes and writes the remainder of one stream."""
        self._encode(place, last=True)
        if self._queues[place].ids:
            self._store(place)
        del self._queues[place]

    def _store(self, place: int) -> None:
        """Writes the encoded features of one stream as one file: a file per batch of few images would be too small."""
        stream = self._data.streams[place]
        queue = self._queues[place]
        s = len(stream.views)
        ids = queue.complete(s)
        # A pass may end within an image, whose views are then not complete: only complete ones are written.
        features = torch.cat(queue.done)
        try:
            stream.store.add(ids, stream.views, features[: len(ids) * s].unflatten(0, (len(ids), s)))
        except BadFeatureError as error:
            raise ValueError(_refused(stream, error)) from error
        # Of the next image some views may be encoded already: they wait for the rest.
        queue.ids = queue.ids[len(ids) :]
        queue.done = [features[len(ids) * s :]]


def _refused(stream: Stream, error: BadFeatureError) -> str:
    """Builds the error for features that are not unit vectors: the items they belong to, and possible fixes."""
    places = [list(stream.ids).index(thing) for thing in error.things]
    name_of = stream.where or stream.ids.__getitem__
    named = "; ".join(name_of(place) for place in places[:5])
    if len(places) > 5:
        named += f"; and {len(places) - 5} more"
    return (
        f"the encoder gives no direction (NaN, infinite or zero features) for {named}. Nothing of this batch is "
        "stored; try encoder.precision=fp32, or look at the weights"
    )


class _Queue:
    """Queues items of one stream: rows to encode, one per view, and features to store."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.rows: Tensor | list[str] = []
        self.done: list[Tensor] = []

    def put(self, ids: Sequence[str], rows: Tensor | list[str]) -> None:
        """Adds items and their rows."""
        self.ids += ids
        if isinstance(rows, Tensor) and isinstance(self.rows, Tensor) and len(self.rows):
            rows = torch.cat([self.rows, rows])
        elif isinstance(rows, list) and isinstance(self.rows, list):
            rows = self.rows + rows
        self.rows = rows

    def complete(self, views: int) -> list[str]:
        """Returns the items of which every view is encoded."""
        return self.ids[: sum(map(len, self.done)) // views]
