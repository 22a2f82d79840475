"""Whether drawn images, the markers in their places and the shards that hold them are what their names say."""

import json
import warnings
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from lgclip.batch import Prompt
from lgclip.diffuser.base import image_id
from lgclip.diffuser.faults import Fault
from lgclip.identity import digest_of
from lgclip.image_store import PNG_END
from lgclip.inventory import Item
from lgclip.shard_index import NAME, Listing, ends_well, listing_of, look, read_index, read_manifest, scan

TORN = "it is cut, or ends in the middle of a batch"
"""What is wrong with a shard whose writing was cut short, or goes on at this moment."""


class FaultyError(ValueError):
    """What is wrong with a file."""


def parsed(text: str | bytes, fault: str) -> dict[str, Any]:
    """A JSON object; `fault` is what is wrong if it is no JSON."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FaultyError(fault) from error
    must(isinstance(content, dict), "it holds no JSON object")
    return content


def must(fine: bool, fault: str) -> None:
    """Says what is wrong with a file, if something is."""
    if not fine:
        raise FaultyError(fault)


def _made_from(key: str, about: Mapping[str, Any], name: str) -> None:
    try:
        prompt = Prompt(about["class_index"], about["text"], about["repeat"])
        expected = image_id(key, prompt, about["seed"], about.get("attempt", 0))
    except (KeyError, TypeError, ValueError) as error:
        raise FaultyError("it does not say what it was made from") from error
    must(expected == name, "its name is not the key of what it says it was made from")


def look_at_image(item: Item) -> None:
    """An image in a file of its own."""
    _png(item.path.read_bytes(), item.parts[1], item.path.stem)


def _png(data: bytes, key: str, name: str) -> bytes:
    """What an image says it was made from, as it stands in it.

    Args:
        data: The file's bytes.
        key: Of what drew it.
        name: Its id.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(BytesIO(data), formats=["PNG"]) as image:
                image.verify()  # the checksums
            with Image.open(BytesIO(data), formats=["PNG"]) as image:
                image.load()  # the pixels
                mode, text = image.mode, image.info.get("lgclip")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise FaultyError("it is far too large for an image of a store") from error
    except UnidentifiedImageError as error:
        raise FaultyError("it is no PNG") from error
    except (OSError, SyntaxError, ValueError, IndexError, EOFError) as error:  # whatever Pillow says of a damaged file
        raise FaultyError("it does not decode wholly") from error
    must(data.endswith(PNG_END), "it goes on behind its end, or is cut")
    must(mode == "RGB", f"its mode is {mode}, not RGB")
    try:
        about = json.loads(text or "")
    except (ValueError, TypeError, RecursionError) as error:
        raise FaultyError("it does not say what it was made from") from error
    must(isinstance(about, dict), "it does not say what it was made from")
    _made_from(key, about, name)
    return str(text).encode()


def look_at_marker(item: Item) -> None:
    """A marker in a file of its own."""
    about = parsed(item.path.read_bytes(), "it is not JSON")
    _fault_of(about, item.parts[1], item.path.name.removesuffix(".fault.json"))


def _fault_of(about: dict[str, Any], key: str, name: str) -> None:
    must(about.get("fault") in tuple(Fault), "it names no fault that is known")
    _made_from(key, about, name)


class Inside(NamedTuple):
    """An image or a marker in a shard.

    Attributes:
        name: Its id.
        is_marker: Whether it stands in place of an image.
        data: Its bytes.
        about: What it was made from; of a marker all of it.
        fault: What is wrong with it; None for nothing.
    """

    name: str
    is_marker: bool
    data: bytes
    about: bytes
    fault: str | None


def inside(shard: Path) -> Iterator[Inside]:
    """What lies in a shard, each looked at: by its index, so that a damaged header loses nothing."""
    key = shard.parent.parent.name
    for name, is_marker, member in look(shard).members(shard):
        data, about, fault = member.read_bytes(), b"", None
        try:
            if is_marker:
                about = data
                _fault_of(parsed(data, "it is not JSON"), key, name)
            else:
                about = _png(data, key, name)
        except FaultyError as error:
            fault = str(error)
        yield Inside(name, is_marker, data, about, fault)


def look_at_shard(item: Item) -> None:
    """A shard, every image and marker in it, and what the list says of it."""
    shard = item.path
    bad = [f"{one.name}: {one.fault}" for one in inside(shard) if one.fault]
    members, end, size = scan(shard)
    for member in members:
        match = NAME.fullmatch(member.name)
        must(match is not None, f"it holds {member.name!r}, which belongs to no store")
        if match and match["kind"] == "json" and not match["fault"]:
            try:
                _made_from(item.parts[1], parsed(member.read_bytes(), "it is not JSON"), match["id"])
            except FaultyError as error:
                bad.append(f"{member.name}: {error}")
    if bad:
        raise FaultyError(f"{len(bad)} of {len(members)} files in it are faulty, first {bad[0]}")
    must(end >= look(shard).end, f"it is damaged at byte {end}")
    must(ends_well(shard, end), TORN)
    listed = read_manifest(shard.parent).get(shard.name)
    must(listed in (None, (size, digest_of(shard))), "its bytes are not those of the list of shards")


def look_at_index(item: Item) -> None:
    """The index of a shard."""
    shard = item.path.with_suffix(".tar")
    must(shard.exists(), "its shard is not there")
    listing = read_index(shard)
    found = listing_of(*scan(shard))
    # Where a header of the shard is damaged, that is said of the shard.
    must(listing is not None and (_equal(listing, found) or found.end < listing.end), "it does not fit its shard")
    assert listing is not None
    listed = read_manifest(shard.parent).get(shard.name)
    must(listing.sha256 == (listed[1] if listed else digest_of(shard)), "it tells another sum of its shard")


def _equal(one: Listing, other: Listing) -> bool:
    return all(np.array_equal(mine, its) for mine, its in zip(one[:5], other[:5], strict=True))


def look_at_list(item: Item) -> None:
    """The manifest of a folder of shards."""
    listed = read_manifest(item.path.parent)
    must(bool(listed), "it lists no shards")
    gone = [name for name in listed if not (item.path.parent / name).exists()]
    must(not gone, f"{len(gone)} shards of it are not there, first {gone[:1]}")
