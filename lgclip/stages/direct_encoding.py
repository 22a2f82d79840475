"""Encodes images as they are generated, without storing them: `paths.images=none`, or `sheet` for a few thumbnails."""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from math import lcm
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from lgclip.batches import CPU_ROWS
from lgclip.datasets.image_decoding import read_image
from lgclip.diffuser.base import ImageGenerator, SyntheticImages, image_id
from lgclip.encoder.base import Encoder, Towers
from lgclip.encoder.profiling import measure
from lgclip.encoder.scales import Scales
from lgclip.encoder.views import SharedViews
from lgclip.runtime.devices import device_name
from lgclip.stages.features import FeatureQueue
from lgclip.stages.images import ImageGenerationStage
from lgclip.stages.paired_features import feature_store
from lgclip.stages.streams import DECODERS
from lgclip.store.cost_log import StoreUsage
from lgclip.store.image_formats import DISCARDED
from lgclip.store.images import ImageStore
from lgclip.store.keys import content_key
from lgclip.store.shard_index import Member
from lgclip.types import Fault, Prompt, TargetClass

THUMBNAIL = 128
"""Maximum width and height of a thumbnail in pixels: the largest tile of a contact sheet."""

THUMBNAILS = 4
"""Thumbnails stored per class with `paths.images=sheet`: of 21,841 classes about 2.5 GB."""


@dataclass(frozen=True)
class DirectEncoding:
    """Describes how the images of a run are encoded that are not stored.

    Attributes:
        encoder: The encoder.
        scales: Views of an image.
        stores_thumbnails: Whether thumbnails of the first images of each class are stored.
    """

    encoder: Encoder
    scales: Scales
    stores_thumbnails: bool


def direct_encoding(image_format: str | None, encoder: Encoder, scales: Scales) -> DirectEncoding | None:
    """Returns the settings to encode images that are not stored; None if `paths.images` stores them.

    Args:
        image_format: Value of `paths.images`; None stores images.
        encoder: The encoder.
        scales: Views of an image.
    """
    if image_format not in DISCARDED:
        return None
    return DirectEncoding(encoder, scales, stores_thumbnails=image_format == "sheet")


