"""Training checkpoints as safetensors: tensors as tensors, the rest as JSON, nothing pickled."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lgclip.whole import write_whole


def _flatten(value: object, at: str, tensors: dict[str, Tensor]) -> object:
    """JSON for `value`, its tensors moved to `tensors`; keys that are numbers stay numbers."""
    if isinstance(value, Tensor):
        # Tied weights share memory, which safetensors refuses: every name gets its own copy.
        at = f"{len(tensors)}{at}"  # numbered, so that no two names can be equal
        tensors[at] = value.detach().cpu().clone().contiguous()
        return {"tensor": at}
    if isinstance(value, Mapping):
        pairs = [[key, _flatten(item, f"{at}/{key}", tensors)] for key, item in value.items()]
        return {"mapping": pairs}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_flatten(item, f"{at}/{i}", tensors) for i, item in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"checkpoint entry {at} is a {type(value).__name__}: only tensors and plain values are saved")


def _unflatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, inside),) = value.items()
    if kind == "tensor":
        return tensors[inside]
    if kind == "mapping":
        return {key: _unflatten(item, tensors) for key, item in inside}
    items = [_unflatten(item, tensors) for item in inside]
    return items if kind == "list" else tuple(items)


class SafetensorsIO(CheckpointIO):
    """Lightning's checkpoint plugin without pickle; a checkpoint is whole or absent."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        """Writes a checkpoint.

        Raises:
            TypeError: If an entry is neither a tensor nor a plain value.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {}
        plain = _flatten(checkpoint, "", tensors)
        with write_whole(path) as temporary:
            save_file(tensors, temporary, metadata={"plain": json.dumps(plain)})

    def load_checkpoint(
        self, path: str | Path, map_location: object = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads what `save_checkpoint` wrote, onto the CPU."""
        with safe_open(path, framework="pt") as file:
            plain = json.loads(file.metadata()["plain"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _unflatten(plain, tensors)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Deletes a checkpoint."""
        Path(path).unlink(missing_ok=True)


def last_checkpoint(folder: Path, every: int) -> ModelCheckpoint:
    """Keeps one checkpoint, `last.safetensors`, which is gone on from; also in a folder that was moved.

    Args:
        folder: Where it lies.
        every: Optimiser steps between two.
    """
    keep = ModelCheckpoint(folder, "last", every_n_train_steps=every, save_top_k=1, enable_version_counter=False)
    keep.FILE_EXTENSION = ".safetensors"  # pyright: ignore[reportAttributeAccessIssue]
    return keep
