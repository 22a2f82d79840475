"""Quantizes the linear layers of a pipeline's denoiser by torchao: `diffuser.quantization=int8|fp8`.

Weights and activations are quantized, each row by a scale of its own: products are then computed in 8 bits, and no
image depends on the others of its batch.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from lgclip.encoder.precision import decided

QUANTIZATIONS = ("int8", "fp8")

FP8_CAPABILITY = (8, 9)
"""First compute capability of NVIDIA's GPUs that multiplies in fp8: Ada and Hopper."""

_MULTIPLE = 16
"""Divisor of the rows and columns of a matrix in the GPU's 8-bit products."""

_DENOISERS = ("unet", "transformer")


def check_quantization(name: str, precision: str, offload: str) -> None:
    """Checks the value of `diffuser.quantization`, and what it cannot be combined with.

    Args:
        name: The value.
        precision: Value of `diffuser.precision`.
        offload: Value of `diffuser.offload`.

    Raises:
        ValueError: If the value is unknown, torchao is missing, or the combination does not work.
    """
    if name not in QUANTIZATIONS:
        raise ValueError(f"diffuser.quantization={name}: choose {', '.join(QUANTIZATIONS)}, or null")
    if find_spec("torchao") is None:
        raise ValueError(
            f"diffuser.quantization={name}: package torchao is missing: pip install 'lgclip[quantization]'"
        )
    if offload == "sequential":
        raise ValueError(
            f"diffuser.quantization={name}: layers that move one by one cannot be quantized; set diffuser.offload=none "
            "or model"
        )
    if name == "fp8" and decided(precision) != "bf16":
        raise ValueError(
            f"diffuser.quantization=fp8: rows are quantized from bf16, and precision={precision} is "
            f"{decided(precision)} here; set precision=bf16, or diffuser.quantization=int8"
        )


def check_device(name: str, device: torch.device) -> None:
    """Checks that a device multiplies in the numbers of a quantization.

    Raises:
        ValueError: If it does not.
    """
    if name != "fp8":
        return
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        least = ".".join(map(str, FP8_CAPABILITY))
        raise ValueError(
            f"diffuser.quantization=fp8: {device} does not multiply in fp8, which needs a GPU of compute capability "
            f"{least} or newer; set diffuser.quantization=int8, or null"
        )


def quantize(pipeline: Any, name: str) -> None:
    """Quantizes the denoiser's linear layers in place; the adapters of LoRA and small layers stay as they are.

    Args:
        pipeline: A pipeline of diffusers.
        name: One of `QUANTIZATIONS`.

    Raises:
        ValueError: If the pipeline has no layer that can be quantized.
    """
    torchao = import_module("torchao.quantization")
    # The granularity is stated, since it decides whether an image depends on its batch. torchao would otherwise also
    # change settings of torch's compiler for the whole process.
    if name == "int8":
        config = torchao.Int8DynamicActivationInt8WeightConfig(granularity=torchao.PerRow(), set_inductor_config=False)
    else:
        config = torchao.Float8DynamicActivationFloat8WeightConfig(
            granularity=torchao.PerRow(), set_inductor_config=False
        )
    count = 0
    for part in _DENOISERS:
        network = pipeline.components.get(part)
        if network is not None:
            count += sum(_is_quantized(module, place) for place, module in network.named_modules())
            torchao.quantize_(network, config, filter_fn=_is_quantized)
    if not count:
        raise ValueError(
            f"diffuser.quantization={name}: {type(pipeline).__name__} has no denoiser with linear layers of a multiple "
            f"of {_MULTIPLE} rows and columns; set it to null"
        )


def _is_quantized(module: nn.Module, place: str) -> bool:
    if not isinstance(module, nn.Linear) or "lora_" in place:
        return False
    return not any(size % _MULTIPLE for size in module.weight.shape)
