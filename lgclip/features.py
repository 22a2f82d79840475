"""The encoding stage: every device encodes its share of what has no features yet."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from lightning import LightningModule
from PIL import Image
from torch import Tensor

from lgclip.batch import ImageBatch
from lgclip.data import TEXT_VIEW, Stream, Streams
from lgclip.datasets.base import Dataset
from lgclip.diffuser.base import Pictures
from lgclip.encoder.base import Encoder, Towers, Transform
from lgclip.encoder.measure import measure
from lgclip.feature_store import FeatureStore
from lgclip.identity import key_of
from lgclip.ledger import Part
from lgclip.memory import device_name
from lgclip.scales import Scales
from lgclip.stages import Stages

CPU_ROWS = 32
"""Rows of a forward pass on a CPU, where the size makes no difference in speed."""


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
        self._waiting: dict[int, list[tuple[list[str], Float[Tensor, "n s d"]]]] = {}

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
                len(stream.ids) * len(stream.views),
            )
            for stream in self._data.streams
        ]

    def lacking(self) -> list[int]:
        """How many views of each stream are encoded; a thing that lacks one gets all of them."""
        return [len(stream.missing()) * len(stream.views) for stream in self._data.streams]

    def on_predict_start(self) -> None:
        self.towers = self.encoder.load(self.device)
        if self.trainer.is_global_zero:
            measure(self.encoder, self.towers, self._data.streams[0].store.towers, device_name(self.device))

    def on_predict_epoch_end(self) -> None:
        for place in list(self._waiting):
            self._store(place)

    def on_predict_end(self) -> None:
        self.towers = None

    def predict_step(self, batch: ImageBatch | list[tuple[str, str]], batch_idx: int, dataloader_idx: int = 0) -> None:
        assert self.towers is not None
        if isinstance(batch, ImageBatch):
            n, s = batch.views.shape[:2]
            rows = batch.views.flatten(0, 1)
            parts = [self.towers.images(rows[list(part)])[:own] for part, own in self._passes(len(rows))]
            ids, features = batch.ids, torch.cat(parts).unflatten(0, (n, s))
        else:
            ids, texts = [name for name, _ in batch], [text for _, text in batch]
            parts = [self.towers.texts([texts[at] for at in part])[:own] for part, own in self._passes(len(texts))]
            features = torch.cat(parts)[:, None]
        waiting = self._waiting.setdefault(dataloader_idx, [])
        waiting.append((ids, features.cpu()))
        if sum(len(names) for names, _ in waiting) >= self.encoder.batch_size:
            self._store(dataloader_idx)

    def _passes(self, n: int) -> Iterator[tuple[Sequence[int], int]]:
        """Rows of each forward pass, and how many of them count; the last row fills up what is too short.

        A pass of another size rounds otherwise in the last bit, so all have one: a feature then does not
        depend on how many devices, workers or images there were.
        """
        size = CPU_ROWS if self.device.type == "cpu" else self.encoder.batch_size
        for start in range(0, n, size):
            own = min(size, n - start)
            yield [*range(start, start + own), *[n - 1] * (size - own)], own

    def _store(self, place: int) -> None:
        """Writes what waits of one stream as one file: a batch of few images with many views is too small for one."""
        waiting, stream = self._waiting.pop(place), self._data.streams[place]
        ids = [name for names, _ in waiting for name in names]
        stream.store.add(ids, stream.views, torch.cat([features for _, features in waiting]))


def text_stream(dataset: Dataset, encoder: Encoder, root: Path) -> Stream:
    """The sentences of the text baseline: every template with every class name."""
    pairs = [
        (label, template.replace("{}", name))
        for label, name in enumerate(dataset.class_names)
        for template in dataset.templates
    ]
    return Stream(
        name="text",
        ids=[key_of({"sentence": sentence}) for _, sentence in pairs],
        labels=[label for label, _ in pairs],
        views=TEXT_VIEW,
        store=FeatureStore(root, encoder.inputs(), {"source": "sentences"}),
        load=lambda at: pairs[at][1],
    )


def synthetic_stream(drawing: Pictures, encoder: Encoder, scales: Scales, root: Path) -> Stream:
    """The drawn images."""
    return Stream(
        name="synthetic",
        ids=drawing.ids,
        labels=[prompt.class_index for prompt in drawing.prompts],
        views=scales.views,
        store=FeatureStore(root, encoder.inputs(), {"source": "synthetic", "images": drawing.key}),
        load=drawing.image,
    )


def real_stream(dataset: Dataset, encoder: Encoder, scales: Scales, root: Path) -> Stream:
    """The images to judge."""
    return Stream(
        name="real",
        ids=dataset.ids,
        labels=dataset.labels,
        views=scales.views,
        store=FeatureStore(root, encoder.inputs(), dataset.source()),
        load=dataset.image,
    )


def encode(
    stages: Stages,
    dataset: Dataset,
    encoder: Encoder,
    scales: Scales,
    root: Path,
    *,
    drawing: Pictures | None,
    workers: int,
) -> Streams:
    """Everything that is to be judged, and what it is judged by, to features.

    Args:
        stages: Runs the stage.
        dataset: The images to judge.
        encoder: Who encodes.
        scales: Views of an image.
        root: The store's folder.
        drawing: The synthetic images; None if the method needs none.
        workers: Processes that decode images.
    """
    streams = [text_stream(dataset, encoder, root)] if encoder.has_text else []
    if drawing is not None:
        streams.append(synthetic_stream(drawing, encoder, scales, root))
    streams.append(real_stream(dataset, encoder, scales, root))
    data = Streams(streams, len(dataset.class_names), SharedViews(encoder, scales), encoder.batch_size, workers)
    stages.complete("features", Encoding(encoder, data), sum(len(s.ids) for s in streams), data)
    return data