class DirectEncodingStage(ImageGenerationStage):
    """Generates images and stores their features; an image is missing if its features are.

    Images that an earlier run has stored are not generated again: the feature stage encodes them, as any other.
    Thumbnails go to shards of their own key, and faults to the usual markers.

    Args:
        diffuser: The image generator.
        root: The store's folder.
        target_classes: The classes.
        prompts: The requested images.
        seed: The run's seed.
        encoding: The encoder, the views and whether there are thumbnails.
    """

    def __init__(
        self,
        diffuser: ImageGenerator,
        root: Path,
        target_classes: Sequence[TargetClass],
        prompts: Sequence[Prompt],
        seed: int,
        encoding: DirectEncoding,
    ) -> None:
        super().__init__(diffuser, root, target_classes, prompts, seed)
        self._encoder = encoding.encoder
        self._views = SharedViews(encoding.encoder, encoding.scales)
        self._view_names = encoding.scales.views
        source = {"source": "synthetic", "images": self.store.key}
        self._features = feature_store(root, encoding.encoder, source)
        self._thumbnails: ImageStore | None = None
        if encoding.stores_thumbnails:
            inputs = {**diffuser.inputs(), "thumbnail": THUMBNAIL}
            self._thumbnails = ImageStore(root, inputs, in_shards=True, codec=self.codec)
        self._places_in_class = _places_in_class(prompts)
        self._pixels: dict[int, tuple[str, UInt8[np.ndarray, "h w 3"]]] = {}
        self._waiting: list[tuple[str, Future[Tensor]]] = []
        self._queue: FeatureQueue | None = None
        self._threads: ThreadPoolExecutor | None = None
        self.part_seconds: dict[int, float] = {}

    def parts(self) -> list[StoreUsage]:
        """Returns the stage's costs: images, and the views of each."""
        key = f"features/{self._features.key}"
        views = len(self.prompts) * len(self._view_names)
        return [*super().parts(), StoreUsage("synthetic", "view", key, self._features.cost_log, views)]

    def lacking(self) -> list[int]:
        missing = len(self.missing())
        return [missing, missing * len(self._view_names)]

    def _is_done(self, names: Sequence[str]) -> list[bool]:
        is_done = super()._is_done(names)
        without_image = [index for index, done in enumerate(is_done) if not done]
        missing = set(self._features.missing([names[index] for index in without_image], self._view_names))
        for position, index in enumerate(without_image):
            is_done[index] = position not in missing
        return is_done

    def _locations(self, ids: Sequence[str], attempts: Sequence[tuple[int, int]]) -> Sequence[Path | Member | None]:
        places = self.store.places(ids)
        if self._thumbnails is None:
            return places
        self._thumbnails.refresh()
        names = [self._thumbnail_id(index, attempt) for index, attempt in attempts]
        thumbnails = self._thumbnails.places(names)
        return [place or thumbnail for place, thumbnail in zip(places, thumbnails, strict=True)]

    def synthetic_images(self) -> SyntheticImages:
        synthetic_images = super().synthetic_images()
        are_stored = None not in self.store.places(synthetic_images.ids)
        key = "" if self._thumbnails is None or are_stored else self._thumbnails.key
        return replace(synthetic_images, thumbnail_key=key, are_stored=are_stored)

    def _thumbnail_id(self, index: int, attempt: int) -> str:
        assert self._thumbnails is not None
        return image_id(self._thumbnails.key, self.prompts[index], self.run_seed, attempt)

    def _rows_per_pass(self, device: str) -> int:
        return CPU_ROWS if device == "cpu" else self._encoder.batch_size

    def _images_per_pass(self, device: str) -> int:
        """Returns the number of images after which a pass of the pipeline and one of the encoder end."""
        views = len(self._view_names)
        return lcm(self._pass_size(device), lcm(self._rows_per_pass(device), views) // views)

    @property
    def _group(self) -> int:
        # Cut there, so that passes are the same on any number of devices, and are those of stored images.
        return self._images_per_pass(self.device.type)

    def group_size(self, loader: int, device: str) -> int:
        # A file of features ends there too.
        return lcm(self._images_per_pass(device), self._encoder.batch_size)

    def content_keys(self) -> list[str]:
        return [*super().content_keys(), content_key(self._encoder.inputs())]

    def reread_store(self) -> None:
        super().reread_store()
        self._features.refresh()

    def drop_queue(self) -> None:
        self._pixels.clear()
        self._waiting.clear()
        if self._queue is not None:
            self._queue.clear()

    def on_predict_start(self) -> None:
        super().on_predict_start()
        towers = self._encoder.load(self.device)
        if self.trainer.is_global_zero:
            measure(self._encoder, towers, self._features.towers, device_name(self.device))
        self._start(towers)

    def _start(self, towers: Towers) -> None:
        self._queue = FeatureQueue(
            towers,
            self._features,
            self._view_names,
            self._name_of,
            rows_per_pass=self._rows_per_pass(self.device.type),
            batch_size=self._encoder.batch_size,
            images_discarded=True,
        )
        self._threads = ThreadPoolExecutor(min(DECODERS, torch.get_num_threads()))
        self.part_seconds = {0: 0.0, 1: 0.0}

    def _name_of(self, name: str) -> str:
        """Returns the name of an image for errors."""
        for index in range(len(self.prompts)):
            attempts = [self._id(index, attempt) for attempt in range(self.diffuser.retries + 1)]
            if name in attempts:
                return self.item_name(0, index)
        return name

    def predict_step(self, batch: list[int], batch_idx: int) -> None:
        assert self._threads is not None
        start = time.perf_counter()
        super().predict_step(batch, batch_idx)
        if self._thumbnails is not None:
            self._thumbnails.flush()
        generated = time.perf_counter()
        # The previous batch was preprocessed by threads while this one was generated.
        self._encode_waiting()
        # In the order of the images and not of the attempts, so that passes are those of stored images.
        for index in sorted(self._pixels):
            name, pixels = self._pixels.pop(index)
            self._waiting.append((name, self._threads.submit(self._preprocess, name, pixels)))
        self.part_seconds[0] += generated - start
        self.part_seconds[1] += time.perf_counter() - generated

    def _preprocess(self, name: str, pixels: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "s 3 _ _"]:
        return self._views(Image.fromarray(pixels), name)

    def _encode_waiting(self) -> None:
        assert self._queue is not None
        waiting = self._waiting
        self._waiting = []
        if waiting:
            rows = torch.cat([future.result() for _, future in waiting])
            self._queue.put([name for name, _ in waiting], rows)

    def _keep(self, index: int, attempt: int, pixels: UInt8[np.ndarray, "h w 3"], fault: Fault | None) -> None:
        if fault is not None:
            super()._keep(index, attempt, pixels, fault)
            return
        pixels = self._as_stored(pixels)
        self._pixels[index] = (self._id(index, attempt), pixels)
        if self._thumbnails is None or self._places_in_class[index] >= THUMBNAILS:
            return
        thumbnail = Image.fromarray(pixels)
        thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
        about = {**self.prompts[index].identity(), "seed": self.run_seed, "attempt": attempt}
        self._thumbnails.put(self._thumbnail_id(index, attempt), np.asarray(thumbnail), about)

    def _as_stored(self, pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """Returns the pixels that a stored image would have: its key, and that of its features, is the same."""
        if self.codec.is_lossless:
            return pixels
        return np.asarray(read_image(BytesIO(self.codec.encode(pixels, {}))))

    def on_predict_epoch_end(self) -> None:
        assert self._queue is not None
        start = time.perf_counter()
        self._encode_waiting()
        self._queue.finish()
        self.part_seconds[1] += time.perf_counter() - start

    def on_predict_end(self) -> None:
        super().on_predict_end()
        self._queue = None
        if self._threads is not None:
            self._threads.shutdown()
        if self._thumbnails is not None:
            self._thumbnails.close()

    def list_shards(self) -> None:
        super().list_shards()
        if self._lists and self._thumbnails is not None:
            self._thumbnails.list_shards()


def _places_in_class(prompts: Sequence[Prompt]) -> list[int]:
    """Returns the position of each image among those of its class."""
    counts: dict[int, int] = {}
    places: list[int] = []
    for prompt in prompts:
        place = counts.get(prompt.class_index, 0)
        places.append(place)
        counts[prompt.class_index] = place + 1
    return places
