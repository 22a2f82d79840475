"""Whether what lies in a store is what its name says: every file is opened, decoded and held against its key."""

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load

from lgclip.batch import Prompt
from lgclip.diffuser.base import image_id
from lgclip.diffuser.faults import Fault
from lgclip.identity import SCHEMA, key_of
from lgclip.inventory import Item, Kind
from lgclip.ledger import Line

_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
_UNIT = 1e-3  # as `store.FeatureStore.add`


class _FaultyError(ValueError):
    """What is wrong with a file."""


def fault_in(item: Item) -> str | None:
    """What is wrong with a file of a store; None for nothing.

    Raises:
        FileNotFoundError: If it is not there any more.
    """
    look = _LOOKS.get(item.kind)
    if look is None:
        return _OTHERS[item.kind]
    if not item.path.stat().st_size and item.kind != Kind.LEDGER:
        return "it is empty"
    try:
        look(item)
    except _FaultyError as fault:
        return str(fault)
    return None


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _FaultyError("it is not JSON") from error
    _must(isinstance(content, dict), "it holds no JSON object")
    return content


def _must(fine: bool, fault: str) -> None:
    if not fine:
        raise _FaultyError(fault)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _prompts(item: Item) -> None:
    entry = _json(item.path)
    inputs = entry.get("inputs")
    if not isinstance(inputs, dict):
        raise _FaultyError("it does not say what it was made from")
    _must(key_of(inputs) == item.path.stem, "its name is not the key of its inputs")
    _must(inputs.get("schema") == SCHEMA, f"it is of schema {inputs.get('schema')}, this package reads {SCHEMA}")
    turn, failure = entry.get("turn", 0), entry.get("failure", "")
    _must(
        _is_texts(entry.get("prompts")) and _is_texts(entry.get("fallback", []))
        and isinstance(turn, int) and isinstance(failure, str),
        "its prompts are not a list of sentences",
    )  # fmt: skip


def _made_from(item: Item, about: Mapping[str, Any], name: str) -> None:
    try:
        prompt = Prompt(about["class_index"], about["text"], about["repeat"])
        key = image_id(item.parts[1], prompt, about["seed"], about.get("attempt", 0))
    except (KeyError, TypeError, ValueError) as error:
        raise _FaultyError("it does not say what it was made from") from error
    _must(key == name, "its name is not the key of what it says it was made from")


def _image(item: Item) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(item.path, formats=["PNG"]) as image:
                image.verify()  # the checksums
            with Image.open(item.path, formats=["PNG"]) as image:
                image.load()  # the pixels
                mode, text = image.mode, image.info.get("lgclip")
    except FileNotFoundError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _FaultyError("it is far too large for an image of a store") from error
    except UnidentifiedImageError as error:
        raise _FaultyError("it is no PNG") from error
    except (OSError, SyntaxError, ValueError, IndexError, EOFError) as error:  # whatever Pillow says of a damaged file
        raise _FaultyError("it does not decode wholly") from error
    with item.path.open("rb") as file:
        file.seek(-len(_PNG_END), 2)
        _must(file.read() == _PNG_END, "it goes on behind its end, or is cut")
    _must(mode == "RGB", f"its mode is {mode}, not RGB")
    try:
        about = json.loads(text or "")
    except (ValueError, TypeError, RecursionError) as error:
        raise _FaultyError("it does not say what it was made from") from error
    _must(isinstance(about, dict), "it does not say what it was made from")
    _made_from(item, about, item.path.stem)


def _marker(item: Item) -> None:
    about = _json(item.path)
    _must(about.get("fault") in tuple(Fault), "it names no fault that is known")
    _made_from(item, about, item.path.name.removesuffix(".fault.json"))


def _findings(item: Item) -> None:
    faults = _json(item.path).get("faults")
    _must(isinstance(faults, dict) and all(fault in tuple(Fault) for fault in faults.values()), "it names no findings")


