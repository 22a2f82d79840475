"""Writes texts into CSV files such that no spreadsheet takes one for a formula, and reads them back.

A class is named by whoever made the data set: `=HYPERLINK(...)` in a cell sends data away when a spreadsheet opens the
file. The prefix is OWASP's: https://owasp.org/www-community/attacks/CSV_Injection
"""

import csv
import re
from collections.abc import Iterable
from typing import Any, Protocol

_NUMBER = re.compile(r"[+-]?(?:\d++\.?\d*+|\.\d++)(?:[eE][+-]?\d++)?|[+-]?(?:inf|nan)", re.ASCII)
_QUOTED = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]|'*[ \xa0]+[=+\-@\uff1d\uff0b\uff0d\uff20]")
"""Beginnings of a formula, also in full width and after spaces; and of a cell escaped by `escaped_cell`."""


class _Writable(Protocol):
    def write(self, text: str, /) -> object: ...


class _LineFeeds:
    """Ends rows by a line feed alone.

    The csv module quotes a cell for a line end in it only if that is the line end of the file. A carriage return
    would be written as it is, and read as the end of the row: what follows would be a cell of its own.
    """

    def __init__(self, file: _Writable) -> None:
        self._file = file

    def write(self, row: str) -> None:
        self._file.write(row.removesuffix("\r\n") + "\n")


def write_rows(file: _Writable, rows: Iterable[Iterable[Any]]) -> None:
    """Writes the rows of a table, the header among them; none of their cells is a formula.

    Args:
        file: A text file, opened with `newline=""`.
        rows: The cells of each row.
    """
    writer = csv.writer(_LineFeeds(file), lineterminator="\r\n")
    for row in rows:
        writer.writerow(map(escaped_cell, row))


def escaped_cell(value: Any) -> Any:
    """Returns a cell's value with an apostrophe before it if a spreadsheet would take it for a formula.

    Numbers stay as they are, also as texts. `original_cell` is the inverse: an apostrophe that is there already gets
    another one.

    Args:
        value: A text, or anything else, which is returned as it is.
    """
    # The first letter decides most cells; a file of predictions has millions.
    if not isinstance(value, str) or value[:1].isalnum() or _NUMBER.fullmatch(value):
        return value
    return f"'{value}" if _QUOTED.match(value) else value


def original_cell(text: str) -> str:
    """Returns the text of a cell without the apostrophe that `escaped_cell` puts before it."""
    if text.startswith("'") and _QUOTED.match(text):
        return text[1:]
    return text
