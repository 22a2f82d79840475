"""LoRA weights on top of a pipeline's own."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import safe_open

from lgclip.hub import commit_of, hub_errors
from lgclip.identity import local_folder, weights_of

_NAME = "lgclip"

_FACTORS = ((".lora_A.weight", ".lora_B.weight"), (".lora.down.weight", ".lora.up.weight"))
"""Ends of the names of an adapter's two factors: peft's and those of diffusers."""

Shapes = Mapping[str, Sequence[int]]
"""Shape of each tensor by its name."""


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
    check_peft(f"diffuser.lora={lora}")


def check_peft(asked: str) -> None:
    """Refuses what needs the package peft where it is not installed.

    Args:
        asked: The value that needs it.

    Raises:
        ValueError: If it is not there.
    """
    if find_spec("peft") is None:
        raise ValueError(f"{asked}: LoRA needs the package peft, pip install 'lgclip[lora]'")


def check_fits(lora: str, model: str) -> None:
    """Refuses LoRA weights for another network than the model's, told by the headers of the files alone.

    What lies on the hub is not looked at here: `attach` does so once it is loaded.

    Args:
        lora: As of `adapter_file`.
        model: `tiny:NAME`, a folder, or a hub id.

    Raises:
        ValueError: If a layer that they change is not there or has another shape, or the file is no safetensors file.
    """
    file, folder = adapter_file(lora), local_folder(model)
    if file is None or folder is None:
        return
    changed = _shapes(file, f"diffuser.lora={lora}")
    for part in {name.partition(".")[0] for name in changed}:
        files = sorted((folder / part).glob("*.safetensors"))
        found: dict[str, Sequence[int]] = {}
        for one in files:
            found |= _shapes(one, f"diffuser.model={model}")
        if files and (lack := misfit(changed, part, found)):
            raise ValueError(f"diffuser.lora={lora}: these weights do not fit {_kind(folder)} of {model} ({lack})")


def _kind(folder: Path) -> str:
    return json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]


def _shapes(file: Path, asked: str) -> dict[str, Sequence[int]]:
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors' own error derives from Exception alone
        raise ValueError(f"{asked}: {file.name} cannot be read ({error})") from error


def misfit(changed: Shapes, part: str, found: Shapes) -> str | None:
    """Why LoRA weights fit no network; None if they do, or are written in a way that only diffusers can read.

    Args:
        changed: Shapes of the LoRA weights.
        part: Name of the network in its pipeline, such as `unet`.
        found: Shapes of its own weights.
    """
    for name, shape in changed.items():
        for down, up in _FACTORS:
            layer = name.removeprefix(f"{part}.").removesuffix(down)
            if name != f"{part}.{layer}{down}":
                continue
            own = found.get(f"{layer}.weight")
            if own is None:
                return f"it has no layer {layer}"
            out = changed.get(f"{part}.{layer}{up}", own)[0]
            if (shape[1], out) != (own[1], own[0]):
                return f"{layer} has {own[1]} inputs and {own[0]} outputs, and they are for {shape[1]} and {out}"
    return None


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
    if file is not None:  # what fits in part diffusers would apply in part
        changed = _shapes(file, f"diffuser.lora={lora}")
        for part in {name.partition(".")[0] for name in changed} & pipeline.components.keys():
            own = {name: tuple(value.shape) for name, value in pipeline.components[part].state_dict().items()}
            if lack := misfit(changed, part, own):
                raise ValueError(f"diffuser.lora={lora}: these weights do not fit {kind} ({lack})")
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
