"""Images with nothing in them: what went wrong with each, so that none becomes part of a prototype."""

from collections.abc import Sequence
from enum import StrEnum

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

FLAT_STD = 1.0
"""Grey levels of 255: an image whose every channel varies less than this over its pixels is flat.
A photograph of a plain wall varies by several, from light falling off and from the sensor alone."""


class Fault(StrEnum):
    """What is wrong with an image; each kind points to another remedy."""

    UNSAFE = "unsafe"
    """The pipeline's safety checker put a black image in its place: the prompt, or a false alarm."""
    NOT_FINITE = "not finite"
    """Latents or pixels are NaN or infinite: the precision is too small for this model."""
    BLACK = "black"
    """Every pixel is 0 though no checker spoke."""
    FLAT = "flat"
    """One colour everywhere, see `FLAT_STD`."""
    UNREADABLE = "unreadable"
    """A file that is no image."""


def faults_of(images: Float[Tensor, "b 3 h w"], finite: Sequence[bool], flagged: Sequence[bool]) -> list[Fault | None]:
    """What is wrong with each image of a batch; None for nothing.

    Args:
        images: From 0 to 1, on any device, in any precision.
        finite: Whether each image's latents were finite.
        flagged: Whether the safety checker flagged it.
    """
    pixels = images.float().flatten(2)
    highest, spread = pixels.amax(dim=(1, 2)), 255 * pixels.std(dim=2, correction=0).amax(dim=1)
    whole = torch.isfinite(pixels).all(dim=2).all(dim=1)
    rows = torch.stack([whole.float(), highest, spread], dim=1).tolist()  # one copy from the device
    return [
        Fault.NOT_FINITE if not (well and fine) else Fault.UNSAFE if unsafe else _shade(255 * top, spread)
        for (well, top, spread), fine, unsafe in zip(rows, finite, flagged, strict=True)
    ]


def fault_of(pixels: UInt8[np.ndarray, "h w 3"]) -> Fault | None:
    """What is wrong with an image that was made elsewhere; None for nothing."""
    return _shade(float(pixels.max()), float(pixels.reshape(-1, 3).std(axis=0).max()))


def _shade(highest: float, spread: float) -> Fault | None:
    if highest < 0.5:  # rounds to 0
        return Fault.BLACK
    return Fault.FLAT if spread < FLAT_STD else None
