"""In which arithmetic a tower runs; its features are brought to unit length in fp32 whatever it is."""

from contextlib import AbstractContextManager, nullcontext

import torch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: str) -> None:
    """Refuses a precision that is unknown.

    Raises:
        ValueError: If it is neither `auto` nor one of `PRECISIONS`.
    """
    if precision not in ("auto", *PRECISIONS):
        raise ValueError(f"encoder.precision={precision}: choose auto, {', '.join(PRECISIONS)}")


def decided(precision: str, device: torch.device | None = None) -> str:
    """What `auto` comes to: bf16 on a GPU that computes in it, fp32 elsewhere.

    Args:
        precision: `auto` or one of `PRECISIONS`.
        device: Where the towers run; None asks what this machine has.
    """
    if precision != "auto":
        return precision
    on_gpu = torch.cuda.is_available() if device is None else device.type == "cuda"
    return "bf16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def arithmetic(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Runs what is inside in `precision`.

    Weights stay in fp32 and are cast where a matrix product or a convolution reads them; torch keeps
    layer norms and softmax in fp32 on a GPU. So one way serves every architecture.

    Args:
        precision: One of `PRECISIONS`.
        device: Where the towers are.
    """
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=PRECISIONS[precision])
