"""Finds the largest batch of images that fits into a GPU's memory, by measuring small ones: `diffuser.batch_size=auto`.

accelerate's `find_executable_batch_size` was considered: it halves after each failure, so that it begins with a batch
far too large and generates some of it, and it would end at sizes that are no powers of two.
"""

from collections.abc import Callable
from typing import Protocol

import torch

AUTO = "auto"
"""Value of `diffuser.batch_size` that measures."""

LARGEST_BATCH = 64
"""Largest batch that is chosen. Every chosen size is a power of two and divides it, so that the images of a group of so
many are divided into complete passes, whatever size each device has."""

MEMORY_FRACTION = 0.85
"""Fraction of the free memory that a batch may take: the allocator's gaps need the rest."""

HIDDEN_GROWTH = 0.1
"""Growth of the peak, as a fraction of it, below which it belongs to work that a batch does not share."""


class MemoryMeter(Protocol):
    """Measures the memory of a device."""

    def free(self) -> int:
        """Returns the number of bytes that can be allocated now."""
        ...

    def peak(self, call: Callable[[], object]) -> int:
        """Returns the largest number of bytes that a call has allocated at once, in addition to what was before.

        Raises:
            torch.OutOfMemoryError: If they do not fit.
        """
        ...


class CudaMeter:
    """Measures the memory of a CUDA device by torch's allocator.

    Args:
        device: The device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def free(self) -> int:
        """Returns the bytes that the driver has, and those that torch holds and does not use."""
        free, _ = torch.cuda.mem_get_info(self._device)
        unused = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return free + unused

    def peak(self, call: Callable[[], object]) -> int:
        """Returns the largest number of bytes that a call has allocated at once, in addition to what was before."""
        before = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        call()
        return torch.cuda.max_memory_allocated(self._device) - before


def memory_meter(device: torch.device) -> MemoryMeter | None:
    """Returns the meter of a device's memory; None on a CPU, where larger batches are not faster."""
    if device.type == "cuda":
        return CudaMeter(device)
    return None


def probe_batch_size(generate: Callable[[int], object], meter: MemoryMeter) -> int:
    """Returns the largest power of two, up to `LARGEST_BATCH`, whose batch fits into `MEMORY_FRACTION` of free memory.

    Peaks of one and two images give the memory of a further image. Where the second image hardly changes the peak, as
    with `slicing`, whose peak is the decoding of one image, batches are doubled until a change shows, as long as twice
    the peak fits.

    Args:
        generate: Generates a batch of so many images.
        meter: Measures the memory of the device.

    Raises:
        ValueError: If a single image does not fit.
    """
    # The first call also allocates what remains, such as the libraries' workspaces.
    if _peak(generate, 1, meter) is None:
        raise ValueError(no_room(AUTO, 1))
    budget = int(MEMORY_FRACTION * meter.free())
    size = 1
    peak = _peak(generate, 1, meter)
    if peak is None:
        raise ValueError(no_room(AUTO, 1))
    per_image = peak
    while size == 1 or (size < LARGEST_BATCH and 2 * peak <= budget):
        larger = _peak(generate, 2 * size, meter)
        if larger is None or larger > budget:
            return size
        per_image = max(0, larger - peak) // size
        is_visible = larger - peak > HIDDEN_GROWTH * peak
        size *= 2
        peak = larger
        if is_visible:
            break
    while size < LARGEST_BATCH and peak + size * per_image <= budget:
        # The memory of the next batch, by that of a further image.
        peak += size * per_image
        size *= 2
    return size


def no_room(batch_size: int | str, images: int) -> str:
    """Returns the message for a batch that does not fit into memory.

    Args:
        batch_size: Value of `diffuser.batch_size`.
        images: Number of images of the batch.
    """
    if images == 1:
        return (
            f"diffuser.batch_size={batch_size}: one image does not fit into the memory of the device; set "
            "diffuser.slicing=true, diffuser.offload=model or sequential, diffuser.tiling=true, or a smaller "
            "diffuser.size"
        )
    return (
        f"diffuser.batch_size={batch_size}: {images} images at once do not fit into the memory of the device; set a "
        "smaller number, or auto, which measures; what is generated is kept"
    )


def _peak(generate: Callable[[int], object], size: int, meter: MemoryMeter) -> int | None:
    """Returns the peak of a batch; None if it does not fit."""
    try:
        return meter.peak(lambda: generate(size))
    except torch.OutOfMemoryError:
        return None
