"""Sets the floating-point precision of a tower; its features are normalized in fp32 in any case."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import Module

from lgclip.runtime.cpu_limit import within_onednn_limit

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: str) -> None:
    """Rejects an unknown precision.

    Raises:
        ValueError: If it is neither `auto` nor one of `PRECISIONS`.
    """
    if precision not in ("auto", *PRECISIONS):
        raise ValueError(f"encoder.precision={precision}: choose auto, {', '.join(PRECISIONS)}")


def has_bf16_units() -> bool:
    """Returns whether this CPU multiplies matrices in bf16, several times as fast as in fp32: AMX or AVX512-BF16.

    Others emulate it, many times slower than fp32. oneDNN, which multiplies, can be told to use less of a CPU than it
    has (`ONEDNN_MAX_CPU_ISA`); without these instructions it emulates too.
    """
    if not within_onednn_limit():
        return False
    # What the processor says, never a measurement: a key must not depend on how busy the machine is.
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, probe, bool)() for probe in probes)


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


def as_input(pixels: Tensor, precision: str, device: torch.device) -> Tensor:
    """Returns pixels on a device, of the type of the weights after `cast_weights`; integers keep theirs."""
    if device.type == "cuda" or not pixels.is_floating_point():
        return pixels.to(device)
    return pixels.to(device, PRECISIONS[precision])


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


def inference(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Runs the block in `precision`, with weights as `cast_weights` leaves them.

    Args:
        precision: One of `PRECISIONS`.
        device: Device of the towers.
    """
    return arithmetic(precision, device) if device.type == "cuda" else nullcontext()
