"""Reads the prompts of a table: Markdown, or CSV with or without a header."""

import csv
import re
from collections.abc import Sequence
from typing import NamedTuple

_SEPARATOR = re.compile(r"[|+:=\-\s]+")
_CELL_BOUND = re.compile(r"(?<!\\)\|")
_TEXT_COLUMNS = ("prompt", "description", "caption", "sentence", "text", "content")
_COLUMNS = frozenset(
    ("id", "no", "no.", "nr", "nr.", "n", "#", "number", "index", "idx", "", "class", "name", "label", "category",
     "view", "angle", "viewpoint", "setting", "style", "light", "lighting", "type", "notes", "image", "scene", "key")
)  # fmt: skip
_NUMBERED = re.compile(r"\d{1,3}$")


class Table(NamedTuple):
    """Holds the prompts of a table.

    Attributes:
        texts: One cell of each row.
        remarks: Lines outside the table.
    """

    texts: Sequence[str]
    remarks: Sequence[str]


def read_table(lines: Sequence[str]) -> Table | None:
    """Returns the prompts of a Markdown table; None if the lines hold none."""
    has_separator = any(_is_separator(line) for line in lines)
    is_row = [_is_row(line, needs_edges=not has_separator) for line in lines]
    if sum(is_row) < 2 or not (has_separator or sum(is_row) > 2 or all(is_row)):
        return None
    rows: list[list[str]] = []
    remarks: list[str] = []
    header: list[str] | None = None
    has_top_edge = False
    for line, row in zip(lines, is_row, strict=True):
        if _is_separator(line):
            # The row above the first separator names the columns; in a table with a top edge it is the second one.
            if not rows:
                has_top_edge = True
            elif len(rows) == 1 and header is None and not has_top_edge:
                header = rows.pop()
        elif row:
            rows.append(_cells(line))
        elif line.strip():
            remarks.append(line.strip())
    if rows and header is None and _names_columns(rows[0]):
        header = rows.pop(0)
    if not rows:
        return None
    column = _text_column(header, rows)
    return Table([row[column] for row in rows if len(row) > column and row[column]], remarks)


def read_csv(lines: Sequence[str]) -> Table | None:
    """Returns the prompts of comma-, semicolon- or tab-separated values; None if the lines are no such table."""
    lines = [line.strip(" ") for line in lines if line.strip()]
    if not lines:
        return None
    for delimiter in (",", ";", "\t"):
        if delimiter not in lines[-1] and delimiter not in lines[0]:
            continue
        try:
            rows = list(csv.reader(lines, delimiter=delimiter, skipinitialspace=True))
        except csv.Error:
            continue
        table = _csv_table(lines, [row for row in rows if any(row)], delimiter)
        if table is not None:
            return table
    return None


def _csv_table(lines: Sequence[str], rows: list[list[str]], delimiter: str) -> Table | None:
    if len(rows) > 1 and _names_columns(rows[0]) and len(rows[0]) > 1:
        header = rows[0]
        column = _text_column(header, rows[1:])
        return Table(_column_texts(rows[1:], column, len(header), delimiter), [])
    numbers = [row[0].strip() for row in rows]
    if len(rows) > 1 and _counts_up(numbers) and all(len(row) > 1 for row in rows):
        return Table(_column_texts(rows, 1, 2, delimiter), [])
    # Quoted values: a row of prompts, or rows of which some columns are prompts.
    widths = {len(row) for row in rows}
    if widths == {1} or len(widths) != 1 or not all(line[:1] == '"' for line in lines):
        return None
    if len(rows) == 1:
        return Table([cell for cell in rows[0] if cell], [])
    column = _text_column(None, rows)
    return Table([row[column] for row in rows], [])


def _column_texts(rows: Sequence[Sequence[str]], column: int, width: int, delimiter: str) -> list[str]:
    """Returns a column; in the last one, a text without quotes may contain the delimiter."""
    texts: list[str] = []
    for row in rows:
        if column == width - 1:
            texts.append(f"{delimiter} ".join(cell.strip() for cell in row[column:]))
        elif len(row) > column:
            texts.append(row[column])
    return [text for text in texts if text]


def _counts_up(numbers: Sequence[str]) -> bool:
    if not all(_NUMBERED.fullmatch(number) for number in numbers):
        return False
    first = int(numbers[0])
    return [int(number) for number in numbers] == list(range(first, first + len(numbers)))


def _is_separator(line: str) -> bool:
    return "-" in line and ("|" in line or "+" in line) and bool(_SEPARATOR.fullmatch(line))


def _is_row(line: str, *, needs_edges: bool) -> bool:
    line = line.strip()
    if needs_edges:
        return line.startswith("|") and line.endswith("|") and line.count("|") > 2
    return "|" in line and not _is_separator(line)


def _cells(line: str) -> list[str]:
    line = line.strip().removeprefix("|").removesuffix("|")
    return [cell.strip().replace("\\|", "|") for cell in _CELL_BOUND.split(line)]


def _is_text_column(cell: str) -> bool:
    words = re.findall(r"[a-z]+", cell.lower())
    return len(words) <= 4 and any(word.removesuffix("s") in _TEXT_COLUMNS for word in words)


def _names_columns(cells: Sequence[str]) -> bool:
    """Checks whether a row names columns, of which one holds prompts."""
    is_column = [cell.strip().strip('"*').lower() in _COLUMNS or _is_text_column(cell) for cell in cells]
    return all(is_column) and any(_is_text_column(cell) for cell in cells)


def _text_column(header: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> int:
    """Returns the column of the prompts: by its name, or the one with the longest texts."""
    if header is not None:
        named = [place for place, cell in enumerate(header) if _is_text_column(cell)]
        if named:
            return named[0]
    width = max(len(row) for row in rows)
    lengths = [sum(len(row[place]) for row in rows if len(row) > place) for place in range(width)]
    return lengths.index(max(lengths))
