"""Sets the floating-point precision of a tower; its features are normalized in fp32 in any case."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from lgclip.runtime.cpu_features import has_bf16_units

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: str) -> None:
    """Rejects an unknown precision.

    Raises:
        ValueError: If it is neither `auto` nor one of `PRECISIONS`.
    """
    if precision not in ("auto", *PRECISIONS):
        raise ValueError(f"encoder.precision={precision}: choose auto, {', '.join(PRECISIONS)}")


def decided(precision: str, device: torch.device | None = None) -> str:
    """Resolves `auto` of what computes with finished weights: bf16 where the hardware has it, fp32 elsewhere.

    Args:
        precision: `auto` or one of `PRECISIONS`.
        device: Device of the towers; None uses the machine's default.
    """
    if precision == "auto" and _on_cpu(device):
        return "bf16" if has_bf16_units() else "fp32"
    return decided_for_training(precision, device)


def decided_for_training(precision: str, device: torch.device | None = None) -> str:
    """Resolves `auto` of what is trained: bf16 on a GPU that supports it, fp32 elsewhere.

    Args:
        precision: `auto` or one of `PRECISIONS`.
        device: Device of the training; None uses the machine's default.
    """
    if precision != "auto":
        return precision
    # Older GPUs emulate bf16 through fp32, which is slower than fp32 and less exact.
    if not _on_cpu(device) and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16"
    return "fp32"


def _on_cpu(device: torch.device | None) -> bool:
    if device is None:
        return not torch.cuda.is_available()
    return device.type != "cuda"


def cast_weights(model: Module, precision: str, device: torch.device) -> Module:
    """Returns a model on a device, ready to compute in `precision`; its weights are cast once on a CPU.

    There autocast is slower than fp32: it casts all weights in each pass, and leaves the fused attention. On a GPU it
    costs nothing, and weights stay in fp32.

    Args:
        model: The model, which is changed.
        precision: One of `PRECISIONS`.
        device: Device of the towers.
    """
    model = model.to(device).eval()
    if device.type == "cuda":
        return model
    return model.to(PRECISIONS[precision])


def arithmetic(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Runs the block in `precision`, with weights in fp32.

    Weights are cast by autocast in matrix products and convolutions; torch keeps layer norms and softmax in fp32 on a
    GPU. One mechanism thus serves every architecture.

    Args:
        precision: One of `PRECISIONS`.
        device: Device of the towers.
    """
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=PRECISIONS[precision])


def forward(call: Callable[[Tensor], Any], batch: Tensor, precision: str, device: torch.device) -> Any:
    """Calls a model whose weights are as `cast_weights` leaves them.

    Args:
        call: The model, or a method of it.
        batch: Pixels, or the integers of a tokenizer, which keep their type.
        precision: One of `PRECISIONS`.
        device: Device of the model.
    """
    batch = batch.to(device)
    if device.type == "cuda":
        with arithmetic(precision, device):
            return call(batch)
    if batch.is_floating_point():
        batch = batch.to(PRECISIONS[precision])
    return call(batch)
