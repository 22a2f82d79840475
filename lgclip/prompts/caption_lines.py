"""Captions as JSON lines: read, and found for the images of a data set."""

import json
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lgclip.datasets.base import Dataset
from lgclip.shown import TURNING

_SHOWN = 5


class CaptionLines(NamedTuple):
    """What a file holds.

    Attributes:
        by_image: Captions by image id.
        by_file: Captions by the image's file, or the end of its path.
    """

    by_image: Mapping[str, str]
    by_file: Mapping[str, str]


def one_line(text: str) -> str:
    """A caption as it goes into a prompt: one line, nothing in it that steers a terminal."""
    plain = (" " if unicodedata.category(c) == "Cc" else c for c in text if c not in TURNING)
    return " ".join("".join(c for c in plain if unicodedata.category(c) != "Cs").split())


def read_captions(path: Path, named: str) -> CaptionLines:
    """The captions in a file of lines `{"image": ID or "file": PATH, "caption": TEXT}`.

    Args:
        path: The file.
        named: What the user calls it in an error, such as `llm.file`.

    Raises:
        ValueError: If there is no such file, a line is of another kind, or an image has two captions.
    """
    if not path.is_file():
        raise ValueError(f"{named}={path}: no such file; it should hold a JSON object with a caption a line")
    found: dict[str, dict[str, str]] = {"image": {}, "file": {}}
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{named}={path}: it is not in UTF-8 ({error})") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        kind, name, caption = _entry(line, f"{named}={path}, line {number}")
        if found[kind].setdefault(name, caption) != caption:
            raise ValueError(f"{named}={path}, line {number}: {name!r} has another caption further up")
    if not found["image"] and not found["file"]:
        raise ValueError(f"{named}={path}: it holds no captions")
    return CaptionLines(found["image"], found["file"])


def _entry(line: str, where: str) -> tuple[str, str, str]:
    """Whether a line names an image or a file, its name, and the caption."""
    try:
        entry: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError(f"{where}: it is no JSON") from None
    if not isinstance(entry, dict) or not isinstance(entry.get("caption"), str):
        raise ValueError(f'{where}: it is no object with a text under "caption"')
    kind = "image" if "image" in entry else "file"
    name = entry.get(kind)
    if not isinstance(name, str) or not name:
        raise ValueError(f'{where}: it names no image; give its id under "image", or its path under "file"')
    return kind, name if kind == "image" else name.replace("\\", "/").removeprefix("./"), one_line(entry["caption"])


def found_in(lines: CaptionLines, images: Dataset, named: str) -> dict[str, str]:
    """The caption of each image of a data set, by id.

    An image is found by its id, or by its file: the path as the data set has it, or as much of its end as the line
    gives.

    Args:
        lines: The captions.
        images: The images.
        named: What the user calls the file in an error.

    Raises:
        ValueError: If an image has no caption, or a line could be of several images.
    """
    captions: dict[str, str] = {}
    lacking: list[int] = []
    taken: dict[str, int] = {}
    for at, image in enumerate(images.ids):
        if image in lines.by_image:
            captions[image] = lines.by_image[image]
            continue
        file = _file_of(images.where(at), lines.by_file) if lines.by_file else None
        if file is None:
            lacking.append(at)
        elif file in taken:
            first = images.where(taken[file])
            raise ValueError(
                f"{named}: {file!r} could be {first} or {images.where(at)}; give more of the path, or the ids"
            )
        else:
            taken[file], captions[image] = at, lines.by_file[file]
    if lacking:
        told = "; ".join(f"{images.where(at)} ({images.ids[at]})" for at in lacking[:_SHOWN])
        more = f"; and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else ""
        raise ValueError(
            f"{named}: {len(lacking)} of {len(images)} images of {images.name} have no caption there: {told}{more}; "
            "add them, use fewer by prompts_per_class, or caption them by another llm"
        )
    return captions


def _file_of(where: str, files: Mapping[str, str]) -> str | None:
    """The longest end of a path that the lines name."""
    path = where.replace("\\", "/")
    ends = (path[at + 1 :] for at, letter in enumerate(path) if letter == "/")
    return next((end for end in (path, *ends) if end in files), None)
