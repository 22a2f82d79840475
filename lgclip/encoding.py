"""The encoding stage: every device encodes its share of what has no features yet."""

import logging
from collections.abc import Sequence

import torch
from jaxtyping import Float
from lightning import LightningModule
from PIL import Image
from torch import Tensor

from lgclip.batch import ImageBatch, Unread
from lgclip.data import Stream, Streams
from lgclip.encoder.base import Encoder, Towers, Transform
from lgclip.encoder.measure import measure
from lgclip.feature_store import BadFeatureError
from lgclip.ledger import Part
from lgclip.memory import device_name
from lgclip.scales import Scales

log = logging.getLogger(__name__)


class SharedViews:
    """Crops an image at every scale and preprocesses each crop; decodes nothing twice.

    Args:
        encoder: Whose preprocessing to use; read when the first image comes.
        scales: Which crops to take.
    """

    def __init__(self, encoder: Encoder, scales: Scales) -> None:
        self._encoder, self._scales = encoder, scales
        self._transforms: dict[bool, Transform] = {}

    def __call__(self, image: Image.Image, image_id: str) -> Float[Tensor, "s 3 h w"]:
        if not self._transforms:
            self._transforms = {squash: self._encoder.transform(squash=squash) for squash in (False, True)}
        return torch.stack([self._transforms[view.squash](view.image) for view in self._scales.crop(image, image_id)])


class Encoding(LightningModule):
    """Images and sentences to stored unit features.

    Args:
        encoder: Who encodes.
        data: What to encode, and where the features go.
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
        """Places of everything without features, stream after stream."""
        return [at for stream in self._data.streams for at in stream.missing()]

    def parts(self) -> list[Part]:
        """What is kept account of: each stream, in views, or in sentences."""
        return [
            Part(
                stream.name,
                "sentence" if stream.name == "text" else "view",
                f"features/{stream.store.key}",
                stream.store.ledger,
                (len(stream.ids) - len(stream.unread())) * len(stream.views),
            )
            for stream in self._data.streams
        ]

    def lacking(self) -> list[int]:
        """Views that each stream lacks, of unreadable images too; a thing that lacks one gets all of them."""
        return [(len(s.missing()) + len(s.unread())) * len(s.views) for s in self._data.streams]

    def on_predict_start(self) -> None:
        self.towers = self.encoder.load(self.device)
        if self.trainer.is_global_zero:
            measure(self.encoder, self.towers, self._data.streams[0].store.towers, device_name(self.device))

    def on_predict_epoch_end(self) -> None:
        for place in list(self._queues):
            self._finish(place)

    def on_predict_end(self) -> None:
        self.towers = None

    def predict_step(self, batch: ImageBatch | list[tuple[str, str]], batch_idx: int, dataloader_idx: int = 0) -> None:
        assert self.towers is not None
        for place in set(self._queues) - {dataloader_idx}:  # a stream that is done waits for no other
            self._finish(place)
        queue = self._queues.setdefault(dataloader_idx, _Queue())
        if isinstance(batch, ImageBatch):
            if batch.unread:
                self._note(dataloader_idx, batch.unread)
            if batch.ids:
                queue.put(batch.ids, batch.views.flatten(0, 1))
        else:
            queue.put([name for name, _ in batch], [text for _, text in batch])
        self._encode(dataloader_idx)
        if len(queue.whole(len(self._data.streams[dataloader_idx].views))) >= self.encoder.batch_size:
            self._store(dataloader_idx)

    def _encode(self, place: int, *, last: bool = False) -> None:
        """Encodes what waits of one stream, in passes of one size; what is too short for one waits for more.

        A pass of another size may round otherwise in the last bit: this way a feature does not depend on how many
        devices, workers or images there are. The last pass of all is filled up with copies of its last row.
        """
        assert self.towers is not None
        queue, size = self._queues[place], self._data.rows_per_pass
        n = len(queue.rows) if last else len(queue.rows) // size * size
        for start in range(0, n, size):
            rows = queue.rows[start : start + size]
            own = len(rows)
            if isinstance(rows, Tensor):
                full = rows if own == size else torch.cat([rows, rows[-1:].expand(size - own, *rows.shape[1:])])
                features = self.towers.images(full)
            else:
                features = self.towers.texts([*rows, *rows[-1:] * (size - own)])
            queue.done.append(features[:own].cpu())
        queue.rows = queue.rows[n:]

    def _note(self, place: int, unread: Sequence[Unread]) -> None:
        """Keeps which images cannot be read; what is done about them is decided when all are known.

        Raises:
            ValueError: If they are of a stream of which each image must be readable.
        """
        first, findings = unread[0], self._data.streams[place].findings
        if findings is None:
            raise ValueError(
                f"{first.where} cannot be read as an image ({first.reason}); `lgclip store verify --repair` takes it "
                "out of the store, and the same command draws it again"
            )
        more = f", and {len(unread) - 1} more of this batch" if len(unread) > 1 else ""
        log.warning("%s cannot be read as an image (%s)%s", first.where, first.reason, more)
        findings.add({one.id: one.reason for one in unread})

    def _finish(self, place: int) -> None:
        """Encodes and writes what still waits of one stream."""
        self._encode(place, last=True)
        if self._queues[place].ids:
            self._store(place)
        del self._queues[place]

    def _store(self, place: int) -> None:
        """Writes what is encoded of one stream as one file: few images with many views are too small for one."""
        stream, queue = self._data.streams[place], self._queues[place]
        s = len(stream.views)
        ids, features = queue.whole(s), torch.cat(queue.done)
        try:
            stream.store.add(ids, stream.views, features[: len(ids) * s].unflatten(0, (len(ids), s)))
        except BadFeatureError as error:
            raise ValueError(_refused(stream, error)) from error
        queue.ids, queue.done = queue.ids[len(ids) :], [features[len(ids) * s :]]


def _refused(stream: Stream, error: BadFeatureError) -> str:
    """What is said of features that are no directions: which things they are of, and the ways out."""
    places = [list(stream.ids).index(thing) for thing in error.things]
    told = "; ".join(stream.where(at) if stream.where else stream.ids[at] for at in places[:5])
    more = f"; and {len(places) - 5} more" if len(places) > 5 else ""
    return (
        f"the encoder gives no direction (NaN, infinite or zero features) for {told}{more}. Nothing of this batch is "
        "stored; try encoder.precision=fp32, or look at the weights"
    )


class _Queue:
    """What waits of one stream: things to encode, a row a view, and features to store."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.rows: Tensor | list[str] = []
        self.done: list[Tensor] = []

    def put(self, ids: Sequence[str], rows: Tensor | list[str]) -> None:
        """Adds things and their rows."""
        self.ids += ids
        if isinstance(rows, Tensor) and isinstance(self.rows, Tensor) and len(self.rows):
            rows = torch.cat([self.rows, rows])
        elif isinstance(rows, list) and isinstance(self.rows, list):
            rows = self.rows + rows
        self.rows = rows

    def whole(self, views: int) -> list[str]:
        """The things of which every view is encoded."""
        return self.ids[: sum(map(len, self.done)) // views]
