"""Computes the pixels of an image for a tower, at every scale."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lgclip.encoder.base import Encoder, Transform
from lgclip.encoder.scales import Scales


def transforms_of(encoder: Encoder) -> dict[bool, Transform]:
    """Returns the preprocessing of a vision tower, by whether it resizes both sides directly to the input size."""
    return {squash: encoder.transform(squash=squash) for squash in (False, True)}


class SharedViews:
    """Crops an image at every scale and preprocesses each crop; decodes each image only once.

    Args:
        encoder: Encoder whose preprocessing is used; loaded with the first image.
        scales: Defines the crops.
        transforms: The result of `transforms_of`, if it is there already; the encoder is then not asked.
    """

    def __init__(self, encoder: Encoder, scales: Scales, transforms: Mapping[bool, Transform] | None = None) -> None:
        self._encoder = encoder
        self._scales = scales
        self._transforms: Mapping[bool, Transform] = transforms or {}

    def __call__(self, image: Image.Image, image_id: str) -> Float[Tensor, "s 3 h w"]:
        if not self._transforms:
            # Built when the first image comes: a stage that lacks nothing must not read the model for it.
            self._transforms = transforms_of(self._encoder)
        views = self._scales.crop(image, image_id)
        return torch.stack([self._transforms[view.squash](view.image) for view in views])
