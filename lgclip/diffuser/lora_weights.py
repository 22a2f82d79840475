"""Loads LoRA weights into a pipeline."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import safe_open

from lgclip.runtime.hub import commit_of, hub_errors
from lgclip.runtime.regular_files import read_text
from lgclip.store.keys import FileStamp, digest_of, file_stamp, local_folder, weights_of

_NAME = "lgclip"

_FACTORS = ((".lora_A.weight", ".lora_B.weight"), (".lora.down.weight", ".lora.up.weight"))
"""Name suffixes of an adapter's two factors: peft's and those of diffusers."""

Shapes = Mapping[str, Sequence[int]]
"""Shape of each tensor by its name."""


def adapter_file(lora: str) -> Path | None:
    """Returns the local file of LoRA weights, or None for a hub id.

    Args:
        lora: A safetensors file, a folder with one, or a hub id.

    Raises:
        ValueError: If there is no such file, or not exactly one in the folder.
    """
    path = Path(lora).expanduser()
    if path.is_dir():
        inside = sorted(path.glob("*.safetensors"))
        if len(inside) != 1:
            present = ", ".join(file.name for file in inside) or "none"
            raise ValueError(f"diffuser.lora={lora}: one safetensors file is wanted in this folder, found {present}")
        return inside[0]
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ValueError(f"diffuser.lora={lora}: only safetensors files are read, a pickle can run any code")
        return path
    if path.suffix in (".safetensors", ".bin", ".pt", ".ckpt") or lora.startswith(("/", "~", ".")):
        raise ValueError(f"diffuser.lora={lora}: no such file or folder")
    return None


def check_adapter(lora: str) -> None:
    """Rejects LoRA weights that cannot be used, before anything loads.

    Raises:
        ValueError: If they do not exist, or the package that applies them is not installed.
    """
    adapter_file(lora)
    check_peft(f"diffuser.lora={lora}")


def check_peft(requested: str) -> None:
    """Rejects a setting that needs the package peft where it is not installed.

    Args:
        requested: The value that needs it.

    Raises:
        ValueError: If it is not installed.
    """
    if find_spec("peft") is None:
        raise ValueError(f"{requested}: LoRA needs the package peft, pip install 'lgclip[lora]'")


def check_fits(lora: str, model: str) -> None:
    """Rejects LoRA weights of another network than the model's, by reading only the headers of the files.

    Files on the hub are not checked here: `attach` does so after loading.

    Args:
        lora: As in `adapter_file`.
        model: `tiny:NAME`, a folder, or a hub id.

    Raises:
        ValueError: If a layer that they adapt is missing or has another shape, or the file is not a safetensors file.
    """
    file = adapter_file(lora)
    folder = local_folder(model)
    if file is None or folder is None:
        return
    changed = _shapes(file, f"diffuser.lora={lora}")
    # The first part of a name is that of the network in its pipeline, which is also its folder: `unet.down_blocks...`
    for part in {name.partition(".")[0] for name in changed}:
        files = sorted((folder / part).glob("*.safetensors"))
        shapes: dict[str, Sequence[int]] = {}
        for weights in files:  # a large network is split into several files
            shapes |= _shapes(weights, f"diffuser.model={model}")
        if files and (lack := mismatch(changed, part, shapes)):
            raise ValueError(f"diffuser.lora={lora}: these weights do not fit {_kind(folder)} of {model} ({lack})")


def _kind(folder: Path) -> str:
    return json.loads(read_text(folder / "model_index.json"))["_class_name"]


def _shapes(file: Path, requested: str) -> dict[str, Sequence[int]]:
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors' own error derives from Exception alone
        raise ValueError(f"{requested}: {file.name} cannot be read ({error})") from error


def mismatch(changed: Shapes, part: str, present: Shapes) -> str | None:
    """Returns the reason why LoRA weights do not fit a network; None if they fit, or only diffusers can read them.

    Args:
        changed: Shapes of the LoRA weights.
        part: Name of the network in its pipeline, such as `unet`.
        present: Shapes of its own weights.
    """
    for name, shape in changed.items():
        for down, up in _FACTORS:
            layer = name.removeprefix(f"{part}.").removesuffix(down)
            # Neither prefix nor end may be missing; `removeprefix` and `removesuffix` leave such names as they are.
            if name != f"{part}.{layer}{down}":
                continue
            weight = present.get(f"{layer}.weight")
            if weight is None:
                return f"it has no layer {layer}"
            # The change is up @ down, of shapes (outputs, rank) and (rank, inputs). The rank is free.
            outputs = changed.get(f"{part}.{layer}{up}", weight)[0]
            if (shape[1], outputs) != (weight[1], weight[0]):
                return (
                    f"{layer} has {weight[1]} inputs and {weight[0]} outputs, and they are for {shape[1]} and {outputs}"
                )
    return None


def adapter_weights(lora: str | None, revision: str | None) -> str | None:
    """Returns the identity of LoRA weights in a key: a file's content hash, or the hub's id and commit."""
    if lora is None:
        return None
    file = adapter_file(lora)
    if file is None:
        return weights_of(lora, revision)
    # The stamp is part of the cache's key: weights that are trained further in place are hashed again.
    return _content(file, file_stamp(file))


@lru_cache(maxsize=64)
def _content(file: Path, stamp: FileStamp) -> str:
    return f"sha256:{digest_of(file)[:32]}"


def attach(pipeline: Any, lora: str, revision: str | None, scale: float) -> None:
    """Loads LoRA weights into a pipeline.

    Args:
        pipeline: A pipeline of diffusers.
        lora: A safetensors file, a folder with one, or a hub id.
        revision: The hub's revision.
        scale: Strength of the adapter; 0 is the pipeline without it.

    Raises:
        ValueError: If the pipeline does not support LoRA or the weights do not match any part of it.
    """
    kind = type(pipeline).__name__
    load = getattr(pipeline, "load_lora_weights", None)
    if load is None:
        raise ValueError(f"diffuser.lora={lora}: {kind} takes no LoRA weights; set it to null")
    file = adapter_file(lora)
    # diffusers applies what fits and only logs the rest, so an adapter for another network would change a few layers.
    if file is not None:
        changed = _shapes(file, f"diffuser.lora={lora}")
        for part in {name.partition(".")[0] for name in changed} & pipeline.components.keys():
            shapes = {name: tuple(value.shape) for name, value in pipeline.components[part].state_dict().items()}
            if lack := mismatch(changed, part, shapes):
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
