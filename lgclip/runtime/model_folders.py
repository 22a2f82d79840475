"""Checks the files of a local model folder before anything is generated: missing, cut or damaged ones."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lgclip.runtime.regular_files import read_text

_SAFE = ".safetensors"
_INDEX = f"{_SAFE}.index.json"


def check_model_folder(folder: Path, key: str) -> None:
    """Checks that every file of weights is complete, that none of a list is missing, and that every config is JSON.

    Only headers are read: the header of a safetensors file states its size.

    Args:
        folder: Folder of a model, or of a pipeline with its components.
        key: The config value that names it, for the message.

    Raises:
        ValueError: If a file is missing or damaged; the message names it.
    """
    for path in sorted(folder.rglob("*.json")):
        content = _read_json(path, key)
        if path.name.endswith(_INDEX):
            _check_index(path, content, key)
    for path in sorted(folder.rglob(f"*{_SAFE}")):
        _names_in(path, key)


def check_language_model(folder: Path | None, key: str) -> None:
    """Checks the files of a model of transformers, unless it is on the hub.

    Args:
        folder: Its folder; None for a model of the hub.
        key: The config value that names it, for the message.

    Raises:
        ValueError: As in `check_model_folder` and `check_component`.
    """
    if folder is None:
        return
    check_model_folder(folder, key)
    check_component(folder, key)


def check_component(folder: Path, key: str) -> None:
    """Checks that a component of a pipeline has a config, and weights if it is a model.

    Raises:
        ValueError: If it lacks one of them.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        raise ValueError(f"{key}: its component {folder.name} is missing; copy the complete folder of the model")
    # Schedulers, tokenizers and processors have configs of other names, and no weights.
    if (folder / "config.json").is_file() and not any(folder.glob(f"*{_SAFE}")):
        raise ValueError(f"{key}: its component {folder.name} has no {_SAFE} file; weights are read from {_SAFE} only")


def _read_json(path: Path, key: str) -> Any:
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{key}: {path} is damaged ({_single_line(error)}); copy it again") from error


def _check_index(path: Path, content: Any, key: str) -> None:
    weights = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weights, dict):
        raise ValueError(f"{key}: {path} lists no weights; copy it again")
    for name in sorted(set(map(str, weights.values()))):
        file = path.parent / name
        if not file.is_file():
            raise ValueError(f"{key}: {file} is missing, {path.name} lists it; copy the complete folder of the model")
        listed = {weight for weight, place in weights.items() if place == name}
        if lacking := sorted(listed - _names_in(file, key)):
            raise ValueError(f"{key}: {file} lacks {len(lacking)} of its weights, first {lacking[0]}; copy it again")


def _names_in(file: Path, key: str) -> set[str]:
    try:
        with safe_open(file, framework="np") as opened:
            return set(opened.keys())
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{key}: {file} is damaged ({_single_line(error)}); copy it again") from error


def _single_line(error: Exception) -> str:
    return " ".join(str(error).split())