def _inputs(item: Item) -> None:
    inputs = _json(item.path)
    if item.parts[0] == "images":
        _must(key_of(inputs) == item.parts[1], "its folder is not the key of its inputs")
        return
    of = (inputs.get("encoder"), inputs.get("source"))
    _must(all(isinstance(one, dict) for one in of), "it names no encoder or no source")
    keys = [key_of(one) for one in of if isinstance(one, dict)]
    _must(keys == item.parts[1:3], "its folders are not the keys of its inputs")


def _towers(item: Item) -> None:
    _must({"image", "text"} <= _json(item.path).keys(), "it does not tell what the towers cost")


def _ledger(item: Item) -> None:
    for number, row in enumerate(item.path.read_bytes().splitlines(), start=1):
        try:
            Line(**json.loads(row))
        except (ValueError, TypeError, RecursionError) as error:
            raise _FaultyError(f"line {number} of it is damaged") from error


def _header(path: Path) -> tuple[dict[str, Any], list[int]]:
    """What a chunk says it holds, and the shape of its features (n, s, d)."""
    try:
        with safe_open(path, framework="np") as file:
            names, header = list(file.keys()), json.loads((file.metadata() or {})["lgclip"])
            _must(names == ["features"], f"it holds {names}, not features alone")
            part = file.get_slice("features")
            shape, kind = part.get_shape(), part.get_dtype()
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, _FaultyError):
            raise
        raise _FaultyError("its header cannot be read, or it is cut") from error
    _must(isinstance(header, dict), "its header cannot be read, or it is cut")
    schema = header.get("schema")
    _must(schema == SCHEMA, f"it is of schema {schema}, this package reads {SCHEMA}")
    ids, views = header.get("ids"), header.get("views")
    _must(_is_texts(ids) and _is_texts(views), "its ids and views are not lists of names")
    fits = kind == "F32" and len(shape) == 3 and shape[:2] == [len(ids), len(views)]
    _must(fits, f"its features are {kind} of shape {shape}, not F32 of {len(ids)} ids and {len(views)} views")
    return header, shape


def chunk_names(path: Path) -> tuple[list[str], list[str]] | None:
    """Ids and views of a chunk of features; None if it cannot be read."""
    try:
        header, _ = _header(path)
    except _FaultyError:
        return None
    return header["ids"], header["views"]


def read_inputs(path: Path) -> dict[str, Any]:
    """What an entry or a folder was made from; empty if it cannot be read. Of prompts, their `inputs`."""
    try:
        content = _json(path)
    except (_FaultyError, FileNotFoundError):
        return {}
    inputs = content if path.name == "inputs.json" else content.get("inputs")
    return inputs if isinstance(inputs, dict) else {}


def width_of(path: Path) -> int:
    """Width of the features of a chunk in which nothing is wrong."""
    return _header(path)[1][2]


def _features(item: Item) -> None:
    header, _ = _header(item.path)
    _must(key_of(header) == item.path.stem, "its name is not the key of its header")
    features = load(item.path.read_bytes())["features"]
    # Not `abs(norm - 1) > ...`, which is false for NaN.
    fine = (np.abs(np.linalg.norm(features.astype(np.float64), axis=-1) - 1) < _UNIT).all(axis=-1)
    if not fine.all():
        first = header["ids"][int(np.argmin(fine))]
        raise _FaultyError(f"features of {int((~fine).sum())} things are not of unit length, first {first}")


_LOOKS: Mapping[Kind, Callable[[Item], None]] = {
    Kind.PROMPTS: _prompts, Kind.IMAGE: _image, Kind.MARKER: _marker, Kind.FINDINGS: _findings,
    Kind.FEATURES: _features, Kind.INPUTS: _inputs, Kind.TOWERS: _towers, Kind.LEDGER: _ledger,
}  # fmt: skip
_OTHERS = {
    Kind.LEFTOVER: "a temporary file that an interrupted run left",
    Kind.LINK: "a link, which is not followed",
    Kind.FOREIGN: "nothing that belongs to a store",
}
