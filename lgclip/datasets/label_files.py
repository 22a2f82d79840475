"""Parses the text and JSON files that data sets store their labels in.

Damaged content raises a ValueError that names the file and, if there is one, the line.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lgclip.datasets.image_files import images_below
from lgclip.datasets.image_tree import ImageTree
from lgclip.runtime.regular_files import read_text


@dataclass
class Listing:
    """Lists the images of a split, according to a data set's files.

    Attributes:
        class_names: Name of each class in these files; empty where they have none.
        files: Path of each image, relative to the data set's folder.
        labels: Class index of each image.
    """

    class_names: Sequence[str]
    files: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

    def add(self, file: str, label: int) -> None:
        """Adds an image."""
        self.files.append(file)
        self.labels.append(label)

    def add_by_name(self, file: str, class_name: str, source: Path) -> None:
        """Adds an image of a class by its name; `source` is named in errors."""
        self.add(file, index_of(source, class_name, self.class_names))

    def add_folders(self, root: Path, folders: Sequence[str]) -> None:
        """Adds the images under `root`, which has one folder per class, in the order of the classes."""
        tree = ImageTree()
        for label, folder in enumerate(folders):
            for file in images_below(root, folder, tree):
                self.add(file, label)
        tree.report(root)


def lines(path: Path) -> list[str]:
    """Returns a text file's nonempty lines."""
    try:
        return [line for line in read_text(path).splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: it is not text in UTF-8 ({error})") from error


def list_lines(folder: Path, files: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """Yields each stripped line of some text files, and the file that it is in."""
    for file in files:
        for line in lines(folder / file):
            yield folder / file, line.strip()


def rows(path: Path, columns: int) -> list[list[str]]:
    """Splits a text file's lines at whitespace into a number of columns; the last one may contain spaces."""
    table = []
    for line_number, line in enumerate(lines(path), 1):
        # Split a limited number of times: names of aircraft hold spaces themselves.
        row = line.strip().split(" ", columns - 1)
        if len(row) != columns:
            raise ValueError(f"{path} is damaged: {' '.join(row)!r} (line {line_number}) has not {columns} columns")
        table.append(row)
    return table


def number(path: Path, text: str, most: int) -> int:
    """Parses an integer from 1 to `most`."""
    # `isdigit` alone accepts digits of other scripts and superscripts, which `int` reads or stumbles over.
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= most):
        raise ValueError(f"{path} is damaged: {text!r} found where a number from 1 to {most} should")
    return int(text)


def index_of(path: Path, name: str, names: Sequence[str]) -> int:
    """Returns the index of a class in a list."""
    if name not in names:
        raise ValueError(f"{path} is damaged: {name!r} is none of the {len(names)} classes")
    return names.index(name)


def json_of(path: Path) -> Any:
    """Reads a JSON file."""
    try:
        return json.loads(read_text(path))
    except ValueError as error:  # also what a wrong encoding raises
        raise ValueError(f"{path} is damaged: it is not JSON ({error})") from error


def coop_split(path: Path, parts: Sequence[str]) -> list[tuple[str, int]]:
    """Returns image and class index of each entry of a CoOp split file (`split_zhou_*.json`).

    Source: github.com/KaiyangZhou/CoOp, `read_split`: `{part: [[path, label, class name], ...]}`.
    """
    content = json_of(path)
    entries = []
    for part in parts:
        try:
            entries += [(str(image), int(label)) for image, label, _ in content[part]]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: it is not a CoOp split with a part {part!r} ({error!r})") from error
    return entries


def coop_folders(path: Path, parts: Sequence[str], classes: Sequence[str], problem: str) -> list[tuple[str, int]]:
    """Reads a CoOp split file whose images are in class folders, and compares its labels with these.

    Args:
        path: The file.
        parts: The parts to read.
        classes: Name of each class folder.
        problem: Error message for a file whose labels differ.
    """
    entries = coop_split(path, parts)
    for image, label in entries:
        if index_of(path, image.partition("/")[0], classes) != label:
            raise ValueError(f"{path} {problem}: {image} has the label {label}")
    return entries
