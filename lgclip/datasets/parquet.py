"""Reads parquet files in the format of the hub's data sets: images as bytes, labels, and class names in the schema."""

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from io import BytesIO
from threading import Lock
from typing import Any, NamedTuple

from PIL import Image

from lgclip.datasets.base import BadImageError
from lgclip.datasets.image_decoding import read_image
from lgclip.datasets.shard_files import ShardFile

_ROWS_PER_BLOCK = 64
"""Rows of a parquet file that are read at once where images follow each other."""


class _Group(NamedTuple):
    """Describes a row group, the smallest unit that can be read of a parquet file."""

    file: ShardFile
    number: int
    first: int  # row of the file


class Rows:
    """Provides the concatenated rows of some parquet files; one row group at a time is in memory.

    It holds no open file, so that it can be sent to the worker processes of a loader.

    Args:
        files: The files, which have the same columns.

    Raises:
        ValueError: If pyarrow is not installed, or a file is not a parquet file or has other columns.
    """

    def __init__(self, files: Sequence[ShardFile]) -> None:
        self._groups: list[_Group] = []
        self._starts: list[int] = []
        self.total = 0
        """Number of rows."""
        self.columns: dict[str, Any] = {}
        """Type of each column, by its name."""
        self.features: dict[str, Any] = {}
        """What the hub's `datasets` wrote into the schema of each column; empty if it did not write the files."""
        for file in files:
            with _opened(file, in_parts=True) as parquet:
                schema = parquet.schema_arrow
                footer = parquet.metadata
                columns = {field.name: field.type for field in schema}
                # What `datasets` leaves in the file: names of classes are there even if the card has none.
                written = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
                features = (written.get("info") or {}).get("features") or {}
                if self._groups and (columns, features) != (self.columns, self.features):
                    raise ValueError(
                        f"{file.where} has other columns or classes than {files[0].where}; they are not one data set"
                    )
                self.columns = columns
                self.features = features
                first = 0
                for number in range(footer.num_row_groups):
                    self._groups.append(_Group(file, number, first))
                    self._starts.append(self.total)
                    first += footer.row_group(number).num_rows
                    self.total += footer.row_group(number).num_rows
        self.files = tuple(files)

    def places(self) -> list[tuple[ShardFile, int]]:
        """Yields file and row of each row."""
        ends = [*self._starts[1:], self.total]
        places: list[tuple[ShardFile, int]] = []
        for group, start, end in zip(self._groups, self._starts, ends, strict=True):
            places += [(group.file, group.first + i) for i in range(end - start)]
        return places

    def values(self, column: str) -> list[Any]:
        """Returns a complete column, for small columns."""
        values: list[Any] = []
        for file in self.files:
            with _opened(file, in_parts=True) as parquet:
                values += parquet.read(columns=[column], use_threads=False).column(0).to_pylist()
        return values

    def holds_images(self, column: str) -> bool:
        """Checks whether a column's type is bytes, or a struct with bytes as on the hub."""
        kind = str(self.columns[column])
        return kind in ("binary", "large_binary") or (kind.startswith("struct<") and "bytes: " in kind)

    def image(self, column: str, row: int) -> Image.Image:
        """Returns the image in a row, decoded to RGB.

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
        """Returns the bytes of the image in a row; None if there are none."""
        value = self._value(column, row)
        # The hub's type for images is a struct of `bytes` and `path`.
        if isinstance(value, dict):
            return value.get("bytes")
        return value

    def _value(self, column: str, row: int) -> Any:
        group, inside = self._place(row)
        with _LOADING:
            column_of_group = _row_group(group.file, group.file.stamp, group.number, column)
        return column_of_group[inside].as_py()

    def where(self, row: int) -> str:
        """Returns file and row number, for messages."""
        group, inside = self._place(row)
        return f"{group.file.where}, row {group.first + inside}"

    def _place(self, row: int) -> tuple[_Group, int]:
        # Of groups without rows, which begin at the same row, the last: it is the one that holds the row.
        index = bisect_right(self._starts, row) - 1
        return self._groups[index], row - self._starts[index]


def iterate_images(file: ShardFile, label: str | None = None) -> Iterator[tuple[int, bytes | None, str]]:
    """Yields row, bytes and label of each image of a file, in blocks of rows: a row group may not fit into memory.

    Args:
        file: A parquet file; a column of the Hub's type for images counts before plain bytes.
        label: Column of the labels, which are names where the file names its classes; None for no labels.

    Raises:
        ValueError: If it cannot be read, has no column of images, or several, or lacks a label.
    """
    rows = Rows([file])
    images = [column for column in rows.columns if rows.holds_images(column)]
    typed = [column for column in images if str(rows.columns[column]).startswith("struct<")]
    columns = typed or images
    if len(columns) != 1:
        listed = ", ".join(columns) or "none"
        raise ValueError(f"{file.where}: one column must hold images, as bytes or as on the Hub; it has {listed}")
    if label is not None and label not in rows.columns:
        raise ValueError(f"{file.where}: there is no column {label!r} of labels; it has {', '.join(rows.columns)}")
    selected = [*columns, *([label] if label else [])]
    names = (rows.features.get(label) or {}).get("names") if label else None
    row = 0
    with _opened(file) as parquet:
        for batch in parquet.iter_batches(_ROWS_PER_BLOCK, columns=selected, use_threads=False):
            images = batch.column(columns[0]).to_pylist()
            labels = batch.column(label).to_pylist() if label else [""] * len(images)
            for value, stated in zip(images, labels, strict=True):
                text = _label_text(stated, names, f"{file.where}, row {row}") if label else ""
                yield row, value.get("bytes") if isinstance(value, dict) else value, text
                row += 1


def _label_text(value: object, names: Sequence[str] | None, where: str) -> str:
    """Returns the label in a row as text: its name where the file names its classes."""
    if isinstance(value, str) and value:
        return value
    # Test labels that are kept secret are -1 on the hub.
    if not isinstance(value, int) or value < 0 or (names and value >= len(names)):
        raise ValueError(f"{where}: {value!r} is no label")
    return names[value] if names else str(value)


_LOADING = Lock()  # threads that decode side by side load a group once


# Two groups, which may take hundreds of megabytes each: where a batch crosses a border, both are needed.
@lru_cache(maxsize=2)
def _row_group(file: ShardFile, stamp: str, number: int, column: str) -> Any:
    """Reads one column of a row group; `stamp` invalidates the cache when the file changes."""
    with _opened(file) as parquet:
        return parquet.read_row_group(number, columns=[column], use_threads=False).column(0)


@contextmanager
def _opened(file: ShardFile, *, in_parts: bool = False) -> Iterator[Any]:
    """Opens a parquet file without pyarrow's threads, which a forked process does not have.

    Args:
        file: The file.
        in_parts: Whether little of it is read.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError("parquet files are read with pyarrow: python -m pip install 'lgclip[hub]'") from error
    try:
        with ExitStack() as stack:
            # Arrow reads a path faster than an open file.
            content: Any = file.path
            if file.location is not None:
                content = stack.enter_context(file.open_parts() if in_parts else file.open())
            yield stack.enter_context(parquet.ParquetFile(content, pre_buffer=False))
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{file.where} cannot be read as a parquet file ({error}); download it again") from error
