"""How training images are changed, at random yet always the same; and how images are seen when nothing is."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

Change = Callable[[Tensor], Tensor]
"""An image as bytes, (3, h, w), to another."""


def augmentation(
    size: int, crop: Sequence[float], *, flip: bool, colour_jitter: float, how: str = "bilinear"
) -> Change:
    """A random resized crop (arXiv:1409.4842), a flip in half of the cases, and other light and colours.

    Args:
        size: Height and width of what comes out, in pixels.
        crop: Least and greatest share of the image's area that is kept.
        flip: Whether half of the images are mirrored.
        colour_jitter: By how much brightness, contrast and saturation may change; 0 is not at all.
        how: `bilinear` or `bicubic`.
    """
    steps: list[torch.nn.Module] = [
        v2.RandomResizedCrop(size, (crop[0], crop[1]), interpolation=InterpolationMode(how), antialias=True)
    ]
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    if colour_jitter:
        steps.append(v2.ColorJitter(colour_jitter, colour_jitter, colour_jitter))
    return v2.Compose(steps)


def centred(size: int, centre: float = 1.0, how: str = "bilinear", *, squash: bool = False) -> Change:
    """The middle of an image.

    Args:
        size: Height and width of what comes out, in pixels.
        centre: Share of the shorter side that is kept.
        how: `bilinear` or `bicubic`.
        squash: Bring both sides to `size` without a crop.
    """
    mode = InterpolationMode(how)
    if squash:
        return v2.Resize((size, size), interpolation=mode, antialias=True)
    return v2.Compose([v2.Resize(round(size / centre), interpolation=mode, antialias=True), v2.CenterCrop(size)])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's random numbers on the CPU from one seed inside the block, and as they were after it.

    torchvision's transforms take them from there and nowhere else; so no two threads may be in such a block.
    """
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)


def normalised(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Bytes to what a network reads: 0 to 1, less the mean, over the deviation.

    Args:
        pixels: Bytes, (..., 3, h, w).
        mean: Of each channel, (3, 1, 1).
        std: Of each channel, (3, 1, 1).
    """
    return (pixels.float() / 255 - mean) / std
