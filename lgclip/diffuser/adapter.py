"""LoRA weights on top of a pipeline's own."""

import hashlib
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lgclip.hub import commit_of, hub_errors
from lgclip.identity import weights_of

_NAME = "lgclip"


def adapter_file(lora: str) -> Path | None:
    """The file of LoRA weights on this machine, or None for an id of the hub.

    Args:
        lora: A safetensors file, a folder with one, or a hub id.

    Raises:
        ValueError: If there is no such file, or no single one in the folder.
    """
    path = Path(lora).expanduser()
    if path.is_dir():
        inside = sorted(path.glob("*.safetensors"))
        if len(inside) != 1:
            found = ", ".join(file.name for file in inside) or "none"
            raise ValueError(f"diffuser.lora={lora}: one safetensors file is wanted in this folder, found {found}")
        return inside[0]
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ValueError(f"diffuser.lora={lora}: only safetensors files are read, a pickle can run any code")
        return path
    if path.suffix in (".safetensors", ".bin", ".pt", ".ckpt") or lora.startswith(("/", "~", ".")):
        raise ValueError(f"diffuser.lora={lora}: no such file or folder")
    return None


def check_adapter(lora: str) -> None:
    """Refuses LoRA weights that cannot be used, before anything loads.

    Raises:
        ValueError: If they are not there, or the package that applies them is not.
    """
    adapter_file(lora)
    if find_spec("peft") is None:
        raise ValueError(f"diffuser.lora={lora}: LoRA needs the package peft, pip install 'lgclip[lora]'")


def adapter_weights(lora: str | None, revision: str | None) -> str | None:
    """What stands for LoRA weights in a key: a file's content hash, or the hub's id and commit."""
    if lora is None:
        return None
    file = adapter_file(lora)
    return weights_of(lora, revision) if file is None else _content(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _content(file: Path, changed: int) -> str:
    with file.open("rb") as opened:
        return f"sha256:{hashlib.file_digest(opened, 'sha256').hexdigest()[:32]}"


def attach(pipeline: Any, lora: str, revision: str | None, scale: float) -> None:
    """Puts LoRA weights on a pipeline.

    Args:
        pipeline: A pipeline of diffusers.
        lora: A safetensors file, a folder with one, or a hub id.
        revision: The hub's revision.
        scale: How strongly they count; 0 is the pipeline without them.

    Raises:
        ValueError: If the pipeline takes none or they fit no part of it.
    """
    kind = type(pipeline).__name__
    load = getattr(pipeline, "load_lora_weights", None)
    if load is None:
        raise ValueError(f"diffuser.lora={lora}: {kind} takes no LoRA weights; set it to null")
    file = adapter_file(lora)
    try:
        if file is not None:
            load(str(file.parent), weight_name=file.name, adapter_name=_NAME)
        else:
            with hub_errors(lora):
                load(lora, revision=commit_of(lora, revision), adapter_name=_NAME, use_safetensors=True)
        pipeline.set_adapters([_NAME], [scale])
    except (ValueError, RuntimeError, KeyError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"diffuser.lora={lora}: these weights do not fit {kind} ({first})") from error
