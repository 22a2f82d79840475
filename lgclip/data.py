"""Streams of real images, synthetic images and sentences, first as pixels, then as features."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from lightning import LightningDataModule
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lgclip.batch import FeatureBatch, ImageBatch
from lgclip.store import FeatureStore

TEXT_VIEW = ("text",)
"""The only view of a sentence."""

ROWS_PER_BATCH = 8192
"""Features judged at once."""


@dataclass(frozen=True)
class Stream:
    """One kind of thing to encode, and where its features lie.

    Attributes:
        name: `text`, `synthetic` or `real`.
        ids: Content key of each thing.
        labels: Class index of each thing.
        views: Which views of each are wanted.
        store: Where their features are kept.
        load: The thing at a place: an RGB image, or a sentence.
    """

    name: str
    ids: Sequence[str]
    labels: Sequence[int]
    views: Sequence[str]
    store: FeatureStore
    load: Callable[[int], Image.Image | str]

    def missing(self) -> list[int]:
        """Places of the things whose features are not there."""
        return self.store.missing(self.ids, self.views)

    def features(self) -> Float[Tensor, "n s d"]:
        """The features of all things, in order."""
        return self.store.take(self.ids, self.views)


class Views(Protocol):
    """An image and its id to the views that stand for it, ready for the encoder."""

    def __call__(self, image: Image.Image, image_id: str) -> Float[Tensor, "s 3 h w"]: ...


class _Pictures(Dataset[Any]):
    def __init__(self, stream: Stream, places: Sequence[int], views: Views) -> None:
        self._stream, self._places, self._views = stream, places, views

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, at: int) -> tuple[str, Float[Tensor, "s 3 h w"]]:
        place = self._places[at]
        image, name = self._stream.load(place), self._stream.ids[place]
        assert not isinstance(image, str)
        return name, self._views(image, name)


def _stack(items: list[tuple[str, Float[Tensor, "s 3 h w"]]]) -> ImageBatch:
    return ImageBatch([name for name, _ in items], torch.stack([views for _, views in items]))


class Streams(LightningDataModule):
    """`predict` streams what has no features yet, `test` streams the features, both by rank.

    Args:
        streams: In the order in which they are encoded and judged.
        num_classes: Number of classes.
        views: Makes the views of an image.
        batch_size: Images, or sentences, encoded at once.
        workers: Processes that decode images; 0 decodes in this one.
    """

    def __init__(
        self, streams: Sequence[Stream], num_classes: int, views: Views, batch_size: int, workers: int = 0
    ) -> None:
        super().__init__()
        self.streams = list(streams)
        self.num_classes = num_classes
        self._views, self._batch_size, self._workers = views, batch_size, workers

    @property
    def width(self) -> int:
        """Width of a feature."""
        return self.streams[-1].features().shape[-1]

    def _share(self, n: int) -> range:
        assert self.trainer is not None
        return range(self.trainer.global_rank, n, self.trainer.world_size)

    def predict_dataloader(self) -> list[DataLoader[Any]]:
        """One loader a stream: `ImageBatch`es, or lists of (id, sentence)."""
        loaders: list[DataLoader[Any]] = []
        for stream in self.streams:
            todo = set(stream.missing())
            places = [at for at in self._share(len(stream.ids)) if at in todo]
            if stream.name == "text":
                sentences: Any = [(stream.ids[at], stream.load(at)) for at in places]
                loaders.append(DataLoader(sentences, batch_size=self._batch_size, collate_fn=list))
            else:
                pictures = _Pictures(stream, places, self._views)
                loaders.append(
                    DataLoader(pictures, batch_size=self._batch_size, collate_fn=_stack, num_workers=self._workers)
                )
        return loaders

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """One loader a stream of `FeatureBatch`es; at least one batch a rank, if need be of no rows."""
        loaders: list[DataLoader[Any]] = []
        for stream in self.streams:
            features, labels = stream.features(), torch.tensor(stream.labels)
            share = torch.tensor(self._share(len(labels)), dtype=torch.long)
            batches: Any = [FeatureBatch(features[part], labels[part], part) for part in share.split(ROWS_PER_BATCH)]
            loaders.append(DataLoader(batches, batch_size=None))
        return loaders
