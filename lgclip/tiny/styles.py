"""Renders the small world in other styles: the same scenes as images that no model was trained on."""

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
    """Draws black lines on white where colors change, as with a pen; color itself is lost."""
    # The strongest of the three channels: of the mean, two colors of equal brightness would have no line between them.
    steps = [gaussian_gradient_magnitude(picture[..., c] / 255.0, sigma=0.8, mode="nearest") for c in range(3)]
    ink = np.clip((np.max(steps, axis=0) - 0.07) / 0.09, 0, 1)
    line = ((1 - ink) * 255 + 0.5).astype(np.uint8)
    return np.repeat(line[..., None], 3, axis=-1)


def inverted(picture: Picture, index: int) -> Picture:
    """Inverts every color; shapes and patterns stay."""
    return 255 - picture


def noisy(picture: Picture, index: int) -> Picture:
    """Adds strong Gaussian noise to each pixel, as a function of the image's index only."""
    noise = NOISE * pixel_noise(np.random.Generator(np.random.PCG64([_STREAM, index])))
    return (np.clip(picture / 255.0 + noise, 0, 1) * 255 + 0.5).astype(np.uint8)


STYLES: dict[str, Callable[[Picture, int], Picture]] = {
    "photo": lambda picture, index: picture,
    "sketch": sketch,
    "inverted": inverted,
    "noisy": noisy,
}
"""Values of `dataset.style`: each a function of an image and its index."""
