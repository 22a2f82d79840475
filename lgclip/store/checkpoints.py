"""Stores training checkpoints as safetensors: tensors as tensors, everything else as JSON, nothing pickled."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lgclip.runtime.regular_files import regular_stat
from lgclip.store.atomic import atomic_write
from lgclip.store.checksums import CHECKSUM, checksum_of
from lgclip.store.root import StoreError

log = logging.getLogger(__name__)


def _flatten(value: object, path: str, tensors: dict[str, Tensor]) -> object:
    """Converts `value` to JSON and moves its tensors to `tensors`; numeric keys stay numbers."""
    if isinstance(value, Tensor):
        # Tied weights share memory, which safetensors refuses: every name gets its own copy.
        path = f"{len(tensors)}{path}"  # numbered, so that no two names can be equal
        tensors[path] = value.detach().cpu().clone().contiguous()
        return {"tensor": path}
    if isinstance(value, Mapping):
        # Pairs instead of a JSON object: the state of an optimizer has integer keys, which JSON would turn into text.
        pairs = [[key, _flatten(item, f"{path}/{key}", tensors)] for key, item in value.items()]
        return {"mapping": pairs}
    if isinstance(value, list | tuple):
        # JSON has one kind of sequence only; the betas of Adam, a tuple, must come back as a tuple.
        items = [_flatten(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
        return {"list": items} if isinstance(value, list) else {"tuple": items}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"checkpoint entry {path} is a {type(value).__name__}: only tensors and plain values are saved")


def _unflatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    # `_flatten` writes every container and every tensor as an object with one entry, its kind.
    ((kind, inside),) = value.items()
    if kind == "tensor":
        return tensors[inside]
    if kind == "mapping":
        return {key: _unflatten(item, tensors) for key, item in inside}
    items = [_unflatten(item, tensors) for item in inside]
    return items if kind == "list" else tuple(items)


class SafetensorsIO(CheckpointIO):
    """Implements Lightning's checkpoint plugin without pickle; checkpoints are written atomically."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        """Writes a checkpoint.

        Raises:
            TypeError: If an entry is neither a tensor nor a plain value.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {}
        plain = _flatten(checkpoint, "", tensors)
        with atomic_write(path) as temporary:
            text = json.dumps(plain)
            save_file(tensors, temporary, metadata={"plain": text, CHECKSUM: checksum_of(tensors, text)})

    def load_checkpoint(
        self, path: str | Path, map_location: object = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads what `save_checkpoint` wrote, onto the CPU.

        Raises:
            StoreError: If it is damaged.
        """
        regular_stat(Path(path))
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata.get(CHECKSUM) != checksum_of(tensors, metadata["plain"]):
                raise ValueError("its checksum is wrong")
            return _unflatten(json.loads(metadata["plain"]), tensors)
        except (SafetensorError, KeyError, ValueError, RecursionError) as error:
            raise StoreError(f"checkpoint {path} is damaged ({error}); delete it to start again") from error

    def remove_checkpoint(self, path: str | Path) -> None:
        """Deletes a checkpoint."""
        Path(path).unlink(missing_ok=True)


def resumable(path: Path) -> Path | None:
    """Returns a checkpoint to resume from; None if there is none, or with a warning if it is damaged."""
    if not path.is_file():
        return None
    try:
        SafetensorsIO().load_checkpoint(path)
    except StoreError as error:
        log.warning("%s; the training starts from its beginning", error)
        return None
    return path


def last_checkpoint(folder: Path, every: int) -> ModelCheckpoint:
    """Returns a callback that saves one checkpoint, `last.safetensors`, to resume from, even if its folder was moved.

    Args:
        folder: Folder of the checkpoint.
        every: Optimizer steps between two saves.
    """
    # With the version counter a resumed run would write `last-v1`, and the next one would go on from the older file.
    callback = ModelCheckpoint(folder, "last", every_n_train_steps=every, save_top_k=1, enable_version_counter=False)
    # Set on the instance: the attribute of the class would change every other checkpoint of the process.
    callback.FILE_EXTENSION = ".safetensors"  # pyright: ignore[reportAttributeAccessIssue]
    return callback
