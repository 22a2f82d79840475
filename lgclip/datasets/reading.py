"""The text and JSON files that data sets state their labels in, read so that a damaged line is named."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def lines(path: Path) -> list[str]:
    """A text file's lines that are not empty.

    Raises:
        ValueError: If it is no text.
    """
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: it is no text in UTF-8 ({error})") from error


def rows(path: Path, columns: int) -> list[list[str]]:
    """A text file's lines, each cut at spaces into so many columns; the last keeps its own.

    Raises:
        ValueError: If a line has too few.
    """
    cut = [line.strip().split(" ", columns - 1) for line in lines(path)]
    for line, row in enumerate(cut, 1):
        if len(row) != columns:
            raise ValueError(f"{path} is damaged: {' '.join(row)!r} (line {line}) has not {columns} columns")
    return cut


def number(path: Path, text: str, most: int) -> int:
    """A whole number from 1 to `most`.

    Raises:
        ValueError: If it is none.
    """
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= most):
        raise ValueError(f"{path} is damaged: {text!r} stands where a number from 1 to {most} should")
    return int(text)


def index_of(path: Path, name: str, names: Sequence[str]) -> int:
    """The place of a class in a list.

    Raises:
        ValueError: If it is not in it.
    """
    if name not in names:
        raise ValueError(f"{path} is damaged: {name!r} is none of the {len(names)} classes")
    return names.index(name)


def json_of(path: Path) -> Any:
    """A JSON file's content.

    Raises:
        ValueError: If it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also what a wrong encoding raises
        raise ValueError(f"{path} is damaged: it is not JSON ({error})") from error


def coop_split(path: Path, part: str) -> list[tuple[str, int]]:
    """Image and class index of each entry of a CoOp split file (`split_zhou_*.json`).

    Source: github.com/KaiyangZhou/CoOp, `read_split`: `{part: [[path, label, class name], ...]}`.

    Raises:
        ValueError: If it is not such a file.
    """
    content = json_of(path)
    try:
        entries = [(str(image), int(label)) for image, label, _ in content[part]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: it is no CoOp split with a part {part!r} ({error!r})") from error
    return entries
