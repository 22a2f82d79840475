"""Turns predictions into the rows of a table: CSV, JSON lines, Parquet or a pandas frame."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lgclip.classifier.parts import ImagePrediction
from lgclip.runtime.csv_cells import write_rows
from lgclip.store.atomic import atomic_write

if TYPE_CHECKING:
    import pandas as pd

Value = str | float | bool | None
FORMATS = ("csv", "jsonl", "parquet")
_SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
_ROWS_PER_BLOCK = 10_000  # of a Parquet file, in memory at once


def prediction_rows(predictions: Iterable[ImagePrediction], top: int) -> Iterator[dict[str, Value]]:
    """Yields one row per image: path, label, score, runner-up, margin, rejected, error; the `top` classes if several.

    Args:
        predictions: The predictions.
        top: Number of classes with columns of their own; 1 adds none.
    """
    for prediction in predictions:
        row: dict[str, Value] = {
            "path": prediction.path,
            "label": prediction.label,
            "score": prediction.score,
            "runner_up": prediction.runner_up,
            "margin": prediction.margin,
            "rejected": prediction.rejected,
            "error": prediction.error,
        }
        for rank in range(top if top > 1 else 0):
            label, score = prediction.top[rank] if rank < len(prediction.top) else (None, None)
            row[f"label_{rank + 1}"] = label
            row[f"score_{rank + 1}"] = score
        yield row


def table_columns(top: int) -> list[str]:
    """Returns the columns of the table, which are the same with and without images."""
    empty = ImagePrediction("", None, None, None, None)
    return list(next(prediction_rows([empty], top)))


def predictions_frame(predictions: Iterable[ImagePrediction], top: int) -> "pd.DataFrame":
    """Returns the table as a pandas frame.

    Raises:
        ValueError: If pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise ValueError("a frame needs pandas: install lgclip[report]") from error
    return pd.DataFrame(list(prediction_rows(predictions, top)), columns=pd.Index(table_columns(top)))


def format_of(out: Path | None, chosen: str | None) -> str:
    """Returns the format of a table: the chosen one, or that of the file's name.

    Raises:
        ValueError: If it is unknown, or Parquet without its package.
    """
    table_format = chosen
    if table_format is None:
        table_format = "csv" if out is None else _SUFFIXES.get(out.suffix.lower())
    if table_format not in FORMATS:
        raise ValueError(f"{out}: name a file with {', '.join(_SUFFIXES)}, or choose --format {'|'.join(FORMATS)}")
    if table_format == "parquet":
        _pyarrow()
    return table_format


def write_table(
    path: Path, rows: Iterable[Mapping[str, Any]], table_format: str, top: int, more: Sequence[str] = ()
) -> None:
    """Writes a table atomically, row by row: it needs the memory of a few thousand rows.

    Args:
        path: The file.
        rows: The rows, from `prediction_rows`.
        table_format: One of `FORMATS`.
        top: Number of classes with columns of their own.
        more: Further columns.

    Raises:
        WriteError: If the system refuses it.
    """
    columns = [*table_columns(top), *more]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        if table_format == "parquet":
            _write_parquet(temporary, rows, columns)
            return
        with temporary.open("w", newline="", encoding="utf-8") as file:
            if table_format == "jsonl":
                file.writelines(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)
                return
            write_rows(file, [columns])
            write_rows(file, ([_cell(row[column]) for column in columns] for row in rows))


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6f}" if isinstance(value, float) else value


def _write_parquet(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    pa, parquet = _pyarrow()
    is_number = {column: column == "margin" or column.startswith("score") for column in columns}
    types = [(column, pa.float64() if is_number[column] else pa.string()) for column in columns]
    types = [(column, pa.bool_() if column == "rejected" else kind) for column, kind in types]
    remaining = iter(rows)
    with parquet.ParquetWriter(path, pa.schema(types)) as writer:
        while block := [dict(row) for row in islice(remaining, _ROWS_PER_BLOCK)]:
            writer.write_table(pa.Table.from_pylist(block, schema=pa.schema(types)))


def _pyarrow() -> tuple[Any, Any]:
    """Returns pyarrow and its Parquet module.

    Raises:
        ValueError: If they are not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError("a Parquet file needs pyarrow: install lgclip[hub]") from error
    return pyarrow, pyarrow.parquet
