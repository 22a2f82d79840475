"""Implements the feature extraction stage: every device encodes its shard of what has no features yet."""

import logging
from collections.abc import Callable, Sequence
from itertools import chain
from math import lcm

import torch
from torch import Tensor

from lgclip.batches import ImageBatch
from lgclip.encoder.base import Encoder, Towers
from lgclip.encoder.profiling import measure
from lgclip.runtime.devices import device_name
from lgclip.stages.sharding import ShardedStage
from lgclip.stages.streams import Streams
from lgclip.store.cost_log import StoreUsage
from lgclip.store.features import BadFeatureError, FeatureStore
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
        self._queues: dict[int, FeatureQueue] = {}

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
            self._queues.pop(place).finish()

    def on_predict_end(self) -> None:
        self.towers = None

    def predict_step(self, batch: ImageBatch | list[tuple[str, str]], batch_idx: int, dataloader_idx: int = 0) -> None:
        assert self.towers is not None
        # Loaders come one after another, so the others are done. What waits of them is written now: kept until the
        # end, an interruption would lose it.
        for place in set(self._queues) - {dataloader_idx}:
            self._queues.pop(place).finish()
        if dataloader_idx not in self._queues:
            stream = self._data.streams[dataloader_idx]
            self._queues[dataloader_idx] = FeatureQueue(
                self.towers,
                stream.store,
                stream.views,
                stream.name_of,
                rows_per_pass=self._data.rows_per_pass,
                batch_size=self.encoder.batch_size,
            )
        queue = self._queues[dataloader_idx]
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


def _refused(name_of: Callable[[str], str], error: BadFeatureError) -> str:
    """Builds the error for features that are not unit vectors: the items they belong to, and possible fixes."""
    named = "; ".join(name_of(item) for item in error.ids[:5])
    if len(error.ids) > 5:
        named += f"; and {len(error.ids) - 5} more"
    return (
        f"the encoder gives no direction (NaN, infinite or zero features) for {named}. Nothing of this batch is "
        "stored; try encoder.precision=fp32, or look at the weights"
    )


class FeatureQueue:
    """Encodes the items of one stream in passes of one size, and stores their features in files of about a batch.

    Args:
        towers: Encodes the rows: one per view, or per sentence.
        store: Store of the features.
        views: Names of the views of each item.
        name_of: Returns the name of an item for errors, by its id.
        rows_per_pass: Rows of a forward pass.
        batch_size: Number of items whose features are written as one file: a file of a few would be too small.
        images_discarded: Whether the images of the stream are not stored.
    """

    def __init__(
        self,
        towers: Towers,
        store: FeatureStore,
        views: Sequence[str],
        name_of: Callable[[str], str],
        *,
        rows_per_pass: int,
        batch_size: int,
        images_discarded: bool = False,
    ) -> None:
        self._towers = towers
        self._store = store
        self._views = views
        self._name_of = name_of
        self._size = rows_per_pass
        self._batch_size = batch_size
        self._images_discarded = images_discarded
        self._ids: list[str] = []
        self._rows: Tensor | list[str] = []
        self._encoded: list[Tensor] = []

    def put(self, ids: Sequence[str], rows: Tensor | list[str]) -> None:
        """Adds items with their rows, encodes full passes, and writes a file once there are enough."""
        self._ids += ids
        if isinstance(rows, Tensor) and isinstance(self._rows, Tensor) and len(self._rows):
            rows = torch.cat([self._rows, rows])
        elif isinstance(rows, list) and isinstance(self._rows, list):
            rows = self._rows + rows
        self._rows = rows
        self._encode()
        if len(self._complete()) >= self._batch_size:
            self._write()

    def finish(self) -> None:
        """Encodes and writes the remainder."""
        self._encode(last=True)
        if self._ids:
            self._write()

    def clear(self) -> None:
        """Drops the items that are not written."""
        self._ids = []
        self._rows = []
        self._encoded = []

    def _encode(self, *, last: bool = False) -> None:
        """Encodes in passes of one size; a remainder waits for more items.

        The pass size may change the rounding of the last bit. With a fixed size a feature does not depend on the number
        of devices, workers or images. The last pass is padded with copies of its last row.
        """
        size = self._size
        # The last pass may be short; until then only full ones are made.
        n = len(self._rows)
        if not last:
            n = n // size * size
        for start in range(0, n, size):
            rows = self._rows[start : start + size]
            fill = size - len(rows)
            if isinstance(rows, Tensor):
                # Without the test, every full pass would be copied.
                full = rows
                if fill:
                    full = torch.cat([rows, rows[-1:].expand(fill, *rows.shape[1:])])
                features = self._towers.images(full)
            else:
                features = self._towers.texts([*rows, *rows[-1:] * fill])
            self._encoded.append(features[: len(rows)].cpu())
        self._rows = self._rows[n:]

    def _complete(self) -> list[str]:
        """Returns the items of which every view is encoded."""
        return self._ids[: sum(map(len, self._encoded)) // len(self._views)]

    def _write(self) -> None:
        s = len(self._views)
        ids = self._complete()
        # A pass may end within an image, whose views are then not complete: only complete ones are written.
        features = torch.cat(self._encoded)
        rows = features[: len(ids) * s].unflatten(0, (len(ids), s))
        try:
            self._store.add(ids, self._views, rows, images_discarded=self._images_discarded)
        except BadFeatureError as error:
            raise ValueError(_refused(self._name_of, error)) from error
        # Of the next image some views may be encoded already: they wait for the rest.
        self._ids = self._ids[len(ids) :]
        self._encoded = [features[len(ids) * s :]]
