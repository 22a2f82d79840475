"""Compares the weights in a file with those of a model by name and shape, without reading the weights.

`Module.load_state_dict` reports the same, but only after the file is read, with every name on a line of its own.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from lgclip.encoder.weight_files import SAFE
from lgclip.runtime.regular_files import regular_stat

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of each tensor by its name, in the order of the model or of the file."""

_SHOWN = 3


def stored_shapes(file: Path) -> Shapes:
    """Returns the shapes of the tensors in a file: by the header of a safetensors file, or by loading a pickle.

    Args:
        file: A safetensors file, or a pickle, which is read as weights only and runs nothing.

    Raises:
        Exception: If it cannot be read, of the type of the library that reads it.
    """
    regular_stat(file)
    if file.suffix == SAFE:
        with safe_open(file, framework="pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    # By timm, which reads a pickle as weights only, and unpacks training checkpoints. On no device: only the records of
    # the shapes are read.
    from timm.models import load_state_dict

    state: Any = load_state_dict(str(file), device="meta", weights_only=True)
    return {str(name): tuple(value.shape) for name, value in state.items() if isinstance(value, torch.Tensor)}


def model_shapes(model: nn.Module) -> Shapes:
    """Returns the shapes of a model's weights."""
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def mismatch(expected: Shapes, stored: Shapes) -> str | None:
    """Describes how the weights in a file differ from a model's; None if they fit.

    Args:
        expected: Shapes of the model.
        stored: Shapes in the file.
    """
    missing = [name for name in expected if name not in stored]
    unknown = [name for name in stored if name not in expected]
    resized = [name for name, shape in expected.items() if name in stored and stored[name] != shape]
    if not missing and not unknown and not resized:
        return None
    # A safetensors file lists its tensors by name or size, so their order may say nothing.
    if not resized and missing and _sorted(expected, missing) == _sorted(stored, unknown):
        return (
            f"only the names differ: {len(missing)} of the model's {len(expected)} weights have another name in the "
            f"file, and all shapes fit; the model has {_first(missing)}, the file {_first(unknown)}; rename them in "
            "the file"
        )
    parts = []
    if missing:
        parts.append(f"{len(missing)} of the model's {len(expected)} weights are missing ({_first(missing)})")
    if unknown:
        parts.append(f"{len(unknown)} of the file's {len(stored)} are unknown to the model ({_first(unknown)})")
    if resized:
        name = resized[0]
        parts.append(
            f"{len(resized)} have another shape ({name}: {list(stored[name])} in the file, {list(expected[name])} in "
            "the model)"
        )
    return ", ".join(parts)


def _sorted(shapes: Shapes, names: Sequence[str]) -> list[tuple[int, ...]]:
    return sorted(shapes[name] for name in names)


def _first(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
