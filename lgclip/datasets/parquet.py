"""Parquet files as data sets of the hub have them: images as bytes, labels, and the class names in the schema."""

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from PIL import Image

from lgclip.datasets.base import BadImageError
from lgclip.datasets.files import read_image


class _Group(NamedTuple):
    """A row group, the least that can be read of a parquet file."""

    file: Path
    number: int
    first: int  # row of the file


class Rows:
    """The rows of some parquet files, one file after the other; a row group at a time is in memory.

    It holds no open file, so it may be sent to the worker processes of a loader.

    Args:
        files: The files, which have the same columns.

    Raises:
        ValueError: If pyarrow is not installed, or a file is no parquet file or has other columns.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._groups: list[_Group] = []
        self._starts: list[int] = []
        self.total = 0
        """Number of rows."""
        self.columns: dict[str, Any] = {}
        """Type of each column, by its name."""
        self.features: dict[str, Any] = {}
        """What the hub's `datasets` wrote into the schema of each column; empty if it did not write the files."""
        for file in files:
            with _opened(file) as parquet:
                schema, footer = parquet.schema_arrow, parquet.metadata
                columns = {field.name: field.type for field in schema}
                written = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
                features = (written.get("info") or {}).get("features") or {}
                if self._groups and (columns, features) != (self.columns, self.features):
                    raise ValueError(f"{file} has other columns or classes than {files[0]}; they are no one data set")
                self.columns, self.features, first = columns, features, 0
                for number in range(footer.num_row_groups):
                    self._groups.append(_Group(file, number, first))
                    self._starts.append(self.total)
                    first += footer.row_group(number).num_rows
                    self.total += footer.row_group(number).num_rows
        self.files = tuple(files)

    def places(self) -> list[tuple[Path, int]]:
        """File and row of each row."""
        ends = [*self._starts[1:], self.total]
        spans = zip(self._groups, self._starts, ends, strict=True)
        return [(group.file, group.first + i) for group, start, end in spans for i in range(end - start)]

    def values(self, column: str) -> list[Any]:
        """A whole column, for columns that are small."""
        found: list[Any] = []
        for file in self.files:
            with _opened(file) as parquet:
                found += parquet.read(columns=[column], use_threads=False).column(0).to_pylist()
        return found

    def holds_images(self, column: str) -> bool:
        """Whether a column's type is bytes, or a struct with bytes as the hub has them."""
        kind = str(self.columns[column])
        return kind in ("binary", "large_binary") or (kind.startswith("struct<") and "bytes: " in kind)

    def image(self, column: str, row: int) -> Image.Image:
        """The image in a row, decoded to RGB.

        Raises:
            BadImageError: If there is none, or it cannot be decoded.
            ValueError: If the file cannot be read.
        """
        content = self.content(column, row)
        if not content:
            reason = f"column {column!r} holds no bytes, only {self._value(column, row)!r}: the image lies elsewhere"
            raise BadImageError(self.where(row), reason)
        return read_image(BytesIO(content), self.where(row))

    def content(self, column: str, row: int) -> bytes | None:
        """The bytes of the image in a row; None if there are none."""
        value = self._value(column, row)
        return value.get("bytes") if isinstance(value, dict) else value

    def _value(self, column: str, row: int) -> Any:
        group, inside = self._place(row)
        stat = group.file.stat()
        with _LOADING:
            column_of_group = _row_group(group.file, (stat.st_size, stat.st_mtime_ns), group.number, column)
        return column_of_group[inside].as_py()

    def where(self, row: int) -> str:
        """File and row in it, for the eye."""
        group, inside = self._place(row)
        return f"{group.file}, row {group.first + inside}"

    def _place(self, row: int) -> tuple[_Group, int]:
        at = bisect_right(self._starts, row) - 1
        return self._groups[at], row - self._starts[at]


_LOADING = Lock()  # threads that decode side by side load a group once


@lru_cache(maxsize=2)
def _row_group(file: Path, stamp: tuple[int, int], number: int, column: str) -> Any:
    """One column of a row group; `stamp` makes a changed file be read again."""
    with _opened(file) as parquet:
        return parquet.read_row_group(number, columns=[column], use_threads=False).column(0)


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """An open parquet file; pyarrow's threads, which a forked process has not, are not used."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError("parquet files are read with pyarrow: python -m pip install 'lgclip[hub]'") from error
    try:
        with parquet.ParquetFile(file, pre_buffer=False) as opened:
            yield opened
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{file} cannot be read as a parquet file ({error}); get it again") from error
