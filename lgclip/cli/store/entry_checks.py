"""Checks the entries of a store: every file is opened, decoded and compared with its key."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load

from lgclip.cli.store.image_checks import (
    FaultyError,
    check_image,
    check_index,
    check_list,
    check_marker,
    check_shard,
    must,
    parsed,
)
from lgclip.cli.store.inventory import Item, Kind
from lgclip.runtime.versions import STORE_SCHEMA
from lgclip.store.captions import captions_in
from lgclip.store.checksums import CHECKSUM, checksum_of, is_intact
from lgclip.store.cost_log import parse_row
from lgclip.store.features import IMAGES_DISCARDED
from lgclip.store.keys import content_key, digest_of
from lgclip.store.shard_index import read_listing
from lgclip.types import Fault

_NO_CHECKSUM = "its checksum is missing or wrong"
_UNIT = 1e-3  # as `store.FeatureStore.add`


def fault_in(item: Item) -> str | None:
    """Returns the fault of a file of a store; None if it has none.

    Raises:
        FileNotFoundError: If it does not exist any more.
    """
    check = _LOOKS.get(item.kind)
    if check is None:
        return _OTHERS[item.kind]
    # A power cut may leave a file with its name and without its content. A log may be empty before its first line.
    if not item.path.stat().st_size and item.kind != Kind.COST_LOG:
        return "it is empty"
    try:
        check(item)
    except FaultyError as fault:
        return str(fault)
    return None


def _json(path: Path) -> dict[str, Any]:
    return parsed(path.read_bytes(), "it is not JSON")


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _prompts(item: Item) -> None:
    entry = _json(item.path)
    inputs = entry.get("inputs")
    if not isinstance(inputs, dict):
        raise FaultyError("it does not say what it was made from")
    must(content_key(inputs) == item.path.stem, "its name is not the key of its inputs")
    must(is_intact(entry), _NO_CHECKSUM)
    must(
        inputs.get("schema") == STORE_SCHEMA,
        f"it is of schema {inputs.get('schema')}, this package reads {STORE_SCHEMA}",
    )
    turn = entry.get("turn", 0)
    failure = entry.get("failure", "")
    must(
        _is_texts(entry.get("prompts")) and _is_texts(entry.get("fallback", []))
        and isinstance(turn, int) and isinstance(failure, str),
        "its prompts are not a list of sentences",
    )  # fmt: skip


def _captions(item: Item) -> None:
    try:
        captions_in(_json(item.path), item.path.stem)
    except FaultyError:
        raise  # it is a ValueError too, and has the right message already
    except ValueError as error:
        raise FaultyError(str(error)) from error


def caption_names(path: Path) -> set[str]:
    """Returns the image ids in a file of captions; empty if it cannot be read."""
    try:
        captions = _json(path).get("captions")
    except (FaultyError, FileNotFoundError):
        return set()
    if not isinstance(captions, dict):
        return set()
    return set(captions)


def _unreadable(item: Item) -> None:
    content = _json(item.path)
    must(is_intact(content), _NO_CHECKSUM)
    faults = content.get("faults")
    must(isinstance(faults, dict) and all(fault in tuple(Fault) for fault in faults.values()), "it names no findings")


def _inputs(item: Item) -> None:
    inputs = _json(item.path)
    if item.parts[0] in ("captions", "images"):
        must(content_key(inputs) == item.parts[1], "its folder is not the key of its inputs")
        return
    # Features lie at ENCODER/SOURCE: each of the two folders is the key of one half of the inputs.
    halves = (inputs.get("encoder"), inputs.get("source"))
    must(all(isinstance(half, dict) for half in halves), "it names no encoder or no source")
    keys = [content_key(half) for half in halves if isinstance(half, dict)]
    must(keys == item.parts[1:3], "its folders are not the keys of its inputs")


def _towers(item: Item) -> None:
    must({"image", "text"} <= _json(item.path).keys(), "it does not tell what the towers cost")


def _cost_log(item: Item) -> None:
    for number, row in enumerate(item.path.read_bytes().splitlines(), start=1):
        try:
            parse_row(row.decode())
        except ValueError as error:
            raise FaultyError(f"line {number} of it is damaged") from error


def _header(path: Path) -> tuple[dict[str, Any], list[int]]:
    """Returns the header of a chunk, and the shape of its features (n, s, d)."""
    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
            header = json.loads((file.metadata() or {})["lgclip"])
            must(names == ["features"], f"it holds {names}, not features alone")
            part = file.get_slice("features")
            shape = part.get_shape()
            kind = part.get_dtype()
    except FileNotFoundError:
        raise  # an OSError, but no fault: another process has taken the file away
    # RecursionError: JSON that is nested thousands deep, which only a hostile file has.
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, FaultyError):
            raise
        raise FaultyError("its header cannot be read, or it is cut") from error
    must(isinstance(header, dict), "its header cannot be read, or it is cut")
    schema = header.get("schema")
    must(schema == STORE_SCHEMA, f"it is of schema {schema}, this package reads {STORE_SCHEMA}")
    ids = header.get("ids")
    views = header.get("views")
    must(_is_texts(ids) and _is_texts(views), "its ids and views are not lists of names")
    fits = kind == "F32" and len(shape) == 3 and shape[:2] == [len(ids), len(views)]
    must(fits, f"its features are {kind} of shape {shape}, not F32 of {len(ids)} ids and {len(views)} views")
    return header, shape


def chunk_names(path: Path) -> tuple[list[str], list[str]] | None:
    """Returns ids and views of a chunk of features; None if it cannot be read."""
    try:
        header, _ = _header(path)
    except FaultyError:
        return None
    return header["ids"], header["views"]


def has_discarded_images(path: Path) -> bool:
    """Checks whether the images of a chunk were never stored, by its metadata."""
    try:
        header, _ = _header(path)
    except FaultyError:
        return False
    return bool(header.get(IMAGES_DISCARDED))


def shard_names(path: Path) -> set[str]:
    """Returns the ids of the images and markers of a shard."""
    return {name.decode() for name in read_listing(path).ids.tolist()}


def read_inputs(path: Path) -> dict[str, Any]:
    """Returns the inputs of an entry or a folder; empty if they cannot be read. For prompts, the field `inputs`."""
    try:
        content = _json(path)
    except (FaultyError, FileNotFoundError):
        return {}
    inputs: Any = content
    if path.name != "inputs.json":
        inputs = content.get("inputs")
    if not isinstance(inputs, dict):
        return {}
    return inputs


def width_of(path: Path) -> int:
    """Returns the feature dimension of a valid chunk."""
    return _header(path)[1][2]


def _features(item: Item) -> None:
    header, _ = _header(item.path)
    checksum = header.pop(CHECKSUM, None)
    header.pop(IMAGES_DISCARDED, None)
    must(content_key(header) == item.path.stem, "its name is not the key of its header")
    features = load(item.path.read_bytes())["features"]
    must(checksum_of({"features": features}) == checksum, _NO_CHECKSUM)
    # Not `abs(norm - 1) > ...`, which is false for NaN.
    # In float64, or the rounding of the sum itself would come near the tolerance for wide features.
    fine = (np.abs(np.linalg.norm(features.astype(np.float64), axis=-1) - 1) < _UNIT).all(axis=-1)
    if not fine.all():
        first = header["ids"][int(np.argmin(fine))]
        raise FaultyError(f"features of {int((~fine).sum())} things are not of unit length, first {first}")


_METADATA_FILES = {"students": "student.json", "adapters": "lora.json", "prompts_learned": "prompt_tuning.json"}
"""Metadata file of a trained artifact, in its folder."""


def _learned(item: Item) -> None:
    record = item.path.with_name(_METADATA_FILES[item.parts[0]])
    # The record is written last: without it the training has just ended, or was stopped there, and is done again.
    if not record.exists():
        return
    about = _json(record)
    must(about.get("key") == item.parts[1], f"its {record.name} is of another")
    if item.path == record:
        must(content_key(about.get("inputs") or {}) == item.parts[1], "its folder is not the key of its inputs")
        return
    # A student has one file of weights and one sum; prompts may have one for each tower.
    expected = about.get("sha256")
    if isinstance(expected, dict):
        expected = expected.get(item.path.stem)
    must(digest_of(item.path) == expected, f"its content is not what its {record.name} says")


def _checkpoint(item: Item) -> None:
    try:
        with safe_open(item.path, framework="np") as file:
            metadata = file.metadata() or {}
            text = metadata["plain"]
            json.loads(text)
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise FaultyError("its header cannot be read, or it is cut") from error
    # By torch: NumPy has no bfloat16. Imported here, since most stores have no checkpoint.
    from safetensors.torch import load_file as load_torch

    must(checksum_of(load_torch(item.path), text) == metadata.get(CHECKSUM), _NO_CHECKSUM)


_LOOKS: Mapping[Kind, Callable[[Item], None]] = {
    Kind.PROMPTS: _prompts, Kind.CAPTIONS: _captions, Kind.IMAGE: check_image, Kind.MARKER: check_marker,
    Kind.UNREADABLE: _unreadable,
    Kind.SHARD: check_shard, Kind.INDEX: check_index, Kind.LIST: check_list,
    Kind.STUDENT: _learned, Kind.ADAPTER: _learned, Kind.LEARNED: _learned, Kind.CHECKPOINT: _checkpoint,
    Kind.FEATURES: _features, Kind.INPUTS: _inputs, Kind.TOWERS: _towers, Kind.COST_LOG: _cost_log,
}  # fmt: skip
_OTHERS = {
    Kind.LEFTOVER: "a temporary file that an interrupted run left",
    Kind.LINK: "a link, which is not followed",
    Kind.FOREIGN: "nothing that belongs to a store",
}
