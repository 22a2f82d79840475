"""Reads captions from JSON lines, and matches them to the images of a data set."""

import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lgclip.datasets.base import Dataset
from lgclip.prompts.unique_json import RepeatedNameError, parse_unique
from lgclip.runtime.regular_files import read_text
from lgclip.runtime.terminal import TURNING

_MAX_LISTED = 5


class CaptionLines(NamedTuple):
    """Holds the content of a caption file.

    Attributes:
        by_image: Captions by image id.
        by_file: Captions by the image's file, or the end of its path.
    """

    by_image: Mapping[str, str]
    by_file: Mapping[str, str]


def single_line(text: str) -> str:
    """Returns a caption ready for a prompt: one line, without control characters."""
    letters: list[str] = []
    for letter in text:
        category = unicodedata.category(letter)
        # Control characters may separate words. Half surrogate pairs ("Cs") cannot be written to a file, and marks
        # that turn the direction of writing would reorder the rest of the line.
        if category == "Cc" and letter not in TURNING:
            letters.append(" ")
        elif category != "Cs" and letter not in TURNING:
            letters.append(letter)
    return " ".join("".join(letters).split())


def read_captions(path: Path, named: str) -> CaptionLines:
    """Reads captions from a file of lines `{"image": ID or "file": PATH, "caption": TEXT}`.

    Args:
        path: The file.
        named: The user's name for it in errors, such as `llm.file`.

    Raises:
        ValueError: If the file does not exist, a line has another format, or an image has two captions.
    """
    if not path.is_file():
        raise ValueError(f"{named}={path}: no such file; it should hold a JSON object with a caption per line")
    captions: dict[str, dict[str, str]] = {"image": {}, "file": {}}
    try:
        # "utf-8-sig" drops the mark that editors on Windows put in front. Not `splitlines`, which also splits at
        # separators that JSON allows inside a string.
        lines = read_text(path, encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{named}={path}: it is not in UTF-8 ({error})") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        kind, name, caption = _entry(line, f"{named}={path}, line {number}")
        # An equal line twice is harmless, as in files that were joined.
        if captions[kind].setdefault(name, caption) != caption:
            raise ValueError(f"{named}={path}, line {number}: {name!r} has another caption further up")
    if not captions["image"] and not captions["file"]:
        raise ValueError(f"{named}={path}: it holds no captions")
    return CaptionLines(captions["image"], captions["file"])


def _entry(line: str, where: str) -> tuple[str, str, str]:
    """Returns whether a line names an image or a file, its name, and the caption."""
    try:
        entry: Any = parse_unique(line)
    except RepeatedNameError as error:
        raise ValueError(f"{where}: {error.name!r} is there twice; keep one of them") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{where}: it is not JSON") from None
    if not isinstance(entry, dict) or not isinstance(entry.get("caption"), str):
        raise ValueError(f'{where}: it is not an object with a text under "caption"')
    kind = "image" if "image" in entry else "file"
    name = entry.get(kind)
    if not isinstance(name, str) or not name:
        raise ValueError(f'{where}: it names no image; give its id under "image", or its path under "file"')
    if kind == "file":
        # Written as `_file_of` compares paths, whatever system the file comes from.
        name = name.replace("\\", "/").removeprefix("./")
    return kind, name, single_line(entry["caption"])


def match_images(lines: CaptionLines, images: Dataset, named: str) -> dict[str, str]:
    """Returns the caption of each image of a data set, by id.

    An image is found by its id, or by its file: the path as in the data set, or as much of its end as the line
    gives.

    Args:
        lines: The captions.
        images: The images.
        named: The user's name for the file in errors.

    Raises:
        ValueError: If an image has no caption, or a line matches several images.
    """
    captions: dict[str, str] = {}
    lacking: list[int] = []
    index_of_file: dict[str, int] = {}
    for index, image in enumerate(images.ids):
        if image in lines.by_image:
            captions[image] = lines.by_image[image]
            continue
        file: str | None = None
        if lines.by_file:
            file = _file_of(images.where(index), lines.by_file)
        if file is None:
            lacking.append(index)
        elif file in index_of_file:
            first = images.where(index_of_file[file])
            raise ValueError(
                f"{named}: {file!r} could be {first} or {images.where(index)}; give more of the path, or the ids"
            )
        else:
            index_of_file[file] = index
            captions[image] = lines.by_file[file]
    if lacking:
        examples = "; ".join(f"{images.where(index)} ({images.ids[index]})" for index in lacking[:_MAX_LISTED])
        if len(lacking) > _MAX_LISTED:
            examples += f"; and {len(lacking) - _MAX_LISTED} more"
        raise ValueError(
            f"{named}: {len(lacking)} of {len(images)} images of {images.name} have no caption there: {examples}; "
            "add them, use fewer by prompts_per_class, or caption them by another llm"
        )
    return captions


def _file_of(where: str, files: Mapping[str, str]) -> str | None:
    """Returns the longest suffix of a path that the lines name."""
    path = where.replace("\\", "/")
    # From the whole path to the bare file name: a line that gives more of the path is the better match, as
    # "train/001.jpg" is of two files named "001.jpg".
    while path not in files:
        _, slash, path = path.partition("/")
        if not slash:
            return None
    return path
