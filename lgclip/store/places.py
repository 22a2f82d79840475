"""Classifies the files of a store by how an object store keeps them: by their path alone, relative to the store."""

import re

from lgclip.store.cost_log import COST_LOG

CHECKPOINTS = "checkpoints"
"""Folder of a training's checkpoints, next to its result."""

OTHER = "other"
"""Name in place of a prompt generator's key, for prompts whose inputs name none."""

_KEY = "[0-9a-f]{32}"
_IMMUTABLE = re.compile(
    rf"captions/{_KEY}/({_KEY}|inputs)\.json"
    rf"|images/{_KEY}/({_KEY}|inputs)\.json"
    rf"|images/{_KEY}/shards/{_KEY}\.(tar|safetensors)"
    rf"|features/{_KEY}/{_KEY}/({_KEY}\.safetensors|inputs\.json)"
    rf"|features/{_KEY}/towers\.json"
    rf"|students/{_KEY}/(model\.safetensors|student\.json)"
    rf"|adapters/{_KEY}/(pytorch_lora_weights\.safetensors|lora\.json)"
    rf"|prompts_learned/{_KEY}/((text|visual)\.safetensors|prompt_tuning\.json)"
)


def entry_of(place: str) -> str:
    """Returns the entry of a file or folder: the folder of one key, which one request lists.

    Args:
        place: Path of a file or a folder, relative to the store.
    """
    parts = place.split("/")
    if parts[0] == "features" and len(parts) >= 3:
        # The file with the measured width of an encoder, `towers.json`, is an entry by itself.
        return "/".join(parts[:3])
    if parts[0] == "prompts" and len(parts) == 2:
        return f"prompts/{parts[1].partition('.')[0]}"
    return "/".join(parts[:2])


def cost_log_of(entry: str) -> str:
    """Returns the place of an entry's cost log."""
    if entry.startswith("prompts/"):
        return f"{entry}.{COST_LOG}"
    return f"{entry}/{COST_LOG}"


def segments_of(entry: str, place: str) -> bool:
    """Checks whether an object holds lines that are merged into files: of a cost log, or prompts of several classes."""
    rest = place.removeprefix(f"{entry}/")
    return place.endswith(".jsonl") and (rest.startswith("costs/") or place.startswith("prompts/"))


def is_immutable(place: str) -> bool:
    """Checks whether a file is written once, and is kept under its own name."""
    return _IMMUTABLE.fullmatch(place) is not None


def is_index(place: str) -> bool:
    """Checks whether a file is the index of a shard of images."""
    return "/shards/" in place and place.endswith(".safetensors")


def is_marker(place: str) -> bool:
    """Checks whether a file describes others, which must be stored before it."""
    return is_index(place) or place.endswith(".json")
