"""Renders the small world in other styles: the same scenes as images that no model was trained on."""

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from lgclip.tiny.world import pixel_noise

Picture = UInt8[np.ndarray, "64 64 3"]

NOISE = 0.25
"""Standard deviation of the noise of `noisy`, in units of the full range; a photo's is at most 0.06."""
_NIGHT = (0.35, 0.30, 0.60)
"""Color of the weakest light, as factors of red, green and blue."""
_STREAM = 4
"""First number of the noise's random stream; the world's own streams are 1 to 3."""


def sketch(picture: Picture, index: int) -> Picture:
    """Draws black lines on white where colors change, as with a pen; color itself is lost."""
    from scipy.ndimage import gaussian_gradient_magnitude  # takes as long to import as all else that `shapes` needs

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


def _low_light(picture: Picture, strength: float, blur: float) -> Picture:
    """Dims and blurs an image under bluish light, label and scene stay.

    Args:
        picture: The image.
        strength: 0 is daylight, 1 the color `_NIGHT`.
        blur: Standard deviation of the blur, in pixels.
    """
    from scipy.ndimage import gaussian_filter

    light = 1 - strength * (1 - np.array(_NIGHT))
    dim = gaussian_filter(picture / 255.0 * light, (blur, blur, 0), mode="nearest")
    return (np.clip(dim, 0, 1) * 255 + 0.5).astype(np.uint8)


def evening(picture: Picture, index: int) -> Picture:
    """Renders in low, bluish light with a slight blur: the style of the fine world."""
    return _low_light(picture, strength=0.65, blur=0.8)


def dusk(picture: Picture, index: int) -> Picture:
    """Renders in very low, bluish light with a blur.

    Its strength is set so that text prompts classify about 60% of the images. Unlike noise on pixels, the light and
    the blur survive the small autoencoder, so a diffusion model can learn them.
    """
    return _low_light(picture, strength=0.9, blur=1.0)


STYLES: dict[str, Callable[[Picture, int], Picture]] = {
    "photo": lambda picture, index: picture,
    "sketch": sketch,
    "inverted": inverted,
    "noisy": noisy,
    "evening": evening,
    "dusk": dusk,
}
"""Values of `dataset.style`: each a function of an image and its index."""
