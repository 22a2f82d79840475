"""Whether what lies in a store is what its name says: every file is opened, decoded and held against its key."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load

from lgclip.caption_store import captions_in
from lgclip.diffuser.faults import Fault
from lgclip.drawn_inspection import (
    FaultyError,
    look_at_image,
    look_at_index,
    look_at_list,
    look_at_marker,
    look_at_shard,
    must,
    parsed,
)
from lgclip.identity import SCHEMA, digest_of, key_of
from lgclip.inventory import Item, Kind
from lgclip.ledger import Line
from lgclip.shard_index import look

_UNIT = 1e-3  # as `store.FeatureStore.add`


def fault_in(item: Item) -> str | None:
    """What is wrong with a file of a store; None for nothing.

    Raises:
        FileNotFoundError: If it is not there any more.
    """
    check = _LOOKS.get(item.kind)
    if check is None:
        return _OTHERS[item.kind]
    if not item.path.stat().st_size and item.kind != Kind.LEDGER:
        return "it is empty"
    try:
        check(item)
    except FaultyError as fault:
        return str(fault)
    return None


def _json(path: Path) -> dict[str, Any]:
    return parsed(path.read_bytes(), "it is not JSON")


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _prompts(item: Item) -> None:
    entry = _json(item.path)
    inputs = entry.get("inputs")
    if not isinstance(inputs, dict):
        raise FaultyError("it does not say what it was made from")
    must(key_of(inputs) == item.path.stem, "its name is not the key of its inputs")
    must(inputs.get("schema") == SCHEMA, f"it is of schema {inputs.get('schema')}, this package reads {SCHEMA}")
    turn, failure = entry.get("turn", 0), entry.get("failure", "")
    must(
        _is_texts(entry.get("prompts")) and _is_texts(entry.get("fallback", []))
        and isinstance(turn, int) and isinstance(failure, str),
        "its prompts are not a list of sentences",
    )  # fmt: skip


def _captions(item: Item) -> None:
    try:
        captions_in(_json(item.path), item.path.stem)
    except FaultyError:
        raise
    except ValueError as error:
        raise FaultyError(str(error)) from error


def caption_names(path: Path) -> set[str]:
    """Ids of the images that a file of captions tells of; empty if it cannot be read."""
    try:
        captions = _json(path).get("captions")
    except (FaultyError, FileNotFoundError):
        return set()
    return set(captions) if isinstance(captions, dict) else set()


def _findings(item: Item) -> None:
    faults = _json(item.path).get("faults")
    must(isinstance(faults, dict) and all(fault in tuple(Fault) for fault in faults.values()), "it names no findings")


def _inputs(item: Item) -> None:
    inputs = _json(item.path)
    if item.parts[0] in ("captions", "images"):
        must(key_of(inputs) == item.parts[1], "its folder is not the key of its inputs")
        return
    of = (inputs.get("encoder"), inputs.get("source"))
    must(all(isinstance(one, dict) for one in of), "it names no encoder or no source")
    keys = [key_of(one) for one in of if isinstance(one, dict)]
    must(keys == item.parts[1:3], "its folders are not the keys of its inputs")


def _towers(item: Item) -> None:
    must({"image", "text"} <= _json(item.path).keys(), "it does not tell what the towers cost")


def _ledger(item: Item) -> None:
    for number, row in enumerate(item.path.read_bytes().splitlines(), start=1):
        try:
            Line(**json.loads(row))
        except (ValueError, TypeError, RecursionError) as error:
            raise FaultyError(f"line {number} of it is damaged") from error


def _header(path: Path) -> tuple[dict[str, Any], list[int]]:
    """What a chunk says it holds, and the shape of its features (n, s, d)."""
    try:
        with safe_open(path, framework="np") as file:
            names, header = list(file.keys()), json.loads((file.metadata() or {})["lgclip"])
            must(names == ["features"], f"it holds {names}, not features alone")
            part = file.get_slice("features")
            shape, kind = part.get_shape(), part.get_dtype()
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, FaultyError):
            raise
        raise FaultyError("its header cannot be read, or it is cut") from error
    must(isinstance(header, dict), "its header cannot be read, or it is cut")
    schema = header.get("schema")
    must(schema == SCHEMA, f"it is of schema {schema}, this package reads {SCHEMA}")
    ids, views = header.get("ids"), header.get("views")
    must(_is_texts(ids) and _is_texts(views), "its ids and views are not lists of names")
    fits = kind == "F32" and len(shape) == 3 and shape[:2] == [len(ids), len(views)]
    must(fits, f"its features are {kind} of shape {shape}, not F32 of {len(ids)} ids and {len(views)} views")
    return header, shape


def chunk_names(path: Path) -> tuple[list[str], list[str]] | None:
    """Ids and views of a chunk of features; None if it cannot be read."""
    try:
        header, _ = _header(path)
    except FaultyError:
        return None
    return header["ids"], header["views"]


def shard_names(path: Path) -> set[str]:
    """Ids of the images and markers of a shard."""
    return {name.decode() for name in look(path).ids.tolist()}


def read_inputs(path: Path) -> dict[str, Any]:
    """What an entry or a folder was made from; empty if it cannot be read. Of prompts, their `inputs`."""
    try:
        content = _json(path)
    except (FaultyError, FileNotFoundError):
        return {}
    inputs = content if path.name == "inputs.json" else content.get("inputs")
    return inputs if isinstance(inputs, dict) else {}


def width_of(path: Path) -> int:
    """Width of the features of a chunk in which nothing is wrong."""
    return _header(path)[1][2]


def _features(item: Item) -> None:
    header, _ = _header(item.path)
    must(key_of(header) == item.path.stem, "its name is not the key of its header")
    features = load(item.path.read_bytes())["features"]
    # Not `abs(norm - 1) > ...`, which is false for NaN.
    fine = (np.abs(np.linalg.norm(features.astype(np.float64), axis=-1) - 1) < _UNIT).all(axis=-1)
    if not fine.all():
        first = header["ids"][int(np.argmin(fine))]
        raise FaultyError(f"features of {int((~fine).sum())} things are not of unit length, first {first}")


_TOLD = {"students": "student.json", "adapters": "lora.json", "prompts_learned": "learner.json"}
"""What is told of something learnt, in its folder."""


def _learnt(item: Item) -> None:
    told = item.path.with_name(_TOLD[item.parts[0]])
    if not told.exists():  # its training has just ended, or was stopped there
        return
    about = _json(told)
    must(about.get("key") == item.parts[1], f"its {told.name} is of another")
    if item.path == told:
        must(key_of(about.get("inputs") or {}) == item.parts[1], "its folder is not the key of its inputs")
        return
    sums = about.get("sha256")  # of prompts, one a file
    wanted = sums.get(item.path.stem) if isinstance(sums, dict) else sums
    must(digest_of(item.path) == wanted, f"its content is not what its {told.name} says")


def _checkpoint(item: Item) -> None:
    try:
        with safe_open(item.path, framework="np") as file:
            json.loads((file.metadata() or {})["plain"])
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise FaultyError("its header cannot be read, or it is cut") from error


_LOOKS: Mapping[Kind, Callable[[Item], None]] = {
    Kind.PROMPTS: _prompts, Kind.CAPTIONS: _captions, Kind.IMAGE: look_at_image, Kind.MARKER: look_at_marker,
    Kind.FINDINGS: _findings,
    Kind.SHARD: look_at_shard, Kind.INDEX: look_at_index, Kind.LIST: look_at_list,
    Kind.STUDENT: _learnt, Kind.ADAPTER: _learnt, Kind.LEARNT: _learnt, Kind.CHECKPOINT: _checkpoint,
    Kind.FEATURES: _features, Kind.INPUTS: _inputs, Kind.TOWERS: _towers, Kind.LEDGER: _ledger,
}  # fmt: skip
_OTHERS = {
    Kind.LEFTOVER: "a temporary file that an interrupted run left",
    Kind.LINK: "a link, which is not followed",
    Kind.FOREIGN: "nothing that belongs to a store",
}
