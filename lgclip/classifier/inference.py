"""Reads images and turns them into features, scores and rejections, batch by batch."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lgclip.batches import CPU_ROWS
from lgclip.classifier.sources import ImageSource, ListedImage, expand_sources
from lgclip.datasets.content_ids import content_id
from lgclip.datasets.image_decoding import read_image, to_rgb
from lgclip.datasets.image_shards import ShardImage
from lgclip.encoder.base import Towers
from lgclip.methods.rejection import SCORES, ScoreInputs
from lgclip.store.keys import content_key, digest_of

if TYPE_CHECKING:
    from lgclip.classifier.model import ImageClassifier

_BATCH = 64
_DECODERS = 8
"""Threads that decode and resize images; both release the interpreter's lock."""


def decoded_batches(
    items: Iterator[tuple[str, ListedImage]],
    load: Callable[[tuple[str, ListedImage]], Tensor | str],
    batch_size: int,
) -> Iterator[tuple[list[str], list[Tensor | str]]]:
    """Yields the paths and the loaded images of each batch, while the next batch is loaded."""
    with ThreadPoolExecutor(_DECODERS) as decoders:

        def start() -> list[tuple[str, "Future[Tensor | str]"]]:
            listed = list(islice(items, batch_size))
            if len(listed) == 1:
                # By this thread: torch's threads of another one would compete with those of the forward pass.
                future: Future[Tensor | str] = Future()
                future.set_result(load(listed[0]))
                return [(listed[0][0], future)]
            return [(item[0], decoders.submit(load, item)) for item in listed]

        batch = start()
        while batch:
            following = start()
            yield [path for path, _ in batch], [future.result() for _, future in batch]
            batch = following


def image_of(source: ListedImage) -> tuple[Image.Image, str]:
    """Returns the pixels of an image and its content key, on which random crops depend."""
    if isinstance(source, Path):
        return read_image(source), content_id(digest_of(source))
    if isinstance(source, ShardImage):
        # As of a file of its own, so that its crops and its prediction are the same.
        return source.decode(), content_id(hashlib.sha256(source.content).hexdigest())
    image = to_rgb(source)
    return image, content_key({"pixels": content_key({"size": image.size, "bytes": image.tobytes().hex()})})


def encode_views(
    towers: Towers, views: Float[Tensor, "b s 3 h w"], device: torch.device, *, exact: bool = True
) -> Float[Tensor, "b s d"]:
    """Encodes the views of some images.

    Args:
        towers: The models.
        views: Views of each image.
        device: Device of the models.
        exact: Whether all passes on a CPU have one size: a feature is then the same in any batch, and that of one image
            takes as long as those of `CPU_ROWS`.
    """
    rows = views.flatten(0, 1)
    size = CPU_ROWS if device.type == "cpu" else len(rows)
    features: list[Tensor] = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        fill = size - len(part) if exact else 0
        full = torch.cat([part, part[-1:].expand(fill, *part.shape[1:])]) if fill else part
        features.append(towers.images(full.to(device))[: len(part)].float().cpu())
    return torch.cat(features).unflatten(0, views.shape[:2])


@torch.inference_mode()
def encode_images(
    classifier: "ImageClassifier", sources: ImageSource | Iterable[ImageSource]
) -> tuple[list[str], Tensor]:
    """Returns the content key and the fused unit feature of each image.

    Raises:
        ValueError: If an image cannot be read, or there is none.
    """
    loaded = classifier.load_encoder()
    views = loaded.views(classifier.scales)
    ids: list[str] = []
    features: list[Tensor] = []
    items = expand_sources(sources)
    # Batch by batch: the pixels of all images need not fit into memory.
    while batch := list(islice(items, _BATCH)):
        images = [image_of(source) for _, source in batch]
        ids += [image_id for _, image_id in images]
        pixels = torch.stack([views(image, image_id) for image, image_id in images])
        features.append(classifier.scales.fuse(encode_views(loaded.towers, pixels, loaded.device)))
    if not ids:
        raise ValueError("no image to encode; give at least one file")
    return ids, torch.cat(features)


def rejecter(classifier: "ImageClassifier") -> Callable[[Tensor, Tensor], Sequence[bool | None]]:
    """Returns a function of features (q, d) and scores (q, c) that detects images of none of the classes.

    It gives None for every image where the classifier has no threshold.
    """
    fitted = classifier.rejector
    if fitted is None:
        return lambda features, scores: [None] * len(scores)
    images = classifier.references.images
    against = None
    negatives = classifier.negative_references
    if negatives is not None:
        against = classifier.choice.fit(negatives.support, negatives.text)

    def reject(features: Float[Tensor, "q d"], scores: Float[Tensor, "q c"]) -> Sequence[bool]:
        features = classifier.aligned_real(features)
        nearest = None if images is None else (features @ images.features.T).amax(dim=1)
        rivals = None if against is None else against(features)
        inputs = ScoreInputs(scores, nearest, rivals, classifier.temperature.value)
        return (SCORES[fitted.score](inputs).double() < fitted.threshold).tolist()

    return reject
