"""The small world in other styles: the same scenes as pictures that no model has learned from."""

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from scipy.ndimage import gaussian_gradient_magnitude

from lgclip.tiny.world import pixel_noise

Picture = UInt8[np.ndarray, "64 64 3"]

NOISE = 0.25
"""Standard deviation of the noise of `noisy`, in units of the full range; a photo's is at most 0.06."""
_STREAM = 4
"""First number of the noise's random stream; the world's own streams are 1 to 3."""


def sketch(picture: Picture, index: int) -> Picture:
    """Black lines on white where colours change, as if drawn with a pen; colour itself is lost."""
    steps = [gaussian_gradient_magnitude(picture[..., c] / 255.0, sigma=0.8, mode="nearest") for c in range(3)]
    ink = np.clip((np.max(steps, axis=0) - 0.07) / 0.09, 0, 1)
    line = ((1 - ink) * 255 + 0.5).astype(np.uint8)
    return np.repeat(line[..., None], 3, axis=-1)


def inverted(picture: Picture, index: int) -> Picture:
    """The negative: every colour is its opposite, shapes and patterns stay."""
    return 255 - picture


def noisy(picture: Picture, index: int) -> Picture:
    """Strong Gaussian noise on each pixel, a function of the picture's index alone."""
    noise = NOISE * pixel_noise(np.random.Generator(np.random.PCG64([_STREAM, index])))
    return (np.clip(picture / 255.0 + noise, 0, 1) * 255 + 0.5).astype(np.uint8)


STYLES: dict[str, Callable[[Picture, int], Picture]] = {
    "photo": lambda picture, index: picture,
    "sketch": sketch,
    "inverted": inverted,
    "noisy": noisy,
}
"""What `dataset.style` may be: each a function of a picture and its index."""
