"""Sets the floating-point precision of a tower; its features are normalized in fp32 in any case."""

from contextlib import AbstractContextManager, nullcontext

import torch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: str) -> None:
    """Rejects an unknown precision.

    Raises:
        ValueError: If it is neither `auto` nor one of `PRECISIONS`.
    """
    if precision not in ("auto", *PRECISIONS):
        raise ValueError(f"encoder.precision={precision}: choose auto, {', '.join(PRECISIONS)}")


def decided(precision: str, device: torch.device | None = None) -> str:
    """Resolves `auto`: bf16 on a GPU that supports it, fp32 elsewhere.

    Args:
        precision: `auto` or one of `PRECISIONS`.
        device: Device of the towers; None uses the machine's default.
    """
    if precision != "auto":
        return precision
    on_gpu = torch.cuda.is_available() if device is None else device.type == "cuda"
    # Older GPUs emulate bf16 through fp32, which is slower than fp32 and less exact.
    if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16"
    return "fp32"


def arithmetic(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Runs the block in `precision`.

    Weights stay in fp32 and are cast by autocast in matrix products and convolutions; torch keeps
    layer norms and softmax in fp32 on a GPU. One mechanism thus serves every architecture.

    Args:
        precision: One of `PRECISIONS`.
        device: Device of the towers.
    """
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=PRECISIONS[precision])
