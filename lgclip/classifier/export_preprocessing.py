"""Describes how a photograph becomes the pixels of a tower, and resizes within an exported graph."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lgclip.encoder.base import Transform

_Length = int | torch.SymInt
"""Number of pixels; a symbol while a graph is traced."""

RESIZE = "resize"
CENTER_CROP = "center_crop"
_UNCHANGED = ("MaybeConvertMode", "MaybeToTensor", "ToTensor")
"""Steps that every exported file has: RGB, and values from 0 to 1."""


@dataclass(frozen=True)
class Preprocessing:
    """Describes an encoder's preprocessing.

    Attributes:
        steps: What happens to the image before it is numbers, in order, as plain values. A `resize` to a number
            brings the shorter side to it, a `resize` to a pair brings height and width to it.
        mean: Mean of each channel, for values from 0 to 1.
        std: Standard deviation of each channel.
    """

    steps: tuple[dict[str, Any], ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def describe_preprocessing(transform: Transform) -> Preprocessing:
    """Returns the steps of a preprocessing, read from the very object that runs, so that the two cannot differ.

    Raises:
        ValueError: If it has a step that cannot be described.
    """
    steps: list[dict[str, Any]] = []
    normalization: Any = None
    for part in getattr(transform, "transforms", [transform]):
        # open_clip and timm have classes of these names, each its own, with the same attributes.
        name = type(part).__name__
        if name == "Normalize":
            normalization = part
        elif name not in _UNCHANGED:
            steps.append(_described(name, part))
    if normalization is None:
        raise ValueError("this encoder's preprocessing does not normalize the channels, so it cannot be exported")
    return Preprocessing(tuple(steps), _channels(normalization.mean), _channels(normalization.std))


def _described(name: str, part: Any) -> dict[str, Any]:
    if name == "Resize":
        return {"step": RESIZE, "size": _size(part.size), "interpolation": _interpolation(part.interpolation)}
    if name == "ResizeKeepRatio":
        return {
            "step": "resize_keep_ratio",
            "size": _pair(part.size),
            "longest": float(part.longest),
            "interpolation": _interpolation(part.interpolation),
        }
    if name == "CenterCrop":
        return {"step": CENTER_CROP, "size": _pair(part.size)}
    if name == "CenterCropOrPad":
        return {"step": "center_crop_or_pad", "size": _pair(part.size), "fill": part.fill}
    raise ValueError(f"this encoder's preprocessing has a step {name}, which cannot be described in an exported file")


def _size(size: Any) -> int | list[int]:
    """Returns a number for a shorter side, or height and width."""
    if isinstance(size, int):
        return size
    sides = [int(side) for side in size]
    # torchvision takes a list of one number for the number.
    return sides if len(sides) > 1 else sides[0]


def _pair(size: Any) -> list[int]:
    """Returns height and width."""
    sides = _size(size)
    return [sides, sides] if isinstance(sides, int) else sides


def _interpolation(mode: Any) -> str:
    return str(getattr(mode, "value", mode))


def _channels(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


class InputSteps(nn.Module):
    """Turns bytes into the pixels of a tower.

    Args:
        preprocessing: Normalization of the channels, and with `resize` the steps before it.
        resize: Whether to resize and crop, so that images may be of any size.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing, *, resize: bool) -> None:
        super().__init__()
        self.resize = PillowResize(preprocessing.steps) if resize else None
        # Not persistent: they are in the metadata, and no weights.
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, images: Float[Tensor, "b 3 _ _"]) -> Float[Tensor, "b 3 h w"]:
        if self.resize is not None:
            images = self.resize(images)
        return (images / 255 - self.mean) / self.std


class PillowResize(nn.Module):
    """Resizes and crops the center as Pillow does, up to a rounding, in operations that every format has.

    `torch.nn.functional.interpolate(antialias=True)` was considered. OpenVINO ignores the antialiasing of the operator
    that it becomes in ONNX, and `torch.export` binds it to the aspect ratio of its example. Pillow's algorithm is two
    matrix products, of which the first is rounded to whole gray levels.

    Args:
        steps: The steps of a `Preprocessing`: one resize, and at most one center crop.

    Raises:
        ValueError: If there are other steps.
    """

    def __init__(self, steps: tuple[dict[str, Any], ...]) -> None:
        super().__init__()
        kinds = [step["step"] for step in steps]
        if kinds not in ([RESIZE], [RESIZE, CENTER_CROP]) or steps[0]["interpolation"] not in _FILTERS:
            raise ValueError(
                f"resize: this encoder's preprocessing is {', '.join(kinds)}; only a {' or '.join(_FILTERS)} resize "
                "and a center crop can be put into the graph, so leave resize out"
            )
        self._size = steps[0]["size"]
        self._filter = _FILTERS[steps[0]["interpolation"]]
        if isinstance(steps[-1]["size"], int):
            raise ValueError("resize: this encoder's preprocessing has no crop, so that its input has no size")
        self._crop = tuple(steps[-1]["size"])
        resized = _pair(self._size)
        if resized[0] < self._crop[0] or resized[1] < self._crop[1]:
            raise ValueError(f"resize: the crop {self._crop} is larger than the resized image {self._size}")

    def forward(self, pixels: Float[Tensor, "b 3 _ _"]) -> Float[Tensor, "b 3 _ _"]:
        # While tracing, sizes are symbols, which behave as numbers.
        height: Any = pixels.shape[-2]
        width: Any = pixels.shape[-1]
        if isinstance(self._size, int):
            shorter: Any = torch.sym_min(height, width)
            new_height = self._size * height // shorter
            new_width = self._size * width // shorter
        else:
            new_height, new_width = self._size
        rows = self._weights(height, new_height, self._crop[0])
        columns = self._weights(width, new_width, self._crop[1])
        return _gray_levels(rows @ _gray_levels(pixels @ columns.T))

    def _weights(self, length: _Length, resized: _Length, crop: int) -> Float[Tensor, "crop length"]:
        """Returns the weights of the pixels of a side for each pixel of its central part after resizing.

        Args:
            length: Length of the side.
            resized: Its length after resizing.
            crop: Length of the central part.
        """
        margin = resized - crop
        # torchvision rounds half of the margin to an even number: 1 to 0, 3 to 2, 5 to 2, 7 to 4.
        start = margin // 2 + margin % 4 // 3
        scale: Any = length / resized
        # The filter is widened where an image gets smaller, which is the antialiasing; it is never narrowed.
        stretch: Any = torch.sym_max(scale, 1.0)
        centers = (torch.arange(crop, dtype=torch.float32) + (start + 0.5)) * scale
        places = torch.arange(length, dtype=torch.float32) + 0.5
        weights = self._filter((places[None] - centers[:, None]) / stretch)
        return weights / weights.sum(dim=1, keepdim=True)


def _gray_levels(values: Tensor) -> Tensor:
    # Not `round`, which takes a half to the even number.
    return (values + 0.5).floor().clamp(0, 255)


def _bilinear(distance: Tensor) -> Tensor:
    return (1 - distance.abs()).clamp(min=0)


def _bicubic(distance: Tensor) -> Tensor:
    """Returns Keys' cubic convolution with a = -0.5, as in Pillow (IEEE Trans. ASSP 29(6), 1981, eq. 15)."""
    x = distance.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


_FILTERS: dict[str, Callable[[Tensor], Tensor]] = {"bilinear": _bilinear, "bicubic": _bicubic}
