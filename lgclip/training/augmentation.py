"""Augments training images reproducibly, and preprocesses images for evaluation."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

PixelTransform = Callable[[Tensor], Tensor]
"""Maps an image as bytes, (3, h, w), to another."""


def augmentation(
    size: int, crop: Sequence[float], *, flip: bool, color_jitter: float, interpolation: str = "bilinear"
) -> PixelTransform:
    """Returns a random resized crop (arXiv:1409.4842), a random flip, and color jitter.

    Args:
        size: Height and width of the output in pixels.
        crop: Minimum and maximum fraction of the image's area.
        flip: Whether to flip half of the images horizontally.
        color_jitter: Strength of brightness, contrast and saturation changes; 0 is none.
        interpolation: `bilinear` or `bicubic`.
    """
    steps: list[torch.nn.Module] = [
        v2.RandomResizedCrop(size, (crop[0], crop[1]), interpolation=InterpolationMode(interpolation), antialias=True)
    ]
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    if color_jitter:
        # Without a hue, which often distinguishes two classes.
        steps.append(v2.ColorJitter(color_jitter, color_jitter, color_jitter))
    return v2.Compose(steps)


def center_cropped(
    size: int, center_crop: float = 1.0, interpolation: str = "bilinear", *, squash: bool = False
) -> PixelTransform:
    """Returns the center crop of an image.

    Args:
        size: Height and width of the output in pixels.
        center_crop: Fraction of the shorter side that is kept.
        interpolation: `bilinear` or `bicubic`.
        squash: Whether to resize both sides to `size` without a crop.
    """
    mode = InterpolationMode(interpolation)
    if squash:
        return v2.Resize((size, size), interpolation=mode, antialias=True)
    # The shorter side becomes size / center_crop, of which `size` pixels are the fraction `center_crop`.
    return v2.Compose([v2.Resize(round(size / center_crop), interpolation=mode, antialias=True), v2.CenterCrop(size)])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds torch's CPU random number generator inside the block, and restores its state afterwards.

    torchvision's transforms use only this generator; two threads must therefore not be in such a block concurrently.
    """
    # The CPU's generator alone: `torch.manual_seed` would seed the GPU's, too, and change its dropout.
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)


def normalized(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalizes bytes to network input: 0 to 1, minus the mean, divided by the standard deviation.

    Args:
        pixels: Bytes, (..., 3, h, w).
        mean: Mean of each channel, (3, 1, 1).
        std: Standard deviation of each channel, (3, 1, 1).
    """
    return (pixels.float() / 255 - mean) / std
