"""Detects images without content (black, flat, not finite), so that none becomes part of a prototype."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lgclip.datasets.image_decoding import FLAT_STD
from lgclip.types import Fault


def faults_of(images: Float[Tensor, "b 3 h w"], finite: Sequence[bool], flagged: Sequence[bool]) -> list[Fault | None]:
    """Returns the fault of each image of a batch; None for a usable one.

    Args:
        images: From 0 to 1, on any device, in any precision.
        finite: Whether each image's latents were finite.
        flagged: Whether the safety checker flagged it.
    """
    # In fp32, because a sum of squares over half a million pixels overflows fp16.
    pixels = images.float().flatten(2)
    highest = pixels.amax(dim=(1, 2))
    # The channel that varies most: an image of one hue still varies in brightness.
    spread = 255 * pixels.std(dim=2, correction=0).amax(dim=1)
    finite_pixels = torch.isfinite(pixels).all(dim=2).all(dim=1)
    # One copy from the device for all three values; each copy on its own would wait for the device.
    rows = torch.stack([finite_pixels.float(), highest, spread], dim=1).tolist()
    faults: list[Fault | None] = []
    for (pixels_ok, top, deviation), latents_ok, is_flagged in zip(rows, finite, flagged, strict=True):
        # The order matters. A decoder may turn NaN latents into a clean black image, and a safety checker replaces
        # what it flags by a black one: the fault that is reported must be the cause.
        if not (pixels_ok and latents_ok):
            faults.append(Fault.NOT_FINITE)
        elif is_flagged:
            faults.append(Fault.UNSAFE)
        else:
            faults.append(_shade(255 * top, deviation))
    return faults


def fault_of(pixels: UInt8[np.ndarray, "h w 3"]) -> Fault | None:
    """Returns the fault of an image from another source; None for a usable one."""
    return _shade(float(pixels.max()), float(pixels.reshape(-1, 3).std(axis=0).max()))


def _shade(highest: float, spread: float) -> Fault | None:
    if highest < 0.5:  # rounds to 0
        return Fault.BLACK
    if spread < FLAT_STD:
        return Fault.FLAT
    return None
