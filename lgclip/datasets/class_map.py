"""Assigns class names to folders, and refuses where it is open which name belongs to which folder."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from lgclip.runtime.regular_files import read_text

_DIGITS = re.compile(r"([0-9]+)")
_NUMBERED = re.compile(r"([0-9]+)(?:[-_. ]+(.*))?", re.DOTALL)
_SHOWN = 12  # lines of a map in an error


def plain(name: str) -> str:
    """Returns a normal form of a name for comparison: lower case, with one space for any other characters."""
    return " ".join(re.sub(r"[\W_]+", " ", name.casefold()).split())


def split_number(name: str) -> tuple[int | None, str]:
    """Splits a folder's name into its leading number and the normal form of the rest."""
    match = _NUMBERED.fullmatch(name)
    if not match or len(match[1]) > 18:
        return None, plain(name)
    return int(match[1]), plain(match[2] or "")


def sort_folders(names: Sequence[str]) -> list[str]:
    """Returns the names of class folders in the order of the class indices: as numbers if all are, else as text.

    Raises:
        ValueError: If two names are the same number.
    """
    if not _are_numbers(names):
        return sorted(names)
    ordered = sorted(names, key=_natural)
    for first, second in pairwise(ordered):
        if first.lstrip("0") == second.lstrip("0"):
            raise ValueError(f"the folders {first} and {second} are the same number; rename one")
    return ordered


def assign_names(
    folders: Sequence[str], path: Path, choice: str, *, noun: str = "folders", sorted_by_name: bool = True
) -> list[str]:
    """Reads the class name of each folder from a text file.

    Args:
        folders: Names of the folders, in the order of the class indices.
        path: The file: a name per line in that order, or `FOLDER<TAB>NAME` per line in any order.
        choice: The user's name for the file.
        noun: Noun for the named items, for error messages.
        sorted_by_name: Whether the folders are in the order of their names; else the data set defines their order.

    Raises:
        ValueError: If the file is not text, does not match the folders, or leaves open which name is whose.
    """
    names = read_names(path, choice)
    if isinstance(names, Mapping):
        lacking = [folder for folder in folders if folder not in names]
        unknown = sorted(names.keys() - set(folders))
        if lacking or unknown:
            raise ValueError(
                f"dataset.names={choice} names {len(names)} {noun}: no line for {lacking[:6]}, "
                f"and lines for {unknown[:6]}, which are not there"
            )
        return [names[folder] for folder in folders]
    if len(names) != len(folders):
        raise ValueError(f"dataset.names={choice} holds {len(names)} names for {len(folders)} {noun}")
    if sorted_by_name and not _are_numbers(folders) and sorted(folders, key=_natural) != sorted(folders):
        raise ValueError(
            f"dataset.names={choice}: folders such as {_out_of_order(folders)} have one order as text and another as "
            f"numbers, so that it is open which name is whose. State it as FOLDER<TAB>NAME, one per line; by number it "
            f"would be:\n{_map_text(sorted(folders, key=_natural), names)}"
        )
    # A list in the package or by class index may well name a class as another folder is called by accident.
    conflict = _contradiction(folders, names)
    if conflict:
        raise ValueError(
            f"dataset.names={choice}: {conflict}. The names are in another order than the {noun}. If they are not, "
            f"state it as FOLDER<TAB>NAME, one per line; the map would be:\n{_map_text(folders, names)}"
        )
    return names


def read_names(path: Path, choice: str) -> list[str] | dict[str, str]:
    """Reads class names from a text file: one per line, or `FOLDER<TAB>NAME` per line.

    Raises:
        ValueError: If it is not text, mixes both forms or names a folder twice.
    """
    try:
        lines = read_text(path, encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"dataset.names={choice} is not text in UTF-8 ({error})") from error
    with_tab = ["\t" in line.strip() for line in lines]
    if not any(with_tab):
        return lines
    names: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        folder, tab, name = line.partition("\t")
        if not tab:
            raise ValueError(f"dataset.names={choice}, line {number}: no tab, as other lines have: FOLDER<TAB>NAME")
        if folder in names:
            raise ValueError(f"dataset.names={choice}, line {number}: {folder} has a name already, {names[folder]!r}")
        names[folder] = name
    return names


def _are_numbers(names: Sequence[str]) -> bool:
    return all(name.isascii() and name.isdigit() for name in names)


def _natural(name: str) -> list[tuple[int, str, str]]:
    """Returns a sort key in which numbers inside a name count as numbers."""
    key: list[tuple[int, str, str]] = []
    for part in _DIGITS.split(name):
        digits = part.lstrip("0") if part.isdigit() and part.isascii() else ""
        # Not by `int`, which refuses a number of thousands of digits. Text has length 0, so it compares as text.
        key.append((len(digits), digits, part))
    return key


def _out_of_order(folders: Sequence[str]) -> str:
    text = sorted(folders)
    natural = sorted(folders, key=_natural)
    index = next(index for index in range(len(text)) if text[index] != natural[index])
    return f"{text[index]} and {natural[index]}"


def _contradiction(folders: Sequence[str], names: Sequence[str]) -> str:
    """Describes a folder that is called as another folder's class is named; empty if there is none."""
    owners = {plain(name): folder for folder, name in zip(folders, names, strict=True)}
    for folder, name in zip(folders, names, strict=True):
        spellings = {plain(folder), split_number(folder)[1]} - {""}
        if plain(name) in spellings:
            continue
        for spelling in spellings:
            if spelling in owners:
                return f"folder {folder} would be named {name!r}, and its own name goes to folder {owners[spelling]}"
    return ""


def _map_text(folders: Sequence[str], names: Sequence[str]) -> str:
    lines = [f"{folder}\t{name}" for folder, name in zip(folders, names, strict=True)]
    if len(lines) > _SHOWN:
        lines = [*lines[:_SHOWN], f"... {len(lines) - _SHOWN} more"]
    return "\n".join(lines)
