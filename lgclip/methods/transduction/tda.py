"""TDA: caches of confident and of unsure test images, for a stream of images (arXiv:2403.18293)."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lgclip.methods.transduction.base import (
    Transduction,
    UnlabeledPool,
    check_above_zero,
    check_at_least,
)
from lgclip.methods.transduction.moments import row_blocks

QUERIES = 256
"""Images of the stream that are scored together."""


class CachedImages(NamedTuple):
    """Lists the images that were in a cache at any time.

    Attributes:
        images: Place of each image in the stream; it enters the cache before it is scored.
        removed: Place of the image that replaces it; the length of the stream if none does.
        classes: Predicted class of each.
    """

    images: Int[Tensor, " m"]
    removed: Int[Tensor, " m"]
    classes: Int[Tensor, " m"]

    def cached_between(self, first: int, last: int) -> "CachedImages":
        """Returns the images that were in the cache while the stream was between `first` and `last`."""
        mask = (self.images <= last) & (self.removed > first)
        return CachedImages(*(values[mask] for values in self))


@dataclass(frozen=True)
class TDA(Transduction):
    """Adds the similarity to earlier confident images of a class, and subtracts that to unsure ones (arXiv:2403.18293).

    For each class that it predicts, the positive cache keeps the images of the lowest entropy so far, the negative one
    those among the moderately unsure. The logits are `s + A+(f Q+) L+ - A-(f Q-) L-` with `A(x) = a exp(-b (1 - x))`:
    L+ holds the predicted classes, L- the classes whose probability is within `negative_probs`.

    An image joins a cache before it is scored, and the entropy, in nats, is divided by the binary logarithm of the
    number of classes, both as in the release, whose values for ImageNet are the defaults.

    Ours: what is cached depends on the starting scores alone, so the stream is scored in blocks, not image by image.

    Args:
        positive_size: Number of images of a class in the positive cache.
        positive_weight: Factor a of the positive cache.
        positive_sharpness: Exponent b of the positive cache.
        negative_size: Number of images of a class in the negative cache; 0 leaves it out.
        negative_weight: Factor a of the negative cache.
        negative_sharpness: Exponent b of the negative cache.
        negative_entropy: Bounds of the entropy of images in the negative cache, both excluded.
        negative_probs: Bounds of the probability of a class that such an image speaks against, both excluded.

    Raises:
        ValueError: If a number is out of range.
    """

    key_name: ClassVar[str] = "TDA"
    is_online: ClassVar[bool] = True

    positive_size: int = 3
    positive_weight: float = 2.0
    positive_sharpness: float = 5.0
    negative_size: int = 2
    negative_weight: float = 0.117
    negative_sharpness: float = 1.0
    negative_entropy: Sequence[float] = (0.2, 0.5)
    negative_probs: Sequence[float] = (0.03, 1.0)

    def __post_init__(self) -> None:
        check_at_least("positive_size", self.positive_size, 1)
        check_at_least("negative_size", self.negative_size, 0)
        for name in ("positive_weight", "positive_sharpness", "negative_weight", "negative_sharpness"):
            check_above_zero(name, getattr(self, name))
        for name in ("negative_entropy", "negative_probs"):
            bounds = tuple(getattr(self, name))
            object.__setattr__(self, name, bounds)  # a list of a config file, in a frozen data class
            if len(bounds) != 2 or not 0 <= bounds[0] < bounds[1] < math.inf:
                raise ValueError(f"transduction.{name}={list(bounds)}: it must be two numbers, the lower first")

    def logits(self, pool: UnlabeledPool) -> Float[Tensor, "n c"]:
        log_probs = pool.log_probs()
        n, num_classes = log_probs.shape
        entropies = -(log_probs.exp() * log_probs).sum(dim=1).double()
        predictions = log_probs.argmax(dim=1)
        positive = track_cache(predictions, entropies, range(n), self.positive_size)
        relative = entropies / math.log2(max(num_classes, 2))
        unsure = (relative > self.negative_entropy[0]) & (relative < self.negative_entropy[1])
        negative = track_cache(predictions, entropies, unsure.nonzero()[:, 0].tolist(), self.negative_size)
        logits = pool.scores / pool.temperature
        for first in range(0, n, QUERIES):
            rows = slice(first, min(first + QUERIES, n))
            self._add_positive(logits, pool, rows, positive)
            self._subtract_negative(logits, pool, rows, negative, log_probs)
        return logits

    def _add_positive(
        self, logits: Float[Tensor, "n c"], pool: UnlabeledPool, rows: slice, cache: CachedImages
    ) -> None:
        """Adds the similarity to confident images to some rows of the logits."""
        cached = cache.cached_between(rows.start, rows.stop - 1)
        for part in row_blocks(len(cached.images), logits.shape[1]):
            items = CachedImages(*(values[part] for values in cached))
            affinities = _affinities(pool.features, rows, items, self.positive_sharpness)
            labels = torch.nn.functional.one_hot(items.classes, logits.shape[1]).to(logits)
            logits[rows] += self.positive_weight * (affinities @ labels)

    def _subtract_negative(
        self,
        logits: Float[Tensor, "n c"],
        pool: UnlabeledPool,
        rows: slice,
        cache: CachedImages,
        log_probs: Float[Tensor, "n c"],
    ) -> None:
        """Subtracts the similarity to unsure images from some rows of the logits."""
        low, high = self.negative_probs
        cached = cache.cached_between(rows.start, rows.stop - 1)
        for part in row_blocks(len(cached.images), logits.shape[1]):
            items = CachedImages(*(values[part] for values in cached))
            affinities = _affinities(pool.features, rows, items, self.negative_sharpness)
            probs = log_probs[items.images].exp()
            labels = ((probs > low) & (probs < high)).to(logits)
            logits[rows] -= self.negative_weight * (affinities @ labels)


def track_cache(
    predictions: Int[Tensor, " n"], entropies: Float[Tensor, " n"], candidates: Sequence[int], size: int
) -> CachedImages:
    """Follows which images a cache holds over the stream.

    Args:
        predictions: Predicted class of each image of the stream.
        entropies: Entropy of each.
        candidates: Places of the images that may join the cache, in the stream's order.
        size: Maximum number of images of a class. A new image replaces that of the highest entropy, if its own is
            lower; of several with the highest entropy the last.
    """
    classes = predictions.tolist()
    values = entropies.tolist()
    removed: dict[int, int] = {}
    heaps: dict[int, list[tuple[float, int]]] = {}
    for image in candidates:
        # A heap has its least item first: with both negated, the highest entropy and the last place.
        heap = heaps.setdefault(classes[image], [])
        item = (-values[image], -image)
        if len(heap) < size:
            heapq.heappush(heap, item)
        elif heap and item[0] > heap[0][0]:
            _, replaced = heapq.heapreplace(heap, item)
            removed[-replaced] = image
        else:
            continue
        removed[image] = len(classes)
    images = torch.tensor(sorted(removed), dtype=torch.long, device=predictions.device)
    ends = [removed[image] for image in sorted(removed)]
    return CachedImages(images, torch.tensor(ends, dtype=torch.long, device=images.device), predictions[images])


def _affinities(
    features: Float[Tensor, "n d"], rows: slice, items: CachedImages, sharpness: float
) -> Float[Tensor, "b m"]:
    """Returns `exp(-b (1 - cosine))` of some images to those in the cache when they came, else 0."""
    times = torch.arange(rows.start, rows.stop, device=features.device)[:, None]
    is_held = (items.images <= times) & (items.removed > times)
    cosines = features[rows] @ features[items.images].T
    return (sharpness * (cosines - 1)).exp() * is_held
