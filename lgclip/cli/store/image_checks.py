"""Checks synthetic images, fault markers and shards against their names."""

import json
import warnings
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from lgclip.cli.store.inventory import Item
from lgclip.diffuser.base import image_id
from lgclip.store.image_codec import FORMATS, read_metadata
from lgclip.store.keys import digest_of
from lgclip.store.shard_index import (
    NAME,
    Listing,
    is_properly_closed,
    listing_of,
    read_index,
    read_listing,
    read_manifest,
    scan,
)
from lgclip.types import Fault, Prompt, TargetClass

TORN = "it is cut, or ends in the middle of a batch"
"""Fault of a shard whose writing was interrupted, or is still in progress."""


class FaultyError(ValueError):
    """Reports what is wrong with a file."""


def parsed(text: str | bytes, fault: str) -> dict[str, Any]:
    """Parses a JSON object; `fault` is the message if it is not JSON."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FaultyError(fault) from error
    must(isinstance(content, dict), "it holds no JSON object")
    return content


def must(fine: bool, fault: str) -> None:
    """Raises an error with what is wrong with a file, if something is."""
    if not fine:
        raise FaultyError(fault)


def _check_origin(key: str, about: Mapping[str, Any], name: str) -> None:
    try:
        # No key holds the index of a class in its list, so any will do here.
        target_class = TargetClass(0, about["class"], occurrence=about["occurrence"])
        prompt = Prompt(target_class, about["text"], about["repeat"])
        expected = image_id(key, prompt, about["seed"], about["attempt"])
    except (KeyError, TypeError, ValueError) as error:
        raise FaultyError("it does not say what it was made from") from error
    must(expected == name, "its name is not the key of what it says it was made from")


def check_image(item: Item) -> None:
    """Checks an image in its own file."""
    _checked(item.path.read_bytes(), item.parts[1], item.path.name)


def _checked(data: bytes, key: str, file_name: str) -> bytes:
    """Checks an image, and reads its inputs from it.

    Args:
        data: The file's bytes.
        key: Key of its diffuser.
        file_name: Its id, with the suffix of its format.
    """
    name, dot, suffix = file_name.partition(".")
    file_format = next(file_format for file_format in FORMATS if file_format.suffix == dot + suffix)
    try:
        # An image of many megapixels needs gigabytes when it is decoded. Pillow only warns of it, and of twice as many
        # it raises; both are faults here.
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # Opened twice, since an image cannot be used after `verify`.
            with Image.open(BytesIO(data), formats=[file_format.name]) as image:
                image.verify()  # the checksums of a PNG; a JPEG has none
            with Image.open(BytesIO(data), formats=[file_format.name]) as image:
                image.load()  # the pixels
                mode = image.mode
                text = read_metadata(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise FaultyError("it is far too large for an image of a store") from error
    except UnidentifiedImageError as error:
        raise FaultyError(f"it is not a {file_format.name}") from error
    except (OSError, SyntaxError, ValueError, IndexError, EOFError) as error:  # Pillow's errors on damaged files
        raise FaultyError("it cannot be decoded completely") from error
    must(data.endswith(file_format.end), "it goes on behind its end, or is cut")
    must(mode == "RGB", f"its mode is {mode}, not RGB")
    try:
        about = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FaultyError("it does not say what it was made from") from error
    must(isinstance(about, dict), "it does not say what it was made from")
    _check_origin(key, about, name)
    return text.encode()


def check_marker(item: Item) -> None:
    """Checks a marker in its own file."""
    about = parsed(item.path.read_bytes(), "it is not JSON")
    _fault_of(about, item.parts[1], item.path.name.removesuffix(".fault.json"))


def _fault_of(about: dict[str, Any], key: str, name: str) -> None:
    must(about.get("fault") in tuple(Fault), "it names no fault that is known")
    _check_origin(key, about, name)


class Inside(NamedTuple):
    """Holds an image or a marker in a shard.

    Attributes:
        name: Its id.
        is_marker: Whether it is a marker in place of an image.
        data: Its bytes.
        about: Its inputs; for a marker all of its content.
        fault: Its fault; None if it has none.
    """

    name: str
    is_marker: bool
    data: bytes
    about: bytes
    fault: str | None


def inside(shard: Path) -> Iterator[Inside]:
    """Yields the checked content of a shard: located by its index, so that a damaged header loses nothing."""
    key = shard.parent.parent.name
    for name, is_marker, member in read_listing(shard).members(shard):
        # A fault is a value and no exception: one faulty image must not hide the others, which can be rescued.
        data = member.read_bytes()
        about = b""
        fault = None
        try:
            if is_marker:
                about = data
                _fault_of(parsed(data, "it is not JSON"), key, name)
            else:
                about = _checked(data, key, member.name)
        except FaultyError as error:
            fault = str(error)
        yield Inside(name, is_marker, data, about, fault)


def check_shard(item: Item) -> None:
    """Checks a shard, every image and marker in it, and its entry in the manifest."""
    shard = item.path
    bad = [f"{member.name}: {member.fault}" for member in inside(shard) if member.fault]
    # `inside` goes by the index. The headers of the tar file are read as well, because other programs go by them.
    members, end, size = scan(shard)
    for member in members:
        match = NAME.fullmatch(member.name)
        must(match is not None, f"it holds {member.name!r}, which belongs to no store")
        if match and match["kind"] == "json" and not match["fault"]:
            try:
                _check_origin(item.parts[1], parsed(member.read_bytes(), "it is not JSON"), match["id"])
            except FaultyError as error:
                bad.append(f"{member.name}: {error}")
    if bad:
        raise FaultyError(f"{len(bad)} of {len(members)} files in it are faulty, first {bad[0]}")
    must(end >= read_listing(shard).end, f"it is damaged at byte {end}")
    must(is_properly_closed(shard, end), TORN)
    listed = read_manifest(shard.parent).get(shard.name)
    must(listed in (None, (size, digest_of(shard))), "its bytes are not those of the list of shards")


def check_index(item: Item) -> None:
    """Checks the index of a shard."""
    shard = item.path.with_suffix(".tar")
    must(shard.exists(), "its shard is not there")
    listing = read_index(shard)
    actual = listing_of(*scan(shard))
    # Where a header of the shard is damaged, that is a fault of the shard.
    must(listing is not None and (_equal(listing, actual) or actual.end < listing.end), "it does not fit its shard")
    assert listing is not None
    listed = read_manifest(shard.parent).get(shard.name)
    # The list has the sum already; computing it would read a gigabyte again.
    expected = listed[1] if listed else digest_of(shard)
    must(listing.sha256 == expected, "it tells another sum of its shard")


def _equal(first: Listing, second: Listing) -> bool:
    return all(np.array_equal(mine, its) for mine, its in zip(first[:-1], second[:-1], strict=True))


def check_list(item: Item) -> None:
    """Checks the manifest of a folder of shards."""
    listed = read_manifest(item.path.parent)
    must(bool(listed), "it lists no shards")
    missing = [name for name in listed if not (item.path.parent / name).exists()]
    must(not missing, f"{len(missing)} shards of it are not there, first {missing[:1]}")
