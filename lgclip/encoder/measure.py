"""How large a tower is and how much it computes, counted once where its weights are in memory anyway."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lgclip.encoder.base import Encoder, Towers
from lgclip.whole import write_json

log = logging.getLogger(__name__)

SENTENCE = "a photo of a thing."
"""What the text tower reads; its tokens are padded to the context length, so any sentence costs the same."""


_TRIES = 5
"""Calls of which the fastest counts: what else the machine does can only make one slower."""


def measure(encoder: Encoder, towers: Towers, path: Path, device: str) -> None:
    """Writes what the towers of an encoder cost, unless it is there.

    FLOPs are those of matrix products, convolutions and attention for one image or one sentence; a multiply-add
    counts as 2, as in torch's `FlopCounterMode`. Seconds are of one preprocessed image or one sentence, alone.

    Args:
        encoder: Whose preprocessing to use.
        towers: The same encoder in memory.
        path: A JSON file of the features' `width`, and of `image` and `text`: their `parameters`, `flops`, `seconds`
            and `device`.
        device: What the towers are on.
    """
    if path.exists():
        return
    pixels = encoder.transform()(Image.new("RGB", (256, 256)))[None]
    calls: dict[str, Callable[[], Tensor]] = {"image": lambda: towers.images(pixels)}
    if encoder.has_text:
        calls["text"] = lambda: towers.texts([SENTENCE])
    try:
        flops = {name: flops_of(call) for name, call in calls.items()}
    except Exception as error:  # a count is not worth a run, and architectures are many
        log.warning("what the towers of %s compute cannot be counted: %s", encoder, str(error).partition("\n")[0])
        return
    parameters = towers.parameters()
    found = {
        name: {"parameters": parameters[name], "flops": flops[name], "seconds": seconds_of(call), "device": device}
        for name, call in calls.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"width": calls["image"]().shape[-1], "text": None, **found})


def seconds_of(call: Callable[[], Tensor]) -> float:
    """The least time that a call takes until its result is on the CPU."""
    taken = []
    for _ in range(_TRIES):
        start = time.perf_counter()
        call().cpu()
        taken.append(time.perf_counter() - start)
    return round(min(taken), 9)


def flops_of(call: Callable[[], Tensor]) -> int:
    """FLOPs of a call, a multiply-add as 2."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # Attention as one fused operation is passed over by the counter; its parts are not.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            call()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops()
