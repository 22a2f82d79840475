"""Formats tables for the terminal and for Markdown pages, by rich."""

import io
from collections.abc import Collection, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lgclip.runtime.terminal import single_line

WIDEST = 100_000
"""Width in characters that no table reaches, so that text which is not shown on a terminal is never wrapped."""


def build_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left_columns: int = 1,
    bold: Collection[tuple[int, int]] = (),
) -> Table:
    """Returns a table without frames.

    Cells are plain text: control characters are escaped, and rich parses no markup in them.

    Args:
        header: Names of the columns.
        rows: Cells of each row.
        left_columns: Number of left-aligned columns; the others hold numbers.
        bold: Rows and columns of the cells in bold.
    """
    # `Text` and not `str`: rich reads [bold] and :smile: in a string, and class names hold brackets.
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for place, name in enumerate(header):
        table.add_column(Text(single_line(name)), justify="left" if place < left_columns else "right", overflow="fold")
    for row_index, row in enumerate(rows):
        cells = []
        for column_index, cell in enumerate(row):
            style = "bold" if (row_index, column_index) in bold else ""
            cells.append(Text(single_line(cell), style=style))
        table.add_row(*cells)
    return table


def to_text(table: Table) -> str:
    """Turns a table into lines without styles and trailing spaces."""
    # A separate console: the real one would wrap at the terminal's width and add colors.
    console = Console(file=io.StringIO(), width=WIDEST, color_system=None)
    with console.capture() as capture:
        console.print(table, soft_wrap=False)
    return "\n".join(line.rstrip() for line in capture.get().split("\n")).strip("\n")


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], left_columns: int = 1) -> str:
    """Returns a table as plain lines.

    Args:
        header: Names of the columns.
        rows: Cells of each row.
        left_columns: Number of left-aligned columns.
    """
    return to_text(build_table(header, rows, left_columns=left_columns))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], left_columns: int = 1) -> str:
    """Returns a table as Markdown; a vertical bar in a cell is escaped.

    Args:
        header: Names of the columns.
        rows: Cells of each row.
        left_columns: Number of left-aligned columns.
    """
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    table = build_table([name.replace("|", "\\|") for name in header], escaped, left_columns=left_columns)
    table.box = box.MARKDOWN
    table.pad_edge = True
    table.padding = (0, 1)
    return to_text(table)


def print_table(table: Table) -> None:
    """Prints a table on the terminal, in its width and with styles; elsewhere as plain lines."""
    # A pipe or a file gets whole lines, so that grep and diff work.
    console = Console()
    if console.is_terminal:
        console.print(table)
        return
    print(to_text(table))
