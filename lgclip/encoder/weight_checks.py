"""Checks that an encoder takes an image, before anything is generated for it."""

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lgclip.encoder.base import Encoder


def sample_pixels(encoder: Encoder) -> Float[Tensor, "1 c h w"]:
    """Returns a preprocessed image, as a batch of one.

    Raises:
        ValueError: If the encoder's preprocessing fails.
    """
    # The content does not matter, and neither does the size: the transform brings any image to the tower's input.
    try:
        return encoder.transform()(Image.new("RGB", (256, 192)))[None]
    except Exception as error:  # of torchvision, PIL or the library of the model
        raise ValueError(
            f"encoder ({type(encoder).__name__}): its preprocessing takes no image ({_first_line(error)}); "
            "correct the preprocessing in its config"
        ) from error


def check_pass(encoder: Encoder, pixels: Float[Tensor, "1 c h w"]) -> None:
    """Loads an encoder on the CPU and encodes one image.

    Raises:
        ValueError: If the weights cannot be loaded, or the tower takes no such image.
    """
    towers = encoder.load(torch.device("cpu"))
    try:
        features = towers.images(pixels)
    except Exception as error:  # of any layer
        size = "x".join(map(str, pixels.shape[1:]))
        raise ValueError(
            f"encoder ({type(encoder).__name__}): its vision tower takes no image of {size}, which its preprocessing "
            f"gives ({_first_line(error)}); correct its config or encoder.image_size"
        ) from error
    if features.ndim != 2 or not bool(features.isfinite().all()):
        raise ValueError(
            f"encoder ({type(encoder).__name__}): its features of an image are not finite vectors; its weights are "
            "damaged or of another model"
        )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
