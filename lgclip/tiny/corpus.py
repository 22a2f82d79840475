"""Builds the pre-training corpus: captioned images of seen classes and of the first half of the digits."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from lgclip.store.atomic import atomic_write
from lgclip.tiny.captions import caption_of, description_of, digit_caption_of, digit_description_of
from lgclip.tiny.world import SCANNED_DIGITS, SEEN_KINDS, SIZE, image_of, scanned_digits, scene_of

DIGIT_REPEATS = 4
"""How often each scan is in the corpus, every time with another caption."""


class Corpus:
    """Holds captioned images in memory, without held-out classes and evaluated digits.

    The first `shapes` images are of the small world, the rest are scans of digits.

    Args:
        shapes: Number of images of seen classes.
        seed: Chooses the words of the captions.
        cache: File of the rendered images, so that a resumed build does not render them again.

    Attributes:
        images: The images, (n, 3, 64, 64).
        kinds: Class number of each image, (n,): a seen class, or 210 + the digit.
    """

    def __init__(self, shapes: int, seed: int, cache: str | Path) -> None:
        self._shapes = shapes
        self._seed = seed
        digits, labels = scanned_digits(pretrain=True)
        self._labels = np.tile(labels, DIGIT_REPEATS)
        self._ink = np.tile(digits.mean(axis=(1, 2, 3)) / 255, DIGIT_REPEATS)
        synthetic = np.concatenate([self._rendered(Path(cache)), np.tile(digits, (DIGIT_REPEATS, 1, 1, 1))])
        self.images: UInt8[Tensor, "n 3 64 64"] = torch.from_numpy(synthetic).permute(0, 3, 1, 2).contiguous()
        # As `scene_of` gives the kinds of `pretrain`, in turn.
        shape_kinds = torch.arange(shapes) % len(SEEN_KINDS)
        self.kinds = torch.cat([shape_kinds, len(SEEN_KINDS) + torch.from_numpy(self._labels).long()])

    def _rendered(self, cache: Path) -> UInt8[np.ndarray, "n 64 64 3"]:
        path = cache / f"shapes-{self._shapes}.npy"
        if not path.exists():
            synthetic = np.empty((self._shapes, SIZE, SIZE, 3), np.uint8)
            for index in range(self._shapes):
                synthetic[index] = image_of("pretrain", index)
            cache.mkdir(parents=True, exist_ok=True)
            # To an open file: given a path, NumPy would append ".npy" to the temporary name.
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                np.save(file, synthetic)
        return np.load(path)

    def __len__(self) -> int:
        return len(self.images)

    def caption(self, index: int, variant: int) -> str:
        """Returns a caption of image `index`; `variant` chooses other words for the same facts."""
        # A generator for each caption, so that it does not depend on which captions were made before.
        rng = np.random.Generator(np.random.PCG64([self._seed, index, variant]))
        if index < self._shapes:
            return caption_of(scene_of("pretrain", index)[0], rng)
        scan = index - self._shapes
        return digit_caption_of(int(self._labels[scan]), float(self._ink[scan]), rng)

    def description(self, index: int) -> str:
        """Returns the complete description of image `index`, always in the same words."""
        if index < self._shapes:
            return description_of(scene_of("pretrain", index)[0])
        scan = index - self._shapes
        return digit_description_of(int(self._labels[scan]), float(self._ink[scan]))

    def captions(self, variants: int) -> list[list[str]]:
        """Returns `variants` captions of every image."""
        captions: list[list[str]] = []
        for index in range(len(self)):
            captions.append([self.caption(index, variant) for variant in range(variants)])
        return captions


NUM_KINDS = len(SEEN_KINDS) + len(SCANNED_DIGITS)
