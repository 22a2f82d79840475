"""The pre-training corpus: captioned pictures of seen kinds and of the first half of the digits."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from lgclip.tiny.captions import caption_of, description_of, digit_caption_of, digit_description_of
from lgclip.tiny.world import SCANNED_DIGITS, SEEN_KINDS, SIZE, image_of, scanned_digits, scene_of
from lgclip.whole import write_whole

DIGIT_REPEATS = 4
"""How often each scan stands in the corpus, every time with another caption."""


class Corpus:
    """Captioned pictures in memory; no held-out kind and no judged digit is among them.

    The first `shapes` pictures are of the small world, the rest are scans of digits.

    Args:
        shapes: Number of pictures of seen kinds.
        seed: Chooses the words of the captions.
        cache: Where the drawn pictures are kept, so that a resumed build does not draw them again.

    Attributes:
        images: The pictures, (n, 3, 64, 64).
        kinds: Number of each picture's kind, (n,): a seen kind, or 210 + the digit.
    """

    def __init__(self, shapes: int, seed: int, cache: str | Path) -> None:
        self._shapes = shapes
        self._seed = seed
        digits, labels = scanned_digits(pretrain=True)
        self._labels = np.tile(labels, DIGIT_REPEATS)
        self._ink = np.tile(digits.mean(axis=(1, 2, 3)) / 255, DIGIT_REPEATS)
        pictures = np.concatenate([self._drawn(Path(cache)), np.tile(digits, (DIGIT_REPEATS, 1, 1, 1))])
        self.images: UInt8[Tensor, "n 3 64 64"] = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
        drawn = torch.arange(shapes) % len(SEEN_KINDS)
        self.kinds = torch.cat([drawn, len(SEEN_KINDS) + torch.from_numpy(self._labels).long()])

    def _drawn(self, cache: Path) -> UInt8[np.ndarray, "n 64 64 3"]:
        path = cache / f"shapes-{self._shapes}.npy"
        if not path.exists():
            pictures = np.empty((self._shapes, SIZE, SIZE, 3), np.uint8)
            for index in range(self._shapes):
                pictures[index] = image_of("pretrain", index)
            cache.mkdir(parents=True, exist_ok=True)
            with write_whole(path) as temporary, temporary.open("wb") as file:
                np.save(file, pictures)
        return np.load(path)

    def __len__(self) -> int:
        return len(self.images)

    def caption(self, index: int, variant: int) -> str:
        """A caption of picture `index`; `variant` chooses other words for the same facts."""
        rng = np.random.Generator(np.random.PCG64([self._seed, index, variant]))
        if index < self._shapes:
            return caption_of(scene_of("pretrain", index)[0], rng)
        at = index - self._shapes
        return digit_caption_of(int(self._labels[at]), float(self._ink[at]), rng)

    def description(self, index: int) -> str:
        """All that there is to say of picture `index`, always in the same words."""
        if index < self._shapes:
            return description_of(scene_of("pretrain", index)[0])
        at = index - self._shapes
        return digit_description_of(int(self._labels[at]), float(self._ink[at]))

    def captions(self, variants: int) -> list[list[str]]:
        """`variants` captions of every picture."""
        return [[self.caption(index, v) for v in range(variants)] for index in range(len(self))]


NUM_KINDS = len(SEEN_KINDS) + len(SCANNED_DIGITS)
