"""Preprocesses images on tensors of bytes: `encoder.resize=fast`.

torch's kernels for bytes resize faster than Pillow. Their weights are rounded to 16 bits, so that some values differ by
a gray level. On a CPU without AVX2 torch has no such kernel, and others may differ.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from lgclip.encoder.base import Transform

EXACT = "exact"
"""Preprocessing of the library that the tower was trained with, byte for byte."""
FAST = "fast"
"""The same steps on tensors of bytes."""
RESIZES = (EXACT, FAST)

_OF_FILES = ("MaybeConvertMode", "MaybeToTensor", "ToTensor")
"""Steps that are done in any case: images are RGB, and values are from 0 to 1."""


def check_resize(resize: str) -> None:
    """Rejects an unknown way to resize.

    Raises:
        ValueError: If it is none of `RESIZES`.
    """
    if resize not in RESIZES:
        raise ValueError(f"encoder.resize={resize}: choose {' or '.join(RESIZES)}")


def build_transform(exact: Transform, resize: str) -> Transform:
    """Returns a preprocessing that resizes in one of `RESIZES`.

    Args:
        exact: The preprocessing of open_clip or timm.
        resize: `exact` or `fast`.

    Raises:
        ValueError: If it has a step that cannot be done on a tensor of bytes.
    """
    if resize == EXACT:
        return exact
    return FastTransform(getattr(exact, "transforms", [exact]))


class FastTransform:
    """Resizes, crops and normalizes a tensor of bytes by the steps of another preprocessing.

    Args:
        transforms: The steps: resizing, cropping and normalizing, by the classes of torchvision, open_clip or timm.

    Attributes:
        transforms: The steps.

    Raises:
        ValueError: If there is another step.
    """

    def __init__(self, transforms: Sequence[Any]) -> None:
        self.transforms = list(transforms)
        for step in self.transforms:
            name = type(step).__name__
            if name not in (*_OF_FILES, "Resize", "ResizeKeepRatio", "CenterCrop", "Normalize"):
                raise ValueError(
                    f"encoder.resize=fast: this encoder's preprocessing has a step {name}, which has no fast version; "
                    "set encoder.resize=exact"
                )

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 h w"]:
        from torchvision.transforms.v2.functional import center_crop, pil_to_tensor

        # An image of a data set is RGB already; converting it would copy it.
        pixels: Any = pil_to_tensor(image if image.mode == "RGB" else image.convert("RGB"))
        for step in self.transforms:
            name = type(step).__name__
            if name == "Resize":
                pixels = _resize(pixels, step.size, step.interpolation)
            elif name == "ResizeKeepRatio":
                pixels = _resize(pixels, _kept_ratio(pixels, step.size, step.longest), step.interpolation)
            elif name == "CenterCrop":
                pixels = center_crop(pixels, list(step.size))
            elif name == "Normalize":
                pixels = _normalize(pixels, step.mean, step.std)
        return pixels


def _resize(pixels: UInt8[Tensor, "3 _ _"], size: Any, interpolation: Any) -> UInt8[Tensor, "3 _ _"]:
    from torchvision.transforms.v2.functional import resize

    sides = [size] if isinstance(size, int) else list(size)
    return resize(pixels, sides, interpolation, antialias=True)


def _normalize(pixels: UInt8[Tensor, "3 h w"], mean: Any, std: Any) -> Float[Tensor, "3 h w"]:
    """Returns normalized values, for a mean and standard deviation of values from 0 to 1."""
    shift, scale = (255 * torch.as_tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (mean, std))
    return pixels.float().sub_(shift).div_(scale)


def _kept_ratio(pixels: UInt8[Tensor, "3 _ _"], size: Sequence[int], longest: float) -> list[int]:
    """Returns the size of an image of which the shorter, or for `longest` 1 the longer, side fits."""
    sides = pixels.shape[-2:]
    ratios = [side / target for side, target in zip(sides, size, strict=True)]
    ratio = max(ratios) * longest + min(ratios) * (1 - longest)
    return [round(side / ratio) for side in sides]
