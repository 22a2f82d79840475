"""Measures size and compute cost of a tower, once while its weights are in memory anyway."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lgclip.encoder.base import Encoder, Towers
from lgclip.store.atomic import write_json

log = logging.getLogger(__name__)

SENTENCE = "a photo of a thing."
"""Input of the text tower; tokens are padded to the context length, so any sentence costs the same."""


_TRIES = 5
"""Number of timed calls, of which the fastest counts: other load can only slow a call down."""


def measure(encoder: Encoder, towers: Towers, path: Path, device: str) -> None:
    """Writes the cost of an encoder's towers, unless the file exists.

    FLOPs are those of matrix products, convolutions and attention for one image or one sentence; a multiply-add
    counts as 2, as in torch's `FlopCounterMode`. Seconds are for a batch of one preprocessed image or one sentence.

    Args:
        encoder: Encoder whose preprocessing is used.
        towers: The same encoder in memory.
        path: A JSON file of the features' `width`, and of `image` and `text`: their `parameters`, `flops`, `seconds`
            and `device`.
        device: Device of the towers.
    """
    if path.exists():
        return
    # The content does not matter, and neither does the size: the transform brings any image to the tower's input.
    pixels = encoder.transform()(Image.new("RGB", (256, 256)))[None]
    calls: dict[str, Callable[[], Tensor]] = {"image": lambda: towers.images(pixels)}
    if encoder.has_text:
        calls["text"] = lambda: towers.texts([SENTENCE])
    try:
        flops = {name: flops_of(call) for name, call in calls.items()}
    except Exception as error:  # a count is not worth a run, and architectures are many
        log.warning("the FLOPs of %s cannot be counted: %s", encoder, str(error).partition("\n")[0])
        return
    parameters = towers.parameters()
    costs = {
        name: {"parameters": parameters[name], "flops": flops[name], "seconds": seconds_of(call), "device": device}
        for name, call in calls.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # "text" is null where there is no text tower, so that every file has the same entries.
    write_json(path, {"width": calls["image"]().shape[-1], "text": None, **costs})


def seconds_of(call: Callable[[], Tensor]) -> float:
    """Returns the minimum time of a call until its result is on the CPU."""
    seconds = []
    for _ in range(_TRIES):
        start = time.perf_counter()
        # A GPU works asynchronously: without the copy only the time to queue the work would be measured.
        call().cpu()
        seconds.append(time.perf_counter() - start)
    return round(min(seconds), 9)


def flops_of(call: Callable[[], Tensor]) -> int:
    """Returns the FLOPs of a call, counting a multiply-add as 2."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # Attention as one fused operation is not counted by the counter; its parts are.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            call()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops()
